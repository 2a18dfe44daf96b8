"""What the Hub stand-in keeps in memory: repositories with commits, branches, pull requests and large files.

Ids are the real ones where the client compares them: a file's id is its git blob id, a large file's id its SHA-256.
"""

from __future__ import annotations

import fnmatch
import hashlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property


LARGE = 10 * 1024 * 1024
GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.safetensors", "*.parquet", "*.arrow", "*.bin", "*.gz", "*.npy", "*.npz", "*.pt", "*.zip")
).encode()
MAIN = "refs/heads/main"


class HubError(Exception):
    """An answer other than success: the HTTP status, the message, and the code that the client maps to a class."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass(frozen=True)
class StoredFile:
    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The small text that git holds in place of a large file."""
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
            self.sha256.encode(),
            len(self.content),
        )

    @cached_property
    def blob_id(self) -> str:
        held = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def etag(self) -> str:
        """What the client compares its own copy with, before an upload and after a download."""
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    description: str
    parent: str | None
    author: str
    date: str
    files: dict[str, StoredFile] = field(repr=False)


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Repository:
    """One repository; `kind` is "models", "datasets" or "spaces", as in the Hub's addresses.

    `refs` maps full names (`refs/heads/main`, `refs/pr/1`) to commit ids, `objects` holds large files
    by SHA-256 from their upload on, whether or not a commit names them.
    """

    def __init__(self, kind: str, repo_id: str, private: bool, author: str, sdk: str | None = None):
        self.kind, self.repo_id, self.private, self.sdk = kind, repo_id, private, sdk
        self.created = now()
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self._add(MAIN, None, "initial commit", "", author, {".gitattributes": StoredFile(GITATTRIBUTES)})

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def web_path(self) -> str:
        return self.repo_id if self.kind == "models" else f"{self.kind}/{self.repo_id}"

    def full_ref(self, revision: str) -> str | None:
        """The full name of a branch or pull request, or none."""
        return next((name for name in (revision, f"refs/heads/{revision}") if name in self.refs), None)

    def commit_at(self, revision: str) -> Commit:
        """The commit that a branch, a pull request, or a commit id of seven digits or more means."""
        if ref := self.full_ref(revision):
            return self.commits[self.refs[ref]]
        found = [oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found[0]]

    def file_at(self, revision: str, path: str) -> tuple[Commit, StoredFile]:
        commit = self.commit_at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", commit.oid)
        return commit, commit.files[path]

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and those before it, newest first."""
        current: Commit | None = commit
        while current:
            yield current
            current = self.commits[current.parent] if current.parent else None

    def upload_mode(self, revision: str, path: str, size: int, sample: bytes) -> str:
        """Large files are those of .gitattributes, those above 10 MB, and what is not text."""
        attributes = self.commit_at(revision).files.get(".gitattributes", StoredFile(b"")).content.decode()
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        named = any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (path, posixpath.basename(path)))
        return "lfs" if size and (named or size > LARGE or b"\0" in sample) else "regular"

    def commit(
        self, revision: str, operations: list[tuple[str, dict]], author: str, create_pr: bool
    ) -> tuple[Commit, int | None]:
        """Add a commit to a branch or pull request, or a new pull request with it: wholly or not at all.

        `operations` are the client's lines: one header, then file, lfsFile and deletedFile.
        """
        header = next((value for key, value in operations if key == "header"), None)
        if not header or not header.get("summary"):
            raise HubError(400, "Commit header with a summary is missing")
        base = self.commit_at(revision)
        files = dict(base.files)
        for key, value in operations:
            self._apply(files, key, value)
        number = None
        ref = self.full_ref(revision)
        if create_pr:
            number = 1 + sum(name.startswith("refs/pr/") for name in self.refs)
            ref = f"refs/pr/{number}"
        elif ref is None:
            raise HubError(400, f"{revision} is not a branch: commits go to branches and pull requests")
        return self._add(ref, base.oid, header["summary"], header.get("description", ""), author, files), number

    def _apply(self, files: dict[str, StoredFile], key: str, value: dict) -> None:
        path = value.get("path", "")
        if key != "header" and (not path or path.startswith("/") or ".." in path.split("/")):
            raise HubError(400, f"Invalid path in repository: {path!r}")
        if key == "file":
            files[path] = StoredFile(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in self.objects:
                raise HubError(400, f"Large file {path} ({value['oid']}) was committed but never uploaded")
            files[path] = StoredFile(self.objects[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if path not in files:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            del files[path]
        elif key != "header":
            raise HubError(400, f"Unknown commit operation {key}")

    def _add(
        self, ref: str, parent: str | None, title: str, description: str, author: str, files: dict[str, StoredFile]
    ) -> Commit:
        content = [self.repo_id, parent, title, len(self.commits), sorted((p, f.blob_id) for p, f in files.items())]
        oid = hashlib.sha1(repr(content).encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, description, parent, author, now(), files)
        self.refs[ref] = oid
        return self.commits[oid]

    def create_ref(self, ref: str, revision: str) -> None:
        if ref in self.refs:
            raise HubError(409, f"Reference {ref} already exists")
        self.refs[ref] = self.commit_at(revision).oid

    def tree(self, revision: str, folder: str, recursive: bool) -> list[dict]:
        """Entries of a folder as the client reads them, folders before files."""
        commit = self.commit_at(revision)
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in commit.files if path.startswith(prefix)]
        if folder and not inside:
            raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound", commit.oid)
        parts = [path[len(prefix) :].split("/") for path in inside]
        folders = {prefix + "/".join(p[:depth]) for p in parts for depth in range(1, len(p))}
        if not recursive:
            folders = {name for name in folders if "/" not in name[len(prefix) :]}
            inside = [path for path in inside if "/" not in path[len(prefix) :]]
        return [self.entry(commit, path) for path in (*sorted(folders), *sorted(inside))]

    def entry(self, commit: Commit, path: str) -> dict:
        """A file or folder that exists in the commit."""
        found = commit.files.get(path)
        if found is None:
            listing = sorted((name, f.blob_id) for name, f in commit.files.items() if name.startswith(f"{path}/"))
            tree_id = hashlib.sha1(repr(listing).encode()).hexdigest()
            entry = {"type": "directory", "oid": tree_id, "size": 0, "path": path}
        else:
            entry = {"type": "file", "oid": found.blob_id, "size": len(found.content), "path": path}
            if found.lfs:
                size, pointer_size = len(found.content), len(found.pointer)
                entry["lfs"] = {"oid": found.sha256, "size": size, "pointerSize": pointer_size}
        return entry
