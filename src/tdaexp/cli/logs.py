"""How Hydra's own messages look on the console."""

from __future__ import annotations

import logging
import re


class AsTyped(logging.Formatter):
    """Shows overrides as they were typed, without the `++` that lets keys in for the schema to judge."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record's message."""
        return re.sub(r"(^|\s)\+\+(?=[\w.@/]+=)", r"\1", super().format(record))
