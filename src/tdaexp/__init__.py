"""Training-data attribution experiments: examples, components and training steps behind a model's behaviour."""

__version__ = "0.1.0"
