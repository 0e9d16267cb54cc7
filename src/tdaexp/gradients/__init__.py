"""Per-example gradients by component: captured, multiplied, projected, never stored whole."""
