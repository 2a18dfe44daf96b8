import http.server
import os
import threading
import types
import zipfile

import pytest

from llamarec_lkg.utils import downloads
from llamarec_lkg.utils.downloads import PinnedWheel, extract, fetch_url, fetch_wheel
from llamarec_lkg.utils.errors import LKGError
from llamarec_lkg.utils.files import cache_dir
from llamarec_lkg.utils.fingerprints import hash_file


CONTENT = b"0123456789" * 20_000


class Pip:
    """Stands in for the module `subprocess`: a pip that has one wheel, or fails."""

    def __init__(self, wheel_file=None, returncode=0, stderr=""):
        self.wheel_file, self.returncode, self.stderr = wheel_file, returncode, stderr
        self.commands, self.requirements = [], []

    def run(self, command, **options):
        self.commands.append(command)
        folder, requirements = command[command.index("--dest") + 1], command[command.index("-r") + 1]
        with open(requirements) as stream:
            self.requirements.append(stream.read())
        if self.wheel_file:
            with open(os.path.join(folder, self.wheel_file.name), "wb") as sink:
                sink.write(self.wheel_file.read_bytes())
        return types.SimpleNamespace(returncode=self.returncode, stderr=self.stderr)


@pytest.fixture
def wheel_file(tmp_path):
    path = tmp_path / "some_data-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("some_data/a.txt", "alpha " * 500)
        zipped.writestr("some_data/b.txt", "beta")
    return path


@pytest.fixture
def wheel(wheel_file):
    return PinnedWheel("some-data==1.2", hash_file(wheel_file))


def test_a_wheel_is_downloaded_by_hash_once(monkeypatch, wheel, wheel_file):
    pip = Pip(wheel_file)
    monkeypatch.setattr(downloads, "subprocess", pip)
    path = fetch_wheel(wheel)
    assert path == cache_dir() / "wheels" / wheel_file.name
    assert path.read_bytes() == wheel_file.read_bytes()
    assert "--require-hashes" in pip.commands[0] and "--no-deps" in pip.commands[0]
    assert pip.requirements == [f"some-data==1.2 --hash=sha256:{wheel.sha256}\n"]
    assert fetch_wheel(wheel) == path
    assert len(pip.commands) == 1
    assert list(path.parent.iterdir()) == [path]


def test_a_wheel_with_another_hash_is_never_used(monkeypatch, wheel, wheel_file):
    folder = cache_dir() / "wheels"
    folder.mkdir(parents=True)
    (folder / wheel_file.name).write_bytes(wheel_file.read_bytes()[:-1])
    pip = Pip(wheel_file)
    monkeypatch.setattr(downloads, "subprocess", pip)
    assert fetch_wheel(wheel).read_bytes() == wheel_file.read_bytes()
    assert len(pip.commands) == 1


@pytest.mark.parametrize(
    "pip, reason",
    [
        (Pip(returncode=1, stderr="trying\nERROR: hashes do not match\n"), "ERROR: hashes do not match"),
        (Pip(returncode=0), "pip printed nothing"),
    ],
)
@pytest.mark.parametrize("writes", [False, True])
def test_a_failed_pip_says_why_and_leaves_nothing(monkeypatch, wheel, wheel_file, pip, reason, writes):
    pip.wheel_file = wheel_file if writes and pip.returncode else None
    monkeypatch.setattr(downloads, "subprocess", pip)
    with pytest.raises(LKGError, match=f"pip download some-data==1.2` failed: {reason}.*by hand"):
        fetch_wheel(wheel)
    assert list((cache_dir() / "wheels").iterdir()) == []


def test_members_are_extracted_under_their_new_names(wheel_file, tmp_path):
    extract(wheel_file, {"some_data/a.txt": "x.txt", "some_data/b.txt": "y.txt"}, tmp_path / "out")
    assert (tmp_path / "out" / "x.txt").read_text() == "alpha " * 500
    assert (tmp_path / "out" / "y.txt").read_text() == "beta"


@pytest.mark.parametrize("kind", ["no such member", "cut short", "broken stream"])
def test_a_damaged_archive_is_refused_and_leaves_nothing(wheel_file, tmp_path, kind):
    content, member = bytearray(wheel_file.read_bytes()), "some_data/a.txt"
    if kind == "cut short":
        content = content[: len(content) // 2]
    elif kind == "broken stream":
        start = 30 + len(member)  # behind the local header
        content[start : start + 3] = b"\xff\xff\xff"
    wheel_file.write_bytes(content)
    with pytest.raises(LKGError, match="cannot be unpacked .*Delete it"):
        extract(wheel_file, {"absent" if kind == "no such member" else member: "x"}, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(self.path)
        self.close_connection = True
        if self.path == "/absent":
            self.send_error(404)
        elif self.path == "/chunked-and-cut":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ffff\r\n" + CONTENT[:100])
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:70_000] if self.path == "/cut" and len(self.server.requests) == 1 else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        running.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def left_behind() -> list[str]:
    folder = cache_dir() / "downloads"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_file_is_downloaded_once(server):
    path = fetch_url(f"{server.address}/whole", "data.zip")
    assert path == cache_dir() / "downloads" / "data.zip"
    assert path.read_bytes() == CONTENT
    assert fetch_url(f"{server.address}/whole", "data.zip") == path
    assert server.requests == ["/whole"]
    assert left_behind() == ["data.zip"]


def test_an_http_error_is_reported_with_the_address(server):
    with pytest.raises(LKGError, match=r"Could not download http://127.0.0.1:\d+/absent \(.*404.*by hand"):
        fetch_url(f"{server.address}/absent", "data.zip")
    assert left_behind() == []


def test_a_cut_connection_leaves_nothing_and_the_next_try_starts_anew(server):
    with pytest.raises(LKGError, match=f"got 70000 of {len(CONTENT)} bytes"):
        fetch_url(f"{server.address}/cut", "data.zip")
    assert left_behind() == []
    assert fetch_url(f"{server.address}/cut", "data.zip").read_bytes() == CONTENT


def test_an_answer_that_breaks_the_protocol_is_reported_and_leaves_nothing(server):
    with pytest.raises(LKGError, match="Could not download"):
        fetch_url(f"{server.address}/chunked-and-cut", "data.zip")
    assert left_behind() == []
