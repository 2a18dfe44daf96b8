"""Nothing about people is in what is pushed: every kind of run, by every way up, searched byte by byte."""

import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hub_stand_in.world import BACKBONE, LORA, RANKER, STAMP, processor, push_backbone, randomize, ranker, uploaded
from huggingface_hub import HfApi
from safetensors.torch import load, load_file, save, save_file
from tiny import examples
from transformers import pipeline

from llamarec_lkg import (
    KnowledgeGraph,
    LKGError,
    LlamaRecLKGConfig,
    LlamaRecLKGForRanking,
    LlamaRecLKGTrainer,
    LlamaRecLKGTrainingArguments,
    LRURecConfig,
    LRURecForRetrieval,
    Recommender,
)
from llamarec_lkg.cli import main
from llamarec_lkg.hub.push import push_folder
from llamarec_lkg.retrieval.modeling_lrurec import LRURecRetriever
from llamarec_lkg.training.evaluated import Evaluated


pytestmark = pytest.mark.hub
PEOPLE = [f"{name}@example.org" for name in ("ada", "bob", "cyd", "dan", "eve", "fay", "gus")]
NUM_ITEMS, LENGTH = 20, 8


@pytest.fixture(scope="module")
def dataset(make_dataset):
    """Seven people, each with eight of twenty items in an order of their own."""
    generator = np.random.default_rng(5)
    rows = [
        (person, int(item) + 1, STAMP + 1000 * number + 7 * step, float(generator.integers(1, 6)))
        for number, person in enumerate(PEOPLE)
        for step, item in enumerate(generator.permutation(NUM_ITEMS)[:LENGTH])
    ]
    ids = range(1, NUM_ITEMS + 1)
    items = pd.DataFrame({"item_id": ids, "title": [f"Film {n}" for n in ids], "GENRE": [f"G{n % 3}" for n in ids]})
    return make_dataset(rows, items)


def leaks(files: dict[str, bytes], dataset) -> list[str]:
    """Where ids of users, or the interactions of a single person, are in the files of a repository."""
    found = []
    for path, content in files.items():
        arrays, text = {}, content
        if path.endswith(".safetensors"):
            arrays = {name: value.double().numpy() for name, value in load(content).items()}
        if path.endswith(".parquet"):
            frame = pd.read_parquet(io.BytesIO(content))
            text += frame.to_csv().encode()
            numbers = frame.apply(pd.to_numeric, errors="coerce")
            arrays = {name: numbers[name].dropna().to_numpy() for name in frame}
        found += [f"{path} names {person}" for person in PEOPLE if person.encode() in text]
        for name, values in arrays.items():
            found += [f"{path} holds weights of users"] if "user_embedding" in name else []
            found += [f"{path}: {name} holds {what}" for what, part in traces(dataset) if holds(values, part)]
    return found


def traces(dataset):
    """What single people's interactions look like as numbers; differences, so that an offset hides nothing."""
    for user in range(1, dataset.num_users + 1):
        own = slice(dataset.offsets[user - 1], dataset.offsets[user])
        items = dataset.item_sequence[own].astype(float)
        touched = np.isin(np.arange(1, NUM_ITEMS + 1), items).astype(float)
        yield f"the items of user {user}", np.diff(items)
        yield f"the sorted items of user {user}", np.diff(np.sort(items))
        yield f"which items user {user} knows", np.diff(touched)
        yield f"the sorted training items of user {user}", np.diff(np.sort(items[:-2]))
        yield f"the times of user {user}", np.diff(np.asarray(dataset.timestamps[own], dtype=float))


def holds(values: np.ndarray, part: np.ndarray) -> bool:
    """Whether an array holds, somewhere, neighbours with these differences."""
    steps = np.diff(np.asarray(values, dtype=float).reshape(-1))
    if len(steps) < len(part):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(steps, len(part))
    return bool((windows == part).all(axis=1).any())


# -- the kinds of runs, and the ways up -------------------------------------------------------------------------------


def with_table(proc, **settings) -> LlamaRecLKGForRanking:
    """Weights for every user, as if trained."""
    table = {"use_user_embedding": True, "num_users": len(PEOPLE), "users": proc.users}
    model = ranker(proc, **{**table, **settings})
    assert model.preference.user_embedding is not None
    return model


def paper(proc):
    config = LlamaRecLKGConfig.paper(list(proc.relations), len(PEOPLE))
    given = ("use_user_embedding", "user_embedding_size", "use_history_preferences", "use_evidence_fusion")
    return with_table(proc, **{name: getattr(config, name) for name in given})


def without_language_model(proc):
    model = LlamaRecLKGForRanking(proc.model_config(use_language_model=False))
    randomize(model)
    return model.eval()


KINDS = {
    "adapter": ranker,
    "merged": lambda proc: ranker(proc).merge_adapter(),
    "id table": with_table,
    "id table, merged": lambda proc: with_table(proc).merge_adapter(),
    "paper": paper,
    "no language model": without_language_model,
}


def by_recommender(whole, folder, **options):
    whole.push_to_hub(RANKER, **options)


def in_shards(whole, folder, **options):
    whole.push_to_hub(RANKER, max_shard_size="40KB", **options)


def by_model_and_processor(whole, folder, **options):
    whole.model.push_to_hub(RANKER, **options)
    whole.processor.push_to_hub(RANKER, **options)


def by_pipeline(whole, folder, **options):
    parts = {"processor": whole.processor, "retriever": whole.retriever}
    pipeline("recommendation", model=whole.model, device="cpu", **parts).push_to_hub(RANKER, **options)


def by_command(whole, folder, **options):
    whole.save_pretrained(folder)
    flags = ["--share-users"] if options.get("share_users") else []
    assert main(["push", str(folder), RANKER, *flags]) == 0


def by_trainer(whole, folder, **options):
    args = LlamaRecLKGTrainingArguments(str(folder), use_cpu=True, hub_model_id=RANKER)
    retriever = whole.retriever.model
    LlamaRecLKGTrainer(whole.model, args, None, None, whole.processor, retriever=retriever).push_to_hub(**options)


WAYS = [by_recommender, in_shards, by_model_and_processor, by_pipeline, by_command, by_trainer]


@pytest.fixture
def proc(hub, dataset):
    push_backbone()
    made = processor(dataset).fit(examples(dataset))
    assert not re.search("CO_RATED 0[^0-9]", made.knowledge_graph.describe()), "the graph says what ratings say"
    return made


def whole(model, proc) -> Recommender:
    torch.manual_seed(0)
    retriever = LRURecForRetrieval(LRURecConfig(num_items=NUM_ITEMS, hidden_size=8)).eval()
    return Recommender(model, proc, LRURecRetriever(retriever))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_about_people_is_in_any_byte(hub, proc, dataset, tmp_path, kind, way):
    run = whole(KINDS[kind](proc), proc)
    way(run, tmp_path / "run")
    files = uploaded(hub)
    assert {"config.json", "processor_config.json"} <= set(files) and not leaks(files, dataset)
    assert b"There is no data about people" in files["README.md"]
    again = Recommender.from_pretrained(RANKER)
    assert again.processor.user_ids == () and again.model.config.num_users == 0
    way(run, tmp_path / "run", share_users=True)
    private = {path for path in uploaded(hub) if path.startswith("private/")}
    assert private == {"private/users.parquet"} | ({"private/user_embedding.safetensors"} if "table" in kind or
                                                   kind == "paper" else set())  # fmt: skip
    text = uploaded(hub)["README.md"].decode()
    assert "holds data about people in `private/`: user ids" in text
    assert ("weights of single users. Treat" in text) == (len(private) == 2)
    assert Recommender.from_pretrained(RANKER).processor.user_ids == tuple(PEOPLE)
    found = leaks(uploaded(hub), dataset)
    assert found and all(place.startswith("private/") for place in found), "the search finds what is there"
    way(run, tmp_path / "run")
    assert not leaks(uploaded(hub), dataset) and b"There is no data about people" in uploaded(hub)["README.md"]


def test_nothing_about_people_goes_up_while_training(hub, proc, dataset, tmp_path):
    settings = {"push_to_hub": True, "hub_strategy": "every_save", "hub_always_push": True, "save_strategy": "epoch"}
    for repo_id, shared in ((RANKER, False), ("tester/shared", True)):
        args = LlamaRecLKGTrainingArguments(
            str(tmp_path / repo_id), per_device_train_batch_size=4, num_train_epochs=2, heads_warm_up_epochs=1,
            use_cpu=True, disable_tqdm=True, hub_model_id=repo_id, hub_share_users=shared, **settings
        )  # fmt: skip
        trainer = LlamaRecLKGTrainer(
            BACKBONE, args, examples(dataset, count=8), None, proc, peft_config=LORA,
            retriever=LRURecForRetrieval(LRURecConfig(num_items=NUM_ITEMS, hidden_size=8)),
        )  # fmt: skip
        trainer.train()
        trainer.push_to_hub()
        commits = hub.commits(repo_id)[:-1]
        assert len(commits) == 3, "two of them while it trained"
        for commit in commits:
            files = {path: file.content for path, file in commit.files.items()}
            assert ("private/users.parquet" in files) is shared and bool(leaks(files, dataset)) is shared


# -- that the search finds something, and that it is the layout and SavedFolder that keep it out ----------------------


def test_the_search_finds_people_wherever_they_are_put(proc, dataset, tmp_path):
    assert not leaks({"x.parquet": pd.DataFrame({"a": ["x"]}).to_parquet()}, dataset)
    users = pd.DataFrame({"user_id": PEOPLE}).to_parquet()
    assert len(leaks({"x.parquet": users}, dataset)) == len(PEOPLE)
    weights = torch.zeros(len(PEOPLE) + 1, 2)
    assert leaks({"x.safetensors": save({"preference.user_embedding.weight": weights})}, dataset)
    one = slice(dataset.offsets[3], dataset.offsets[4])
    for values in (dataset.item_sequence[one] + 100, np.sort(dataset.item_sequence[one]), dataset.timestamps[one]):
        around = np.concatenate([[1.0, 5.0], values, [2.0]]).astype(np.float64)
        assert leaks({"x.safetensors": save({"w": torch.tensor(around)})}, dataset)
        assert leaks({"x.parquet": pd.DataFrame({"a": around}).to_parquet()}, dataset)


def test_a_table_of_users_at_the_root_is_not_taken_along(hub, proc, dataset, tmp_path):
    whole(ranker(proc), proc).save_pretrained(tmp_path)
    shutil.copy(tmp_path / "private" / "users.parquet", tmp_path / "users.parquet")
    for options in ({}, {"share_users": True}):
        push_folder(tmp_path, RANKER, **options)
        assert "users.parquet" not in uploaded(hub) and bool(leaks(uploaded(hub), dataset)) is bool(options)


@pytest.mark.parametrize("place", ["weights", "config", "shard", "stray"])
def test_weights_of_users_at_the_root_are_refused(hub, proc, tmp_path, place):
    model = ranker(proc).merge_adapter() if place == "shard" else ranker(proc)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    proc.save_pretrained(tmp_path)
    if place == "config":
        content = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**content, "num_users": 7}))
    else:
        path = sorted(tmp_path.glob("model*.safetensors"))[0]
        if place == "stray":  # a shard that the model is not made of
            shutil.copy(path, path := tmp_path / "model-00001-of-00002.safetensors")
        weights = {**load_file(path), "preference.user_embedding.weight": torch.zeros(8, 2)}
        save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(LKGError, match="weights of single users outside private/.*save it again"):
        push_folder(tmp_path, RANKER, share_users=True)
    assert not hub.exists(RANKER)


def test_a_graph_with_people_is_refused(hub, proc, dataset, tmp_path):
    whole(ranker(proc), proc).save_pretrained(tmp_path)
    graph = KnowledgeGraph.from_dataset(dataset, users=True)
    graph.save_pretrained(tmp_path / "knowledge_graph")
    files = {path.name: path.read_bytes() for path in (tmp_path / "knowledge_graph").iterdir()}
    assert leaks(files, dataset)
    with pytest.raises(LKGError, match="graph in .* holds people"):
        push_folder(tmp_path, RANKER, share_users=True)
    assert not hub.exists(RANKER)


def test_an_upload_of_the_whole_folder_leaves_private_out(hub, proc, dataset, tmp_path):
    """As `transformers.Trainer` and `hf upload` do: no class of ours is asked."""
    whole(ranker(proc), proc).save_pretrained(tmp_path)
    assert (tmp_path / "private" / "users.parquet").exists()
    HfApi().create_repo(RANKER)
    HfApi().upload_folder(repo_id=RANKER, folder_path=tmp_path)
    assert "processor_config.json" in uploaded(hub) and not leaks(uploaded(hub), dataset)


def test_what_an_evaluation_found_of_each_user_never_goes_up(hub, proc, dataset, tmp_path):
    """Not with `share_users` either: nobody needs it to use the ranker."""
    whole(ranker(proc), proc).save_pretrained(tmp_path)
    (tmp_path / ".gitignore").unlink()
    Evaluated({"ranker": np.arange(1, 8)}, np.ones(7, dtype=bool)).save(tmp_path, "key")
    for options in ({}, {"share_users": True}):
        push_folder(tmp_path, RANKER, **options)
        assert not any("evaluated" in path for path in uploaded(hub))
    HfApi().create_repo("tester/whole")
    HfApi().upload_folder(repo_id="tester/whole", folder_path=tmp_path)
    assert "config.json" in uploaded(hub, "tester/whole")
    assert not any(path.startswith("private/") for path in uploaded(hub, "tester/whole"))


def test_a_card_that_somebody_wrote_is_left_and_its_owner_is_told(hub, proc, caplog):
    HfApi().create_repo(RANKER)
    HfApi().upload_file(path_or_fileobj=b"# Mine\n", path_in_repo="README.md", repo_id=RANKER)
    run = whole(ranker(proc), proc)
    run.push_to_hub(RANKER)
    assert "there are data about people" not in caplog.text
    run.push_to_hub(RANKER, share_users=True)
    assert "that it says that there are data about people" in caplog.text
    assert uploaded(hub)["README.md"] == b"# Mine\n"
