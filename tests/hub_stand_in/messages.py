"""What passes between the Hub stand-in's sockets and its answers: who calls, a call, and a reply."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from hub_stand_in.storage import HubError, Repository


@dataclass(frozen=True)
class Account:
    """Who a token belongs to. `role` "read" may read private repositories of its namespaces and change nothing."""

    name: str
    role: str = "write"

    def owns(self, repo: Repository) -> bool:
        return repo.namespace == self.name


@dataclass
class Call:
    method: str
    path: str
    """As sent: quoted, without the query."""
    query: dict[str, list[str]]
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes = b""
    account: Account | None = None

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Any, status: int = 200, **headers: str) -> Reply:
        return cls(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    @classmethod
    def error(cls, error: HubError) -> Reply:
        reply = cls.of({"error": error.message}, error.status)
        reply.headers["X-Error-Message"] = error.message
        if error.code:
            reply.headers["X-Error-Code"] = error.code
        if error.commit:
            reply.headers["X-Repo-Commit"] = error.commit
        return reply


def ranged(call: Call, content: bytes, headers: dict[str, str]) -> Reply:
    """The content, or the one range of it that was asked for."""
    headers = {"Content-Type": "application/octet-stream", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("range", ""))
    if not match or call.method == "HEAD" or match[1] == match[2] == "":
        return Reply(200, content, headers)
    size = len(content)
    start = int(match[1]) if match[1] else max(size - int(match[2]), 0)
    end = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    if start > end:
        return Reply(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
    return Reply(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{size}"})
