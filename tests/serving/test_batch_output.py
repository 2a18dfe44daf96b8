"""Who may write into the output of a batch ranking."""

import errno
import os

import pytest

from llamarec_lkg import LKGError
from llamarec_lkg.serving import batch_output as module
from llamarec_lkg.serving.batch_output import LOCK, Shards


@pytest.fixture
def locking(monkeypatch):
    """Lets every attempt to lock end in an error."""

    def fail(error):
        def acquire(lock, timeout):
            raise error

        monkeypatch.setattr(module.FileLock, "acquire", acquire)

    return fail


@pytest.mark.parametrize("name", ["ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", None])
def test_without_locks_it_goes_on_and_says_that_nothing_keeps_others_away(locking, name, tmp_path, caplog):
    code = name and getattr(errno, name)
    locking(OSError(code, os.strerror(code)) if name else NotImplementedError("no flock here"))
    with Shards(tmp_path / "ranked", 100, 8).locked():
        assert (tmp_path / "ranked").is_dir()
    assert f"file system of {tmp_path / 'ranked'} has no locks" in caplog.text
    assert "nothing keeps a second process from ranking into it" in caplog.text


@pytest.mark.parametrize("name", ["EACCES", "ENOSPC", "EROFS", "EIO"])
def test_other_errors_of_the_lock_are_said_with_their_folder_and_cause(locking, name, tmp_path, caplog):
    code = getattr(errno, name)
    locking(OSError(code, os.strerror(code)))
    with (
        pytest.raises(LKGError, match=f"into {tmp_path / 'ranked'} .*{os.strerror(code)}.*folder elsewhere"),
        Shards(tmp_path / "ranked", 100, 8).locked(),
    ):
        pytest.fail("it went on")
    assert not caplog.records


@pytest.mark.parametrize("taken", ["ranked", f"ranked/{LOCK}"])
def test_a_folder_or_a_lock_that_cannot_be_made_is_said(taken, tmp_path):
    if taken == "ranked":
        (tmp_path / taken).write_text("a file")
    else:
        (tmp_path / taken).mkdir(parents=True)
    with (
        pytest.raises(LKGError, match=f"Nothing can be written into {tmp_path / 'ranked'}"),
        Shards(tmp_path / "ranked", 100, 8).locked(),
    ):
        pytest.fail("it went on")
