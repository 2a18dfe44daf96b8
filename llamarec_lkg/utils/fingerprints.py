"""Names made of content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np


def fingerprint(*parts: Any) -> str:
    """A name of 16 hex digits for content and settings: equal parts give equal names, on every machine."""
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()[:16]


def catalogue_fingerprint(item_ids: Sequence[str]) -> str:
    """What tells one list of items, or of users, from another: a [`fingerprint`] of their raw ids, in their order."""
    return fingerprint([str(raw) for raw in item_ids])


def _feed(digest: Any, part: Any) -> None:
    if is_dataclass(part) and not isinstance(part, type):
        named = {field.name: getattr(part, field.name) for field in fields(part) if field.compare}
        part = {"__type__": type(part).__name__, **named}
    if isinstance(part, np.ndarray) and part.dtype != object:
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    elif isinstance(part, np.ndarray | list | tuple):
        digest.update(f"[{len(part)}".encode())
        for value in part:
            _feed(digest, value)
    elif isinstance(part, dict):
        digest.update(f"{{{len(part)}".encode())
        for key in sorted(part):
            _feed(digest, key)
            _feed(digest, part[key])
    else:
        text = repr(part).encode()
        digest.update(len(text).to_bytes(8, "little") + text)


def hash_file(path: str | Path, *, text: bool = False) -> str:
    """SHA-256 of a file; with `text`, of its content with line ends as LF, whatever those of a checkout are."""
    if text:
        return hashlib.sha256(Path(path).read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def as_plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as json can hold it."""
    return asdict(settings)


def weights_fingerprint(folder: str | Path) -> str:
    """What tells the weights of a saved ranker from others: a hash of its weight files and those of its adapters."""
    digest = hashlib.sha256()
    for pattern in ("model*.safetensors", "adapter/**/*.safetensors"):
        for path in sorted(Path(folder).glob(pattern)):
            digest.update(path.relative_to(folder).as_posix().encode())
            with open(path, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
