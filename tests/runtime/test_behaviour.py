"""Functions and classes by what they do: another constant, closure, global or helper is another identity."""

from __future__ import annotations

import collections
import functools
import importlib
import sys
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn

from tdaexp.runtime import installed
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


class Recorder:
    """Keeps what a module gave, by a hook that is a method of its own."""

    def __init__(self, module: nn.Module, factor: float = 1.0) -> None:
        self.module, self.factor = module, factor
        module.register_forward_hook(self.seen)

    def seen(self, layer, args, output):
        return self.factor * output


def referring(how: str, factor: float) -> nn.Module:
    """A module that something in it refers back to."""
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    if how == "recorder":
        Recorder(module[0], factor)
    elif how == "method":
        module[0].forward = types.MethodType(lambda self, x: factor * x, module[0])
    elif how == "attribute":
        module.crit = module.mine = lambda x: module[0](x) * factor
        vars(module)["whole"] = module
    else:
        hooks = pytest.importorskip("accelerate.hooks")
        hook = hooks.ModelHook()
        hook.factor = factor
        hooks.add_hook_to_module(module[0], hook)
    return module


@pytest.mark.parametrize("how", ["recorder", "method", "attribute", "accelerate"])
def test_a_module_that_is_referred_to_from_within_ends_and_counts(how):
    assert structure(referring(how, 2.0)) == structure(referring(how, 2.0))
    assert structure(referring(how, 2.0)) != structure(referring(how, 3.0))
    assert behaviour(referring(how, 2.0))


def test_what_is_nested_too_deep_is_never_the_same():
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert behaviour(deep) != behaviour(deep)


def test_what_fails_when_it_is_asked_is_never_the_same():
    class Lazy(dict):
        def items(self):
            raise ValueError("names a class that this version does not have")

    held = Lazy(a=1)
    assert behaviour(held) != behaviour(held)


def test_one_part_in_two_places_is_not_two_parts():
    relu, first, last = nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2)
    assert structure(nn.Sequential(first, relu, last)) != structure(nn.Sequential(first, relu, last, relu))
    last.load_state_dict(first.state_dict())
    apart = tensors(nn.Sequential(first, last))
    last.weight = first.weight
    assert tensors(nn.Sequential(first, last)) != apart


class Settings(dict):
    """A dict with attributes."""


def wrapped(factor: float):
    """A function of ours that has the name of an installed one."""

    @functools.wraps(nn.functional.cross_entropy)
    def entropy(*args, **keywords):
        return factor * nn.functional.cross_entropy(*args, **keywords)

    return entropy


def cached(factor: float, monkeypatch):
    """A cached function in a module of ours: pickle knows it by its name."""
    module = types.ModuleType("own_cached")
    monkeypatch.setitem(sys.modules, "own_cached", module)
    exec(f"import functools\n@functools.lru_cache\ndef g(x):\n    return {factor} * x", vars(module))
    return module.g


def test_what_is_behind_a_name_counts(monkeypatch):
    def pair(make):
        return [behaviour(make(factor)) for factor in (2.0, 2.0, 5.0)]

    def attribute(factor):
        found = made("def f(x):\n    return x * f.t")
        found.t = factor
        return found

    def settings(factor):
        found = Settings(a=1)
        found.w = factor
        return found

    def inside(factor):
        return collections.deque([wrapped(factor), cached(factor, monkeypatch)])

    def private(factor):
        module = nn.Linear(1, 1)
        nn.init.ones_(module.weight), nn.init.ones_(module.bias)
        module._x = None if factor == 2 else 0
        return module

    def nested(factor):
        outer, inner = types.ModuleType("own_outer"), types.ModuleType("own_inner")
        outer.inner, inner.g = inner, made(f"def f(x):\n    return {factor} * x")
        return made("def f(x):\n    return outer.inner.g(x)", outer=outer)

    def imported(factor):
        module = types.ModuleType("own_imported")
        module.W = factor
        monkeypatch.setitem(sys.modules, "own_imported", module)
        return made("def f(x):\n    from own_imported import W\n    return W * x")

    for make in (attribute, settings, inside, private, nested, imported, wrapped,
                 lambda factor: cached(factor, monkeypatch),
                 lambda factor: collections.defaultdict(wrapped(factor))):  # fmt: skip
        one, same, other = pair(make)
        assert one == same != other, make


def test_a_global_of_the_name_of_a_local_counts_not():
    text = "def f(s):\n    return lambda x: s * x"
    assert behaviour(made(text, s=1)) == behaviour(made(text, s=2))


def test_arguments_count():
    assert behaviour(made("def f(a, b):\n    return a")) != behaviour(made("def f(a, *, b):\n    return a"))


def test_a_function_put_into_an_installed_class_counts(monkeypatch):
    module = nn.Sequential(nn.GELU())
    seen = [structure(module)]
    for factor in (2.0, 5.0):
        monkeypatch.setattr(nn.GELU, "forward", made(f"def f(self, x):\n    return {factor} * x"))
        seen.append(structure(module))
    assert len(set(seen)) == 3


def test_a_package_that_does_not_say_its_version_counts_with_the_one_that_was_installed(tmp_path, monkeypatch):
    (tmp_path / "unversioned").mkdir()
    (tmp_path / "unversioned/__init__.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(installed, "FOLDERS", (str(tmp_path),))
    seen = []
    for version in ("1.0", "1.0", "2.0"):
        info = tmp_path / "unversioned-0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: unversioned\nVersion: {version}\n")
        installed._released.cache_clear()
        seen.append(behaviour(importlib.import_module("unversioned").f))
    assert seen[0] == seen[1] != seen[2]
    monkeypatch.delitem(sys.modules, "unversioned")
    installed._released.cache_clear()


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
