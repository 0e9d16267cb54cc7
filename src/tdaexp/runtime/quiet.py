"""Holding back what other libraries tell their own users."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*libraries: str, level: int = logging.ERROR) -> Iterator[None]:
    """Let the loggers of `libraries` pass errors only (or what is above `level`), for a while."""
    loggers = [logging.getLogger(name) for name in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)


@contextlib.contextmanager
def unheard_warnings() -> Iterator[None]:
    """For the length of a block torch does not tell that its thread for backward passes began with a matrix product."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA context")
        yield
