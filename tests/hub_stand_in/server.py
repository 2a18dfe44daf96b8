"""A Hub on loopback for tests: the real `huggingface_hub` client pushes to it and pulls from it over HTTP.

    with HubServer() as server:
        ...                                     # a client with HF_ENDPOINT=server.url and HF_TOKEN=server.token
        server.files("tester/model")            # {"README.md": b"...", ".gitattributes": b"...", ...}
        server.commits("tester/model")          # newest first, with .title, .author, .files
        server.fail("PUT *", how="cut")         # the next upload of a large file is cut in the middle
        server.calls("POST */commit/*")         # what was asked for, with sizes

Tests take the fixture `hub` (this process) or `hub_server` with `run_python` (a new process): see `client.py`. The
parts: `storage.py` (repositories), `protocol.py` (addresses and answers), `card_checks.py` (README metadata).
"""

from __future__ import annotations

import contextlib
import fnmatch
import secrets
import select
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_stand_in.messages import Account, Call, Reply
from hub_stand_in.protocol import KINDS, Hub
from hub_stand_in.storage import Commit, HubError, Repository


FAILURES = ("timeout", "cut", "reset", "lost")
MESSAGES = {401: "Invalid credentials in Authorization header", 429: "Too Many Requests", 500: "Internal Server Error"}
# asked for by the client of its own accord; left out of the records so that tests can compare whole lists
BACKGROUND = ("/api/agent-harnesses", "/api/telemetry")


@dataclass
class Request:
    """One request as it arrived, in order of arrival."""

    method: str
    path: str
    """Unquoted, without the query."""
    query: str
    authorized: bool
    """Whether a token came with it."""
    received: int = 0
    """Bytes of the body that were read."""
    status: int | None = None
    """Of the answer; none where no answer was sent."""
    sent: int = 0
    """Bytes of the body of the answer."""
    failure: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Failure:
    """A failure that waits for its requests; `happened` counts those it has met."""

    match: str
    how: str
    times: int | None
    after: int
    seconds: float
    happened: int = 0


class HubServer(Hub):
    """The stand-in. `token` is the write token of `user`; `add_account` makes others.

    Two servers run, on two ports, as two hosts of the Hub do: the Hub itself, and the storage of large files, which
    takes signed addresses and refuses tokens. `requests` records both.
    """

    def __init__(self):
        super().__init__()
        self.user = "tester"
        self.requests: list[Request] = []
        self.waits: list[float] = []  # what a client of this process would have waited between its tries
        self._failures: list[Failure] = []
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._servers = [_Server(self, self.answer), _Server(self, self.answer_storage)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        self.token = self.add_account(self.user)

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._stopped.set()  # lets go of whoever waits in a "timeout"
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # -- what tests ask for and look at

    def add_account(self, name: str, role: str = "write") -> str:
        """A new account; its token. `role` "read" may change nothing."""
        token = f"hf_{secrets.token_hex(17)}"
        self.accounts[token] = Account(name, role)
        return token

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        """The repository with its `refs`, `commits`, `objects` and whether it is `private`.

        Raises:
            KeyError: there is none of this id and type.
        """
        return self.repositories[KINDS[repo_type], repo_id]

    def exists(self, repo_id: str, repo_type: str = "model") -> bool:
        return (KINDS[repo_type], repo_id) in self.repositories

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Path to content. As on the Hub, a repository begins with a `.gitattributes`; large files are whole here."""
        commit = self.repository(repo_id, repo_type).commit_at(revision)
        return {path: file.content for path, file in sorted(commit.files.items())}

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """Newest first; the last is the "initial commit" that comes with the repository."""
        repo = self.repository(repo_id, repo_type)
        return list(repo.history(repo.commit_at(revision)))

    def calls(self, match: str = "*") -> list[Request]:
        """The recorded requests whose "METHOD /path" fits the pattern, in which * stands for anything."""
        return [request for request in self.requests if fnmatch.fnmatchcase(str(request), match)]

    def fail(
        self,
        match: str,
        how: str,
        times: int | None = 1,
        after: int = 0,
        seconds: float = 6.0,
    ) -> Failure:
        """Let requests go wrong.

        Args:
            match: A pattern for "METHOD /path", in which * stands for anything: "HEAD */resolve/*", "POST */commit/*",
                "POST *.git/info/lfs/objects/batch", "PUT *" (a large file on its way up), "GET */lfs/*" (down).
            how: One of
                "timeout": no answer for `seconds`, then the connection is closed;
                "cut": the connection is closed after half of the request's body; a request without a body gets the
                headers and half of the content, or, where there is no content to halve, nothing;
                "reset": as "cut", but the connection is torn down (RST) where "cut" ends it (FIN);
                "lost": the request is carried out and the connection closed before the answer;
                a status such as "401", "429", "500", "503": that answer, and nothing is carried out.
            times: How many requests; `None` for all from now on.
            after: How many fitting requests pass first.
            seconds: How long "timeout" holds the answer, or until the client has gone. It goes after its own timeout
                (`client_timeout`) where it has one: when it downloads. Its other requests wait to the end.

        Returns:
            The failure; its `happened` counts.
        """
        if how not in FAILURES and not how.isdigit():
            raise ValueError(f"how must be one of {FAILURES} or an HTTP status, got {how!r}")
        failure = Failure(match, how, times, after, seconds)
        with self._lock:
            self._failures.append(failure)
        return failure

    def heal(self) -> None:
        """No more failures."""
        with self._lock:
            self._failures.clear()

    # -- what the sockets ask for

    def _failure_for(self, request: Request) -> Failure | None:
        with self._lock:
            for failure in self._failures:
                if failure.happened == failure.times or not fnmatch.fnmatchcase(str(request), failure.match):
                    continue
                if failure.after > 0:
                    failure.after -= 1
                    continue
                failure.happened += 1
                request.failure = failure.how
                return failure
        return None

    def _record(self, request: Request) -> None:
        if not request.path.startswith(BACKGROUND):
            with self._lock:
                self.requests.append(request)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: HubServer, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.answer = hub, answer

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no news; anything else is a fault of the stand-in and is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    server: _Server

    def handle_one(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, unquote(parts.path), parts.query, "authorization" in headers)
        hub._record(request)
        failure = hub._failure_for(request)
        length = int(headers.get("content-length", 0))
        if "transfer-encoding" in headers:
            return self._send(request, Reply.error(HubError(411, "A length is required")), close=True)
        breaks = failure is not None and failure.how in ("cut", "reset")
        body = self.rfile.read(length // 2 if breaks else length)
        request.received = len(body)
        if breaks and length:
            return self._break(failure)
        if failure is not None and failure.how == "timeout":
            self._hold(failure.seconds)
            return self._break(failure)
        if failure is not None and failure.how.isdigit():
            return self._send(request, self._refusal(failure))
        call = Call(self.command, parts.path, parse_qs(parts.query, keep_blank_values=True), headers, body)
        with hub._lock:
            reply = self.server.answer(call)
        if failure is not None and (failure.how == "lost" or self.command == "HEAD" or not reply.body):
            return self._break(failure)
        self._send(request, reply, failure=failure)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def _send(self, request: Request, reply: Reply, failure: Failure | None = None, close: bool = False) -> None:
        request.status = reply.status
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        body = b"" if self.command == "HEAD" else reply.body
        body = body[: len(body) // 2] if failure else body
        self.wfile.write(body)
        request.sent = len(body)
        if failure:
            self._break(failure)

    def _refusal(self, failure: Failure) -> Reply:
        status = int(failure.how)
        reply = Reply.error(HubError(status, MESSAGES.get(status, f"Injected failure {status}")))
        if status == 429:
            reply.headers["Retry-After"] = "0"
        return reply

    def _hold(self, seconds: float) -> None:
        """Wait until the time is over, the client has gone, or the server stops."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.server.hub._stopped.wait(0.02):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                break

    def _break(self, failure: Failure) -> None:
        self.close_connection = True
        if failure.how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            with contextlib.suppress(OSError):  # the client may have gone first
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args) -> None:
        """The records are enough."""
