"""Fact tracing: sentences of T-REx, and questions about the facts of LAMA that they state.

Source: Bao et al. 2025, section 5.3, after Akyürek et al. 2022. A fact is a triple (relation, subject, object) of
Wikidata ids. The training records are the sentences that state at least one of LAMA's facts, each once; a query asks
for a fact's object, and its sources are all sentences that state the fact. Facts that no sentence states are left out.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tdaexp.data.dataset import Dataset
from tdaexp.data.limits import check_limits
from tdaexp.data.questions import QUESTIONS, SUBJECT, question
from tdaexp.data.records import Corpus, Record
from tdaexp.data.tables import read_rows, second_stage
from tdaexp.data.triples import Fact, Sentence, hub_facts, hub_sentences, lama_facts, trex_sentences
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
SOURCES = "dataset=trex: give dataset.sentences=FOLDER and dataset.facts=FOLDER, or dataset.hub=ekinakyurek/ftrace"


@dataclass
class TREx(Dataset):
    """T-REx sentences and LAMA facts, from files or from the hub.

    sentences: a file of T-REx (`re-nlg_*.json`), or a folder of them; and
    facts: LAMA's folder `TREx` (`P*.jsonl`), or one such file; or
    hub: a hub data set in FTRACE's format (`ekinakyurek/ftrace`) that has both.
    questions: a JSONL file with `relation` and `question` ([X] is the subject); null: one built-in question for each
        of LAMA's 41 relations.
    limit: take the first N sentences (null: all).
    finetune_path: a file with the columns `prompt` and `completion`, the records of the second training stage.
    finetune_limit: take the first N of them (null: all).

    Answers are written as " Paris", so that the template, which puts prompt and completion side by side, leaves a
    sentence without a prompt as it is.
    """

    sentences: str | None = None
    facts: str | None = None
    hub: str | None = None
    questions: str | None = None
    limit: int | None = None
    finetune_path: str | None = None
    finetune_limit: int | None = None
    query_sets: list[str] = field(default_factory=lambda: ["facts"])
    query_limit: int | None = 600
    template: str = "{prompt}{completion}"
    max_length: int = 2048
    append_eos: bool = False

    QUERY_SETS: ClassVar[tuple[str, ...]] = ("facts", "generated")
    GENERATED_FROM: ClassVar[str] = "facts"

    def __post_init__(self) -> None:
        """Check that there is one source of sentences and facts.

        Raises:
            UserError: no source or two, half of one, or a size below 1.
        """
        super().__post_init__()
        files = (self.sentences is not None, self.facts is not None)
        if any(files) and (self.hub is not None or not all(files)):
            raise UserError(SOURCES)
        check_limits(self, "limit", "finetune_limit")

    @property
    def at_hand(self) -> bool:
        """Whether sentences and facts are in files."""
        return self.sentences is not None

    def check_source(self) -> None:
        """Refuse, before a run, a configuration that names no sentences and facts."""
        if self.sentences is None and self.hub is None:
            raise UserError(SOURCES)

    def train_records(self) -> list[Record]:
        """Return the sentences that state a fact."""
        return [_record(sentence) for sentence in self._stating(self._facts())]

    def finetune_records(self) -> list[Record]:
        """Return the rows of `finetune_path`; ids are `ft-N`."""
        records = second_stage(self.finetune_path, self.finetune_limit)
        return [dataclasses.replace(record, completion=f" {record.completion}") for record in records]

    def load(self) -> Corpus:
        """Return sentences, questions about the facts that they state, and the fine-tuning records.

        Raises:
            UserError: bad files, a relation without a question, or no fact that any sentence states.
        """
        facts = self._facts()
        sentences = self._stating(facts)
        stated: dict[tuple[str, str, str], list[str]] = {}
        for sentence in sentences:
            for triple in sentence.triples:
                stated.setdefault(triple, []).append(sentence.id)
        known = [fact for fact in facts if fact.triple in stated]
        log.info("%d of %d facts are stated by %d sentences", len(known), len(facts), len(sentences))
        templates = self._questions()
        records = [self._query(fact, templates, stated[fact.triple]) for fact in known]
        return Corpus([_record(one) for one in sentences], {"facts": records}, self.finetune_records())

    def _query(self, fact: Fact, templates: dict[str, str], sources: list[str]) -> Record:
        relation = fact.triple[0]
        if relation not in templates:
            raise UserError(
                f"dataset.questions: no question for relation {relation}; add a row with relation and question"
            )
        return Record(
            fact.id,
            question(templates[relation], fact.subject),
            f" {fact.object}",
            tuple(sources),
            {"relation": relation, "answer": fact.object},
        )

    def _facts(self) -> list[Fact]:
        """LAMA's facts, each once."""
        found = hub_facts(self.hub) if self.hub is not None else lama_facts(Path(str(self.facts)))
        once = {fact.triple: fact for fact in reversed(found)}
        return [fact for fact in found if once[fact.triple] is fact]

    def _stating(self, facts: list[Fact]) -> list[Sentence]:
        """The first `limit` sentences that state a fact; of equal texts the first, with the facts of all."""
        wanted = {fact.triple for fact in facts}
        found = hub_sentences(self.hub) if self.hub is not None else trex_sentences(Path(str(self.sentences)))
        by_text: dict[str, Sentence] = {}
        for sentence in found:
            mine = tuple(triple for triple in sentence.triples if triple in wanted)
            if not mine:
                continue
            if sentence.text in by_text:
                first = by_text[sentence.text]
                mine = tuple(dict.fromkeys(first.triples + mine))
                by_text[sentence.text] = dataclasses.replace(first, triples=mine)
            elif self.limit is None or len(by_text) < self.limit:
                by_text[sentence.text] = dataclasses.replace(sentence, triples=tuple(dict.fromkeys(mine)))
        if not by_text:
            raise UserError(
                "dataset=trex: no sentence states any of the facts; check dataset.sentences and dataset.facts"
            )
        return list(by_text.values())

    def _questions(self) -> dict[str, str]:
        if self.questions is None:
            return QUESTIONS
        rows = read_rows(Path(self.questions))
        templates: dict[str, str] = {}
        for row in rows:
            relation = row.text("relation")
            if relation in templates:
                raise UserError(f"{row.where}: a second question for relation {relation}; keep one")
            templates[relation] = row.text("question")
        for relation, template in templates.items():
            if SUBJECT not in template:
                raise UserError(f"{self.questions}: the question for {relation} has no {SUBJECT}, the subject's place")
        return templates


def _record(sentence: Sentence) -> Record:
    return Record(sentence.id, "", sentence.text, (), {"facts": [",".join(triple) for triple in sentence.triples]})
