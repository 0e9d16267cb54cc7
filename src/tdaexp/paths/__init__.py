"""A decomposition over a recorded training."""
