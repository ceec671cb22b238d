"""A Hub on loopback for tests: the real clients of the Hub talk to it over HTTP.

    with LoopbackHub(folder) as hub:
        hub.add_user("me", token="hf_me")
        HfApi(endpoint=hub.url, token="hf_me").create_repo("me/model")

It serves models, datasets and spaces; `browsing.py` and `publishing.py` have the endpoints. There are no pull requests,
no xet, no multipart uploads, no paging and no .gitignore. State is below `folder`: a later hub goes on from it.
"""

import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Self

from tests.hub import browsing, publishing
from tests.hub.protocol import Answer, Hub, Refusal, Routes, User
from tests.hub.repository_store import Commit, Repository, RepositoryStore

ROUTES = Routes(browsing.ROUTES.rows + publishing.ROUTES.rows)


@dataclass(frozen=True)
class Request:
    """A request that was served; `status` is None when its connection was dropped."""

    method: str
    path: str
    status: int | None


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next `times` requests whose path (with its query) holds the expression `path`.

    `status` refuses without doing the work; `drop` closes the connection before or after the work is done; `delay`
    waits that many seconds first; `cut` closes the connection after that many bytes of the body.
    """

    method: str
    path: str
    status: int | None = None
    drop: Literal["before", "after"] | None = None
    delay: float = 0
    cut: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1

    def hits(self, method: str, path: str) -> bool:
        return self.method == method and re.search(self.path, path) is not None


NO_FAULT = Fault(method="", path="")


class LoopbackHub:
    """A Hub with its server. `faults` holds the rules that have not been used up, `requests` what was served."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._state = Hub(self.url, RepositoryStore(folder), users={})

    def __enter__(self) -> Self:
        # A short poll: shutdown() waits for the next one.
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_user(
        self, name: str, token: str, role: str = "write", organizations: tuple[str, ...] = ()
    ) -> None:
        """A second token of a user is added by a second call; `role` "read" makes one that cannot write."""
        self._state.users[token] = User(name, role, organizations)

    def count(self, method: str, path: str) -> int:
        """How many requests of this method were served whose path holds the expression `path`."""
        return sum(
            request.method == method and bool(re.search(path, request.path))
            for request in self.requests
        )

    def commits(self, repo_type: str, repo_id: str) -> list[Commit]:
        """The commits of `main`, oldest first: the initial commit, with .gitattributes alone, and those of the test."""
        repository = self._find(repo_type, repo_id)
        return [*repository.history(repository.at("main"))][::-1]

    def files(self, repo_type: str, repo_id: str) -> dict[str, bytes]:
        """The files at `main`, but for .gitattributes, which the Hub makes itself."""
        repository = self._find(repo_type, repo_id)
        tree = repository.commits[repository.branches["main"]].tree
        return {
            path: self._state.store.read(repository, tree[path])
            for path in tree
            if path != ".gitattributes"
        }

    def disable(self, repo_type: str, repo_id: str) -> None:
        """Closes a repository for everybody, as the Hub's staff may."""
        with self._state.store.lock:
            self._state.store.save(replace(self._find(repo_type, repo_id), disabled=True))

    def _find(self, repo_type: str, repo_id: str) -> Repository:
        repository = self._state.store.find(repo_type, repo_id)
        if repository is None:
            raise KeyError(f"no {repo_type} {repo_id} on {self.url}")
        return repository

    def take_fault(self, method: str, path: str) -> Fault:
        """The first rule that hits, used up by one; NO_FAULT when none does."""
        with self._lock:
            for place, fault in enumerate(self.faults):
                if fault.hits(method, path):
                    left = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                    self.faults[place : place + 1] = left
                    return fault
        return NO_FAULT

    def answer(
        self, fault: Fault, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Answer | None:
        """The answer to a request under a fault; None when the connection is to be dropped."""
        time.sleep(fault.delay)
        if fault.drop == "before":
            answer = None
        elif fault.status is not None:
            answer = Refusal(fault.status, "Injected by the test", headers=fault.headers).answer()
        else:
            answer = ROUTES.answer(self._state, method, path, headers, body)
        answer = None if fault.drop == "after" else answer
        # Logged before it is sent: who has the answer finds the request in the log.
        self.requests.append(Request(method, path, answer and answer.status))
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: LoopbackHub


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = (
        True  # head and body are two writes: the second would wait 40 ms for the first's receipt
    )
    server: _Server

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        try:
            body = self.rfile.read(length)
            if len(body) < length:
                self.close_connection = (
                    True  # the client was stopped: half a commit must not look like a commit
                )
                return
            self._serve(body)
        except ConnectionError:  # the client was stopped and waits for no answer
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _serve(self, body: bytes) -> None:
        fault = self.server.hub.take_fault(self.command, self.path)
        answer = self.server.hub.answer(fault, self.command, self.path, self.headers, body)
        if answer is not None:
            self._send(answer, fault.cut)
        if answer is None or fault.cut is not None:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _send(self, answer: Answer, cut: int | None) -> None:
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing goes to standard error: `requests` is the log."""
