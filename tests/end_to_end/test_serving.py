"""The page that asks an index: as a person's browser and a program ask it, and what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import struct
import threading
from html import escape
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml
from commands import TINY

from tdaexp.app.stages import serving
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.loopback import Loopback

BEST = (
    *TINY,
    "method=project",
    "method.side=4",
    "metric.plots=false",
    "trust=false",
    "candidates=best",
    "candidates.k=20",
)
SERVE = ("serve=true", "runs=[run]", "port=0")


def ask(
    port: int, path: str = "/", fields: dict[str, str] | None = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of a reply."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    how = ("GET", path) if fields is None else ("POST", path, urlencode(fields), form | headers)
    connection.request(*how) if fields is not None else connection.request(*how, headers=headers)
    reply = connection.getresponse()
    return reply.status, reply.read().decode(), dict(reply.getheaders())


@pytest.fixture
def run(commands):
    """A run that was asked one question, with its index."""
    commands.done("attribute", *BEST, "dataset.query_sets=[paraphrased]", "dataset.query_limit=1", "hydra.run.dir=run")
    return Path("run")


def changed(run: Path, name: str, **values: object) -> Path:
    """The run with another configuration."""
    folder = Path(shutil.copytree(run, name))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    (folder / "config.yaml").write_text(yaml.safe_dump(config | values), encoding="utf-8")
    return folder


def test_a_page_that_answers_as_the_command_does(commands, run, monkeypatch):
    opened: list[Loopback] = []
    begun = threading.Event()
    replies: dict[str, tuple[int, str, dict[str, str]]] = {}
    question = json.loads((run / "top.jsonl").read_text(encoding="utf-8").splitlines()[0])
    typed = {name: question[name] for name in ("prompt", "completion")}

    class Told(Loopback):
        def serve(self, answer):
            opened.append(self)
            begun.set()
            return super().serve(answer)

    def person() -> None:
        try:
            assert begun.wait(100)
            port = opened[0].port
            replies["page"] = ask(port)
            replies["answer"] = ask(port, "/answer.json", typed)
            replies["read"] = ask(port, "/", typed)
            replies["odd"] = ask(port, "/", {"prompt": "<script>&", "completion": '</textarea>"'})
            replies["empty"] = ask(port, "/", {"prompt": "Where?", "completion": " "})
            replies["long"] = ask(port, "/answer.json", {"prompt": "where " * 3000, "completion": "there"})
            replies["nothing"] = ask(port, "/answer.json")
            replies["elsewhere"] = ask(port, "/", None, Host="example.org")
            replies["foreign"] = ask(port, "/", typed, Origin="http://example.org")
            replies["lost"] = ask(port, "/favicon.ico")
            with socket.create_connection(("127.0.0.1", port)) as gone:  # goes away before its answer
                form = b"completion=moon"
                gone.sendall(
                    b"POST / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: %d\r\n\r\n%b" % (port, len(form), form)
                )
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with socket.create_connection(("127.0.0.1", port)) as short:
                short.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 99\r\n\r\nprompt=" % port)
                short.shutdown(socket.SHUT_WR)
                assert b" 400 " in short.recv(1000)
            replies["after"] = ask(port)
            with pytest.raises(UserError, match=f"port={port}: cannot be listened to"):
                Loopback(port)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(serving, "Loopback", Told)
    visitor = threading.Thread(target=person)
    visitor.start()
    said = commands.done("evaluate", *SERVE)
    visitor.join()
    assert f"http://127.0.0.1:{opened[0].port}/ for this machine alone" in said and "6 questions were asked" in said
    assert "Traceback" not in said and "a request failed" not in said and replies["after"][0] == 200
    assert said.count("no pass over them") == 4 and "to be built" not in said
    assert {name: status for name, (status, _, _) in replies.items() if status != 200} == {
        "long": 400, "nothing": 400, "elsewhere": 403, "foreign": 403, "lost": 404,
    }  # fmt: skip
    _, page, headers = replies["page"]
    assert "<form" in page and "<script" not in page and "src=" not in page and "href=" not in page
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    answer = json.loads(replies["answer"][1])
    for side in ("helpful", "harmful"):
        assert len(answer[side]) == 5
        for mine, theirs in zip(answer[side], question[side], strict=True):
            assert mine["row"] == theirs["row"] and mine["score"] == pytest.approx(theirs["score"], rel=1e-5, abs=1e-7)
            assert mine["completion"] == theirs["completion"]
            assert escape(mine["completion"].strip()).replace("&#x27;", "&#39;") in replies["read"][1]
    odd = replies["odd"][1]
    assert "&lt;script&gt;&amp;" in odd and "&lt;/textarea&gt;&#34;" in odd and "<script" not in odd
    assert "the completion is empty" in replies["empty"][1]
    assert "tokens, and the model reads" in json.loads(replies["long"][1])["error"]


def test_what_cannot_be_served(commands, run):
    line = commands.refused("evaluate", "serve=true")
    assert "asks the index of one run of attribute.py, and runs=[] names 0" in line
    changed(
        run, "dot", method={"_target_": "tdaexp.methods.dot.Dot"}, candidates={"_target_": "tdaexp.data.candidates.All"}
    )
    assert "serve=true: method=dot keeps no index" in commands.refused("evaluate", "serve=true", "runs=[dot]", "port=0")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    changed(run, "other", method=config["method"] | {"seed": 7})
    line = commands.refused("evaluate", "serve=true", "runs=[other]", "port=0")
    assert "other: 1 of the 1 blocks of its index are not in" in line
    assert "port=70000: must be from 0" in commands.refused("evaluate", "serve=true", "runs=[run]", "port=70000")
    (changed(run, "damaged") / "config.yaml").write_text("method: [", encoding="utf-8")
    line = commands.refused("evaluate", "serve=true", "runs=[damaged]", "port=0")
    assert "damaged/config.yaml: is damaged as YAML" in line
    assert "leave scores out" in commands.refused("evaluate", *SERVE, "scores=file.json")
