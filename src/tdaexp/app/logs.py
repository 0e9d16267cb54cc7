"""How messages look on the console and in run.log."""

from __future__ import annotations

import logging
import re

from tdaexp.runtime.secrets import masked


class Plain(logging.Formatter):
    """Writes records without secrets, those of libraries and tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record's message."""
        return masked(super().format(record))


class AsTyped(Plain):
    """Shows overrides as they were typed, without the `++` that lets keys in for the schema to judge."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record's message."""
        return re.sub(r"(^|\s)\+\+(?=[\w.@/]+=)", r"\1", super().format(record))
