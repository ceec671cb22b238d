"""What every endpoint of the loopback Hub is made of: calls, answers, refusals, routes, and who may do what."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

from tests.hub.repository_store import Commit, Repository, RepositoryStore

_ID = r"(?P<id>[\w.-]+(?:/[\w.-]+)?)"
_PLACEHOLDERS = {
    "{api}": rf"/api/(?P<kind>models|datasets|spaces)/{_ID}",
    "{page}": rf"/(?:(?P<kind>datasets|spaces)/)?{_ID}",
    "{rev}": r"(?P<rev>[^/]+)",
    "{name}": r"(?P<name>[^/]+)",
    "{path}": r"(?P<path>.+)",
}


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in {self.name, *self.organizations}


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):  # noqa: N818 - an answer of the protocol, not a fault of the program
    """An error as the Hub words it; `code` becomes X-Error-Code, by which the client picks its exception."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        codes = {"X-Error-Code": code} if code else {}
        self.status, self.headers = status, {"X-Error-Message": message, **codes, **(headers or {})}
        self.body: dict[str, object] = {"error": message}

    def answer(self) -> Answer:
        return as_json(self.body, self.status, self.headers)


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer in JSON; a date, which the YAML of a card may hold, is written as text."""
    body = json.dumps(value, default=str).encode()
    return Answer(status, body, {"Content-Type": "application/json", **(headers or {})})


@dataclass(frozen=True)
class Call:
    """A request that found its endpoint: the names in its path, its query, headers and body, and who asks."""

    names: Mapping[str, str]
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    user: User | None

    @property
    def repo_type(self) -> str:
        return self.names["kind"].removesuffix("s") or "model"

    @property
    def repo_id(self) -> str:
        return self.names["id"]

    @property
    def by_owner(self) -> bool:
        return self.user is not None and self.user.owns(self.repo_id)

    def asks_for(self, flag: str) -> bool:
        return self.query.get(flag, [""])[0].lower() in ("true", "1")

    def lines(self) -> list[dict]:
        """The JSON objects of the body, one a line."""
        try:
            return [json.loads(line) for line in self.body.splitlines() if line.strip()]
        except ValueError as error:
            raise Refusal(400, "Malformed JSON") from error

    def json(self) -> dict:
        return (self.lines() or [{}])[0]


@dataclass(frozen=True)
class Hub:
    """What endpoints work on, and the rights that they ask for before they touch a repository."""

    url: str
    store: RepositoryStore
    users: dict[str, User]

    def authenticate(self, authorization: str | None) -> User | None:
        if authorization is None:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def visible(self, call: Call) -> Repository:
        """The repository of a call, whose metadata the caller may see. Strangers cannot tell hidden from absent."""
        repository = self.store.find(call.repo_type, call.repo_id)
        if repository is None or (repository.private and not call.by_owner):
            if call.user is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if repository.disabled:
            raise Refusal(403, "Access to this resource is disabled.")
        return repository

    def readable(self, call: Call) -> Repository:
        """The repository of a call, whose files the caller may read."""
        repository = self.visible(call)
        if repository.gated and not call.by_owner:
            message = f"Access to {call.repo_type} {call.repo_id} is restricted. Ask for access on its page."
            raise Refusal(403 if call.user else 401, message, "GatedRepo")
        return repository

    def writable(self, call: Call) -> Repository:
        """The repository of a call, which the caller may change."""
        repository = self.visible(call)
        self.require_writer(call.user, call.repo_id)
        return repository

    def require_writer(self, user: User | None, repo_id: str) -> None:
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if not user.owns(repo_id):
            raise Refusal(
                403,
                f'You don\'t have the rights to write in the namespace "{repo_id.split("/")[0]}"',
            )
        if user.role != "write":
            raise Refusal(403, "This token has no right to write")

    def commit_at(self, repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def page(self, repo_type: str, repo_id: str) -> str:
        """The address of a repository's page."""
        return f"{self.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"


Endpoint = Callable[[Hub, Call], Answer]


class Routes:
    """Endpoints by method and by the raw path of the request."""

    def __init__(self, rows: Iterable[tuple[str, re.Pattern[str], Endpoint]] = ()) -> None:
        self.rows = list(rows)

    def add(self, method: str, place: str) -> Callable[[Endpoint], Endpoint]:
        """A decorator for the endpoint at a place such as "{api}/refs"."""
        pattern = place
        for name, expression in _PLACEHOLDERS.items():
            pattern = pattern.replace(name, expression)

        def register(endpoint: Endpoint) -> Endpoint:
            self.rows.append((method, re.compile(pattern), endpoint))
            return endpoint

        return register

    def answer(
        self, hub: Hub, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """The answer to a request; a HEAD gets that of a GET. One call at a time, so that a commit sees one tip."""
        path, _, query = target.partition("?")
        for known_method, pattern, endpoint in self.rows:
            match = pattern.fullmatch(path)
            if not match or known_method != method.replace("HEAD", "GET"):
                continue
            # A revision is one percent-encoded segment: the path is matched before it is unquoted.
            names = {name: unquote(value or "") for name, value in match.groupdict().items()}
            try:
                user = hub.authenticate(headers.get("Authorization"))
                with hub.store.lock:
                    return endpoint(hub, Call(names, parse_qs(query), headers, body, user))
            except Refusal as refusal:
                return refusal.answer()
        return Refusal(404, f"The loopback Hub has no {method} {path}").answer()
