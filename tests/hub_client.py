"""The real Hub client, pointed at the stand-in: in this process (quick) or in a new one (as a user has it).

The client and the libraries on top of it read HF_ENDPOINT and its like once, when they are imported. A new process
gets them as variables; in this process `use_hub` sets what was made of them, and nothing else: every request is the
client's own, over HTTP. Should one of its places have been missed, the request is stopped, because the client may
then connect to nothing but loopback.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hub_server import HubServer


ROOT = Path(__file__).resolve().parents[1]
CLIENT_TIMEOUT = 1
"""Seconds, whole ones: how long the client waits for the headers of a file, and for the next bytes of one."""


def hub_environment(server: HubServer, home: Path, token: str | None) -> dict[str, str | None]:
    """The variables that point a new process at the stand-in; `None` is to be removed.

    `home` is the Hugging Face home with all caches: an empty folder has seen nothing, a used one has.
    """
    removed = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_HUB_OFFLINE")
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    return {
        **dict.fromkeys((*removed, *proxies, "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HUGGING_FACE_HUB_TOKEN")),
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": str(CLIENT_TIMEOUT),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(CLIENT_TIMEOUT),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LLAMAREC_LKG_CACHE": str(home / "llamarec_lkg"),
    }


def run_python(
    server: HubServer,
    code: str,
    home: Path,
    token: str | None = "",
    variables: dict[str, str] | None = None,
    python: str = sys.executable,
    timeout: float = 300,
    check: bool = True,
) -> subprocess.CompletedProcess:
    """Run a snippet in a new process whose Hub is the stand-in.

    Args:
        server: The stand-in.
        code: Python; what it prints is the result's `stdout`.
        home: The Hugging Face home, which is also the working folder. Give the same again to keep the caches.
        token: Of another account, or `None` for nobody. By default the server's own user.
        variables: Further environment variables.
        python: Another interpreter, such as one of a virtual environment that lacks the package.
        timeout: Seconds.
        check: A snippet that fails is an error of the test, with its output.

    Returns:
        The process, with `returncode`, `stdout` and `stderr` as text.
    """
    wanted = {**hub_environment(server, home, server.token if token == "" else token), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **wanted, **(variables or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    home.mkdir(parents=True, exist_ok=True)
    process = subprocess.run(
        [python, "-c", code], env=environment, cwd=home, capture_output=True, text=True, timeout=timeout
    )
    if check and process.returncode:
        raise AssertionError(f"The snippet failed ({process.returncode}).\n{process.stdout}\n{process.stderr}")
    return process


@contextlib.contextmanager
def use_hub(server: HubServer, home: Path, token: str | None = "") -> Iterator[None]:
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

    variables = hub_environment(server, home, server.token if token == "" else token)
    clock = types.SimpleNamespace(sleep=server.waits.append)
    home.mkdir(parents=True, exist_ok=True)

    def client():
        def only_loopback(request) -> None:
            host = urlsplit(str(request.url)).hostname
            assert host == "127.0.0.1", (
                f"{request.method} {request.url} would leave the machine: see tests/hub_client.py"
            )

        made = _http.default_client_factory()
        made.event_hooks = {"request": [only_loopback, *made.event_hooks["request"]]}
        return made

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
            "HF_HUB_ETAG_TIMEOUT": CLIENT_TIMEOUT,
            "HF_HUB_DOWNLOAD_TIMEOUT": CLIENT_TIMEOUT,
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
        factory = _http._GLOBAL_CLIENT_FACTORY
        huggingface_hub.set_client_factory(client)
        try:
            yield
        finally:
            huggingface_hub.set_client_factory(factory)
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
