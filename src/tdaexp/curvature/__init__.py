"""Curvature of the training loss: products with it, factors of it, and its damped inverse."""
