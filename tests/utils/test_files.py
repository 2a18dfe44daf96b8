import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llamarec_lkg.utils import files as storage
from llamarec_lkg.utils.errors import LKGError
from llamarec_lkg.utils.files import atomic_file, atomic_files, atomic_folder, cache_dir, read_json, write_json
from llamarec_lkg.utils.fingerprints import fingerprint, hash_file


@dataclass(frozen=True)
class Settings:
    size: int = 1
    name: str = "a"


@dataclass(frozen=True)
class OtherSettings:
    size: int = 1
    name: str = "a"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_cache_is_where_the_environment_says_else_in_the_hugging_face_home(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAREC_LKG_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setattr(storage, "HF_HOME", str(tmp_path / "home"))
    for unset in (
        lambda: monkeypatch.setenv("LLAMAREC_LKG_CACHE", ""),
        lambda: monkeypatch.delenv("LLAMAREC_LKG_CACHE"),
    ):
        unset()
        assert cache_dir() == tmp_path / "home" / "llamarec_lkg"


def test_a_folder_appears_whole_under_its_name(tmp_path):
    target = tmp_path / "deep" / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "file").write_text("new")
        assert not target.exists()
    assert (target / "file").read_text() == "new"
    assert names_in(target.parent) == ["folder"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_folder(target) as temporary:
        (temporary / "new").write_text("new")
        assert names_in(target) == ["old"]
    assert names_in(target) == ["new"]
    assert names_in(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_folder_leaves_nothing_and_keeps_the_old_one(tmp_path, error):
    with pytest.raises(error), atomic_folder(tmp_path / "new") as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert names_in(tmp_path) == []

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old")
    with pytest.raises(error), atomic_folder(tmp_path / "old") as temporary:
        (temporary / "file").write_text("half")
        raise error
    assert names_in(tmp_path) == ["old"]
    assert (tmp_path / "old" / "file").read_text() == "old"


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


OLD = {"key.json": "old", "a.bin": "old", "part/x": "old", "part/y": "stays", "stale-1.bin": "old", "other": "stays"}
NEW = {"key.json": "new", "a.bin": "new", "b.bin": "new", "part/x": "new", "part/y": "stays", "other": "stays"}


def exchange(folder: Path) -> None:
    with atomic_files(folder, "key.json", ["stale-*.bin", "b.bin", "absent"]) as new:
        for path, text in NEW.items():
            if text == "new":
                (new / path).parent.mkdir(exist_ok=True)
                (new / path).write_text(text)
        assert contents(folder).items() >= OLD.items() or not (folder / "key.json").exists()


@pytest.fixture
def old_folder(tmp_path) -> Path:
    for path, text in OLD.items():
        (tmp_path / "run" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / path).write_text(text)
    return tmp_path / "run"


def test_files_and_folders_are_exchanged_and_the_rest_stays(old_folder, tmp_path):
    exchange(old_folder)
    assert contents(old_folder) == NEW and names_in(old_folder) == ["a.bin", "b.bin", "key.json", "other", "part"]
    exchange(tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == {path: text for path, text in NEW.items() if text == "new"}


@pytest.mark.parametrize("count", range(9))
def test_an_exchange_that_fails_is_taken_back_and_one_that_is_killed_is_seen(old_folder, monkeypatch, count):
    """Four things go and four come; the key is there only while all is old, or all is new."""
    replace, done = os.replace, []

    def rename(source, target):
        if len(done) == count:
            done.append("failed")
            raise OSError("disk full")
        replace(source, target)
        if "failed" not in done:
            done.append(target)
            found = {k: v for k, v in contents(old_folder).items() if not k.startswith(".")}
            assert "key.json" not in found or found == NEW

    monkeypatch.setattr(os, "replace", rename)
    if count < 8:
        with pytest.raises(OSError, match="disk full"):
            exchange(old_folder)
        assert contents(old_folder) == OLD and len(names_in(old_folder)) == 5
    else:
        exchange(old_folder)
        assert contents(old_folder) == NEW and len(done) == 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_exchange_leaves_nothing_and_keeps_the_old(old_folder, tmp_path, error):
    for folder in (old_folder, tmp_path / "fresh"):
        with pytest.raises(error), atomic_files(folder, "key.json", ["*.bin"]) as new:
            (new / "a.bin").write_text("half")
            raise error
    assert contents(old_folder) == OLD and not (tmp_path / "fresh").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_nothing_and_keeps_the_old_one(tmp_path, error):
    target = tmp_path / "deep" / "file"
    with pytest.raises(error), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise error
    assert names_in(target.parent) == []

    target.write_text("old")
    with pytest.raises(error), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise error
    assert names_in(target.parent) == ["file"]
    assert target.read_text() == "old"


def test_json_comes_back_and_stays_readable(tmp_path):
    content = {"name": "Amélie", "sizes": [1, 2.5, None]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert "Amélie" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", [object()])
    assert read_json(tmp_path / "a.json") == [1]
    assert names_in(tmp_path) == ["a.json"]


def test_json_that_is_absent_or_damaged_is_named(tmp_path):
    with pytest.raises(LKGError, match="none.json does not exist"):
        read_json(tmp_path / "none.json")
    for content in (b'{"a": ', b"\xff\xfe\xff"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(LKGError, match="bad.json is not readable json .* Delete its folder"):
            read_json(tmp_path / "bad.json")


def test_equal_content_has_equal_fingerprints_in_every_process():
    parts = [1, "a", {"b": [2.5, None]}, np.arange(3), np.array(["x", "yy"], dtype=object), Settings()]
    assert fingerprint(*parts) == fingerprint(*parts)
    assert fingerprint(1, "a", {"b": (2.5, None)}, np.arange(3, dtype=np.int64)) == "b65d286484df6d8e"


@pytest.mark.parametrize(
    "one, other",
    [
        (("ab", "c"), ("a", "bc")),
        ((1, 2), (2, 1)),
        ((1,), ("1",)),
        (([1], 2), ([1, 2],)),
        (({"a": 1},), ({"a": 2},)),
        (({"a": 1},), ({"b": 1},)),
        ((np.zeros(4, np.int32),), (np.zeros(2, np.int64),)),
        ((np.zeros((2, 3)),), (np.zeros((3, 2)),)),
        ((np.array(["ab", "c"], dtype=object),), (np.array(["a", "bc"], dtype=object),)),
        ((np.arange(6).reshape(2, 3),), (np.arange(6).reshape(3, 2).T,)),
        ((Settings(size=1),), (Settings(size=2),)),
        ((Settings(),), (OtherSettings(),)),
    ],
)
def test_different_content_has_different_fingerprints(one, other):
    assert fingerprint(*one) != fingerprint(*other)


def test_line_ends_do_not_change_the_hash_of_text(tmp_path):
    (tmp_path / "lf").write_bytes(b"a\nb\n")
    (tmp_path / "crlf").write_bytes(b"a\r\nb\r\n")
    assert hash_file(tmp_path / "lf", text=True) == hash_file(tmp_path / "crlf", text=True)
    assert hash_file(tmp_path / "lf", text=True) == hash_file(tmp_path / "lf") != hash_file(tmp_path / "crlf")


def test_the_hash_is_sha256(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert hash_file(tmp_path / "empty").startswith("e3b0c44298fc1c14")


@pytest.mark.parametrize("kind", [atomic_folder, atomic_files])
def test_weights_are_for_whoever_may_read_what_is_beside_them(tmp_path, kind):
    with kind(tmp_path / "saved") as folder:
        save_file({"a": np.zeros(2)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    weights, config = (tmp_path / "saved" / name for name in ("model.safetensors", "config.json"))
    assert weights.stat().st_mode == config.stat().st_mode
