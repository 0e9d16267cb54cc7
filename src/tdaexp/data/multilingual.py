"""A generated text in several languages: the same scenes told in each, most of them in English.

It stands in for a multilingual pre-training corpus where nothing can be downloaded. A record is a few sentences of one
language, each a subject, a verb, an object and a place or time, drawn from the seed; scenes are drawn anew for every
record, so that records are not translations of each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

from tdaexp.data.dataset import Dataset
from tdaexp.data.groups import groups_of, stratified
from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.limits import refuse_beyond

RECORD_BYTES, SENTENCE_BYTES = 1000, 100  # of a record in memory, about
# per language: subjects, verbs (third person, past), objects, places and times; entries of equal index mean the same
WORDS: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    "en": (
        ["the doctor", "the farmer", "my sister", "the old man", "a child", "the teacher", "our neighbour", "the cook"],
        ["bought", "found", "forgot", "sold", "carried", "painted", "hid", "saw"],
        ["the bread", "a letter", "the red hat", "two apples", "the key", "a small boat", "the table", "an old book"],
        ["at the market", "in the garden", "yesterday", "on Sunday", "behind the house", "near the river",
         "in the city", "before dinner"],
    ),
    "de": (
        ["der Arzt", "der Bauer", "meine Schwester", "der alte Mann", "ein Kind", "die Lehrerin", "unser Nachbar",
         "der Koch"],
        ["kaufte", "fand", "vergaß", "verkaufte", "trug", "malte", "versteckte", "sah"],
        ["das Brot", "einen Brief", "den roten Hut", "zwei Äpfel", "den Schlüssel", "ein kleines Boot", "den Tisch",
         "ein altes Buch"],
        ["auf dem Markt", "im Garten", "gestern", "am Sonntag", "hinter dem Haus", "am Fluss", "in der Stadt",
         "vor dem Abendessen"],
    ),
    "fr": (
        ["le médecin", "le paysan", "ma sœur", "le vieil homme", "un enfant", "la maîtresse", "notre voisin",
         "le cuisinier"],
        ["acheta", "trouva", "oublia", "vendit", "porta", "peignit", "cacha", "vit"],
        ["le pain", "une lettre", "le chapeau rouge", "deux pommes", "la clé", "un petit bateau", "la table",
         "un vieux livre"],
        ["au marché", "dans le jardin", "hier", "dimanche", "derrière la maison", "près de la rivière", "en ville",
         "avant le dîner"],
    ),
    "es": (
        ["el médico", "el granjero", "mi hermana", "el anciano", "un niño", "la maestra", "nuestro vecino",
         "el cocinero"],
        ["compró", "encontró", "olvidó", "vendió", "llevó", "pintó", "escondió", "vio"],
        ["el pan", "una carta", "el sombrero rojo", "dos manzanas", "la llave", "un barco pequeño", "la mesa",
         "un libro viejo"],
        ["en el mercado", "en el jardín", "ayer", "el domingo", "detrás de la casa", "cerca del río", "en la ciudad",
         "antes de la cena"],
    ),
    "it": (
        ["il medico", "il contadino", "mia sorella", "il vecchio", "un bambino", "la maestra", "il nostro vicino",
         "il cuoco"],
        ["comprò", "trovò", "dimenticò", "vendette", "portò", "dipinse", "nascose", "vide"],
        ["il pane", "una lettera", "il cappello rosso", "due mele", "la chiave", "una piccola barca", "il tavolo",
         "un vecchio libro"],
        ["al mercato", "nel giardino", "ieri", "domenica", "dietro la casa", "vicino al fiume", "in città",
         "prima di cena"],
    ),
    "pt": (
        ["o médico", "o agricultor", "minha irmã", "o velho", "uma criança", "a professora", "nosso vizinho",
         "o cozinheiro"],
        ["comprou", "encontrou", "esqueceu", "vendeu", "levou", "pintou", "escondeu", "viu"],
        ["o pão", "uma carta", "o chapéu vermelho", "duas maçãs", "a chave", "um barco pequeno", "a mesa",
         "um livro velho"],
        ["no mercado", "no jardim", "ontem", "no domingo", "atrás da casa", "perto do rio", "na cidade",
         "antes do jantar"],
    ),
}  # fmt: skip
ENGLISH_SHARE = 0.5  # of the records; the other languages share the rest equally


@dataclass
class Multilingual(Dataset):
    """Generated sentences; nothing is read or downloaded.

    records: how many, held-out ones among them. held_out: so many of them no model is trained on, each language by its
    share. languages: of en, de, fr, es, it, pt; where English is one of several, half of the records are English.
    sentences: per record. seed: what everything is drawn from.
    """

    records: int = 1200
    held_out: int = 96
    languages: list[str] = field(default_factory=lambda: list(WORDS))
    sentences: int = 4
    seed: int = 0
    query_sets: list[str] = field(default_factory=lambda: ["paraphrased"])

    PARAPHRASE_KEYS: ClassVar[str] = "dataset=text (generated sentences have none)"

    def __post_init__(self) -> None:
        """Refuse unknown languages and sizes that leave nothing to train on."""
        super().__post_init__()
        for name in self.languages:
            if name not in WORDS:
                raise unknown("language", name, WORDS, "dataset.languages")
        if not self.languages:
            raise UserError("dataset.languages is empty; name at least one, e.g. [en,de]")
        if self.sentences < 1:
            raise UserError(f"dataset.sentences={self.sentences}: must be at least 1")
        if not 0 <= self.held_out < self.records:
            raise UserError(
                f"dataset.held_out={self.held_out}: must lie from 0 to below dataset.records={self.records}"
            )

    def train_records(self) -> list[Record]:
        """Return the records that are not held out; `meta` names each one's language as its group."""
        return self._split()[0]

    def held_out_records(self) -> list[Record]:
        """Return the held-out records."""
        return self._split()[1]

    def _split(self) -> tuple[list[Record], list[Record]]:
        needed = float(self.records) * (RECORD_BYTES + SENTENCE_BYTES * self.sentences)
        what = f"dataset.records={self.records} dataset.sentences={self.sentences}"
        refuse_beyond(needed, what, "take fewer")
        written = [self._write(number) for number in range(self.records)]
        chosen = set(stratified(groups_of(written), self.held_out, [self.seed], "dataset.held_out").tolist())
        train = [record for place, record in enumerate(written) if place not in chosen]
        return train, [record for place, record in enumerate(written) if place in chosen]

    def _write(self, number: int) -> Record:
        draw = random.Random(f"{self.seed} {number}")
        others = [name for name in self.languages if name != "en"]
        english = "en" in self.languages and (not others or draw.random() < ENGLISH_SHARE)
        language = "en" if english else draw.choice(others)
        said = [" ".join(draw.choice(words) for words in WORDS[language]) for _ in range(self.sentences)]
        text = " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in said)
        return Record(f"{language}-{number}", "", text, meta={"group": language})
