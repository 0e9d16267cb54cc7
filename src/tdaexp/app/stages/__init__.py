"""What the three commands do, as plain functions; nothing here knows Hydra."""

from tdaexp.app.stages.commands import attribute, evaluate, train

__all__ = ["attribute", "evaluate", "train"]
