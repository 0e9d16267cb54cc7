"""A page for who sits at this machine: HTTP on 127.0.0.1 alone, by the standard library's server.

That is enough for one person and one question at a time, and asks for no package. Requests come in on threads of their
own, so that a browser that holds a connection open stops nobody; they are answered one after the other in the thread
that serves, where a signal ends the run as it ends any other.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs

from tdaexp.runtime import stop
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
LONGEST = 1 << 20
"""Bytes of what is sent to it."""
LOOK_S = 0.2
USUAL = 80
"""The port that browsers do not name."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Nothing is loaded from anywhere, nothing kept, and no other page shows this one."""


@dataclass(frozen=True)
class Reply:
    """What is sent back: a text, its kind, and HTTP's status."""

    text: str
    kind: str = "text/html"
    status: int = 200


Answer = Callable[[str, dict[str, str]], Reply]
"""A path and the fields of a form; no fields where nothing was sent."""


class Loopback:
    """A port of this machine. Errors (UserError): it is taken, or none."""

    def __init__(self, port: int) -> None:
        if not 0 <= port <= 65535:
            raise UserError(f"port={port}: must be from 0 (any that is free) to 65535")
        try:
            self._server = _Server((HOST, port), _Handler)
        except OSError as error:
            raise UserError(
                f"port={port}: cannot be listened to ({error.strerror}); name another, or port=0 for any that is free"
            ) from error
        self.port = int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://{HOST}:{self.port}/"

    def serve(self, answer: Answer) -> int:
        """Answer until the run is asked to end; returns how many forms were sent."""
        thread = threading.Thread(target=self._server.serve_forever, args=(LOOK_S,), daemon=True)
        thread.start()
        sent = 0
        try:
            while True:
                stop.check()
                try:
                    path, fields, reply = self._server.asked.get(timeout=LOOK_S)
                except queue.Empty:
                    continue
                sent += bool(fields)
                with stop.finishing():
                    reply.set_result(_answered(answer, path, fields))
        except KeyboardInterrupt:
            return sent
        finally:
            self._server.shutdown()

    def close(self) -> None:
        """Leave the port to others."""
        self._server.server_close()


def _answered(answer: Answer, path: str, fields: dict[str, str]) -> Reply:
    try:
        return answer(path, fields)
    except Exception:
        log.exception("this is a fault of the program, not of your input:")
        return Reply("a fault of the program; its terminal says more", "text/plain", 500)


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def __init__(self, *where: object) -> None:
        self.asked: queue.Queue[tuple[str, dict[str, str], Future[Reply]]] = queue.Queue()
        super().__init__(*where)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever goes away during an answer is no fault of the program."""
        error = sys.exception()
        if isinstance(error, ConnectionError | TimeoutError):
            return log.debug("%s went away: %s", client_address, error)
        log.error("a request failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "tdaexp", ""
    timeout: ClassVar[float] = 60.0

    def do_GET(self) -> None:
        """A page."""
        self._reply(self._wrong_host() or self._asked({}))

    def do_POST(self) -> None:
        """A form."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST:
            self.close_connection = True
            return self._reply(Reply(f"a form of at most {LONGEST} bytes is wanted", "text/plain", 413))
        sent = self.rfile.read(int(length))
        if len(sent) < int(length):
            self.close_connection = True
            return self._reply(Reply("the form ended before its length", "text/plain", 400))
        content = sent.decode("utf-8", errors="replace")
        fields = {
            name: values[0].replace("\r\n", "\n") for name, values in parse_qs(content, keep_blank_values=True).items()
        }
        self._reply(self._wrong_host() or self._asked(fields))

    def _asked(self, fields: dict[str, str]) -> Reply:
        reply: Future[Reply] = Future()
        self.server.asked.put((self.path.partition("?")[0], fields, reply))
        return reply.result()

    def _wrong_host(self) -> Reply | None:
        """A page from elsewhere may not ask by a name of its own that leads here."""
        port = self.server.server_address[1]
        names = (HOST, "localhost")
        ours = {f"{name}:{port}" for name in names} | (set(names) if port == USUAL else set())
        origin = self.headers.get("Origin", "")
        if self.headers.get("Host") in ours and (not origin or origin.removeprefix("http://") in ours):
            return None
        return Reply(f"ask http://{HOST}:{port}/", "text/plain", 403)

    def _reply(self, reply: Reply) -> None:
        content = reply.text.encode("utf-8", errors="replace")
        self.send_response(reply.status)
        for name, value in (HEADERS | {"Content-Type": f"{reply.kind}; charset=utf-8"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Said to those alone who look closely."""
        log.debug(format, *args)
