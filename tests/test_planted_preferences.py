"""The proof in small: preferences find what was planted when a gradient reaches them, and nothing when none does."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from tiny import example_module

from llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.graph.planted_world import PlantedWorld, PlantedWorldSettings
from llamarec_lkg.training.warm_up import fit_heads, heads_batch


@pytest.fixture(scope="module")
def example():
    return example_module("planted_preferences")


@pytest.fixture(scope="module")
def world() -> PlantedWorld:
    return PlantedWorld.generate(
        PlantedWorldSettings(num_users=300, num_items=500, history_length=30, train_lists=4, num_candidates=10)
    )


def test_evidence_alone_finds_planted_preferences_of_known_and_of_new_users(example, world):
    model, processor = example.build("evidence", world)
    batch = heads_batch(processor.fit(world.lists("train")), world.lists("train"), progress=False)
    before = example.measure(model, processor, world, progress=False)
    guesses = [before["known_top1"], before["new_top1"]]
    assert guesses == pytest.approx([0.2, 0.2]), "uniform preferences are a guess"
    fit_heads(model, batch, epochs=30, learning_rate=1e-2, batch_size=64, progress=False)
    after = example.measure(model, processor, world, progress=False)
    assert min(after["known_top1"], after["new_top1"]) >= 0.95
    assert after["ndcg_to_oracle"] >= 0.95 > before["ndcg_to_oracle"]
    assert after["new_mixture_tv"] < 0.3 < before["new_mixture_tv"]


def test_an_id_alone_says_nothing_about_new_users(example, world):
    _, processor = example.build("evidence", world)
    lists = world.lists("train")
    batch = heads_batch(processor.fit(lists), lists, progress=False)
    config = processor.model_config(
        use_language_model=False, use_path_gate=False, use_retrieval_scores=False, use_history_preferences=False,
        use_user_embedding=True, user_shrinkage=0.01, user_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaRecLKGForRanking(config)
    fit_heads(model, batch, epochs=60, learning_rate=3e-2, batch_size=64, weight_decay=0.0, progress=False)
    found = example.measure(model, processor, world, progress=False)
    assert found["known_top1"] > 0.6
    assert found["new_top1"] < 0.35


@pytest.mark.slow
def test_the_loss_of_the_language_model_alone_finds_them_through_the_gate(example, world, tmp_path):
    found = example.run("gate", world, 60, tmp_path, progress=False)
    assert min(found["known_top1"], found["new_top1"]) >= 0.7


def test_top1_counts_equal_preferences_as_a_guess(example):
    truth = np.eye(4)[[0, 1, 2]]
    preferences = np.array([[0.4, 0.3, 0.2, 0.1], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    assert example.top1(preferences, truth) == pytest.approx((1 + 0.25 + 0) / 3)


def test_the_example_writes_its_report(example, tmp_path, monkeypatch, capsys):
    arguments = ["--seeds", "3", "--users", "60", "--steps", "1", "--output", str(tmp_path), "--relations", "3"]
    monkeypatch.setattr(sys, "argv", ["planted_preferences.py", *arguments])
    smaller = partial(PlantedWorldSettings, num_items=300, train_lists=1, num_candidates=6)
    smaller.history_length = 8
    for name in ("num_users", "num_relations", "noise", "mixing", "strength"):
        setattr(smaller, name, getattr(PlantedWorldSettings, name))
    monkeypatch.setattr(example, "PlantedWorldSettings", smaller)
    example.main()
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["variants"]) == {"both", "evidence", "gate", "cut", "no-graph"}
    assert all({"known_top1", "new_top1", "ndcg_to_oracle"} <= set(row) for row in report["variants"].values())
    assert {"known_top1", "new_top1"} == set(report["counting"])
    assert "| no-graph |" in capsys.readouterr().out
