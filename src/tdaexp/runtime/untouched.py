"""Working inside somebody's program: its global state is found as the commands have it, and left as it was."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from tdaexp.runtime.stop import SIGNALS


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Run the block with gradients on, float32 as the default type and no autocast; put everything back after it.

    That is: the generators of random, numpy and torch, torch's default type, threads and deterministic flags, the
    verbosity of transformers, the log's handlers and levels, the handlers of signals, filters of warnings, and the
    environment; after an error too.
    """
    back = [state() for state in (_random, _torch, _transformers, _logs, _signals, _environment)]
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    try:
        with contextlib.ExitStack() as inside:
            inside.enter_context(warnings.catch_warnings())
            inside.enter_context(torch.inference_mode(False))
            inside.enter_context(torch.enable_grad())
            for kind in kinds:
                inside.enter_context(torch.autocast(kind, enabled=False))
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        for restore in back:
            restore()


def _random() -> Callable[[], None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)

    return restore


def _torch() -> Callable[[], None]:
    kind, threads, precision = torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    exact, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn: Any = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark

    def restore() -> None:
        torch.set_default_dtype(kind)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(exact, warn_only=warn)
        cudnn.deterministic, cudnn.benchmark = flags

    return restore


def _transformers() -> Callable[[], None]:
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()

    def restore() -> None:
        transformers_logging.set_verbosity(verbosity)
        change: Any = transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar
        change()

    return restore


def _logs() -> Callable[[], None]:
    mine = [logging.getLogger(), logging.getLogger("tdaexp")]
    states = [(one, one.handlers[:], one.level, one.propagate) for one in mine]

    def restore() -> None:
        for one, handlers, level, propagate in states:
            one.handlers[:], one.propagate = handlers, propagate
            one.setLevel(level)

    return restore


def _signals() -> Callable[[], None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # nobody can have changed them from here
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)

    return restore


def _environment() -> Callable[[], None]:
    before = dict(os.environ)

    def restore() -> None:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})

    return restore
