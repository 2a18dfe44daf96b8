"""Stages that are killed at a random moment, looked at, and run again to their end."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
import yaml
from hub_stand_in.client import use_hub
from hub_stand_in.server import HubServer
from tiny import backbone, examples, processor, tokenizer
from tiny_batch import lost_or_doubled, make_rows
from tiny_run import settings, write_world

from campaign import jobs
from llamarec_lkg import LKGError, LlamaRecLKGForRanking, Recommender
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval
from llamarec_lkg.utils.fingerprints import hash_file


# what tells of times, or is no result
ASIDE = ("training_log.json", "log.json", "README.md", "card.json", "said.log", "result.json", "config.yaml")


def hashes(folder: Path) -> dict[str, str]:
    """Of every file of a result by its path; hidden ones, checkpoints and what tells of times are left aside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and path.name not in ASIDE and not any(p[0] == "." or p == "checkpoints" for p in parts):
            found["/".join(parts)] = hash_file(path)
    return found


def kill_runs(stage: Callable[[Path], object], count: int, folder: Path, seed: int = 0) -> Iterator[str | None]:
    """Prepare, train the retriever or train: killed, then run again, it gives the same files byte for byte."""
    place = Place(folder)
    write_run(place.here)
    if stage is not jobs.prepare:
        jobs.finish({jobs.train_retriever: jobs.prepare, jobs.train: jobs.train_retriever}[stage], place.here)
    place.keep()
    seconds, result = jobs.finish(stage, place.here)
    wanted = hashes(place.here / "run")
    for moment in moments(count, seconds, seed):
        jobs.killed(stage, place.again(), moment)
        _, found = jobs.finish(stage, place.here)
        differing = {name for name, _ in wanted.items() ^ hashes(place.here / "run").items()}
        yield said(found == result and not differing, moment, differing, place.left_behind())


def kill_rank(count: int, folder: Path, seed: int = 0) -> Iterator[str | None]:
    """Ranking a file: no row is lost or doubled, and the shards are those of a run that nobody killed."""
    place = Place(folder)
    write_rankers(place.here)
    rows = make_rows(40, range(1, 7))
    rows.to_parquet(place.here / "rows.parquet")
    place.keep()
    seconds, _ = jobs.finish(jobs.rank, place.here)
    wanted = hashes(place.here / "ranked")
    users = rows["user"][rows["history"].str.len() > 0].tolist()
    for moment in moments(count, seconds, seed):
        jobs.killed(jobs.rank, place.again(), moment)
        jobs.finish(jobs.rank, place.here)
        lost = lost_or_doubled(users, place.here / "ranked")
        differing = {name for name, _ in wanted.items() ^ hashes(place.here / "ranked").items()}
        yield said(not (lost or differing), moment, (lost, differing), place.left_behind())


def kill_save(count: int, folder: Path, seed: int = 0) -> Iterator[str | None]:
    """Saving over an older ranker: a reader finds the old one, the new one or a refusal, and never a mixture."""
    place = Place(folder)
    old, new = write_rankers(place.here)
    shutil.copytree(place.here / "old", place.here / "saved")
    place.keep()
    seconds, _ = jobs.finish(jobs.save, place.here)
    wanted = hashes(place.here / "saved")
    assert answer(place.here / "saved") == new != old
    for moment in moments(count, seconds, seed):
        jobs.killed(jobs.save, place.again(), moment)
        try:
            seen = answer(place.here / "saved")
        except LKGError:
            seen = None
        jobs.finish(jobs.save, place.here)
        right = seen in (None, old, new) and hashes(place.here / "saved") == wanted
        yield said(right, moment, f"a mixture was read: {seen not in (None, old, new)}", place.left_behind())


def kill_push(count: int, folder: Path, seed: int = 0) -> Iterator[str | None]:
    """Pushing over an older ranker: the repository holds one of the two whole, and after a second push the new one."""
    place = Place(folder)
    write_rankers(place.here)
    with HubServer() as server:
        (place.here / "hub.json").write_text(json.dumps({"url": server.url, "token": server.token}))
        with use_hub(server, folder / "home"):
            backbone().push_to_hub("tester/backbone")
        place.keep()
        shutil.rmtree(place.here / "new")
        shutil.copytree(place.here / "old", place.here / "new")
        jobs.finish(jobs.push, place.here)
        repo = server.repository("tester/ranker")
        old, older = server.files("tester/ranker"), dict(repo.refs)
        seconds, _ = jobs.finish(jobs.push, place.again())
        new, once = server.files("tester/ranker"), len(server.commits("tester/ranker"))
        assert old != new
        for moment in moments(count, seconds, seed):
            repo.refs.clear()
            repo.refs.update(older)
            jobs.killed(jobs.push, place.again(), moment)
            seen = server.files("tester/ranker")
            jobs.finish(jobs.push, place.here)
            doubled = len(server.commits("tester/ranker")) != once
            right = seen in (old, new) and server.files("tester/ranker") == new and not doubled
            what = f"half was visible: {seen not in (old, new)}; a commit was made twice: {doubled}"
            yield said(right, moment, what, place.left_behind())


# -- what is there before a kill --------------------------------------------------------------------------------------


def write_run(folder: Path) -> None:
    """A small world and the configuration of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_world(folder / "world")
    backbone().save_pretrained(folder / "backbone")
    tokenizer().save_pretrained(folder / "backbone")
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    content = settings(folder, **steps, heads_warm_up_epochs=1)
    content["retriever"] |= {"max_steps": 10, "eval_steps": 5}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def write_rankers(folder: Path) -> tuple[list, list]:
    """Two rankers of the same items, `old` and `new`, that differ in every part; what each answers."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = films()
    backbone().save_pretrained(folder / "backbone")
    for seed, name in enumerate(("old", "new")):
        proc = processor(dataset, num_paths=2 + seed).fit(examples(dataset, seed=seed))
        torch.manual_seed(seed)
        config = proc.model_config(evidence_weight=1.0 + seed)
        ranker = LlamaRecLKGForRanking.from_backbone(str(folder / "backbone"), config)
        ranker.save_pretrained(folder / name, include_backbone=False)
        proc.save_pretrained(folder / name)
        torch.manual_seed(seed)
        retriever = LRURecForRetrieval(LRURecConfig(num_items=dataset.num_items, hidden_size=8))
        retriever.save_pretrained(folder / name / "retriever")
    return answer(folder / "old"), answer(folder / "new")


def films() -> SequenceDataset:
    """Four users go round six films."""
    rows = [(user, (user + step - 1) % 6 + 1, 100 * step + user) for user in range(1, 5) for step in range(5)]
    items = {"item_id": range(1, 7), "title": ["Heat", "The Insider", "Toy Story", "Antz", "Alien", "Up"]}
    items |= {"directed_by": ["Mann", "Mann", "Lasseter", "Darnell", "Scott", None], "genre": list("ABCCAB")}
    tables = {"interactions": pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])}
    bundle = load_dataset_bundle({**tables, "items": pd.DataFrame(items)})
    return SequenceDataset.from_bundle(bundle, PreprocessingSettings(min_user_interactions=1, min_item_interactions=1))


def answer(folder: Path) -> list:
    """What a saved ranker says of one history, to the last bit."""
    return [repr(item) for item in Recommender.from_pretrained(folder).recommend(["1", "3"], k=6)]


# -- moments and places -----------------------------------------------------------------------------------------------


class Place:
    """A folder `here` that is put back to how it was before every kill."""

    def __init__(self, folder: Path):
        self.here, self._kept = folder / "here", folder / "kept"

    def keep(self) -> None:
        """What is there now is what is put back."""
        shutil.copytree(self.here, self._kept)

    def again(self) -> Path:
        shutil.rmtree(self.here)
        return Path(shutil.copytree(self._kept, self.here))

    def left_behind(self) -> list[str]:
        """Temporary files and folders of whoever was killed."""
        return [str(path.relative_to(self.here)) for path in self.here.rglob(".*") if path.name != ".gitignore"]


def moments(count: int, seconds: float, seed: int) -> list[float]:
    chance = random.Random(seed)
    return [chance.uniform(0, seconds) for _ in range(count)]


def said(right: bool, moment: float, what: object, left: list[str]) -> str | None:
    return None if right else f"killed after {moment:.3f} s: {what}, left behind: {left}"
