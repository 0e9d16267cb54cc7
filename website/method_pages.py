"""A page for each method: formula, sign, scale, cost and limits from its docstring, keys from its YAML."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import yaml

import prose
import yaml_keys
from tdaexp.app.compose import Composer, open_composer
from tdaexp.app.plan import plan
from tdaexp.methods.base import Method

ORDER = {
    "Similar gradients": ["full", "dot", "select", "project", "trackstar", "cka"],
    "Influence": ["ekfac", "cg", "astra", "lissa", "arnoldi", "logra", "datainf", "trak", "multistage"],
    "Over a training": ["tracin", "less", "source", "magic", "explaind"],
    "Controls": ["bm25", "repsim", "random"],
}
"""The headings of the overview; a method that none names stands under `Others`."""
MORE = {
    "cg": "curvature.md", "astra": "curvature.md", "ekfac": "curvature.md", "source": "source.md", "magic": "magic.md",
    "explaind": "explaind.md", "logra": "methods.md#curvature-in-a-few-directions", "project": "corpus.md",
    "datainf": "adapters.md", "trackstar": "methods.md#similarity-that-knows-the-optimiser",
    "less": "methods.md#similarity-that-knows-the-optimiser", "select": "papers/select-or-project.md",
    "multistage": "papers/multi-stage.md",
}  # fmt: skip
"""Where more is said of a method."""
COMMANDS = {
    "multistage": "python attribute.py experiment=toy_msif method=multistage",
    "magic": "python attribute.py model=mlp dataset=digits method=magic",
    "explaind": "python attribute.py model=grokking dataset=modular_addition method=explaind",
    "source": "python attribute.py method=source trainer.fit.checkpoint_every=50",
    "select": "python attribute.py method=select budget=0.05",
    "project": "python attribute.py method=project budget=0.05",
}
"""The command that shows a method, where it is more than its name."""


@dataclasses.dataclass(frozen=True)
class Described:
    """A method: its configuration's name, the text of its YAML, its class, and itself at its defaults."""

    name: str
    text: str
    made: Method
    variants: dict[str, str]

    @property
    def document(self) -> str:
        """The docstring of its module."""
        return inspect.getdoc(importlib.import_module(type(self.made).__module__)) or ""

    @property
    def summary(self) -> str:
        """The docstring's first paragraph, in one line."""
        return " ".join(prose.paragraphs(self.document)[0].split())


def described(conf: Path) -> list[Described]:
    """Every method with a YAML that names its class; one that builds on another's YAML is a variant of that."""
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted((conf / "method").glob("*.yaml"))}
    own = {name: text for name, text in texts.items() if yaml_keys.target(text)}
    with open_composer("attribute", conf) as composer:
        return [Described(name, text, _made(composer, name), _variants(name, texts)) for name, text in own.items()]


def _made(composer: Composer, name: str) -> Method:
    needs = {"explaind": ["model=mlp", "dataset=digits"], "magic": ["model=mlp", "dataset=digits"]}.get(name, [])
    (job,) = plan(composer, "attribute", [f"method={name}", *needs], False, ("tdaexp",)).jobs
    method = job.config.method
    assert isinstance(method, Method)
    return method


def _variants(name: str, texts: dict[str, str]) -> dict[str, str]:
    return {
        other: text
        for other, text in texts.items()
        if yaml_keys.target(text) is None and name in (yaml.safe_load(text).get("defaults") or [])
    }


def page(method: Described, kinds: dict[str, list[str]]) -> str:
    """The page of one method. `kinds` are the cells of the table in docs/methods.md."""
    body = method.document.split("\n\n", 1)[1]
    lines = [f"# {method.name}", f"*{prose.escaped(method.summary)}*", prose.markdown(body), "## Run it"]
    command = COMMANDS.get(method.name, f"python attribute.py method={method.name}")
    lines.append(f"```bash\n{command}\n```")
    lines.append(_facts(method, kinds.get(method.name)))
    rows = key_rows(method.text, type(method.made))
    lines += ["## Keys", "\n".join(["| key | default | |", "|---|---|---|", *rows]) if rows else ""]
    lines += keys_said(type(method.made))
    for name, text in method.variants.items():
        keys = ", ".join(f"`method.{one.name}={one.value}`" for one in yaml_keys.keys(text))
        said = " ".join(yaml_keys.header(text).split())
        lines.append(f"**`method={name}`** is the same with {keys}. {prose.escaped(said)}")
    if method.name in MORE:
        lines.append(f"More: [{MORE[method.name].partition('#')[0]}](../{MORE[method.name]}).")
    return "\n\n".join(lines) + "\n"


def keys_said(kind: type) -> list[str]:
    """What the docstrings of a class and its bases say of their keys."""
    said = [inspect.cleandoc(one.__doc__ or "") for one in kind.__mro__ if one.__module__.startswith("tdaexp")]
    return [prose.markdown(one) for one in said if one.startswith(("Keys", "No keys"))]


def key_rows(text: str, kind: type) -> list[str]:
    """A row for each key of the YAML, and for each field of the class that the YAML leaves out."""
    written = yaml_keys.keys(text)
    there = {key.name.partition(".")[0] for key in written}
    rows = [(f"`{key.name}`", f"`{key.value}`" if key.value else "", key.meaning) for key in written]
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if field.name not in there and field.init and field.default is not dataclasses.MISSING:
            rows.append((f"`{field.name}`", f"`{_plain(field.default)}`", ""))
    return [f"| {' | '.join(prose.cell(one) for one in row)} |" for row in rows]


def _plain(value: object) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _hashable(value) else str(value)


def _hashable(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _facts(method: Described, kinds: list[str] | None) -> str:
    """What the class says of itself, and the row of docs/methods.md."""
    made = method.made
    rows = [
        ("self-influence (`self_influence=true`)", made.of_itself is not None),
        ("several questions as one (`dataset.combine=mean`)", made.linear),
        ("an index of a corpus (`candidates=best`)", made.indexed),
        ("a model shared out over processes (`trainer=fsdp`)", made.sharded),
    ]
    lines = ["| at its defaults | |", "|---|---|", *(f"| {what} | {'yes' if so else 'no'} |" for what, so in rows)]
    names = ("texts", "texts, two stages", "classifier", "module and loss of your own")
    for what, so in zip(names, kinds or [], strict=False):
        lines.append(f"| runs on: {what} | {so} |")
    return "\n".join(lines)


def kinds_of(page_of_methods: str) -> dict[str, list[str]]:
    """The rows of the table in docs/methods.md, with the notes that its numbers stand for."""
    notes = dict(re.findall(r"^(\d+)\. (.+)$", page_of_methods, re.MULTILINE))
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", page_of_methods, re.MULTILINE)
    return {name: [_noted(one.strip(), notes) for one in cells.split("|")] for name, cells in rows}


def _noted(text: str, notes: dict[str, str]) -> str:
    match = re.fullmatch(r"no \((\d+)\)", text)
    return f"no: {prose.escaped(notes[match.group(1)])}" if match else text


def overview(methods: list[Described]) -> str:
    """The table of all methods, by what they look at."""
    found = {method.name: method for method in methods}
    left = [name for name in found if not any(name in names for names in ORDER.values())]
    lines = ["# Methods", "A page for each, made from its docstring and its YAML. Positive always means: training on the"
             " row made the answer more likely. [Which methods run on what](../methods.md)."]  # fmt: skip
    for heading, names in {**ORDER, **({"Others": left} if left else {})}.items():
        rows = [f"| [`{name}`]({name}.md) | {prose.cell(found[name].summary)} |" for name in names if name in found]
        lines += [f"## {heading}", "\n".join(["| method | what it is |", "|---|---|", *rows])]
    return "\n\n".join(lines) + "\n"


def fills(document: str) -> list[str]:
    """The axes that a method's docstring says it fills, and `additive` where it says so of components."""
    said = prose.parts(document)["Fills"]
    axes = [
        axis for axis in ("query", "train", "component") if re.search(rf"\b{axis}\b", said.split(".")[0].split(";")[0])
    ]
    return axes + (["additive"] if re.search(r"additive over (components|both)", said) else [])
