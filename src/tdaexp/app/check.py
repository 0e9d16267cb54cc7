"""From a composed configuration to objects: every key, type and class is checked on the way, never after.

This is the one place where a `_target_` becomes an object. Only dataclasses of allowed packages are built, by
their constructor, from checked values; and those of the user's own modules, which are named with a colon,
`module:Class`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Hashable
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from tdaexp.app.foreign import key_hint, value_hint
from tdaexp.app.origin import Origin
from tdaexp.runtime.errors import UserError, check_distinct, unknown
from tdaexp.runtime.own_module import own_module

PACKAGES = ("tdaexp",)
MISSING = "???"

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Checker:
    """Checks nodes and builds their objects; `origin` names the file or option that a key comes from."""

    origin: Origin
    packages: tuple[str, ...] = PACKAGES
    places: dict[str, str] = dataclasses.field(default_factory=dict)  # key -> where it stands in the whole schema

    def build(self, cls: type, node: dict[str, Any], path: Path = ()) -> Any:
        """Return `cls(**node)` with nested nodes built first.

        Args:
            cls: a dataclass, the schema of `node`.
            node: plain values without interpolations; "???" is a missing one.
            path: keys that lead from the root to `node`, for messages.

        Raises:
            UserError: an unknown key, a wrong type, a missing value, or a class that may not be named.
        """
        hints = typing.get_type_hints(cls)
        fields = _fields(cls, hints)
        for key in node:
            if key not in fields and key != "_target_":
                raise self._unknown(str(key), fields, path)
        values = {name: self._value(f, hints[name], node, (*path, name)) for name, f in fields.items()}
        try:
            return cls(**{name: value for name, value in values.items() if value is not dataclasses.MISSING})
        except (TypeError, ValueError, ArithmeticError, LookupError, OSError) as error:
            where = f"{self.origin(path)}: '{'.'.join(path) or cls.__name__}'"
            raise UserError(f"{where}: cannot be used ({type(error).__name__}: {error}); check its values") from error
        except UserError as error:
            # The root's own checks begin with the key that they are about.
            about = path or tuple(re.split(r"[^\w.]", str(error), maxsplit=1)[0].split("."))
            raise UserError(f"{error} ({self.origin(about)})") from error

    def _value(self, field: dataclasses.Field[Any], hint: Any, node: dict[str, Any], path: Path) -> Any:
        """Return one field's checked value, or `dataclasses.MISSING` where the class's own default holds."""
        if field.name not in node:
            if _has_default(field):
                return dataclasses.MISSING
            raise UserError(f"{self.origin(path[:-1])}: key '{'.'.join(path)}' is missing; give {'.'.join(path)}=VALUE")
        value = node[field.name]
        if value == MISSING:
            raise UserError(f"{self.origin(path)}: '{'.'.join(path)}' has no value (???); give {'.'.join(path)}=VALUE")
        nested = _dataclass_in(hint)
        if isinstance(value, dict) and "_target_" in value:
            cls = self.target(value, path)
            self._check_protocol(cls, field, nested, path)
            return self.build(cls, value, path)
        if isinstance(value, dict) and nested is not None:
            return self.build(nested, value, path)
        if isinstance(value, dict) and typing.get_origin(hint) is dict:
            named = _dataclass_in(typing.get_args(hint)[-1])
            if named is not None:
                return {key: self._named(named, one, (*path, str(key))) for key, one in value.items()}
        if field.metadata.get("group") or (field.metadata.get("offers") and value is not None):
            raise UserError(f"{self.origin(path)}: '{field.name}' needs a _target_, the class that its keys belong to")
        if nested is not None:
            if value is None and type(None) in typing.get_args(hint):
                return None
            raise self._wrong(value, "a set of keys", path)
        leaf = self._leaf(value, hint, path)
        if isinstance(leaf, list) and (_lists_names(hint) or field.metadata.get("distinct")):
            check_distinct(leaf, lambda: f"{self.origin(path)}: '{'.'.join(path)}'")
        return leaf

    def _named(self, cls: type, node: Any, path: Path) -> Any:
        """One of several under names of the user's own."""
        if not isinstance(node, dict):
            raise self._wrong(node, "a set of keys", path)
        return self.build(cls, node, path)

    def _check_protocol(self, cls: type, field: dataclasses.Field[Any], nested: type | None, path: Path) -> None:
        """Refuse a class of another group than that of the key."""
        own = {f.name for f in dataclasses.fields(cls)}
        lacks = [name for name in field.metadata.get("offers", ()) if not hasattr(cls, name) and name not in own]
        wrong = None
        if lacks or (nested is not None and not issubclass(cls, nested)):
            lack = f"it has no '{lacks[0]}'" if lacks else f"it is no {nested.__name__}"  # type: ignore[union-attr]
            wrong = f"is no class for '{'.'.join(path)}' ({lack}); see conf/{path[-1]}/ for those that are"
        elif inspect.isabstract(cls):
            wrong = "is a base for others and does nothing by itself; name one that derives from it"
        if wrong:
            where = self.origin((*path, "_target_"))
            raise UserError(f"{where}: _target_ '{cls.__module__}.{cls.__qualname__}' {wrong}")

    def _unknown(self, key: str, fields: dict[str, dataclasses.Field[Any]], path: Path) -> UserError:
        here, place = ".".join(path), self.places.get(key)
        inside = f"'{here}'" if path else "the configuration"
        where = f"{self.origin((*path, key))}: in {inside}"
        hint = key_hint(key, here)
        if hint is None and place is not None and place != f"{here}.{key}".lstrip("."):
            hint = f"there is a key '{place}'" if fields else f"'{here}' takes no keys; there is a key '{place}'"
        elif hint is None and not fields:
            hint = f"'{here}' takes no keys, leave it out"
        return unknown("key", key, fields, where, hint=hint)

    def _leaf(self, value: Any, hint: Any, path: Path) -> Any:
        try:
            return _known(hint, value) if isinstance(value, Hashable) else _converted(hint, value)
        except OmegaConfBaseException as error:
            raise self._wrong(value, _name(hint), path) from error

    def _wrong(self, value: Any, wanted: str, path: Path) -> UserError:
        given = "null" if value is None else repr(value)
        hint = value_hint(".".join(path), str(value))
        return UserError(
            f"{self.origin(path)}: '{'.'.join(path)}' must be {wanted}, not {given}" + (f"; {hint}" if hint else "")
        )

    def target(self, node: dict[str, Any], path: Path) -> type:
        """Return the dataclass that `node["_target_"]` names."""
        name = str(node["_target_"])

        def where() -> str:
            return self.origin((*path, "_target_"))

        module_name, colon, class_name = name.rpartition(":" if ":" in name else ".")
        if colon == ":":
            if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
                raise UserError(f"{where()}: _target_ '{name}' must be module:Class, e.g. my_methods:Mine")
            module = own_module(module_name, f"{where()}: _target_ '{name}'")[0]
            top = pathlib.Path(str(module.__file__)).parents[module_name.count(".")]
            if str(top) not in sys.path:  # the processes of a run, and of a sweep, import it by its name
                sys.path.append(str(top))
        elif name.split(".")[0] not in self.packages:
            allowed = " and ".join(self.packages)
            raise UserError(
                f"{where()}: _target_ '{name}' is refused; only classes of {allowed} can be named, and those of your "
                f"own modules with a colon: {module_name or 'module'}:{class_name}"
            )
        else:
            module = _module(module_name, where)
        cls = getattr(module, class_name, None)
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            choices = [n for n, c in vars(module).items() if isinstance(c, type) and dataclasses.is_dataclass(c)]
            raise unknown("class", class_name, choices, f"{where()}: _target_ '{name}'")
        return cls


@functools.cache
def _schema(hint: Any) -> Any:
    """One value of a type, as OmegaConf checks and converts it."""
    return OmegaConf.structured(dataclasses.make_dataclass("Leaf", [("value", hint)]))


def _converted(hint: Any, value: Any) -> Any:
    """A plain value as the type asks for it."""
    leaf: Any = OmegaConf.to_object(OmegaConf.merge(_schema(hint), {"value": value}))
    if not _takes(hint, leaf.value):  # OmegaConf looks at simple entries of a list alone
        raise ValidationError(f"{value!r} holds a list or a set of keys where a simple value stands")
    return leaf.value


def _takes(hint: Any, value: Any) -> bool:
    """Whether every list and every dict in a value stands where the type has one."""
    if hint is Any or not isinstance(value, (list, tuple, dict)):
        return True
    shapes, entries = ((dict,), value.values()) if isinstance(value, dict) else ((list, tuple), value)
    for one in (hint, *typing.get_args(hint)) if typing.get_origin(hint) not in shapes else (hint,):
        inner = [kind for kind in typing.get_args(one) if kind is not ...] or [Any]
        if (typing.get_origin(one) or one) in shapes and all(_takes(inner[-1], entry) for entry in entries):
            return True
    return False


_known = functools.lru_cache(maxsize=None, typed=True)(_converted)  # jobs of a sweep share most of their values


def _module(name: str, where: Callable[[], str]) -> Any:
    """Import a module; one that does not exist is the user's mistake, a fault inside it is not."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] == name.split(".")[0] and not f"{name}.".startswith(f"{missing}."):
            raise
        if not f"{name}.".startswith(f"{missing}."):
            raise UserError(f"{where()}: '{name}' needs the package '{missing}'; pip install {missing}") from error
        parent = missing.rpartition(".")[0]
        found = pkgutil.iter_modules(getattr(importlib.import_module(parent), "__path__", [])) if parent else []
        raise unknown("module", missing, [f"{parent}.{m.name}" for m in found], where()) from error


def places(root: type) -> dict[str, str]:
    """Where each key of a root and of its settings stands: `steps` at `trainer.fit.steps`. The first place counts."""
    found: dict[str, str] = {}
    waiting: list[tuple[Path, type]] = [((), root)]
    for path, cls in waiting:  # grows on the way: nearer places come first
        hints = typing.get_type_hints(cls)
        for name in _fields(cls, hints):
            found.setdefault(name, ".".join((*path, name)))
            nested = _dataclass_in(hints[name])
            if nested is not None:
                waiting.append(((*path, name), nested))
    return found


def _fields(cls: type, hints: dict[str, Any]) -> dict[str, dataclasses.Field[Any]]:
    """Fields of the constructor, plain values first: where a group repeats one (`budget: ${budget}`), a
    message names the value's own place.
    """
    fields = [f for f in dataclasses.fields(cls) if f.init]
    fields.sort(key=lambda f: (bool(f.metadata.get("group")), _dataclass_in(hints[f.name]) is not None))
    return {f.name: f for f in fields}


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _dataclass_in(hint: Any) -> type | None:
    """Return the dataclass of `X` or `X | None`."""
    if typing.get_origin(hint) in (list, tuple, dict):
        return None
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _lists_names(hint: Any) -> bool:
    """Whether the type is a list of texts, or that or nothing: names, each of which counts once."""
    return any(typing.get_origin(one) is list and str in typing.get_args(one) for one in (hint, *typing.get_args(hint)))


def _name(hint: Any) -> str:
    """Word a type for people."""
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if hint in words:
        return words[hint]
    if typing.get_origin(hint) in (list, tuple):
        inner = [a for a in typing.get_args(hint) if a is not ...]
        return "a list, e.g. [a,b]" + (f", each {_name(inner[0])}" if inner else "")
    if typing.get_origin(hint) is dict or hint is dict:
        return "a set of keys"
    if type(None) in typing.get_args(hint):
        return " or ".join(_name(a) for a in typing.get_args(hint))
    return f"the keys of a {getattr(hint, '__name__', hint)}, with its class as _target_"
