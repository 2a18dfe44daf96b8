"""The benchmarks of training run in miniature on a CPU, so that a first run on a GPU meets no slip of the pen."""

from types import SimpleNamespace

import pytest
import tiny

from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from tests.benchmarks import cuda, ranker, training


@pytest.fixture(autouse=True)
def small_world(film_dataset, tmp_path, monkeypatch):
    tiny.backbone(vocab_size=1000).save_pretrained(tmp_path / "backbone")
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = tokenizer.pad_token
    lists = tiny.examples(film_dataset, count=12)
    world = SimpleNamespace(
        dataset=film_dataset, graph=KnowledgeGraph.from_dataset(film_dataset), backbone=tmp_path / "backbone",
        tokenizer=tokenizer, lists=lists,
    )  # fmt: skip
    monkeypatch.setattr(ranker, "world", lambda: world)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cuda, "HOW", {**cuda.HOW, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False})


def test_training_beside_trl():
    figures = list(training.against_trl(training.SMALL, 12, 1, 3, "CPU"))
    assert len(figures) == 2 and all(figure.ours > 0 and figure.theirs > 0 for figure in figures)
    for kind in ("trl", "letters"):
        training.train_alone(kind)
    assert [figure.ours > 0 for figure in training.in_rows(training.SMALL, "CPU")] == [True, True]


def test_both_read_the_same_prompt_of_letters():
    lists = training.some_lists(4)
    theirs = training.trl_trainer(lists, **training.SMALL).train_dataset
    ours = training.our_trainer("letters", lists, **training.SMALL)
    ours.get_train_dataloader()
    for one, example in zip(theirs, ours.train_dataset, strict=True):
        batch = ours.processing_class([example])
        prompt = batch["prefix_input_ids"][0].tolist() + batch["suffix_input_ids"][0].tolist()
        # behind it a letter, and the end
        assert one["input_ids"][: len(prompt)] == prompt and len(one["input_ids"]) == len(prompt) + 2


@pytest.mark.parametrize("name", ["cuda_shared_rows", "cuda_loading", "cuda_scoring", "cuda_four_bits"])
def test_what_runs_on_a_gpu(name, monkeypatch):
    monkeypatch.setattr(cuda, "FOUR_BITS", {})  # on a CPU they are packed for inference alone
    assert not list(getattr(cuda, name)()), "without one it has nothing to tell"
    figures = list(getattr(cuda, name).__wrapped__())
    assert figures and all(figure.as_row()["ours"] > 0 for figure in figures)
