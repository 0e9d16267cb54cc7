"""Data files, scores, tokenizers and templates of others are read as they stand, or refused in one line."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from transformers import LlamaConfig, LlamaForCausalLM

from tdaexp import influence
from tdaexp.data import templates
from tdaexp.data.dataset import Dataset
from tdaexp.data.lima import Lima
from tdaexp.data.records import Place, Record
from tdaexp.data.tables import read_rows
from tdaexp.data.text import Text
from tdaexp.data.tokenise import tokenise
from tdaexp.data.trex import TREx
from tdaexp.metrics.external import read_scores
from tdaexp.models.generate import Decoding, generate
from tdaexp.models.loaded import LoadedModel, check_tokens
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.tokenizer import train_tokenizer
from tdaexp.runtime.deadline import Overdue, within
from tdaexp.runtime.errors import UserError, unknown

COLUMNS = {"id_column": "id", "prompt_column": "prompt", "completion_column": "completion", "query_sets": []}
GOOD = {"id": "a", "prompt": "who", "completion": "me"}
OWN = [text for text in TINY if not text.startswith("dataset.")]
TEXTS = ["the river runs past the town", "and the mill of the family stands there"]


def read(tmp_path: Path, content: str | bytes, name: str = "rows.jsonl", **keys) -> list[Record]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return Text(path=str(path), **(COLUMNS | keys)).load().train


def row(**values: str) -> str:
    """A line of JSON; values are given as they stand in the file."""
    return "{" + ", ".join(f'"{key}": {value}' for key, value in values.items()) + "}\n"


FIRST = json.dumps(GOOD) + "\n"
BAD_ROWS = {
    "NaN": (row(id='"b"', completion="NaN", prompt='""'), "column 'completion' holds the number nan, which is no text"),
    "infinity": (row(id='"b"', completion="-Infinity", prompt='""'), "holds the number -inf"),
    "a boolean": (row(id='"b"', completion="true", prompt='""'), "column 'completion' holds the boolean true"),
    "a number": (row(id='"b"', completion="1.50", prompt='""'), "column 'completion' holds the number 1.5"),
    "a whole number": (row(id='"b"', completion="7", prompt='""'), "column 'completion' holds the number 7"),
    "a list": (row(id='"b"', completion='["x"]', prompt='""'), "column 'completion' holds a list"),
    "null": (row(id='"b"', completion="null", prompt='""'), "column 'completion' holds no text"),
    "blank": (row(id='"b"', completion='" "', prompt='""'), "column 'completion' holds no text"),
    "a prompt of NaN": (row(id='"b"', completion='"x"', prompt="NaN"), "column 'prompt' holds the number nan"),
    "an id of NaN": (
        row(id="NaN", completion='"x"', prompt='""'),
        "column 'id' holds the number nan, which names nothing",
    ),
    "a boolean id": (row(id="false", completion='"x"', prompt='""'), "column 'id' holds the boolean false"),
    "an id of fractions": (row(id="1.0", completion='"x"', prompt='""'), "column 'id' holds the number 1.0"),
    "an id of 5,000 digits": (row(id="9" * 5000, completion='"x"', prompt='""'), "not valid JSON"),
    "NUL": (row(id='"b"', completion='"a\\u0000b"', prompt='""'), "column 'completion' holds a NUL byte"),
    "half a pair": (row(id='"b"', completion='"a\\ud83d"', prompt='""'), "holds half a surrogate pair"),
    "half a pair in an id": (row(id='"\\udc00"', completion='"a"', prompt='""'), "column 'id' holds half a surrogate"),
    "a key twice": ('{"id": "b", "completion": "x", "completion": "y"}\n', "an object names 'completion' twice"),
    "nested": ('{"id": ' + "[" * 200_000 + "]" * 200_000 + "}\n", "nested too deeply"),
    "nested objects": ('{"id": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}\n", "nested too deeply"),
    "a long word": (row(id='"b"', completion='"' + "x" * 1_000_001 + '"', prompt='""'), "1,000,001 characters"),
    "no object": ("3\n", "holds int, not a JSON object"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_with_its_file(tmp_path, name):
    line, message = BAD_ROWS[name]
    with pytest.raises(UserError) as caught:
        read(tmp_path, FIRST + line)
    assert f"{tmp_path / 'rows.jsonl'}, row 2: " in str(caught.value) and message in str(caught.value)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_whole_numbers_are_ids_and_groups(tmp_path):
    found = read(tmp_path, row(id="3", prompt='""', completion='"x"', year="1999"), group_column="year")
    assert (found[0].id, found[0].meta) == ("3", {"group": "1999"})


BAD_TABLES = {
    "twice.csv": ("id,completion,completion\na,x,y\n", "row 1: two columns are named 'completion'"),
    "twice.tsv": ("id\tid\na\tb\n", "row 1: two columns are named 'id'"),
    "nul.csv": ("id,completion,prompt\na,x\0y,\n", "column 'completion' holds a NUL byte"),
    "nul.tsv": ("id\tcompletion\tprompt\na\tx\0y\tz\n", "column 'completion' holds a NUL byte"),
    "ragged.csv": ("id,completion\na,x,y\n", "row 2: 3 columns where the header has 2"),
    "short.csv": ("id,completion\na\n", "row 2: 1 columns where the header has 2"),
    "open.csv": ('id,completion\na,"x\nb,y\n', "not valid CSV"),
    "latin.csv": ("id,completion,prompt\na,x,\nb,Zürich,\n".encode("latin-1"), "row 3: not UTF-8 text (byte 4 of it)"),
    "wide.jsonl": (FIRST.encode("utf-16"), "row 1: not UTF-8 text (byte 1 of it)"),
    "nul.txt": ("one\nt\0wo\n", "holds a NUL byte"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_named(tmp_path, name):
    content, message = BAD_TABLES[name]
    keys = {"completion_column": None, "prompt_column": None, "id_column": None} if name.endswith("txt") else {}
    with pytest.raises(UserError) as caught:
        read(tmp_path, content, name, **keys)
    assert name in str(caught.value) and message in str(caught.value)


def test_a_long_field_of_a_csv_is_no_fault_of_the_file(tmp_path):
    (record,) = read(tmp_path, f"id,prompt,completion\na,,{'word ' * 40_000}\n", "long.csv")
    assert len(record.completion) == 200_000


def test_repeated_ids_are_named_with_both_rows(tmp_path):
    with pytest.raises(UserError, match=r"'a' stands twice, in .*rows\.jsonl, row 1 and .*rows\.jsonl, row 2"):
        read(tmp_path, FIRST * 2)
    (tmp_path / "q.jsonl").write_text(FIRST * 2)
    keys = COLUMNS | {"query_path": str(tmp_path / "q.jsonl"), "query_sets": ["paraphrased"]}
    with pytest.raises(UserError, match=r"query id 'a/paraphrased' stands twice, in .*q\.jsonl, row 1 and .*row 2"):
        Text(path=str(tmp_path / "rows.jsonl"), limit=1, **keys).load()


@pytest.mark.parametrize("source", ["NaN", "true", "1.5", "[NaN]", "[[]]", "null", '"\\ud800"'])
def test_training_ids_of_queries_are_names(tmp_path, source):
    (tmp_path / "q.jsonl").write_text(row(id='"q"', prompt='"who"', completion='"me"', source=source))
    keys = COLUMNS | {"query_path": str(tmp_path / "q.jsonl"), "query_sets": ["paraphrased"], "truth_column": "source"}
    (tmp_path / "rows.jsonl").write_text(FIRST)
    with pytest.raises(UserError, match=r"q\.jsonl, row 1: column 'source'"):
        Text(path=str(tmp_path / "rows.jsonl"), **keys).load()


def test_other_readers_stand_at_the_same_boundary(tmp_path):
    good, bad, twice = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "twice.jsonl"
    good.write_text(FIRST)
    bad.write_text(row(id='"a"', prompt='"x"', completion="NaN"))
    twice.write_text(FIRST * 2)
    for path, other, message in (
        (bad, good, "bad.jsonl, row 1: column 'completion'"),
        (good, twice, "row 2: the id 'a'"),
    ):
        with pytest.raises(UserError, match=message):
            Lima(path=str(path), paraphrases=str(other), query_sets=["paraphrased"]).load()
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    facts = tmp_path / "facts.jsonl"
    known = ("predicate_id", "sub_uri", "sub_label", "obj_uri", "obj_label")
    facts.write_text(json.dumps({key: f"X{k}" for k, key in enumerate(known)}))
    with pytest.raises(UserError, match=r"deep\.json: not in T-REx's format \(.*nested too deeply"):
        TREx(sentences=str(deep), facts=str(facts)).load()


# --- scores of another program ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs() -> influence.xr.Dataset:
    """Two queries, three candidates each."""
    return influence.build(
        np.zeros((2, 3)),
        query=["p", "q"],
        query_set=["asked"] * 2,
        train=np.array([["a", "b", "c"]] * 2, dtype=object),
        truth=np.array([[True, False, False]] * 2),
        truth_known=np.array([True, False]),
        attrs={"method": "random", "label": "random", "study": "one"},
    )


RIGHT = {"p": {"a": 1, "b": 2.5, "c": -1}, "q": {"a": 1, "b": 2, "c": 3}}
BAD_SCORES = {
    "a number": '{"p": 3, "q": 4}',
    "null": '{"p": null, "q": null}',
    "mixed": '{"p": {"a": 1, "b": 2, "c": "x"}, "q": {"a": 1, "b": 2, "c": 3}}',
    "a boolean": json.dumps(RIGHT).replace("2.5", "true"),
    "a gigantic number": json.dumps(RIGHT).replace("2.5", "1" + "0" * 400),
    "NaN": json.dumps(RIGHT).replace("2.5", "NaN"),
    "1e999": json.dumps(RIGHT).replace("2.5", "1e999"),
    "a pair is missing": json.dumps(RIGHT).replace('"b": 2.5, ', ""),
    "a key twice": json.dumps(RIGHT).replace('"b": 2.5', '"b": 2.5, "b": 3'),
    "a list": "[1, 2]",
    "nested": "[" * 100_000,
    "empty": "",
    "half a file": '{"p": {"a"',
}


@pytest.mark.parametrize("name", BAD_SCORES)
def test_bad_scores_in_json(tmp_path, pairs, name):
    path = tmp_path / "scores.json"
    path.write_text(BAD_SCORES[name], encoding="utf-8")
    with pytest.raises(UserError, match=r"scores\.json"):
        read_scores(path, pairs)


def test_good_scores_keep_what_is_known_and_may_have_a_mark(tmp_path, pairs):
    path = tmp_path / "scores.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RIGHT).encode())
    found = read_scores(path, pairs)
    assert found["influence"].values.tolist() == [[1, 2.5, -1], [1, 2, 3]]
    assert influence.truth_known(found).tolist() == [True, False]


@pytest.mark.parametrize("entry", ["query", "train"])
@pytest.mark.parametrize(
    "names", [3, None, ["a", None, 1.5], ["a", "a", "b"], [["a"], ["b"], ["c"]], True, "abc", {"a": 1}]
)
def test_bad_names_of_rows_and_columns(tmp_path, pairs, entry, names):
    """Numbers, null, mixed types: what `train` was in the files that broke it."""
    path = tmp_path / "scores.pt"
    torch.save({"scores": torch.zeros(2, 3), entry: names}, path)
    with pytest.raises(UserError, match=rf"scores\.pt: (the )?entry '{entry}'"):
        read_scores(path, pairs)
    array = (
        None if isinstance(names, dict) else np.array(names, dtype=None if isinstance(names, (int, str)) else object)
    )
    np.savez(tmp_path / "scores.npz", scores=np.zeros((2, 3)), **({} if array is None else {entry: array}))
    if array is not None:
        with pytest.raises(UserError, match=r"scores\.npz"):
            read_scores(tmp_path / "scores.npz", pairs)


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((3, 2)), np.zeros(6), np.zeros((2, 3), complex), np.full((2, 3), np.nan), np.full((2, 3), "x"),
        np.zeros((2, 3), bool), np.array([[1, None, 2], [1, 2, 3]], dtype=object), np.zeros(()), np.zeros((0, 3)),
    ],
)  # fmt: skip
def test_bad_matrices(tmp_path, pairs, matrix):
    np.save(tmp_path / "scores.npy", matrix)
    with pytest.raises(UserError, match=r"scores\.npy"):
        read_scores(tmp_path / "scores.npy", pairs)


@pytest.mark.parametrize("name", ["explaind_subsampling", "explaind_fig2", "grokking"])
def test_an_analysis_of_classes_says_that_texts_have_none(commands, name):
    line = commands.refused("evaluate", *TINY[:-2], f"analysis={name}", "metric.bootstrap=50")
    assert f"analysis={name}: is about a classification task" in line and "model=" in line


# --- tokenizers, templates, weights -----------------------------------------------------------------------------------


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def chat(template: str, tokenizer) -> None:
    tokenizer.chat_template = template
    tokenise([Record("r1", "Who?", "Me.", where=Place("rows.jsonl", 7))], tokenizer, template="chat")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[5]['content'] }}", "Error"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(1000000000000) %}x{% endfor %}", "OverflowError"),
        ("{% for i in range(10**12) %}x{% endfor %}", "it raises to a power"),
        ("{{ 10 ** 10 ** 10 }}", "it raises to a power"),
    ],
)
def test_a_chat_template_that_fails(tokenizer, template, reason):
    with pytest.raises(UserError, match=r"^rows\.jsonl, row 7: example 'r1': .*chat template fails") as caught:
        chat(template, tokenizer)
    assert reason in str(caught.value) and "dataset.template=plain" in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% for i in range(9999) %}{% if i and n %}{{ f(n - 1) }}{% endif %}{% endfor %}{% endmacro %}"
        "{{ f(3) }}",
    ],
)
def test_a_chat_template_that_never_ends(tokenizer, template, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"row 7: example 'r1': the tokenizer's chat template did not end in 0\.2 s"):
        chat(template, tokenizer)
    assert time.monotonic() - start < 5
    chat("{% for m in messages %}<{{ m['content'] }}>{% endfor %}", tokenizer)  # the next call has a thread of its own


def test_a_time_limit_hands_on_results_and_errors():
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}["x"])
    with pytest.raises(Overdue):
        within(0.05, lambda: [None for _ in iter(int, 1)])


class Strange:
    """A tokenizer that answers with `ids` for every text."""

    chat_template = bos_token_id = eos_token_id = None
    unk_token_id, unk_token = 1, "<unk>"

    def __init__(self, ids) -> None:
        self.ids = ids

    def __call__(self, texts, **options):
        if isinstance(self.ids, Exception):
            raise self.ids
        return {"input_ids": [self.ids if text else [] for text in texts]}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "makes no token of its text"),
        ([1, 1, 1], "every token is '<unk>'"),
        (RuntimeError("Unigram has no\nunk"), r"row 7: example 'r1': the tokenizer fails on its text \(RuntimeError"),
        (["a"], "the tokenizer fails on its text"),
        (None, "the tokenizer fails on its text"),
    ],
)
def test_a_tokenizer_that_reads_nothing(ids, message):
    with pytest.raises(UserError, match=message) as caught:
        tokenise([Record("r1", "", "some text", where=Place("rows.jsonl", 7))], Strange(ids), template="plain")
    assert "model.tokenizer" in str(caught.value) and str(caught.value).isprintable()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=32, **sizes))


def test_tokens_that_the_model_does_not_embed():
    for ids in ([5, 300], [-1, 5]):
        examples = tokenise([Record("r1", "", "some text")], Strange(ids), template="plain")
        with pytest.raises(UserError, match=r"example 'r1': the tokenizer gives token (300|-1), .* embeds 0 to 299"):
            check_tokens(llama(), examples)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(commands, tokenizer, value):
    """Also where no gradient is asked for: BM25 on what the model writes itself."""
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[1, 2] = value
    model.save_pretrained("broken")
    tokenizer.save_pretrained("broken")
    line = commands.refused(
        "attribute", "model=dolly3b", "model.pretrained=broken", "dataset.people=5", "dataset.query_sets=[generated]",
        "method=bm25",
    )  # fmt: skip
    assert "broken: 1 of 64 numbers of the tensor 'model.layers.0.mlp.up_proj.weight' are NaN or infinite" in line


def test_finite_weights_of_a_great_sum_are_weights(tokenizer, tmp_path):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[:] = 3e38
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert Pretrained(str(tmp_path)).load().model.lm_head.weight[0, 0] == pytest.approx(3e38)


def test_completions_of_logits_that_are_no_numbers(tokenizer, tmp_path):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[:] = 3e38  # finite, and their products are not
    loaded = LoadedModel(model.eval(), tokenizer, "x", "plain", 32)
    with pytest.raises(UserError, match="its logits are NaN or infinite"):
        generate(loaded, [np.array([5, 6])], Decoding(max_new_tokens=2), tmp_path)


def test_a_tokenizer_is_trained_on_pieces_of_a_long_word():
    """A word of 100,000 letters took seconds, one of a million minutes."""
    start = time.monotonic()
    found = train_tokenizer([*TEXTS, "a" * 300_000], 300)
    assert time.monotonic() - start < 10
    assert "".join(found.decode(found("the river")["input_ids"])).endswith("the river")


# --- whatever a file holds --------------------------------------------------------------------------------------------

VALUES = some.recursive(
    some.none() | some.booleans() | some.integers(-(10**30), 10**400) | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
CALM = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@contextlib.contextmanager
def well_or_one_line() -> Iterator[None]:
    """Whatever happens inside is a good end, or an error of one line."""
    try:
        yield
    except UserError as error:
        assert str(error).isprintable() and str(error), repr(str(error))


def accepted(dataset: Dataset) -> None:
    """What a data set accepts is text that can be written, tokenised and named."""
    corpus = dataset.load()
    for record in [*corpus.train, *corpus.queries.get("paraphrased", [])]:
        assert record.completion.strip() and "\0" not in record.text and record.text.encode("utf-8") is not None
        assert record.id.strip() and "nan" not in record.id


@CALM
@given(rows=some.lists(some.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, VALUES)), min_size=1, max_size=3))
def test_any_json_lines(tmp_path, rows):
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps({**GOOD, **one, "id": one.get("id", k)}) + "\n" for k, one in enumerate(rows)))
    with well_or_one_line():
        found = Text(path=str(path), **COLUMNS).load().train
        for record, one in zip(found, rows, strict=True):
            for part in ("prompt", "completion"):
                assert getattr(record, part) == (one.get(part, GOOD[part]) or "")
            assert record.text.encode("utf-8") is not None and "\0" not in record.text and record.id.strip()


@CALM
@given(data=some.binary(max_size=40) | some.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
       name=some.sampled_from(["any.jsonl", "any.csv", "any.tsv", "any.txt"]), head=some.booleans())  # fmt: skip
def test_any_bytes(tmp_path, data, name, head):
    begin = {"any.jsonl": FIRST, "any.csv": "id,prompt,completion\n", "any.tsv": "id\tprompt\tcompletion\n"}.get(
        name, ""
    )
    path = tmp_path / name
    path.write_bytes((begin.encode() if head else b"") + data)
    keys = {"text_column": "text", "query_sets": []} if name == "any.txt" else COLUMNS
    with well_or_one_line():
        accepted(Text(path=str(path), **keys))
    with well_or_one_line():
        read_rows(path, "paragraph")


@CALM
@given(truth=VALUES, names=some.lists(VALUES, min_size=1, max_size=2))
def test_any_truth(tmp_path, truth, names):
    (tmp_path / "rows.jsonl").write_text(FIRST)
    (tmp_path / "q.jsonl").write_text(
        json.dumps({**GOOD, "source": truth}) + "\n" + json.dumps({**GOOD, "id": names[0]})
    )
    keys = COLUMNS | {"query_path": str(tmp_path / "q.jsonl"), "truth_column": "source", "query_sets": ["paraphrased"]}
    with well_or_one_line():
        accepted(Text(path=str(tmp_path / "rows.jsonl"), **keys))


@CALM
@given(scores=VALUES | some.dictionaries(some.sampled_from("pq"), some.dictionaries(some.sampled_from("abc"), VALUES)),
       cut=some.integers(0, 30))  # fmt: skip
def test_any_scores(tmp_path, pairs, scores, cut):
    path = tmp_path / "any.json"
    text = json.dumps(scores)
    path.write_text(text if cut > 20 else text[: len(text) - cut])
    with well_or_one_line():
        assert np.isfinite(read_scores(path, pairs)["influence"].values).all()


@CALM
@given(names=VALUES, matrix=VALUES, entry=some.sampled_from(["query", "train", "scores"]))
def test_any_entries_of_scores(tmp_path, pairs, names, matrix, entry):
    path = tmp_path / "any.pt"
    torch.save({"scores": matrix, entry: names}, path)
    with well_or_one_line():
        assert np.isfinite(read_scores(path, pairs)["influence"].values).all()


@CALM
@given(where=some.integers(0, 10_000), byte=some.integers(0, 255), suffix=some.sampled_from([".npy", ".npz", ".pt"]))
def test_any_flipped_byte_of_scores(tmp_path, pairs, where, byte, suffix):
    path = tmp_path / f"flipped{suffix}"
    matrix = np.arange(6.0).reshape(2, 3)
    if suffix == ".npy":
        np.save(path, matrix)
    elif suffix == ".npz":
        np.savez(path, scores=matrix, train=np.array(["a", "b", "c"]))
    else:
        torch.save({"scores": torch.from_numpy(matrix), "train": ["a", "b", "c"]}, path)
    raw = bytearray(path.read_bytes())
    raw[where % len(raw)] = byte
    path.write_bytes(bytes(raw))
    with well_or_one_line():
        assert np.isfinite(read_scores(path, pairs)["influence"].values).all()


def test_messages_are_one_line_whatever_is_in_them():
    assert str(UserError("a\nb\ud800\x1b[31m")) == "a b\\ud800\\x1b[31m"
    start = time.monotonic()
    message = str(unknown("training id", "x" * 1_000_000, (f"id{k}" for k in range(100_000)), "rows.jsonl, row 3"))
    assert len(message) < 1_000 and time.monotonic() - start < 10


def test_a_row_of_one_gigantic_word_is_refused_at_once(commands):
    Path("rows.jsonl").write_text(json.dumps({**GOOD, "completion": "x" * 20_000_000}) + "\n")
    columns = [f"dataset.{key}={value}" for key, value in COLUMNS.items() if key != "query_sets"]
    line = commands.refused("attribute", "dataset=text", "dataset.path=rows.jsonl", *columns, *OWN, "method=bm25",
                            "dataset.query_sets=[paraphrased]", "dataset.paraphrase_column=prompt")  # fmt: skip
    assert "rows.jsonl, row 1" in line and "one text may have 1,000,000" in line
    assert only("outputs/attribute/*").is_dir()
