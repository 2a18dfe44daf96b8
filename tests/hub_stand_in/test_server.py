"""The Hub stand-in through the real client."""

import threading
import time
from pathlib import Path

import datasets
import httpx2
import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RepositoryNotFoundError,
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


# -- revisions


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
    # the address of the content is no way in: it is signed
    (stored,) = hub.repository(REPO).objects
    answer = httpx2.get(f"{hub.storage_url}/models/{REPO}/lfs/{stored}")
    assert answer.status_code == 403


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


def test_the_storage_takes_only_what_was_announced(hub, api, repo):
    url = hub.signed(hub.repository(REPO), "0" * 64, "PUT")
    assert httpx2.put(url, content=b"other").status_code == 400
    assert httpx2.put(url, content=b"x", headers={"Authorization": f"Bearer {hub.token}"}).status_code == 400
    operation = CommitOperationAdd("never.bin", b"never sent")
    operation._upload_mode, operation._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="never uploaded"):
        api.create_commit(REPO, [operation], commit_message="never")


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
