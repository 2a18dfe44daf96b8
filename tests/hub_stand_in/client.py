"""The real Hub client, pointed at the stand-in: in this process (quick) or in a new one (as a user has it).

The client and the libraries on top of it read HF_ENDPOINT and its like once, when they are imported. A new process
gets them as variables; in this process `use_hub` sets what was made of them, and nothing else: every request is the
client's own, over HTTP. Should one of its places have been missed, the request is stopped, because the process can
then look up no host but this one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_stand_in.server import HubServer


LOOPBACK = ("127.0.0.1", "localhost", "::1", None)
ROOT = Path(__file__).resolve().parents[2]
CLIENT_TIMEOUT = 5
"""Whole seconds: how long the client waits for the headers of a file, and for the next bytes of one."""


def hub_environment(server: HubServer, home: Path, token: str | None, client_timeout: int) -> dict[str, str | None]:
    """The variables that point a new process at the stand-in; `None` is to be removed."""
    removed = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_HUB_OFFLINE")
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    return {
        **dict.fromkeys((*removed, *proxies, "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HUGGING_FACE_HUB_TOKEN")),
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": str(client_timeout),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(client_timeout),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def run_python(
    server: HubServer,
    code: str,
    home: Path,
    token: str | None = "",
    variables: dict[str, str | None] | None = None,
    python: str = sys.executable,
    client_timeout: int = CLIENT_TIMEOUT,
    timeout: float = 300,
    check: bool = True,
) -> subprocess.CompletedProcess:
    """Run a snippet in a new process whose Hub is the stand-in.

    Args:
        server: The stand-in.
        code: Python; what it prints is the result's `stdout`.
        home: The Hugging Face home with all caches, and the working folder. Give the same again to keep the caches.
        token: Of another account, or `None` for nobody. By default the server's own user.
        variables: Further environment variables; `None` removes one.
        python: Another interpreter. `variables={"PYTHONPATH": None}` hides this checkout from it, so that it has the
            package only if that is installed.
        client_timeout: Of the Hub client, in whole seconds.
        timeout: Of the process, in seconds.
        check: A snippet that fails is an error of the test, with its output.

    Returns:
        The process, with `returncode`, `stdout` and `stderr` as text.
    """
    wanted = hub_environment(server, home, server.token if token == "" else token, client_timeout)
    environment = {**os.environ, **wanted, "PYTHONPATH": str(ROOT), **(variables or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    home.mkdir(parents=True, exist_ok=True)
    process = subprocess.run(
        [python, "-c", code], env=environment, cwd=home, capture_output=True, text=True, timeout=timeout
    )
    if check and process.returncode:
        raise AssertionError(f"The snippet failed ({process.returncode}).\n{process.stdout}\n{process.stderr}")
    return process


@contextlib.contextmanager
def use_hub(
    server: HubServer, home: Path, token: str | None = "", client_timeout: int = CLIENT_TIMEOUT
) -> Iterator[None]:
    """Within the block, the Hub of this process is the stand-in, and all caches are in `home`.

    Blocks may be nested: an inner one with another `home` or `token` is another user on another machine. What the
    client would wait between its tries is noted in `server.waits` and not waited for. Code of a repository
    (`trust_remote_code`) stays imported in a process, so it is for `run_python`.
    """
    import datasets.config
    import huggingface_hub
    import transformers.utils.hub
    from huggingface_hub import HfFileSystem, constants, file_download, hf_api, hf_file_system
    from huggingface_hub.utils import _http

    variables = hub_environment(server, home, server.token if token == "" else token, client_timeout)
    clock = types.SimpleNamespace(sleep=server.waits.append)
    home.mkdir(parents=True, exist_ok=True)

    def only_loopback(host, *arguments, **options):
        name = host.decode() if isinstance(host, bytes) else host
        assert name in LOOPBACK, f"A request to {name} would leave the machine: see tests/hub_stand_in/client.py"
        return getaddrinfo(host, *arguments, **options)

    getaddrinfo = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value) if value is not None else patch.delenv(name, raising=False)
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": constants.HF_URL_HOSTS | {"127.0.0.1"},
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
            "HF_HUB_ETAG_TIMEOUT": client_timeout,
            "HF_HUB_DOWNLOAD_TIMEOUT": client_timeout,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            patch.setattr(constants, name, value)
        for name, value in {
            "HF_ENDPOINT": server.url,
            "HUB_DATASETS_URL": server.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "HF_CACHE_HOME": str(home),
            "HF_DATASETS_CACHE": home / "datasets",
            "HF_MODULES_CACHE": home / "modules",
            "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
            "HF_HUB_OFFLINE": False,
        }.items():
            patch.setattr(datasets.config, name, value)
        if "evaluate" in sys.modules:
            config = sys.modules["evaluate"].config
            patch.setattr(config, "HF_ENDPOINT", server.url)
            patch.setattr(config, "HUB_EVALUATE_URL", server.url + "/spaces/{path}/resolve/{revision}/{name}")
            patch.setattr(config, "HF_EVALUATE_CACHE", home / "evaluate")
            patch.setattr(config, "HF_METRICS_CACHE", home / "metrics")
            patch.setattr(config, "HF_MODULES_CACHE", home / "modules")
            patch.setattr(config, "DOWNLOADED_EVALUATE_PATH", home / "evaluate" / "downloads")
        patch.setattr(_http, "_HUB_ORIGINS", _http._HUB_ORIGINS | {_http._url_origin(server.url)})
        patch.setattr(_http, "time", clock)
        patch.setattr(file_download, "time", clock)
        # the client's ready-made objects keep the address they were made with; a fresh one has no remembered answers
        patch.setattr(hf_api.api, "endpoint", server.url)
        patch.setattr(hf_api.api, "_whoami_cache", {})
        patch.setattr(hf_file_system, "hffs", HfFileSystem(endpoint=server.url, skip_instance_cache=True))
        patch.setattr(huggingface_hub, "hffs", hf_file_system.hffs, raising=False)
        patch.setattr(transformers.utils.hub, "_hf_api", None)
        HfFileSystem.clear_instance_cache()
        patch.setattr(socket, "getaddrinfo", only_loopback)
        _http.close_session()  # it knows the proxies of the environment it was opened in
        try:
            yield
        finally:
            _http.close_session()
            HfFileSystem.clear_instance_cache()


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    """A stand-in with nothing in it; nothing is pointed at it yet."""
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(hub_server, tmp_path_factory) -> Iterator[HubServer]:
    """A stand-in that is the Hub of this process, for its own user, with empty caches."""
    with use_hub(hub_server, tmp_path_factory.mktemp("hf_home")):
        yield hub_server


# -- the package as others have it ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built from a copy of it and without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "outputs", "*.egg-info")
    shutil.copytree(ROOT, folder / "checkout", ignore=leave)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "checkout")
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, python: Path) -> None:
    """Install a wheel into the environment of an interpreter, which need not have pip."""
    # another copy may be visible there without being importable, as an editable one of the parent's environment is
    _pip("--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", "--no-compile", wheel)


def _pip(*arguments: str | Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", *map(str, arguments)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert not process.returncode, f"{command} failed.\n{process.stdout}\n{process.stderr}"
