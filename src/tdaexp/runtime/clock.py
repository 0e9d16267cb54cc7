"""Seconds by stage of a run."""

from __future__ import annotations

import time


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        """Start now."""
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stop(self, stage: str) -> None:
        """Charge the time since the last stop to `stage`."""
        now = time.monotonic()
        self.seconds[stage], self._last = now - self._last, now
