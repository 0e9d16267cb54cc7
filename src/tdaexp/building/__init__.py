"""From a checked configuration to a problem: of texts, of a classification task, of a recording, of checkpoints."""
