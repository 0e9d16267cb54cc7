"""From a checked configuration to a study: of texts, of a classification task, of a recording, of checkpoints."""
