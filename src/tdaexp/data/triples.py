"""Readers of T-REx, LAMA and FTRACE: sentences with the triples that they state, and facts to ask for.

T-REx (Elsahar et al. 2018): JSON files, each a list of documents with `text`, `sentences_boundaries` and `triples`,
whose subject, predicate and object carry Wikidata URIs and which name the sentence that they are found in. LAMA
(Petroni et al. 2019): JSON lines with `predicate_id`, `sub_uri`, `sub_label`, `obj_uri` and `obj_label`. FTRACE
(Akyürek et al. 2022): a hub data set with the parts `abstracts`, masked sentences with their `facts`, and `queries`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdaexp.data.tables import Row, hub_rows, read_rows
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.reading import as_text, parse_json, read_text

Triple = tuple[str, str, str]  # relation, subject, object: P19, Q42, Q350
ENTITY, PROPERTY = "http://www.wikidata.org/entity/", "http://www.wikidata.org/prop/direct/"
MASK = "<extra_id_0>"
CONVERTED = "refs/convert/parquet"  # where the hub keeps data sets that came with a loading script as plain tables


@dataclass(frozen=True)
class Sentence:
    """A sentence and the triples that it states."""

    id: str
    text: str
    triples: tuple[Triple, ...]


@dataclass(frozen=True)
class Fact:
    """A triple, and how people write its subject and its object."""

    id: str
    triple: Triple
    subject: str
    object: str


def trex_sentences(path: Path) -> Iterator[Sentence]:
    """Sentences with a triple of three Wikidata ids, in the order of the files' names.

    Ids are the document's Wikidata id and the sentence's number. Errors (UserError): nothing to read, or a file that is
    not in T-REx's format.
    """
    for file in _files(path, "*.json", "dataset.sentences"):
        try:
            documents = parse_json(read_text(file), str(file), unique=False)
        except UserError as error:
            raise _foreign(f"{file}", str(error).removeprefix(f"{file}: ")) from error
        if not isinstance(documents, list):
            raise _foreign(f"{file}", "it must hold a list of documents")
        for number, document in enumerate(documents, start=1):
            try:
                yield from list(_of_document(document))
            except UserError as error:
                raise _foreign(f"{file}, document {number}", str(error)) from error
            except KeyError as error:
                raise _foreign(f"{file}, document {number}", f"no key '{error.args[0]}'") from error
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                raise _foreign(f"{file}, document {number}", "a value of another kind than T-REx has there") from error


def _foreign(where: str, reason: str) -> UserError:
    return UserError(
        f"{where}: not in T-REx's format ({reason}); dataset.sentences wants its JSON files (re-nlg_*.json) as they "
        "come from hadyelsahar.github.io/t-rex"
    )


def lama_facts(path: Path) -> list[Fact]:
    """Facts of LAMA's T-REx part; rows without a Wikidata id are skipped, as nothing can be matched with them."""
    rows = [row for file in _files(path, "*.jsonl", "dataset.facts") for row in read_rows(file)]
    return [_fact(row, "sub_label", "obj_label") for row in rows if row.value("obj_uri") and row.value("sub_uri")]


def hub_sentences(name: str) -> Iterator[Sentence]:
    """FTRACE's sentences, with the masked words put back."""
    for row in hub_rows(name, "abstracts", "train", revision=CONVERTED):
        masked, target = row.text("inputs_pretokenized"), row.text("targets_pretokenized")
        triples = [tuple(fact.split(",")) for fact in str(row.value("facts")).split(";") if fact.count(",") == 2]
        yield Sentence(
            str(row.value("id")),
            masked.replace(MASK, target.replace(MASK, "").strip()),
            tuple((relation, subject, answer) for relation, subject, answer in triples),
        )


def hub_facts(name: str) -> list[Fact]:
    """FTRACE's queries."""
    return [_fact(row, "sub_surface", "obj_surface") for row in hub_rows(name, "queries", "train", revision=CONVERTED)]


def _fact(row: Row, subject: str, answer: str) -> Fact:
    triple = (row.text("predicate_id"), row.text("sub_uri"), row.text("obj_uri"))
    return Fact(",".join(triple), triple, row.text(subject), row.text(answer))


def _of_document(document: dict[str, Any]) -> Iterator[Sentence]:
    stated: dict[int, list[Triple]] = {}
    for triple in document["triples"]:
        parts = (
            _wikidata(triple["predicate"]["uri"], PROPERTY),
            _wikidata(triple["subject"]["uri"], ENTITY),
            _wikidata(triple["object"]["uri"], ENTITY),
        )
        if all(parts):
            stated.setdefault(triple["sentence_id"], []).append(parts)
    name = document["docid"].rpartition("/")[2]
    for number in sorted(stated):
        start, end = document["sentences_boundaries"][number]
        text = " ".join(as_text(document["text"], name)[start:end].split())
        yield Sentence(f"{name}-{number}", text, tuple(dict.fromkeys(stated[number])))


def _wikidata(uri: str | None, prefix: str) -> str:
    """The id in a URI with this prefix; "" for dates, literals and other things."""
    return uri.removeprefix(prefix) if uri is not None and uri.startswith(prefix) else ""


def _files(path: Path, pattern: str, key: str) -> list[Path]:
    files = sorted(path.glob(pattern)) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"{key}={path}: no such file, or a folder without {pattern}; give a file or a folder of them")
    return files
