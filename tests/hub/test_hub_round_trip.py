"""From training to the Hub and back: the trainer's pushes, new processes, and a process that lacks the package."""

import json
import logging
import os
import subprocess
import sys
import textwrap
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from hub_stand_in.client import ROOT, install, run_python, use_hub
from hub_stand_in.world import (
    BACKBONE,
    LORA,
    RANKER,
    USERS,
    named_dataset,
    processor,
    push_backbone,
    readable,
    recommender,
    uploaded,
)
from huggingface_hub import ModelCard
from peft import LoraConfig
from tiny import examples
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamarec_lkg import (
    KnowledgeGraph,
    LKGError,
    LlamaRecLKGForRanking,
    LlamaRecLKGProcessor,
    LlamaRecLKGTrainer,
    LlamaRecLKGTrainingArguments,
    LRURecConfig,
    LRURecForRetrieval,
    Recommender,
    load_dataset_bundle,
    prepare_dataset,
)
from llamarec_lkg.ranking.backbones import resolve_backbone
from llamarec_lkg.retrieval.modeling_lrurec import LRURecRetriever
from llamarec_lkg.utils.files import cache_dir
from llamarec_lkg.utils.hub import SMOLLM2_NAME


pytestmark = pytest.mark.hub
SMALL = {"config.json", "model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"}


@pytest.fixture
def dataset(make_dataset, film_items):
    return named_dataset(make_dataset, film_items)


@pytest.fixture
def trainer(hub, dataset, tmp_path):
    """`trainer(**arguments)`, with two epochs of two steps each."""
    push_backbone()

    def make(model=BACKBONE, folder=tmp_path / "run", **settings):
        defaults = {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "heads_warm_up_epochs": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "epoch",
            "hub_model_id": RANKER,
        }
        return LlamaRecLKGTrainer(
            model,
            LlamaRecLKGTrainingArguments(str(folder), **{**defaults, **settings}),
            examples(dataset, count=8),
            None,
            processor(dataset),
            peft_config=LORA,
            retriever=LRURecForRetrieval(LRURecConfig(num_items=6, hidden_size=8)),
        )

    return make


def titles(hub, **revision):
    return [commit.title for commit in hub.commits(RANKER, **revision)]


# -- the trainer ------------------------------------------------------------------------------------------------------


def test_the_trainer_pushes_all_that_a_recommender_needs(hub, trainer, dataset, tmp_path):
    run = trainer(save_strategy="no")
    run.train()
    run.push_to_hub(license="mit")
    files = uploaded(hub)
    assert SMALL | {"retriever/model.safetensors", "knowledge_graph/graph.json", "README.md"} <= set(files)
    assert not any("checkpoint" in name or "args" in name or name.endswith(".bin") for name in files)
    assert titles(hub) == ["End of training", "initial commit"]
    text = readable(files)
    assert not any(user.encode() in text for user in USERS) and str(tmp_path).encode() not in text
    card = ModelCard.load(RANKER)
    card.validate()
    assert (card.data.license, card.data.base_model) == ("mit", BACKBONE)
    assert f'from_pretrained("{RANKER}")' in card.text and "optimiser steps" in card.text
    assert Recommender.from_pretrained(RANKER).recommend(["1"], k=2)
    found = run.evaluate(examples(dataset, count=4))
    run.push_to_hub(dataset="MovieLens", dataset_tags="ml", tasks="text-ranking", finetuned_from="you/base", tags="x")
    card = ModelCard.load(RANKER)
    assert "| data | MovieLens |" in card.text and card.data.base_model == "you/base" and "x" in card.data.tags
    assert f"| ndcg@10 | {round(found['eval_ndcg@10'], 5)} |" in card.text, "what the trainer evaluated"


def test_a_push_in_the_background_is_of_what_was_there_when_it_began(hub, trainer, tmp_path, monkeypatch):
    run = trainer(save_strategy="no")
    run.train()
    run.model.fusion.evidence_weight.data.fill_(3.0)
    jobs = []
    monkeypatch.setattr("huggingface_hub.HfApi.run_as_future", lambda self, job, *a, **k: jobs.append(job) or Future())
    run.push_to_hub(blocking=False)
    run.model.fusion.evidence_weight.data.fill_(7.0)
    run.save_model()
    words = tmp_path / "run" / "tokenizer_config.json"
    before = words.read_bytes()
    words.write_text("{}")  # in place, as tokenizers are saved
    jobs[0]()
    assert uploaded(hub)["tokenizer_config.json"] == before
    assert Recommender.from_pretrained(RANKER).model.fusion.evidence_weight.item() == 3.0


def test_only_the_first_process_pushes(hub, trainer, tmp_path, monkeypatch):
    run = trainer(save_strategy="no")
    monkeypatch.setattr(run, "is_world_process_zero", lambda: False)
    run.init_hf_repo()
    assert run.push_to_hub() is None and run.push_to_hub(blocking=False) is None
    run._push_from_checkpoint(str(tmp_path / "run"))
    assert not hub.exists(RANKER)


def test_the_token_of_the_arguments_is_that_of_every_push(hub, trainer):
    """The one that is logged in here may not write there."""
    other = hub.add_account("other")
    run = trainer(push_to_hub=True, hub_token=other, hub_model_id="other/ranker", hub_always_push=True)
    run.train()
    run.push_to_hub()
    assert [commit.title for commit in hub.commits("other/ranker")] == [
        "End of training",
        "Training in progress, epoch 2",
        "Training in progress, epoch 1",
        "initial commit",
    ]
    assert {commit.author for commit in hub.commits("other/ranker")} == {"other"}


def test_token_and_private_are_arguments_of_a_push(hub, trainer):
    other = hub.add_account("other")
    run = trainer(save_strategy="no", hub_model_id="other/ranker")
    run.push_to_hub(token=other, private=True)
    assert hub.repository("other/ranker").private
    assert [commit.title for commit in hub.commits("other/ranker")] == ["End of training", "initial commit"]
    run = trainer(save_strategy="no", push_to_hub=True)
    assert not hub.repository(RANKER).private
    with pytest.raises(LKGError, match="exists already and is public"):
        run.push_to_hub(private=True)


def test_a_push_waits_for_the_one_before_and_saves_in_between_do_not_queue_up(hub, trainer, tmp_path, monkeypatch):
    run, jobs = trainer(push_to_hub=True, save_strategy="no"), []

    def later(self, job, *args, **kwargs):
        jobs.append((job, Future()))
        return jobs[-1][1]

    def work():
        for job, future in jobs:
            if not future.done():
                future.set_result(job())

    monkeypatch.setattr("huggingface_hub.HfApi.run_as_future", later)
    run.state.epoch = 1
    checkpoint = str(tmp_path / "run" / "checkpoint-1")
    run.save_model(checkpoint, _internal_call=True)
    for count in (1, 1, 1):
        run._push_from_checkpoint(checkpoint)
        assert len(jobs) == count, "one is under way"
    run.args.hub_always_push = True
    run._push_from_checkpoint(checkpoint)
    assert len(jobs) == 2 == len(run.push_in_progress.jobs) and titles(hub) == ["initial commit"]
    monkeypatch.setattr(run.push_in_progress, "wait_until_done", work)
    run.push_to_hub()
    assert titles(hub) == ["End of training", "Training in progress, epoch 1", "initial commit"]
    run.args.hub_always_push = False
    run._push_from_checkpoint(checkpoint)
    assert len(jobs) == 3, "nothing is under way any more"


def test_continuing_without_the_retriever_leaves_it_in_the_repository(hub, trainer, tmp_path):
    run = trainer(save_strategy="no")
    run.push_to_hub()
    run = trainer(save_strategy="no", folder=tmp_path / "second")
    run.retriever = None
    run.model.fusion.evidence_weight.data.fill_(7.0)
    run.push_to_hub()
    again = Recommender.from_pretrained(RANKER)
    assert again.model.fusion.evidence_weight.item() == 7.0 and again.recommend(["1"], k=2)
    assert "recommender.recommend(" in ModelCard.load(RANKER).text, "the card knows of it"
    run.push_to_hub(remove_retriever=True)
    assert "retriever/config.json" not in uploaded(hub)
    assert "recommend(history=items[:2], candidates=" in ModelCard.load(RANKER).text


def test_a_recommender_without_retriever_leaves_none_in_its_folder(hub, dataset, tmp_path):
    push_backbone()
    whole, folder = recommender(dataset), tmp_path / "run"
    whole.save_pretrained(folder)
    (folder / "retriever" / "notes.txt").write_text("mine")
    Recommender(whole.model, whole.processor).save_pretrained(folder)
    assert Recommender.from_pretrained(folder).retriever is None
    assert [path.name for path in (folder / "retriever").iterdir()] == ["notes.txt"]


def test_hub_strategy_end_waits_and_revision_and_private_are_arguments(hub, trainer):
    run = trainer(push_to_hub=True, hub_strategy="end", hub_revision="v1", hub_private_repo=True)
    assert hub.repository(RANKER).private, "made before training, so that nothing is lost after it"
    run.train()
    assert titles(hub, revision="v1") == ["initial commit"]
    run.save_model()  # pushes, as upstream does with push_to_hub=True
    assert titles(hub, revision="v1") == ["Model save", "initial commit"] and titles(hub) == ["initial commit"]
    assert run.push_to_hub(blocking=False, commit_message="later").result().oid


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_whole_checkpoints_are_not_published(hub, trainer, strategy):
    with pytest.raises(LKGError, match=f"hub_strategy='{strategy}' would publish whole checkpoints"):
        trainer(push_to_hub=True, hub_strategy=strategy)
    assert not hub.exists(RANKER)


def test_what_cannot_be_pushed_is_told_before_training(hub, trainer, tmp_path):
    AutoModelForCausalLM.from_pretrained(BACKBONE).save_pretrained(tmp_path / "here")
    with pytest.raises(LKGError, match="no name that others can load.*`hub_backbone`"):
        trainer(str(tmp_path / "here"), push_to_hub=True)
    with pytest.raises(LKGError, match="could not be opened"):
        trainer(push_to_hub=True, hub_token="hf_wrong")
    run = trainer(str(tmp_path / "here"), push_to_hub=True, hub_backbone=BACKBONE, save_strategy="no")
    run.train()
    run.push_to_hub()
    assert str(tmp_path).encode() not in readable(uploaded(hub))


def test_a_push_that_fails_in_between_does_not_end_training(hub, trainer, caplog, tmp_path):
    run = trainer(push_to_hub=True, hub_always_push=True)
    failure = hub.fail("POST */commit/*", "401", times=2)
    with caplog.at_level(logging.WARNING, "llamarec_lkg.training.hub_trainer"):
        run.train()
    assert failure.happened == 2 and run.state.global_step == 4 and "Training goes on." in caplog.text
    assert titles(hub) == ["initial commit"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "llamarec_lkg.training.hub_trainer"):
        run._push_from_checkpoint(str(tmp_path / "nothing was saved here"))
    assert "Training goes on." in caplog.text and titles(hub) == ["initial commit"]
    hub.fail("POST */commit/*", "401")
    with pytest.raises(LKGError, match="could not be pushed"):
        run.push_to_hub()
    assert Recommender.from_pretrained(tmp_path / "run").recommend(["1"], k=1), "nothing is lost"
    run.push_to_hub()
    assert titles(hub) == ["End of training", "initial commit"]


# -- new processes ----------------------------------------------------------------------------------------------------

WORLD = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests")!r}]
import json, torch, pandas as pd
from pathlib import Path
from conftest import _bundle
from hub_stand_in.world import *
from llamarec_lkg import *
from llamarec_lkg.data.sequences import PreprocessingSettings
from llamarec_lkg.utils import precision
from llamarec_lkg.retrieval.modeling_lrurec import LRURecRetriever
from transformers import AutoModel, AutoProcessor

precision.fast_dtype = lambda device=None: torch.float32  # what is compared is exact on every machine
ITEMS = pd.DataFrame({{"item_id": range(1, 7), "title": list("ABCDEF"), "GENRE_IS": list("xxyyzz")}})

def make(rows, items):
    return SequenceDataset.from_bundle(_bundle(rows, items), PreprocessingSettings(1, 1))

dataset = named_dataset(make, ITEMS)

def train(model, proc, retriever, folder, repo_id=RANKER):
    args = LlamaRecLKGTrainingArguments(folder, per_device_train_batch_size=4, num_train_epochs=1, use_cpu=True,
        heads_warm_up_epochs=2, disable_tqdm=True, save_strategy="no", hub_model_id=repo_id)
    trainer = LlamaRecLKGTrainer(model, args, examples(dataset, count=8), None, proc, retriever=retriever,
                                 peft_config=LORA if isinstance(model, str) else None)
    trainer.train()
    trainer.model.eval()
    return trainer

def whole(trainer):
    return Recommender(trainer.model, trainer.processing_class, LRURecRetriever(trainer.retriever))

def asked(whole):
    # all that users are recommended, and the logits of lists of theirs; each by a different way of loading
    lists = [whole.recommend(list("143"), user=user, k=6) for user in (*USERS, None)]
    return dict(recommended=[{{item.item_id: item.score for item in one}} for one in lists],
                logits=logits(whole.model, whole.processor, dataset, known=True).tolist())

def write(name, values):
    Path(name).write_text(json.dumps(values if isinstance(values, dict) else values.tolist()))
"""


def test_train_push_load_the_same_scores_train_on_and_push_again(hub_server, tmp_path):
    """Each step in a process of its own, over HTTP; scores are those of the pushed parts."""
    with use_hub(hub_server, tmp_path / "maker"):
        push_backbone()
    first = """
    torch.manual_seed(0)
    retriever = LRURecForRetrieval(LRURecConfig(num_items=6, hidden_size=8)).eval()
    trainer = train(BACKBONE, processor(dataset), retriever, "run")
    write("home.json", asked(whole(trainer)))
    trainer.push_to_hub()
    """
    second = """
    import llamarec_lkg
    from transformers import pipeline
    whole = Recommender.from_pretrained(RANKER)
    write("recommender.json", asked(whole))
    write("parts.json", asked(Recommender(*(kind.from_pretrained(RANKER) for kind in (AutoModel, AutoProcessor)),
                                          whole.retriever)))
    write("pipeline.json", asked(pipeline("recommendation", model=RANKER, device="cpu").recommender))
    """
    third = """
    whole = Recommender.from_pretrained(RANKER, is_trainable=True)
    trainer = train(whole.model, whole.processor, None, "run2")
    write("again.json", asked(Recommender(trainer.model, trainer.processing_class, whole.retriever)))
    trainer.push_to_hub(commit_message="trained on")
    """
    fourth = """
    write("last.json", asked(Recommender.from_pretrained(RANKER)))
    """
    home = tmp_path / "user"
    for step in (first, second, third, fourth):
        run_python(hub_server, WORLD + textwrap.dedent(step), home)
    found = {path.stem: json.loads(path.read_text()) for path in home.glob("*.json")}

    def same(one, other):
        first, second = found[one], found[other]
        pairs = zip(first["recommended"], second["recommended"], strict=True)
        close = [scores == pytest.approx(others, abs=1e-6) for scores, others in pairs]
        logits = [torch.tensor(values["logits"]) for values in (first, second)]
        return all(close) and torch.allclose(*logits, atol=1e-6)

    assert same("home", "recommender") and same("home", "parts") and same("home", "pipeline")
    assert not same("home", "again") and same("again", "last"), "the retriever stayed, the ranker was trained on"
    titles = [commit.title for commit in hub_server.commits(RANKER)]
    assert titles == ["trained on", "End of training", "initial commit"]


@pytest.fixture
def published(hub_server, dataset, tmp_path):
    with use_hub(hub_server, tmp_path / "maker"):
        push_backbone()
        recommender(dataset).push_to_hub(RANKER)
    return hub_server


REMOTE = f"""
from transformers import AutoConfig, AutoModel, AutoProcessor
loaded = []
for trust in (True, False):
    for kind in (AutoConfig, AutoModel, AutoProcessor):
        try:
            loaded.append(kind.from_pretrained({RANKER!r}, trust_remote_code=trust))
            print(trust, type(loaded[-1]).__name__)
        except (ImportError, ValueError) as error:
            print(trust, type(error).__name__, str(error).replace(chr(10), " "))
"""
# what remote code loaded is saved without a copy of the package's code
SAVE = """
for part in loaded[1:3]:
    part.save_pretrained("copy")
loaded[1].merge_adapter().save_pretrained("whole")
"""
PACKAGE = """
import llamarec_lkg
print(llamarec_lkg.__file__)
"""


def test_a_virtual_environment_without_the_package_and_then_with_it(published, wheel, tmp_path):
    """What the package needs is seen through the parent's; the package itself is installed from its wheel."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "parent.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    home = tmp_path / "user"  # the same caches both times
    options = {"python": str(tmp_path / "venv" / "bin" / "python"), "variables": {"PYTHONPATH": None}}

    lines = run_python(published, REMOTE, home, **options).stdout.splitlines()
    assert len(lines) == 6
    for line in lines[:3]:
        assert line.startswith("True ImportError") and "Run `pip install llamarec-lkg` and load it again." in line
    for line in lines[3:]:  # without trust nothing else is returned: not the tokenizer, not a plain backbone
        assert line.startswith("False ValueError") and "trust_remote_code=True" in line

    install(wheel, Path(options["python"]))
    *lines, package = run_python(published, REMOTE + SAVE + PACKAGE, home, **options).stdout.splitlines()
    assert Path(package).parents[1] == site
    names = ["LlamaRecLKGConfig", "LlamaRecLKGForRanking", "LlamaRecLKGProcessor"]
    assert lines == [f"{trust} {name}" for trust in (True, False) for name in names]
    for folder in ("copy", "whole"):
        assert [path.name for path in (home / folder).glob("*.py")] == ["modeling_llamarec_lkg_hub.py"]
        content = json.loads((home / folder / "config.json").read_text())
        assert content["auto_map"]["AutoModel"] == "modeling_llamarec_lkg_hub.LlamaRecLKGForRanking"
    command = [str(Path(options["python"]).with_name("llamarec-lkg")), "push", "--help"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--share-users" in done.stdout, done.stderr


# -- size -------------------------------------------------------------------------------------------------------------


def test_an_adapter_repository_of_a_135m_base_with_the_ml_100k_graph_is_small(hub, shared_cache):
    if not (cache_dir() / "backbones" / SMOLLM2_NAME).exists() or not (cache_dir() / "ml-100k").exists():
        pytest.skip("the quickstart's data and backbone are not in the cache")
    bundle = load_dataset_bundle("ml-100k")
    dataset = prepare_dataset(bundle)
    graph = KnowledgeGraph.from_dataset(dataset, bundle.triples)
    items = dataset.items
    tokens = AutoTokenizer.from_pretrained(resolve_backbone(SMOLLM2_NAME))
    proc = LlamaRecLKGProcessor(tokens, graph, items.ids, items.titles, dataset.user_ids)
    model = LlamaRecLKGForRanking.from_backbone(SMOLLM2_NAME, proc.model_config(), dtype=torch.bfloat16)
    assert 130e6 < model.num_parameters() < 140e6
    model.add_adapter(LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    retriever = LRURecForRetrieval(LRURecConfig(num_items=dataset.num_items))
    whole = Recommender(model, proc, LRURecRetriever(retriever.eval()))
    whole.push_to_hub(RANKER)
    sizes = {path: len(content) for path, content in uploaded(hub).items()}
    assert sum(sizes.values()) < 25e6, sizes
    assert json.loads(uploaded(hub)["config.json"])["backbone_name_or_path"] == SMOLLM2_NAME
    card = ModelCard.load(RANKER)
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and SMOLLM2_NAME in card.text
