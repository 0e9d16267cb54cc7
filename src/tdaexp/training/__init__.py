"""Train a model on the examples, step by step, so that every step can be replayed."""
