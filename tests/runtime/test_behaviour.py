"""Functions and classes by what they do: another constant, closure, global or helper is another identity."""

from __future__ import annotations

import functools
import threading

import numpy as np
import torch
from torch import nn

from tdaexp.runtime.behaviour import behaviour, structure, tensors


def made(text: str, **known):
    """What a cell of a notebook defines as `f`."""
    names = {"__name__": "__main__", **known}
    exec(text, names)
    return names["f"]


TWICE = "def f(x):\n    return 2 * x"


def test_the_same_text_is_the_same_and_a_comment_changes_nothing():
    assert behaviour(made(TWICE)) == behaviour(made(TWICE))
    assert behaviour(made("def f(x):\n    # doubled\n    return 2 * x")) == behaviour(made(TWICE))


def test_whatever_changes_the_result_changes_the_identity():
    closure = "def outer(k):\n    def f(x):\n        return k * x\n    return f\nf = outer({})"
    helper = "def g(x):\n    return x + {}\ndef f(x):\n    return g(x)"
    cls = "class T:\n    k = 1\n    def __call__(self, x):\n        return {} * self.k\nf = T()\nf.k = {}"
    seen = [
        made(TWICE),
        made("def f(x):\n    return 3 * x"),
        made("def f(x, k=2):\n    return k * x"),
        made("def f(x, k=3):\n    return k * x"),
        *(made(closure.format(k)) for k in (2, 3)),
        *(made(helper.format(k)) for k in (2, 3)),
        *(
            made("def f(x):\n    return scale * x", scale=k)
            for k in (2, 3, torch.ones(2), torch.zeros(2), np.arange(3))
        ),
        *(functools.partial(made("def f(x, k):\n    return k * x"), k=k) for k in (2, 3)),
        *(made(cls.format(k, j)) for k in (2, 3) for j in (2, 3)),
    ]
    assert len({behaviour(one) for one in seen}) == len(seen)


def test_what_cannot_be_told_is_never_taken_for_the_same():
    def locked(x, lock=threading.Lock()):  # noqa: B008
        return x

    assert behaviour(locked) != behaviour(locked)


def test_recursion_ends():
    assert behaviour(made("def f(x):\n    return f(x - 1) if x else 0"))
    loop: list[object] = []
    loop.append(loop)
    assert behaviour(loop)


def test_a_module_counts_with_plain_attributes_and_unsaved_buffers():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=0.1))
    module.register_buffer("mask", torch.ones(2), persistent=False)
    seen = [(structure(module), tensors(module))]
    module[1].eps = 1e-3
    seen.append((structure(module), tensors(module)))
    module.mask[0] = 0
    seen.append((structure(module), tensors(module)))
    module[0].forward = lambda x: x
    seen.append((structure(module), tensors(module)))
    assert all(one != two for k, one in enumerate(seen) for two in seen[:k])
    module.eval()
    assert (structure(module), tensors(module)) == seen[-1]
    assert tensors(module.to(torch.bfloat16))["0.weight"] != seen[-1][1]["0.weight"]
