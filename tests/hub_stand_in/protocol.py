"""The Hub's addresses as the installed `huggingface_hub` asks for them: one method for each, from a call to a reply.

No sockets here: `hub_server` reads a request into a `Call`, `Hub.answer` gives the `Reply`. Left out: Xet (never
offered), multipart uploads, gated repositories, discussions and merging, search. What is not served answers 501.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote

from hub_stand_in.card_checks import metadata, validate
from hub_stand_in.messages import Account, Call, Reply, ranged
from hub_stand_in.storage import Commit, HubError, Repository, StoredFile


KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
NAMES = {kind: name for name, kind in KINDS.items()}
REPO_ID = r"(?P<id>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)"  # the client writes refs/pr/1 both plainly and quoted
API = re.compile(rf"/api/(?P<kind>models|datasets|spaces)/{REPO_ID}(?:/(?P<verb>[a-z-]+)(?:/(?P<rest>.+))?)?")
RESOLVE = re.compile(rf"/(?:(?P<kind>datasets|spaces)/)?{REPO_ID}/resolve/{REVISION}/(?P<path>.+)")
LFS = re.compile(rf"/(?:(?P<kind>datasets|spaces)/)?{REPO_ID}\.git/info/lfs/objects/(?P<verb>batch|verify)")
OBJECT = re.compile(rf"/(?P<kind>models|datasets|spaces)/{REPO_ID}/lfs/(?P<oid>[0-9a-f]{{64}})")
UNAUTHORIZED = "Invalid username or password."


def ignored(path: str, rules: list[str]) -> bool:
    """Whether the lines of a `.gitignore` at the root leave a file out; the last one that fits decides. (Without the
    patterns that no test needs: `**` and escapes.)"""
    found = False
    for line in rules:
        rule = line.strip().removeprefix("!").rstrip("/")
        if not rule or rule.startswith("#"):
            continue
        parts = path.split("/")
        names = ["/".join(parts[: end + 1]) for end in range(len(parts))] if "/" in rule else parts
        if any(fnmatch.fnmatchcase(name, rule.lstrip("/")) for name in names):
            found = not line.strip().startswith("!")
    return found


class Hub:
    """The Hub's state and its answers. `url` is where the client finds the Hub, `storage_url` where it is sent for the
    content of large files: another host, as on the Hub, which takes signed addresses and must never see a token."""

    def __init__(self):
        self.url = self.storage_url = ""
        self.accounts: dict[str, Account] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}

    # -- whom and what a call is about

    def answer(self, call: Call) -> Reply:
        try:
            call.account = self._account(call)
            if call.path in ("/api/agent-harnesses",) or call.path.startswith("/api/telemetry"):
                return Reply.of({})
            if match := API.fullmatch(call.path):
                verb = (match["verb"] or "revision").replace("-", "_")
                return self._dispatch(f"{call.method}_{verb}", call, match, match["rest"] or "")
            if (match := RESOLVE.fullmatch(call.path)) and call.method in ("GET", "HEAD"):
                return self._resolve(call, self._repo(call, match), unquote(match["revision"]), unquote(match["path"]))
            if (match := LFS.fullmatch(call.path)) and call.method == "POST":
                return self._dispatch(f"LFS_{match['verb']}", call, match)
            return self._dispatch(f"{call.method}{re.sub('[/-]', '_', call.path)}", call)
        except HubError as error:
            return Reply.error(error)

    def _dispatch(self, name: str, call: Call, match: re.Match | None = None, *rest: str) -> Reply:
        method = getattr(self, f"_{name}", None)
        if method is None:
            raise HubError(501, f"The Hub stand-in does not serve {call.method} {call.path}")
        return method(call, *([self._repo(call, match)] if match else []), *rest)

    def _account(self, call: Call) -> Account | None:
        if "authorization" not in call.headers:
            return None
        account = self.accounts.get(call.headers["authorization"].removeprefix("Bearer "))
        if account is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return account

    def _repo(self, call: Call, match: re.Match) -> Repository:
        return self._find(call, match["kind"] or "models", unquote(match["id"]))

    def _find(self, call: Call, kind: str, repo_id: str) -> Repository:
        """A repository the caller may see. To anyone else it does not exist: 401 without a token, else 404.

        The Hub's 401 carries no code, and the client takes its meaning from an address that begins with https. This
        one begins with http, so the code is written out: the client then raises the class it raises for the Hub.
        """
        repo = self.repositories.get((kind, repo_id))
        if repo is None or repo.private and not (call.account and call.account.owns(repo)):
            if call.account is None:
                raise HubError(401, UNAUTHORIZED, "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    def _require_write(self, call: Call, repo: Repository, create_pr: bool = False) -> str:
        """The name of the caller, who may change the repository, or (`create_pr`) propose a change to it."""
        if call.account is None:
            raise HubError(401, UNAUTHORIZED)
        if call.account.role != "write" or not (create_pr or call.account.owns(repo)):
            raise HubError(403, f"Forbidden: you do not have write access to {repo.repo_id} with this token")
        return call.account.name

    # -- accounts and repositories

    def _GET_api_whoami_v2(self, call: Call) -> Reply:
        account = call.account
        if account is None:
            raise HubError(401, UNAUTHORIZED)
        return Reply.of(
            {
                "type": "user",
                "id": hashlib.md5(account.name.encode()).hexdigest()[:24],
                "name": account.name,
                "fullname": account.name,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"displayName": "tests", "role": account.role}},
            }
        )

    def _POST_api_repos_create(self, call: Call) -> Reply:
        if call.account is None:
            raise HubError(401, UNAUTHORIZED)
        asked = call.json()
        kind = KINDS[asked.get("type") or "model"]
        repo_id = f"{asked.get('organization') or call.account.name}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = Repository(kind, repo_id, private, call.account.name, asked.get("sdk"))
        self._require_write(call, repo)
        url = f"{self.url}/{repo.web_path}"
        if (kind, repo_id) in self.repositories:
            error = f"You already created this {NAMES[kind]} repo"
            return Reply.of({"error": error, "url": url}, 409, **{"X-Error-Message": error})
        self.repositories[kind, repo_id] = repo
        return Reply.of({"url": url, "name": repo_id, "id": repo_id})

    def _POST_api_validate_yaml(self, call: Call) -> Reply:
        asked = call.json()
        errors, warnings = validate(asked["content"], asked.get("repoType", "model"))
        content = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
        return Reply.of(content, 400 if errors else 200)

    # -- reading: information, trees, references, history

    def _GET_revision(self, call: Call, repo: Repository, rest: str) -> Reply:
        commit = repo.commit_at(unquote(rest) or "main")
        card = metadata(commit.files.get("README.md", StoredFile(b"")).content.decode(errors="replace"))
        tags = card.get("tags") or []
        siblings = []
        for path, file in sorted(commit.files.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if call.flag("blobs"):
                size = len(file.content)
                sibling |= {"size": size, "blobId": file.blob_id}
                if file.lfs:
                    sibling["lfs"] = {"sha256": file.sha256, "size": size, "pointerSize": len(file.pointer)}
            siblings.append(sibling)
        info = {
            "id": repo.repo_id,
            "author": repo.namespace,
            "sha": commit.oid,
            "createdAt": repo.created,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [tags] if isinstance(tags, str) else tags,
            "cardData": card,
            "siblings": siblings,
        }
        if repo.kind == "models":
            info |= {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        if repo.kind == "spaces":
            info["sdk"] = repo.sdk
        return Reply.of(info)

    def _GET_tree(self, call: Call, repo: Repository, rest: str) -> Reply:
        match = re.fullmatch(rf"{REVISION}(?:/(?P<path>.+))?", rest)
        revision, path = unquote(match["revision"]), unquote(match["path"] or "")
        return Reply.of(repo.tree(revision, path, call.flag("recursive")))

    def _POST_paths_info(self, call: Call, repo: Repository, rest: str) -> Reply:
        commit, form = repo.commit_at(unquote(rest)), parse_qs(call.body.decode())
        known = {"/".join(p.split("/")[:depth]) for p in commit.files for depth in range(1, p.count("/") + 2)}
        return Reply.of([repo.entry(commit, path) for path in form.get("paths", []) if path in known])

    def _GET_commits(self, call: Call, repo: Repository, rest: str) -> Reply:
        return Reply.of(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": commit.description,
                    "authors": [{"user": commit.author}],
                    "date": commit.date,
                }
                for commit in repo.history(repo.commit_at(unquote(rest)))
            ]
        )

    def _resolve(self, call: Call, repo: Repository, revision: str, path: str) -> Reply:
        """A file; for a large one the address in the storage, with what the client must know of it."""
        commit, file = repo.file_at(revision, path)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "ETag": f'"{file.etag}"'}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
            headers["Location"] = self.signed(repo, file.sha256, "GET")
            return Reply(302, b"", headers)
        headers["Content-Disposition"] = f'inline; filename="{path.rsplit("/", 1)[-1]}";'
        return ranged(call, file.content, headers)

    # -- writing: large files first, then one commit

    def _POST_preupload(self, call: Call, repo: Repository, rest: str) -> Reply:
        self._require_write(call, repo, call.flag("create_pr"))
        commit, answers = repo.commit_at(unquote(rest)), []
        hosted = commit.files[".gitignore"].content.decode() if ".gitignore" in commit.files else ""
        rules = call.json().get("gitIgnore", hosted).splitlines()  # of the commit to come, else of the repository
        for asked in call.json()["files"]:
            path, sample = asked["path"], base64.b64decode(asked.get("sample", ""))
            answer = {"path": path, "shouldIgnore": ignored(path, rules)}
            answer["uploadMode"] = repo.upload_mode(commit.oid, path, asked["size"], sample)
            if path in commit.files:
                answer["oid"] = commit.files[path].etag
            answers.append(answer)
        return Reply.of({"files": answers})

    def _LFS_batch(self, call: Call, repo: Repository) -> Reply:
        asked, answers = call.json(), []
        # the revision of an upload for a pull request is left out by the client: reading is then enough
        self._require_write(call, repo, create_pr="ref" not in asked)
        for wanted in asked["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repo.objects:
                verify = f"{self.url}/{repo.web_path}.git/info/lfs/objects/verify"
                upload = self.signed(repo, wanted["oid"], "PUT")
                answer |= {"authenticated": True, "actions": {"upload": {"href": upload}, "verify": {"href": verify}}}
            answers.append(answer)
        return Reply.of({"transfer": "basic", "objects": answers})

    def _LFS_verify(self, call: Call, repo: Repository) -> Reply:
        asked = call.json()
        if len(repo.objects.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(404, f"Large file {asked['oid']} was not uploaded whole")
        return Reply.of({})

    def _POST_commit(self, call: Call, repo: Repository, rest: str) -> Reply:
        create_pr, revision = call.flag("create_pr"), unquote(rest)
        # whoever opened a pull request may add to it; here: whoever may open one
        author = self._require_write(call, repo, create_pr or revision.startswith("refs/pr/"))
        lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
        operations: list[tuple[str, dict]] = []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                value["content"] = base64.b64decode(value["content"])
            operations.append((line["key"], value))
        commit, number = repo.commit(revision, operations, author, create_pr)
        return Reply.of(self._committed(repo, commit, number))

    def _committed(self, repo: Repository, commit: Commit, number: int | None) -> dict:
        url = f"{self.url}/{repo.web_path}"
        answer = {
            "success": True,
            "commitOid": commit.oid,
            "commitUrl": f"{url}/commit/{commit.oid}",
            "hookOutput": "",
        }
        if number is not None:
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        return answer

    def _POST_branch(self, call: Call, repo: Repository, rest: str) -> Reply:
        self._require_write(call, repo)
        name = unquote(rest)
        if name.startswith("refs/"):
            raise HubError(400, f"Invalid reference for a branch: {name}")
        repo.create_ref(f"refs/heads/{name}", call.json().get("startingPoint", "main"))
        return Reply.of({})

    # -- the storage of large files

    def signed(self, repo: Repository, oid: str, method: str) -> str:
        path = f"/{repo.kind}/{repo.repo_id}/lfs/{oid}"
        return f"{self.storage_url}{path}?signature={self._signature(method, path)}"

    def _signature(self, method: str, path: str) -> str:
        return hmac.new(b"stand-in", f"{method} {path}".encode(), "sha256").hexdigest()

    def answer_storage(self, call: Call) -> Reply:
        match = OBJECT.fullmatch(call.path)
        repo = self.repositories.get((match["kind"], match["id"])) if match else None
        method = "GET" if call.method == "HEAD" else call.method
        try:
            if "authorization" in call.headers:
                raise HubError(400, "A token was sent to the storage: only one of signature and token is allowed")
            if repo is None or call.query.get("signature") != [self._signature(method, call.path)]:
                raise HubError(403, "The address is not signed for this")
            oid = match["oid"]
            if method == "PUT":
                if hashlib.sha256(call.body).hexdigest() != oid:
                    raise HubError(400, "The content has another SHA-256 than its address")
                repo.objects[oid] = call.body
                return Reply(200, b"", {"ETag": f'"{oid}"'})
            if oid not in repo.objects:
                raise HubError(404, "The storage has no such object")
            return ranged(call, repo.objects[oid], {"Accept-Ranges": "bytes", "ETag": f'"{oid}"'})
        except HubError as error:
            return Reply.error(error)
