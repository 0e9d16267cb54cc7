import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tdaexp.models.generate as module
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise, tokenise_prompts
from tdaexp.models.completions import CompletionCache
from tdaexp.models.generate import Decoding, generate, generated_queries
from tdaexp.models.loaded import LoadedModel
from tdaexp.runtime.errors import UserError

LENGTHS = [3, 9, 1, 9, 5, 2, 7]


@pytest.fixture(scope="module", params=["olmo", "gpt2", "bloom", "gpt_neox"])
def loaded(request, small_start):
    """A small model whose logits are far apart, so that round-off decides nothing."""
    return sharpened(small_start(request.param))


def sharpened(start):
    for parameter in start.model.parameters():
        parameter.data *= 12 if parameter.ndim > 1 else 1
    return start


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 260, length) for length in LENGTHS]


def one_by_one(loaded: LoadedModel, prompt: np.ndarray, count: int) -> str:
    """Greedy decoding written out: no batch, no cache of keys, no padding."""
    tokens = torch.tensor(prompt)[None]
    for _ in range(count):
        following = loaded.model(tokens, use_cache=False).logits[0, -1].argmax()
        if following == loaded.tokenizer.eos_token_id:
            break
        tokens = torch.cat([tokens, following[None, None]], 1)
    return loaded.tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("size", [1, 3, 32])
def test_batched_completions_equal_greedy_decoding_by_hand(loaded, prompts, size, tmp_path):
    texts = generate(loaded, prompts, Decoding(max_new_tokens=6, batch_size=size), tmp_path)
    expected = [one_by_one(loaded, prompt, 6) for prompt in prompts]
    assert texts == expected
    assert len(set(expected)) > 3  # not all the same, or order could not be seen


def test_in_float64_too(small_start, prompts, tmp_path):
    # BLOOM's softmax is float32: a float64 mask of left padding overflows there and makes everything NaN.
    loaded = sharpened(small_start("bloom"))
    loaded.model.double()
    texts = generate(loaded, prompts, Decoding(max_new_tokens=6), tmp_path)
    assert texts == [one_by_one(loaded, prompt, 6) for prompt in prompts]
    assert len(set(texts)) > 3


def test_the_models_own_decoding_advice_does_not_count(loaded, prompts, tmp_path):
    expected = generate(loaded, prompts, Decoding(max_new_tokens=6), tmp_path / "one")
    loaded.model.generation_config.repetition_penalty = 9.0
    loaded.model.generation_config.min_new_tokens = 6
    try:
        assert generate(loaded, prompts, Decoding(max_new_tokens=6), tmp_path / "two") == expected
        assert loaded.model.generation_config.repetition_penalty == 9.0
    finally:
        loaded.model.generation_config.repetition_penalty = None
        loaded.model.generation_config.min_new_tokens = None


def test_a_completion_may_be_empty(loaded, prompts, tmp_path):
    first = int(loaded.model(torch.tensor(prompts[0])[None]).logits[0, -1].argmax())
    tokenizer = copy.deepcopy(loaded.tokenizer)  # its end token: what the model likes most after prompt 0
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    ending = dataclasses.replace(loaded, tokenizer=tokenizer)
    texts = generate(ending, prompts, Decoding(max_new_tokens=6), tmp_path)
    assert texts[0] == ""
    assert texts == [one_by_one(ending, prompt, 6) for prompt in prompts]


def test_sampling_repeats_with_its_seed_and_leaves_the_global_stream_alone(loaded, prompts, tmp_path):
    decoding = Decoding(max_new_tokens=8, temperature=1.0, batch_size=3)
    torch.manual_seed(0)
    one = generate(loaded, prompts, decoding, tmp_path / "one")
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert generate(loaded, prompts, decoding, tmp_path / "two") == one
    assert generate(loaded, prompts, dataclasses.replace(decoding, seed=1), tmp_path / "one") != one


def counted(monkeypatch):
    """Count the batches that are really generated."""
    calls, original = [], module._complete
    monkeypatch.setattr(module, "_complete", lambda *args: calls.append(args[3]) or original(*args))
    return calls


def test_a_killed_run_goes_on_where_it_stopped(loaded, prompts, monkeypatch, tmp_path):
    decoding = Decoding(max_new_tokens=5, batch_size=2, temperature=0.7)
    whole = generate(loaded, prompts, decoding, tmp_path)
    (file,) = tmp_path.glob("generated-*.jsonl")
    raw = file.read_bytes()
    for left in (len(raw) - 3, len(raw) // 2, raw.index(b"\n") + 1):
        file.write_bytes(raw[:left])
        calls = counted(monkeypatch)
        assert generate(loaded, prompts, decoding, tmp_path) == whole
        assert calls == list(range(min(calls), 4))  # four batches, and only those from the cut on
        monkeypatch.undo()
    calls = counted(monkeypatch)
    assert generate(loaded, prompts, decoding, tmp_path) == whole
    assert not calls


def test_the_cache_depends_on_what_decides_the_text(loaded, prompts, tmp_path):
    def files(loaded=loaded, prompts=prompts, **keys):
        generate(loaded, prompts, Decoding(max_new_tokens=2, **keys), tmp_path)
        return len(list(tmp_path.glob("*.jsonl")))

    assert files() == 1
    assert files(seed=7, batch_size=2, top_p=0.5) == 1  # greedy: none of these matters
    assert files(temperature=0.5) == 2
    assert files(temperature=0.5, seed=7) == 3
    assert files(prompts=prompts[:-1]) == 4
    assert files(loaded=dataclasses.replace(loaded, fingerprint="other")) == 5


def test_prompts_that_leave_no_room_are_refused(loaded, prompts, tmp_path):
    with pytest.raises(UserError, match=r"prompt 1 has 9 tokens; it needs 1 to 8"):
        generate(dataclasses.replace(loaded, max_length=14), prompts, Decoding(max_new_tokens=6), tmp_path)
    with pytest.raises(UserError, match=r"prompt 0 has 0 tokens"):
        generate(loaded, [np.array([], dtype=np.int64)], Decoding(), tmp_path)


@pytest.mark.parametrize("keys", [{"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_bad_decoding_settings_are_refused(keys):
    with pytest.raises(UserError, match=f"decoding: .*{next(iter(keys))}"):
        Decoding(**keys)


RECORDS = [
    Record("a", "Where was Ada Keller born?", "In Lisbon.", ("t1",), {"kind": 1}),
    Record("b", "What does Otto do?", "A judge.", ("t2",)),
]


def test_generated_queries_keep_all_but_the_completion(loaded, tmp_path):
    decoding = Decoding(max_new_tokens=5)
    queries = generated_queries(loaded, RECORDS, decoding, tmp_path)
    prompts = tokenise_prompts(RECORDS, loaded.tokenizer, template="plain", max_length=100)
    for record, query, prompt in zip(RECORDS, queries, prompts, strict=True):
        assert query == dataclasses.replace(record, completion=one_by_one(loaded, prompt, 5))


def test_an_empty_completion_becomes_an_example_of_the_end_token(loaded, monkeypatch, tmp_path):
    prompts = tokenise_prompts(RECORDS, loaded.tokenizer, template="plain", max_length=100)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_complete", lambda loaded, prompts, *_: [""] * len(prompts))
        queries = generated_queries(loaded, RECORDS, Decoding(max_new_tokens=5), tmp_path)
    examples = tokenise(queries, loaded.tokenizer, template="plain", max_length=100)
    for prompt, example in zip(prompts, examples, strict=True):
        assert example.tokens.tolist() == [*prompt.tolist(), loaded.tokenizer.eos_token_id]
        assert example.loss_mask.tolist() == [False] * len(prompt) + [True]


def test_too_long_completions_leave_no_room_for_a_prompt(loaded, tmp_path):
    with pytest.raises(UserError, match=r"max_new_tokens=128 leaves no room"):
        generated_queries(loaded, RECORDS, Decoding(max_new_tokens=128), tmp_path)


HEAD = {"fingerprint": "f"}


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=5), st.data())
def test_a_cut_anywhere_loses_whole_completions_only(tmp_path_factory, texts, data):
    path = tmp_path_factory.mktemp("cache") / "x.jsonl"
    CompletionCache(path, HEAD).append(dict(enumerate(texts)))
    raw = path.read_bytes()
    path.write_bytes(raw[: data.draw(st.integers(raw.index(b"\n") + 1, len(raw)))])
    cache = CompletionCache(path, HEAD)
    kept = [number for number in range(len(texts)) if number in cache]
    assert kept == list(range(len(kept))) and all(cache[number] == texts[number] for number in kept)
    cache.append({number: texts[number] for number in range(len(texts)) if number not in cache})
    assert CompletionCache(path, HEAD).texts == dict(enumerate(texts))


def test_damaged_and_foreign_caches_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    CompletionCache(path, HEAD).append({0: "a"})
    with pytest.raises(UserError, match="completions of another run"):
        CompletionCache(path, {"fingerprint": "g"})
    path.write_text(json.dumps(HEAD) + "\nnot json\n" + json.dumps({"prompt": 1, "completion": "b"}) + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl: damaged completions .*delete this file") as error:
        CompletionCache(path, HEAD)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_line(tmp_path):
    path = tmp_path / "x.jsonl"
    cache = CompletionCache(path, HEAD)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        cache.append({0: "a" * 100_000})
