"""The Hub stand-in through the real client; and, for whoever pushes and pulls, what that client does when things fail.

What the client (huggingface_hub 2.4) does by itself:

- It tries again, up to five times with waits of 1, 2, 4, 8, 8 s, after a timeout, a broken connection, 429 (the wait
  is `Retry-After` plus 1 s) and 5xx: for large files going up, what precedes them (preupload, LFS batch), and trees.
- It never repeats what makes something: creating a repository, the commit. A commit whose answer is lost exists, and
  the caller has an exception. The same push again finds nothing to change; with `create_pr` it opens a second one.
- It has no timeout on any of these, only (`HF_HUB_ETAG_TIMEOUT`, `HF_HUB_DOWNLOAD_TIMEOUT`) on files to download.
- A download that is cut goes on from its last whole 10 MB, five times without progress. One that is torn down (RST)
  or answered 5xx fails at once.
- What is raised is not one class: `HfHubHTTPError` for an answer; a bare `httpx2` error for a broken connection;
  `RuntimeError` around either for a large file; `LocalEntryNotFoundError` for a file that could not be asked about.
"""

import threading
import time
from pathlib import Path

import datasets
import httpx2
import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub_stand_in.client import run_python, use_hub
from hub_stand_in.server import HubServer


pytestmark = pytest.mark.hub
REPO = "tester/model"
LARGE = bytes(range(256)) * 45_000  # 11.5 MB, above the limit of files that travel inside a commit


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi()


@pytest.fixture
def repo(api) -> str:
    """A repository with a small file and a large one."""
    api.create_repo(REPO)
    small = CommitOperationAdd("small.txt", b"small " * 1000)
    api.create_commit(REPO, [small, CommitOperationAdd("large.bin", b"large " * 1000)], commit_message="first")
    return REPO


def put(api, path="added.txt", content=b"added", **options):
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO, **options)


def without_attributes(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if path != ".gitattributes"}


# -- a repository from its creation to its end


def test_a_folder_goes_up_and_comes_down(hub, api, tmp_path):
    content = {"README.md": b"---\nlicense: mit\n---\n", "sub/notes.txt": b"notes", "empty": b"", "large.dat": LARGE}
    for path, data in content.items():
        (tmp_path / "up" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / path).write_bytes(data)
    assert api.create_repo(REPO).repo_id == REPO
    commit = api.upload_folder(repo_id=REPO, folder_path=tmp_path / "up", commit_message="all of it")

    assert without_attributes(hub.files(REPO)) == content
    assert [(c.title, c.author) for c in hub.commits(REPO)] == [("all of it", "tester"), ("initial commit", "tester")]
    assert commit.oid == hub.commits(REPO)[0].oid
    # only the large file left the commit; its bytes went to the storage, once and without the token
    assert [path for path, file in hub.commits(REPO)[0].files.items() if file.lfs] == ["large.dat"]
    (upload,) = hub.calls("PUT *")
    assert (upload.received, upload.authorized) == (len(LARGE), False)
    assert hub.calls("POST */commit/*")[0].received < 2000

    folder = Path(snapshot_download(REPO))
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == hub.files(
        REPO
    )
    assert folder.name == commit.oid
    (download,) = hub.calls("GET */lfs/*")
    assert (download.sent, download.authorized) == (len(LARGE), False)


def test_what_is_there_already_is_not_sent_again(hub, api, repo):
    put(api, "other.bin", b"large " * 1000)
    assert len(hub.calls("PUT *")) == 1
    assert len(hub.commits(REPO)) == 3
    put(api, "other.bin", b"large " * 1000)
    assert len(hub.commits(REPO)) == 3
    count = len(hub.requests)
    first = hf_hub_download(REPO, "small.txt")
    assert [request.method for request in hub.requests[count:]] == ["HEAD", "GET"]
    assert hf_hub_download(REPO, "small.txt") == first
    assert [request.method for request in hub.requests[count:]] == ["HEAD", "GET", "HEAD"]


def test_what_a_gitignore_names_does_not_go_up(hub, api, repo, tmp_path):
    """The client sends the lines along and leaves out what it is told to; by itself it reads none of them."""
    for name in ("a.txt", "b.bin", "c/b.bin", "c/d.txt", "e.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = set(hub.files(REPO))
    (tmp_path / ".gitignore").write_text("# a comment\n*\n")
    api.upload_folder(repo_id=REPO, folder_path=tmp_path)
    assert set(hub.files(REPO)) == before
    (tmp_path / ".gitignore").write_text("*.bin\n!e.bin\nc/\n")
    api.upload_folder(repo_id=REPO, folder_path=tmp_path)
    assert set(hub.files(REPO)) - before == {".gitignore", "a.txt", "e.bin"}
    api.upload_file(repo_id=REPO, path_or_fileobj=b"", path_in_repo="f.bin")  # the one that is there now counts
    assert "f.bin" not in hub.files(REPO)


def test_information_trees_and_paths(hub, api, repo):
    card = b"---\nlicense: mit\nlibrary_name: llamarec_lkg\ntags: [a, b]\n---\nHello"
    put(api, "README.md", card, commit_message="card")
    put(api, "deep/er/file.txt", b"12345")
    info = api.model_info(REPO, files_metadata=True)
    assert (info.id, info.sha, info.private) == (REPO, hub.commits(REPO)[0].oid, False)
    assert (info.card_data.license, info.library_name, info.tags) == ("mit", "llamarec_lkg", ["a", "b"])
    sizes = {sibling.rfilename: (sibling.size, sibling.lfs is not None) for sibling in info.siblings}
    assert sizes["large.bin"] == (6000, True)
    assert sizes["deep/er/file.txt"] == (5, False)

    top = [entry.path for entry in api.list_repo_tree(REPO)]
    assert top == ["deep", ".gitattributes", "README.md", "large.bin", "small.txt"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "deep", recursive=True)] == [
        "deep/er",
        "deep/er/file.txt",
    ]
    last = {entry.path: entry.last_commit.title for entry in api.list_repo_tree(REPO, expand=True)}
    assert (last["small.txt"], last["README.md"], last[".gitattributes"]) == ("first", "card", "initial commit")
    assert [entry.path for entry in api.get_paths_info(REPO, ["deep", "small.txt", "absent"])] == ["deep", "small.txt"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "absent"))

    hub.page_size = 2
    assert len(api.list_repo_files(REPO)) == 5
    assert [commit.title for commit in api.list_repo_commits(REPO)][1:] == ["card", "first", "initial commit"]


def test_git_ids_are_the_real_ones(hub, api, repo):
    put(api, "hello.txt", b"hello\n")
    entries = {entry.path: entry for entry in api.list_repo_tree(REPO)}
    assert entries["hello.txt"].blob_id == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert entries["large.bin"].lfs.sha256 == huggingface_hub.utils.sha.sha256(b"large " * 1000).hexdigest()
    assert entries["large.bin"].blob_id != entries["large.bin"].lfs.sha256[:40]


def test_deleting_and_copying(hub, api, repo):
    put(api, "folder/a.txt", b"a")
    put(api, "folder/b.txt", b"b")
    operations = [
        CommitOperationCopy("large.bin", "copy.bin"),
        CommitOperationCopy("small.txt", "copy.txt"),
        CommitOperationDelete("folder/", is_folder=True),
        CommitOperationDelete("small.txt"),
    ]
    api.create_commit(REPO, operations, commit_message="moved")
    assert without_attributes(hub.files(REPO)) == {
        "copy.bin": b"large " * 1000,
        "copy.txt": b"small " * 1000,
        "large.bin": b"large " * 1000,
    }
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("absent", REPO)
    api.delete_repo(REPO)
    assert not hub.exists(REPO) and not api.repo_exists(REPO)
    api.delete_repo(REPO, missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO)


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_each_type_of_repository_has_its_own_names(hub, api, repo_type):
    options = {"repo_type": repo_type, "space_sdk": "static" if repo_type == "space" else None}
    assert str(api.create_repo("thing", **options)).endswith(
        {"model": "", "dataset": "datasets/"}.get(repo_type, "spaces/") + "tester/thing"
    )
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("tester/thing", **options)
    assert api.create_repo("tester/thing", exist_ok=True, **options).repo_type == repo_type
    for path, content in (("a.txt", b"a"), ("b.bin", b"b")):
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="tester/thing", repo_type=repo_type)
    assert without_attributes(hub.files("tester/thing", repo_type=repo_type)) == {"a.txt": b"a", "b.bin": b"b"}
    assert Path(hf_hub_download("tester/thing", "b.bin", repo_type=repo_type)).read_bytes() == b"b"
    assert api.repo_info("tester/thing", repo_type=repo_type).id == "tester/thing"
    others = {"model", "dataset", "space"} - {repo_type}
    assert not any(api.repo_exists("tester/thing", repo_type=other) for other in others)


# -- revisions


def test_branches_tags_and_commit_hashes(hub, api, repo):
    first = hub.commits(REPO)[0].oid
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="dev/new")
    put(api, "small.txt", b"on dev", revision="dev/new")
    put(api, "small.txt", b"on main")

    def read(revision):
        return Path(hf_hub_download(REPO, "small.txt", revision=revision)).read_bytes()

    assert read("v1") == read(first) == b"small " * 1000
    assert (read("dev/new"), read("main")) == (b"on dev", b"on main")
    assert hub.files(REPO, "dev/new")["small.txt"] == b"on dev"
    assert api.model_info(REPO, revision=first[:7]).sha == first
    refs = api.list_repo_refs(REPO)
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert [branch.name for branch in refs.branches] == ["main", "dev/new"]

    for create, name in ((api.create_tag, {"tag": "v1"}), (api.create_branch, {"branch": "dev/new"})):
        create(REPO, **name, exist_ok=True)
        with pytest.raises(HfHubHTTPError, match="already exists"):
            create(REPO, **name)
    api.delete_tag(REPO, tag="v1")
    api.delete_branch(REPO, branch="dev/new")
    for missing in ("v1", "dev/new", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision=missing)
    with pytest.raises(HfHubHTTPError, match="protected"):
        api.delete_branch(REPO, branch="main")
    with pytest.raises(RevisionNotFoundError):
        put(api, revision="absent")


def test_a_commit_on_a_parent_that_is_no_longer_the_last_is_refused(hub, api, repo):
    first = hub.commits(REPO)[0].oid
    put(api, parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        put(api, content=b"late", parent_commit=first)
    assert hub.files(REPO)["added.txt"] == b"added"


def test_pull_requests(hub, api, repo):
    before = hub.commits(REPO)
    commit = put(api, "large2.bin", b"proposed", create_pr=True)
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
    put(api, "more.txt", b"more", revision="refs/pr/1")
    assert hub.commits(REPO) == before
    assert hub.files(REPO, "refs/pr/1")["large2.bin"] == b"proposed"
    assert Path(hf_hub_download(REPO, "more.txt", revision="refs/pr/1")).read_bytes() == b"more"
    assert put(api, "third.txt", create_pr=True).pr_num == 2
    pulls = api.list_repo_refs(REPO, include_pull_requests=True).pull_requests
    assert [pull.ref for pull in pulls] == ["refs/pr/1", "refs/pr/2"]


# -- who may do what


def test_a_private_repository_is_there_only_for_its_owner(hub, api, tmp_path):
    api.create_repo(REPO, private=True)
    put(api, "secret.bin", b"secret")
    assert Path(hf_hub_download(REPO, "secret.bin")).read_bytes() == b"secret"
    assert api.model_info(REPO).private and hub.repository(REPO).private
    for number, token in enumerate((None, hub.add_account("stranger"))):
        with use_hub(hub, tmp_path / str(number), token):
            for look in (api.model_info, api.list_repo_files, snapshot_download):
                with pytest.raises(RepositoryNotFoundError):
                    look(REPO)
            with pytest.raises(RepositoryNotFoundError) as refused:
                hf_hub_download(REPO, "secret.bin")
            assert refused.value.response.status_code == (401 if token is None else 404)
            with pytest.raises(RepositoryNotFoundError):
                put(HfApi())
    member = hub.add_account("member", organizations=("tester",))
    assert api.model_info(REPO, token=member).id == REPO
    # the address of the content is no way in: it is signed
    (stored,) = hub.repository(REPO).objects
    answer = httpx2.get(f"{hub.storage_url}/models/{REPO}/lfs/{stored}")
    assert answer.status_code == 403
    api.update_repo_settings(REPO, private=False)
    assert Path(hf_hub_download(REPO, "secret.bin", token=False, force_download=True)).read_bytes() == b"secret"


def test_writing_needs_a_token_that_may_write(hub, api, repo, tmp_path):
    with use_hub(hub, tmp_path / "nobody", None):
        with pytest.raises(HfHubHTTPError, match="401"):
            HfApi().create_repo("tester/other")
        with pytest.raises(HfHubHTTPError, match="401"):
            put(HfApi())
    for token in (hub.add_account("tester", role="read"), hub.add_account("stranger")):
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            api.create_repo("tester/other", token=token)
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            put(api, token=token)
    # a stranger may propose
    assert put(api, create_pr=True, token=hub.add_account("stranger")).pr_num == 1
    assert len(hub.commits(REPO)) == 2 and not hub.exists("tester/other")


def test_an_unknown_token_is_refused_even_where_none_is_needed(hub, api, repo):
    assert api.whoami()["name"] == "tester"
    for ask in (api.whoami, lambda token: api.model_info(REPO, token=token), lambda token: put(api, token=token)):
        with pytest.raises(HfHubHTTPError, match="[Ii]nvalid") as refused:
            ask(token="hf_wrong")
        assert refused.value.response.status_code == 401
        assert not isinstance(refused.value, RepositoryNotFoundError)


def test_what_is_not_there_has_its_own_class(hub, api, repo):
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("tester/absent", "small.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "small.txt", revision="absent")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "absent.txt")
    assert [api.file_exists(REPO, path) for path in ("small.txt", "large.bin", "absent")] == [True, True, False]
    assert not api.revision_exists(REPO, "absent")


def test_what_the_stand_in_lacks_is_said(hub, api):
    with pytest.raises(HfHubHTTPError, match="does not serve GET /api/models"):
        list(api.list_models(author="tester"))


# -- cards


def test_card_metadata_is_checked(hub, api, repo):
    ModelCard("---\nlicense: mit\n---\n").validate()
    with pytest.raises(ValueError, match="known licenses"):
        ModelCard("---\nlicense: mine\n---\n").validate()
    for text, message in (
        ("license: [", "YAML metadata error"),
        ("tags: {a: 1}", '"tags" must be a string or a list'),
        ("model-index:\n- name: x\n  results:\n  - task: {type: ranking}\n    metrics: []", "at least one entry"),
    ):
        with pytest.raises(ValueError, match=message):
            put(api, "README.md", f"---\n{text}\n---\n".encode())
    assert "README.md" not in hub.files(REPO)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        put(api, "README.md", b"no metadata")


# -- the libraries on top


def test_a_metric_is_loaded_from_its_space(hub_server, tmp_path):
    evaluate = pytest.importorskip("evaluate")
    code = """
import datasets
import evaluate


class Total(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float"), "references": datasets.Value("float")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"total": sum(predictions)}
"""
    with use_hub(hub_server, tmp_path):
        space = {"repo_id": "tester/total", "repo_type": "space"}
        HfApi().create_repo(**space, space_sdk="static")
        HfApi().upload_file(**space, path_in_repo="total.py", path_or_fileobj=code.encode())
        metric = evaluate.load("tester/total")
    assert metric.compute(predictions=[1.0, 2.0], references=[0.0, 0.0]) == {"total": 3.0}


# -- failures


@pytest.mark.parametrize("how", ["cut", "reset", "lost", "500", "503", "429"])
def test_the_upload_of_a_large_file_is_tried_again(hub, api, repo, how):
    failure = hub.fail("PUT *", how, times=2)
    put(api, "new.bin", LARGE)
    assert hub.files(REPO)["new.bin"] == LARGE
    assert failure.happened == 2
    assert hub.waits == ([1, 1] if how == "429" else [1, 2])
    first, second, third = hub.calls("PUT *")[1:]
    assert first.received == (len(LARGE) // 2 if how in ("cut", "reset") else len(LARGE))
    assert (first.failure, third.failure, third.status, third.received) == (how, None, 200, len(LARGE))


def test_retry_after_is_kept(hub, api, repo):
    hub.fail("POST */preupload/*", "429", retry_after=7)
    put(api)
    assert hub.waits == [8]


@pytest.mark.parametrize("how", ["timeout", "cut", "reset", "401", "429", "500"])
def test_a_commit_is_tried_once_and_is_whole_or_absent(hub, api, repo, how):
    before = hub.files(REPO)
    hub.fail("POST */commit/*", how, seconds=0.3)
    with pytest.raises(HfHubHTTPError if how.isdigit() else (httpx2.RemoteProtocolError, httpx2.ReadError)) as raised:
        put(api)
    if how.isdigit():
        assert raised.value.response.status_code == int(how)
    assert (hub.waits, len(hub.calls("POST */commit/*")), hub.files(REPO)) == ([], 2, before)
    put(api)
    assert hub.files(REPO) == {**before, "added.txt": b"added"}


def test_a_commit_whose_answer_is_lost_is_there_and_is_not_made_twice(hub, api, repo):
    hub.fail("POST */commit/*", "lost")
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending a response"):
        put(api)
    assert hub.files(REPO)["added.txt"] == b"added"
    count = len(hub.commits(REPO))
    assert put(api).oid == hub.commits(REPO)[0].oid
    assert len(hub.commits(REPO)) == count
    # but a pull request is: the client compares with main
    hub.fail("POST */commit/*", "lost")
    with pytest.raises(httpx2.RemoteProtocolError):
        put(api, "proposed.txt", create_pr=True)
    assert put(api, "proposed.txt", create_pr=True).pr_num == 2


def test_a_download_that_is_cut_is_tried_again(hub, repo):
    failure = hub.fail("GET */resolve/*", "cut", times=2)
    assert Path(hf_hub_download(REPO, "small.txt")).read_bytes() == b"small " * 1000
    assert (failure.happened, hub.waits) == (2, [1, 1])
    assert [request.sent for request in hub.calls("GET */resolve/*")] == [3000, 3000, 6000]


def test_a_hub_that_is_down_is_told_from_a_file_that_is_absent(hub, repo):
    kept = hf_hub_download(REPO, "small.txt")
    hub.fail("*", "503", times=None)
    assert hf_hub_download(REPO, "small.txt") == kept
    with pytest.raises(LocalEntryNotFoundError, match="check your connection"):
        hf_hub_download(REPO, "large.bin")
    assert hub.waits == [1, 2, 4, 8, 8]


def test_failures_can_wait_their_turn_and_are_checked(hub, api):
    failure = hub.fail("GET */whoami-v2", "500", after=1)
    api.whoami()
    with pytest.raises(HfHubHTTPError, match="500"):
        api.whoami()
    api.whoami()
    assert failure.happened == 1
    assert [request.status for request in hub.calls("GET */whoami-v2")] == [200, 500, 200]
    with pytest.raises(ValueError, match="how must be one of"):
        hub.fail("*", "fire")


# -- the stand-in itself


def test_the_storage_takes_only_what_was_announced(hub, api, repo):
    url = hub.signed(hub.repository(REPO), "0" * 64, "PUT")
    assert httpx2.put(url, content=b"other").status_code == 400
    assert httpx2.put(url, content=b"x", headers={"Authorization": f"Bearer {hub.token}"}).status_code == 400
    operation = CommitOperationAdd("never.bin", b"never sent")
    operation._upload_mode, operation._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="never uploaded"):
        api.create_commit(REPO, [operation], commit_message="never")


@pytest.mark.parametrize(
    "asked,status,content", [("0-3", 206, b"smal"), ("5995-", 206, b"mall "), ("-2", 206, b"l "), ("6000-", 416, b"")]
)
def test_ranges(hub, repo, asked, status, content):
    answer = httpx2.get(f"{hub.url}/{REPO}/resolve/main/small.txt", headers={"Range": f"bytes={asked}"})
    assert (answer.status_code, answer.content) == (status, content)


def test_this_process_can_reach_no_other_hub(hub):
    with pytest.raises(AssertionError, match="would leave the machine"):
        HfApi(endpoint="https://hub.invalid").whoami()
    assert hub.requests == []


def test_the_client_is_as_before_after_the_block(hub_server, tmp_path):
    constants = huggingface_hub.constants
    before = (constants.ENDPOINT, constants.HF_HUB_CACHE, datasets.config.HF_ENDPOINT, HfApi().endpoint)
    session = huggingface_hub.get_session()
    with use_hub(hub_server, tmp_path):
        assert HfApi().endpoint == huggingface_hub.hf_api.api.endpoint == datasets.config.HF_ENDPOINT == hub_server.url
        assert huggingface_hub.get_session() is not session
    assert (constants.ENDPOINT, constants.HF_HUB_CACHE, datasets.config.HF_ENDPOINT, HfApi().endpoint) == before
    assert huggingface_hub.hf_api.api.endpoint == before[0]


def test_a_server_that_stops_lets_go_of_who_waits():
    with HubServer() as server:
        server.fail("*", "timeout", seconds=60)
        caught = []

        def ask():
            try:
                httpx2.get(server.url, timeout=None)
            except httpx2.RemoteProtocolError as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        for _ in range(500):
            time.sleep(0.01)
            if server.requests:
                break
    thread.join(timeout=5)
    assert caught


def test_a_new_process_has_the_stand_in_as_its_hub(hub_server, tmp_path):
    push = f"""
from huggingface_hub import create_repo, upload_file, whoami
create_repo("{REPO}", private=True)
upload_file(repo_id="{REPO}", path_in_repo="a.bin", path_or_fileobj=b"a" * 1000)
print(whoami()["name"])
"""
    pull = f"""
from huggingface_hub import hf_hub_download
print(open(hf_hub_download("{REPO}", "a.bin")).read() == "a" * 1000)
"""
    assert run_python(hub_server, push, tmp_path / "pusher").stdout == "tester\n"
    assert hub_server.files(REPO)["a.bin"] == b"a" * 1000
    assert run_python(hub_server, pull, tmp_path / "puller").stdout == "True\n"
    assert (tmp_path / "puller" / "hub" / "models--tester--model").exists()
    refused = run_python(hub_server, pull, tmp_path / "nobody", token=None, check=False)
    assert refused.returncode == 1 and "RepositoryNotFoundError" in refused.stderr
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_python(hub_server, "1 / 0", tmp_path / "faulty")
