"""The paraphrase cache and both providers: a server on the loopback, a tiny random model in a folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tdaexp.data import paraphrasers
from tdaexp.data.paraphrase import SYSTEM_PROMPT, paraphrase_records
from tdaexp.data.paraphrasers import LocalModel, OpenAICompatible
from tdaexp.data.records import Record
from tdaexp.data.text import Text
from tdaexp.runtime.errors import UserError

RECORDS = [Record("a", "Where?", "Riga."), Record("b", "", "Anna lives."), Record("c", "Where?", "Oslo.")]


@dataclass
class Shouting:
    """A provider that answers in capitals, counts what it is asked, and dies after `patience` answers."""

    cache: str
    patience: int = 10**6
    name: str = "shout"
    asked: list[str] = field(default_factory=list)

    def settings(self) -> dict:
        return {"name": self.name}

    def paraphrase(self, texts: Sequence[str]) -> Iterator[str]:
        for text in texts:
            if len(self.asked) == self.patience:
                raise KeyboardInterrupt
            self.asked.append(text)
            yield text.upper()


def cache_file(folder):
    (path,) = folder.glob("*.jsonl")
    return path


def test_records_are_rewritten_once_per_text_and_remembered(tmp_path) -> None:
    provider = Shouting(str(tmp_path))
    rewritten = paraphrase_records(RECORDS, provider)
    assert [(r.id, r.prompt, r.completion) for r in rewritten] == [
        ("a", "WHERE?", "RIGA."),
        ("b", "", "ANNA LIVES."),
        ("c", "WHERE?", "OSLO."),
    ]
    assert provider.asked == ["Where?", "Riga.", "Anna lives.", "Oslo."]
    again = Shouting(str(tmp_path), patience=0)
    assert paraphrase_records(RECORDS, again) == rewritten
    other = Shouting(str(tmp_path), name="other settings")
    paraphrase_records(RECORDS, other)
    assert len(other.asked) == 4


def test_a_killed_run_goes_on_where_it_stopped(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        paraphrase_records(RECORDS, Shouting(str(tmp_path), patience=2))
    path = cache_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "12')
    rest = Shouting(str(tmp_path))
    rewritten = paraphrase_records(RECORDS, rest)
    assert rest.asked == ["Anna lives.", "Oslo."]
    assert rewritten[0].completion == "RIGA."
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["paraphrase"] for line in lines] == ["WHERE?", "RIGA.", "ANNA LIVES.", "OSLO."]


def test_text_with_unicode_line_separators_survives_the_cache(tmp_path) -> None:
    records = [Record("a", "", "one\u2028two\u0085three\r\nfour")]
    first = paraphrase_records(records, Shouting(str(tmp_path)))
    assert paraphrase_records(records, Shouting(str(tmp_path), patience=0)) == first


def test_a_damaged_line_is_named(tmp_path) -> None:
    paraphrase_records(RECORDS, Shouting(str(tmp_path)))
    path = cache_file(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "not json", *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"\.jsonl:2: not a line of the paraphrase cache"):
        paraphrase_records(RECORDS, Shouting(str(tmp_path)))


def test_an_empty_answer_is_an_error_and_is_not_remembered(tmp_path) -> None:
    class Silent(Shouting):
        def paraphrase(self, texts):
            yield from (" " for _ in texts)

    with pytest.raises(UserError, match="the paraphrase of 'Where"):
        paraphrase_records(RECORDS, Silent(str(tmp_path)))
    assert cache_file(tmp_path).read_text() == ""


def test_a_data_set_asks_the_provider_for_its_queries(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    data = Text(path=str(tmp_path / "a.txt"), paraphrase=Shouting(str(tmp_path / "cache")))
    queries = data.load().queries["paraphrased"]
    assert [(q.id, q.completion, q.truth) for q in queries] == [
        ("0/paraphrased", "ONE", ("0",)),
        ("1/paraphrased", "TWO", ("1",)),
    ]


class Endpoint(BaseHTTPRequestHandler):
    """Answers each request with the next (status, headers, body) of `server.plan`; body None paraphrases."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.seen.append((self.path, self.headers.get("Authorization"), body))
            status, headers, answer = self.server.plan.pop(0) if self.server.plan else (200, {}, None)
        if answer is None:
            said = "para " + body["messages"][1]["content"]
            answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]})
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *args) -> None:
        """Stay silent."""


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        server.guard, server.seen, server.plan = threading.Lock(), [], []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that the provider would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(paraphrasers.time, "sleep", slept.append)
    return slept


def provider(server, tmp_path, **keys) -> OpenAICompatible:
    keys = {"model": "small", "api_key_env": None, "workers": 1, "temperature": 0.5} | keys
    return OpenAICompatible(f"http://127.0.0.1:{server.server_port}/v1", cache=str(tmp_path), **keys)


def test_endpoint_is_asked_as_the_protocol_says(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    rewritten = paraphrase_records(RECORDS[:2], provider(server, tmp_path, api_key_env="SOME_KEY"))
    assert [(r.prompt, r.completion) for r in rewritten] == [
        ("para Where?", "para Riga."),
        ("", "para Anna lives."),
    ]
    path, authorization, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert authorization == "Bearer secret"
    assert body == {
        "model": "small",
        "temperature": 0.5,
        "messages": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "Where?"}],
    }
    assert "secret" not in cache_file(tmp_path).read_text()


def test_answers_keep_their_order_with_many_workers(server, tmp_path) -> None:
    texts = [f"text {i}" for i in range(40)]
    answers = list(provider(server, tmp_path, workers=8).paraphrase(texts))
    assert answers == [f"para {text}" for text in texts]


def test_passing_failures_are_tried_again(server, tmp_path, waits) -> None:
    server.plan = [(500, {}, "oops"), (429, {"Retry-After": "7"}, "slow down"), (503, {}, "again")]
    assert list(provider(server, tmp_path).paraphrase(["x"])) == ["para x"]
    assert waits == [1.0, 7.0, 4.0]


def test_lasting_failures_are_one_line_and_what_was_answered_is_kept(server, tmp_path, waits) -> None:
    server.plan = [(200, {}, None)] + [(500, {}, "down")] * 3
    with pytest.raises(UserError, match="HTTP 500: down") as caught:
        paraphrase_records(RECORDS, provider(server, tmp_path, retries=2))
    assert waits == [1.0, 2.0] and "\n" not in str(caught.value)
    assert len(cache_file(tmp_path).read_text().splitlines()) == 1


def test_a_refusal_is_not_tried_again(server, tmp_path, waits) -> None:
    server.plan = [(401, {}, '{"error":\n "bad key"}')]
    with pytest.raises(UserError, match=r"HTTP 401.*bad key") as caught:
        list(provider(server, tmp_path).paraphrase(["x"]))
    assert waits == [] and len(server.seen) == 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", ["<html>", '{"error": "x"}', '{"choices": []}', "[1]"])
def test_an_answer_of_another_kind_is_named(server, tmp_path, answer: str) -> None:
    server.plan = [(200, {}, answer)]
    with pytest.raises(UserError, match="the answer is not a chat completion"):
        list(provider(server, tmp_path).paraphrase(["x"]))


def test_a_missing_key_is_named_before_anything_is_sent(server, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="api_key_env=NO_SUCH_KEY: this environment variable is not set"):
        list(provider(server, tmp_path, api_key_env="NO_SUCH_KEY").paraphrase(["x"]))
    assert server.seen == []


def test_an_endpoint_that_nobody_listens_at_is_one_line(tmp_path, waits, unused_port: int) -> None:
    silent = OpenAICompatible(f"http://127.0.0.1:{unused_port}/v1", api_key_env=None, retries=1, cache=str(tmp_path))
    with pytest.raises(UserError, match="no paraphrase"):
        list(silent.paraphrase(["x"]))
    assert waits == [1.0]


@pytest.fixture
def unused_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        return server.server_port


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OpenAICompatible(endpoint="localhost:8000"), "must begin with http"),
        (lambda: OpenAICompatible(workers=0), "workers=0: must be at least 1"),
        (lambda: OpenAICompatible(temperature=-1), "temperature=-1"),
        (lambda: LocalModel(batch_size=0), "batch_size=0: must be at least 1"),
    ],
)
def test_bad_values_are_named(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, plain_tokenizer, chat_tokenizer) -> dict[str, str]:
    """Two folders in hub format: a tiny random Llama with a plain tokenizer, and one with a chat template."""
    found = {}
    for name, tokenizer in (("plain", plain_tokenizer), ("chat", chat_tokenizer)):
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=2048,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            initializer_range=0.5,
        )
        folder = tmp_path_factory.mktemp(name)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = str(folder)
    return found


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_a_local_model_decodes_greedily_and_alike_in_every_batch(folders, tmp_path, request, kind: str) -> None:
    texts = ["Where does Anna live?", "Riga.", "The bakery is old and small."]
    keys = {"model": folders[kind], "device": "cpu", "max_new_tokens": 8, "cache": str(tmp_path)}
    together = list(LocalModel(batch_size=3, **keys).paraphrase(texts))
    assert together == list(LocalModel(batch_size=1, **keys).paraphrase(texts))
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    model = LlamaForCausalLM.from_pretrained(folders[kind])
    for text, answer in zip(texts, together, strict=True):
        prompt = {
            "chat": f"<|system|>\n{SYSTEM_PROMPT}\n<|user|>\n{text}\n<|assistant|>\n",
            "plain": f"{SYSTEM_PROMPT}\n\nText: {text}\nParaphrase:",
        }[kind]
        tokens = tokenizer(prompt)["input_ids"]
        start = len(tokens)
        while len(tokens) < start + 8 and tokens[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert answer == tokenizer.decode(tokens[start:], skip_special_tokens=True)


def test_a_model_that_is_not_there_is_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot load") as caught:
        list(LocalModel(model=str(tmp_path / "nothing"), cache=str(tmp_path)).paraphrase(["x"]))
    assert "\n" not in str(caught.value)


def test_a_template_without_a_place_for_system_prompts_is_named(chat_tokenizer) -> None:
    import copy

    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="refuses a system prompt"):
        paraphrasers.instruct(tokenizer, "x")
