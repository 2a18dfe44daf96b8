"""What is killed: a stage in a process of its own, started at once from a server that has everything loaded."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace


LOADED = ["llamarec_lkg.training.workflow", "llamarec_lkg.serving.batch_ranking", "trl", "peft", "datasets"]
PATIENCE = 120  # seconds, after which a job hangs


def prepare(folder: Path) -> str:
    return _workflow(folder).prepare().key


def train_retriever(folder: Path) -> None:
    _workflow(folder).train_retriever()


def train(folder: Path) -> None:
    """Resumed where there is something to resume from, and begun anew by whoever is told that there is not."""
    from llamarec_lkg import LKGError

    try:
        _workflow(folder).train(resume=True)
    except LKGError as error:
        if "no whole checkpoint" not in str(error):
            raise
        _workflow(folder).train()


def evaluate(folder: Path) -> None:
    _workflow(folder).evaluate()


def rank(folder: Path) -> None:
    from llamarec_lkg.serving.batch_ranking import rank_file

    rank_file(
        folder / "new", folder / "rows.parquet", folder / "ranked", progress=False, shard_rows=4, batch_size=4, k=3
    )


def save(folder: Path) -> None:
    from llamarec_lkg import Recommender

    Recommender.from_pretrained(folder / "new").save_pretrained(folder / "saved")


def push(folder: Path) -> None:
    from hub_stand_in.client import use_hub

    from llamarec_lkg.hub.push import push_folder

    server = SimpleNamespace(**json.loads((folder / "hub.json").read_text()), waits=[])
    with use_hub(server, folder / "home"):
        push_folder(folder / "new", "tester/ranker", backbone="tester/backbone")


def answer_offline(folder: Path) -> None:
    """From a folder, as if the machine had no network."""
    _without_network(folder, str(folder / "new"))


def load_offline(folder: Path) -> None:
    """From the Hub, which cannot be reached."""
    _without_network(folder, "tester/ranker")


def _without_network(folder: Path, name: str) -> None:
    from hub_stand_in.client import use_hub

    from llamarec_lkg import Recommender

    with use_hub(SimpleNamespace(**json.loads((folder / "hub.json").read_text()), waits=[]), folder / "home"):
        assert Recommender.from_pretrained(name).recommend(["1", "3"])


def _workflow(folder: Path):
    from llamarec_lkg.training.run_config import RunConfig
    from llamarec_lkg.training.workflow import Workflow

    return Workflow(RunConfig.from_yaml(folder / "config.yaml"), progress=False)


# -- processes --------------------------------------------------------------------------------------------------------


def start(job: Callable[[Path], object], folder: Path, **limits: object) -> BaseProcess:
    """A job in a process of its own. It leaves what it returns in `result.json` and what it says in `said.log`.

    Args:
        limits: `file_bytes`, the largest file it may write; `bound`: permissions bind it, as they bind all but root;
            `clock`, the seed by which its clock jumps.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    process = context.Process(target=_run, args=(job, folder, limits))
    process.start()
    return process


def finish(job: Callable[[Path], object], folder: Path, **limits: object) -> tuple[float, object]:
    """Run a job to its end; the seconds it took and what it returned.

    Raises:
        AssertionError: it failed or hung, with what it said.
    """
    process, started = start(job, folder, **limits), time.monotonic()
    status = ended(process)
    assert status == 0, f"{job.__name__} ended with {status}: {(folder / 'said.log').read_text()[-2000:]}"
    return time.monotonic() - started, json.loads((folder / "result.json").read_text())


def ended(process: BaseProcess, seconds: float = PATIENCE) -> int | None:
    """The exit status of a process, None of one that hung and was killed."""
    process.join(seconds)
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    return status


def last_words(folder: Path) -> str:
    """The last line that a job said: of one that failed, its error."""
    log = folder / "said.log"  # of files that may not grow it is there only after an error
    return ((log.read_text() if log.exists() else "").strip().splitlines() or [""])[-1]


def shut(folder: Path) -> None:
    """Nothing in it may be written, made or removed."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def open_again(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def killed(job: Callable[[Path], object], folder: Path, seconds: float) -> bool:
    """Start a job and kill it after so many seconds; whether it was still running."""
    process = start(job, folder)
    process.join(seconds)
    os.kill(process.pid, signal.SIGKILL) if process.exitcode is None else None
    process.join()
    return process.exitcode == -signal.SIGKILL


def _run(job: Callable[[Path], object], folder: Path, limits: Mapping[str, object]) -> None:
    (folder / "result.json").unlink(missing_ok=True)
    (folder / "said.log").unlink(missing_ok=True)
    log = os.open(os.devnull if "file_bytes" in limits else folder / "said.log", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    os.environ["LLAMAREC_LKG_CACHE"] = str(folder / "cache")
    import torch

    torch.set_num_threads(1)
    if limits.get("bound"):
        _without_rights_of_root()
    if "file_bytes" in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"], resource.RLIM_INFINITY))
    if "clock" in limits:
        chance, real = random.Random(limits["clock"]), time.time
        time.time = lambda: real() + chance.choice([-3e8, 0, 0, 3e8])
    try:
        found = job(folder)
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with open(folder / "said.log", "a") as stream:
            stream.write("".join(traceback.format_exception(error)) + f"\n{type(error).__name__}: {error}\n")
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / "result.json").write_text(json.dumps(found))


def _without_rights_of_root() -> None:
    """Give up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (Linux), by which root writes into read-only folders."""
    library, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert library.capget(header, sets) == 0
    sets[0] &= ~0b110
    assert library.capset(header, sets) == 0
