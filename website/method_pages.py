"""A page for each method: formula, sign, scale, cost and limits from its docstring, keys from its YAML."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import yaml

import links
import prose
import yaml_keys
from tdaexp.app.compose import Composer, open_composer
from tdaexp.app.plan import plan
from tdaexp.methods.base import Method

INTRODUCTION = """A page for each, made from its docstring and its YAML. Positive always means: training on the row made
the answer more likely. Which methods run on what: [the table](../methods.md)."""
ORDER = {
    "Similar gradients": ["full", "dot", "select", "project", "trackstar", "cka"],
    "Influence": ["ekfac", "cg", "astra", "lissa", "arnoldi", "logra", "datainf", "trak", "multistage"],
    "Over a training": ["tracin", "less", "source", "magic", "explaind"],
    "Controls": ["bm25", "repsim", "random"],
}
"""The headings of the overview; a method that none names stands under `Others`."""
COMMANDS = {
    "multistage": "python attribute.py experiment=toy_msif method=multistage",
    "magic": "python attribute.py model=mlp dataset=digits method=magic",
    "explaind": "python attribute.py model=grokking dataset=modular_addition method=explaind",
    "source": "python attribute.py method=source trainer.fit.checkpoint_every=50",
    "select": "python attribute.py method=select budget=0.05",
    "project": "python attribute.py method=project budget=0.05",
}
"""The command that shows a method, where it is more than its name."""
PROJECTED, OPTIMISER = "methods.md#curvature-in-a-few-directions", "methods.md#similarity-that-knows-the-optimiser"
CURVATURE = ("Which inverse of the curvature", "curvature.md")
MORE = {
    **{name: CURVATURE for name in ("ekfac", "cg", "astra")},
    **{name: ("Curvature in a few directions", PROJECTED) for name in ("logra", "datainf")},
    **{name: ("Similarity that knows the optimiser", OPTIMISER) for name in ("trackstar", "less")},
    "source": ("The training unrolled", "source.md"),
    "magic": ("Metagradients", "magic.md"),
    "explaind": ("An exact account of a training", "explaind.md"),
    "project": ("An index of a corpus", "corpus.md"),
    "select": ("Select or Project?", "papers/select-or-project.md"),
    "multistage": ("The paper", "papers/multi-stage.md"),
}
"""Where more is said of a method: the page's name and its place."""


@dataclasses.dataclass(frozen=True)
class Described:
    """A method: its configuration's name, the text of its YAML, itself at its defaults, and its variants' YAML."""

    name: str
    text: str
    made: Method
    variants: dict[str, str]

    @property
    def document(self) -> str:
        """The docstring of its module."""
        return documented(self.made)

    @property
    def summary(self) -> str:
        """The docstring's first paragraph, in one line."""
        return " ".join(prose.paragraphs(self.document)[0].split())


def documented(method: Method) -> str:
    """The docstring of a method's module."""
    return inspect.getdoc(importlib.import_module(type(method).__module__)) or ""


def described(conf: Path) -> list[Described]:
    """Every method with a YAML that names its class; one that builds on another's YAML is a variant of that."""
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted((conf / "method").glob("*.yaml"))}
    own = {name: text for name, text in texts.items() if yaml_keys.target(text)}
    with open_composer("attribute", conf) as composer:
        return [Described(name, text, _made(composer, name), _variants(name, texts)) for name, text in own.items()]


def _made(composer: Composer, name: str) -> Method:
    """The method at its defaults, on a subject that it runs on."""
    needed = COMMANDS.get(name, f"method={name}").removeprefix("python attribute.py ").split()
    (job,) = plan(composer, "attribute", needed, False, ("tdaexp",)).jobs
    method = job.config.method
    assert isinstance(method, Method)
    return method


def _variants(name: str, texts: dict[str, str]) -> dict[str, str]:
    bases = {other: yaml.safe_load(text).get("defaults") or [] for other, text in texts.items()}
    return {
        other: texts[other] for other, names in bases.items() if name in names and not yaml_keys.target(texts[other])
    }


def page(method: Described, kinds: dict[str, list[str]], costs: dict[str, str]) -> str:
    """The page of one method. `kinds` and `costs` are the cells of the tables in docs/methods.md."""
    body = method.document.split("\n\n", 1)[1]
    command = COMMANDS.get(method.name, f"python attribute.py method={method.name}")
    lines = [f"# {method.name}", f"*{prose.escaped(method.summary)}*", prose.markdown(body)]
    lines += ["## Run it", f"```bash\n{command}\n```", _facts(method.made, kinds.get(method.name, []))]
    lines += (
        [f"**Measured:** {costs[method.name]} ([on what](../methods.md#commands-and-costs))"]
        if method.name in costs
        else []
    )
    lines += ["## Keys", key_table(method.text, type(method.made)), *keys_said(type(method.made))]
    for name, text in method.variants.items():
        keys = ", ".join(f"`method.{one.name}={one.value}`" for one in yaml_keys.keys(text))
        said = prose.escaped(" ".join(yaml_keys.header(text).split()))
        lines.append(f"`method={name}` is the same with {keys}. {said}")
    if method.name in MORE:
        name, place = MORE[method.name]
        lines += ["## More", f"[{name}](../{place})"]
    return "\n\n".join(one for one in lines if one) + "\n"


def keys_said(kind: type) -> list[str]:
    """What the docstrings of a class and its bases say of their keys."""
    said = [inspect.cleandoc(one.__doc__ or "") for one in kind.__mro__ if one.__module__.startswith("tdaexp")]
    return [prose.markdown(one) for one in said if one.startswith(("Keys", "No keys"))]


def key_table(text: str, kind: type = object) -> str:
    """The keys of a YAML, and the fields of the class that it leaves out, as a table; empty where there are none."""
    written = yaml_keys.keys(text)
    rows = [(key.name, key.value, key.meaning) for key in written]
    there = {key.name.partition(".")[0] for key in written}
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if field.name not in there and field.init:
            rows.append((field.name, _default(field), ""))
    cells = [
        f"| `{name}` | {prose.cell(f'`{value}`') if value else ''} | {prose.cell(said)} |" for name, value, said in rows
    ]
    return "\n".join(["| key | default | |", "|---|---|---|", *cells]) if cells else ""


def _default(field: dataclasses.Field[object]) -> str:
    """A field's default as YAML; empty for one that has none, or a whole dataclass."""
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value is dataclasses.MISSING or dataclasses.is_dataclass(value):
        return ""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _facts(made: Method, kinds: list[str]) -> str:
    """What the class says of itself, and the row of docs/methods.md."""
    rows = [
        ("self-influence (`self_influence=true`)", made.of_itself is not None),
        ("several questions as one (`dataset.combine=mean`)", made.linear),
        ("an index of a corpus (`candidates=best`)", made.indexed),
        ("a model shared out over processes (`trainer=fsdp`)", made.sharded),
    ]
    lines = ["| at its defaults | |", "|---|---|", *(f"| {what} | {'yes' if so else 'no'} |" for what, so in rows)]
    names = ("texts", "texts, two stages", "classifiers", "a module and loss of your own")
    return "\n".join([*lines, *(f"| {what} | {so} |" for what, so in zip(names, kinds, strict=False))])


def kinds_of(page_of_methods: str) -> dict[str, list[str]]:
    """The rows of the table in docs/methods.md, with the notes that its numbers stand for."""
    made = page_of_methods.partition("<!-- made by")[2]
    notes = dict(re.findall(r"^(\d+)\. (.+)$", made, re.MULTILINE))
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", made, re.MULTILINE)
    return {name: [_noted(one.strip(), notes) for one in cells.split("|")] for name, cells in rows}


def costs_of(page_of_methods: str) -> dict[str, str]:
    """The measured costs in the table of docs/methods.md, by method; links lead there from a page of the methods."""
    table = page_of_methods.partition("<!-- made by")[0]
    rows = re.findall(r"^\| `(\w+)` \|.+\| ([^|]+) \|$", table, re.MULTILINE)
    return {name: links.moved(cost, "methods.md", "methods/one.md") for name, cost in rows}


def _noted(text: str, notes: dict[str, str]) -> str:
    match = re.fullmatch(r"no \((\d+)\)", text)
    return f"no: {prose.escaped(notes[match.group(1)])}" if match else text


def overview(methods: list[Described]) -> str:
    """The table of all methods, by what they look at."""
    found = {method.name: method for method in methods}
    left = [name for name in found if not any(name in names for names in ORDER.values())]
    lines = ["# Methods", INTRODUCTION]
    for heading, names in {**ORDER, **({"Others": left} if left else {})}.items():
        rows = [f"| [`{name}`]({name}.md) | {prose.cell(found[name].summary)} |" for name in names if name in found]
        lines += [f"## {heading}", "\n".join(["| method | what it is |", "|---|---|", *rows])]
    return "\n\n".join(lines) + "\n"


def fills(document: str) -> list[str]:
    """The axes that a method's docstring says it fills, and `additive` where it says so of components."""
    said = prose.parts(document)["Fills"]
    first = re.split(r"[.;]", said)[0]
    axes = [axis for axis in ("query", "train", "component") if re.search(rf"\b{axis}\b", first)]
    return axes + (["additive"] if re.search(r"additive over (components|both)", said) else [])
