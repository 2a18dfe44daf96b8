"""People who come back to what they had: what is in a history is ranked after it where the data allow repeats, and
never where they do not."""

import json
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from tiny import backbone, examples, processor, tokenizer
from tiny_run import settings

from llamarec_lkg import LKGError, LlamaRecLKGForRanking, Recommender
from llamarec_lkg.cli import main
from llamarec_lkg.data.hidden_items import hide_items
from llamarec_lkg.data.schema import ITEM_ID, TITLE, ItemTable, RankingExample
from llamarec_lkg.data.sequences import TRAIN, UNUSED, PreprocessingSettings, SequenceDataset
from llamarec_lkg.evaluation.slices import describe_targets, target_slices
from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.graph.evidence import EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.retrieval.base import PopularityRetriever, log_popularity, never_ranked, retriever_ranks
from llamarec_lkg.retrieval.candidates import evaluation_examples, training_examples, with_easy_lists
from llamarec_lkg.retrieval.fused import Fold, _features, fit_candidate_weights
from llamarec_lkg.retrieval.sequential import NeuralRetriever
from llamarec_lkg.retrieval.training import RetrieverTrainingArguments, train_retriever
from llamarec_lkg.serving.pipeline import RecommendationPipeline
from llamarec_lkg.utils.files import read_json, write_json


SONGS, USERS, PLAYS = 30, 40, 14
SHORT = RetrieverTrainingArguments(hidden_size=16, max_steps=80, eval_steps=40, learning_rate=0.01, dropout=0.0)


def plays():
    """40 users, each of whom hears the same four songs of thirty again and again, in their order."""
    return [(user, (user + step % 4) % SONGS + 1, step) for user in range(1, USERS + 1) for step in range(PLAYS)]


@pytest.fixture(scope="module")
def heard(make_dataset):
    return {repeats: make_dataset(plays(), repeats=repeats) for repeats in ("allowed", "excluded")}


@pytest.fixture(scope="module")
def retriever(heard):
    return NeuralRetriever(train_retriever(heard["allowed"], SHORT, progress=False)[0])


# -- the setting ------------------------------------------------------------------------------------------------------


def test_the_setting_is_one_of_two_and_excluded_unless_given(heard, tmp_path):
    assert PreprocessingSettings().repeats == "excluded"
    with pytest.raises(LKGError, match="repeats='yes' was given; it is 'excluded' .* or 'allowed'"):
        PreprocessingSettings(repeats="yes")
    heard["allowed"].save(tmp_path)
    assert SequenceDataset.load(tmp_path).settings.repeats == "allowed"
    description = read_json(tmp_path / "dataset.json")
    del description["settings"]["repeats"]  # as prepared before there was a choice
    write_json(tmp_path / "dataset.json", description)
    assert SequenceDataset.load(tmp_path).settings.repeats == "excluded"


def test_a_warning_names_the_remedy_and_goes_with_it(make_dataset, caplog):
    with caplog.at_level(logging.WARNING):
        make_dataset(plays())
    assert "80 of 80 targets (100.0%)" in caplog.text and "set `repeats: allowed`" in caplog.text
    caplog.clear()
    make_dataset(plays(), repeats="allowed")
    assert "targets" not in caplog.text


def test_a_report_says_it(heard, make_dataset):
    facts = {repeats: describe_targets(data) for repeats, data in heard.items()}
    assert {one["repeated_targets"] for one in facts.values()} == {USERS}
    assert {repeats: one["repeats"].split(":")[0] for repeats, one in facts.items()} == {one: one for one in facts}
    rows = [*plays(), *((100 + user, 1 + (user + step) % SONGS, step) for user in range(10) for step in range(6))]
    labels = target_slices(make_dataset(rows, repeats="allowed"))["repeats"].tolist()
    assert labels == ["had before"] * USERS + ["first time"] * 10
    assert "repeats" not in target_slices(make_dataset(rows)), "there they are misses"


# -- evaluation and training ------------------------------------------------------------------------------------------


def test_what_is_never_ranked():
    histories = [np.array([1, 4, 1]), np.array([], dtype=int)]
    assert [items.tolist() for items in never_ranked(histories, "excluded")] == [[1, 4, 1], []]
    assert [items.tolist() for items in never_ranked(histories, "allowed")] == [[], []]


def test_targets_that_were_had_before_are_found_where_repeats_are_allowed(heard, retriever):
    popularity = PopularityRetriever.from_dataset(heard["allowed"])
    assert (retriever_ranks(heard["allowed"], popularity, "test") <= SONGS).all()
    assert (retriever_ranks(heard["allowed"], retriever, "test") <= 4).all()
    for one in (popularity, retriever):
        others = SONGS - 4  # of which each comes before what is not ranked
        assert (retriever_ranks(heard["excluded"], one, "test") > others).all()


def test_the_retriever_is_chosen_by_repeated_targets_too(heard):
    logs = {repeats: train_retriever(data, SHORT, progress=False)[1] for repeats, data in heard.items()}
    assert logs["allowed"][-1]["recall@10"] > 0.9 and logs["excluded"][-1]["recall@10"] == 0
    assert logs["allowed"][0]["loss"] == logs["excluded"][0]["loss"], "the loss has never left a history out"


def test_lists_hold_the_history_where_repeats_are_allowed(heard, retriever):
    for repeats, data in heard.items():
        lists = evaluation_examples(data, retriever, "test", num_candidates=6, progress=False)
        options = {"num_candidates": 6, "progress": False}
        learned = training_examples(data, retriever, **options)
        drawn = training_examples(data, retriever, negatives="uniform", **options)
        repeated = [one.candidates[one.label] in one.history for one in learned]
        if repeats == "allowed":
            assert all(one.label >= 0 for one in lists) and np.mean(repeated) > 0.6
            assert any(np.isin(np.delete(one.candidates, one.label), one.history).any() for one in drawn)
        else:
            assert all(one.label < 0 and not np.isin(one.candidates, one.history).any() for one in lists)
            assert not any(repeated)
            assert not any(np.isin(np.delete(one.candidates, one.label), one.history).any() for one in drawn)


def test_no_easy_list_tells_its_target_by_its_being_in_the_history():
    generator, lists = np.random.default_rng(0), []
    for _ in range(80):
        candidates = generator.permutation(np.arange(1, 13))[:6]
        history = generator.choice(np.arange(1, 13), size=8)
        silent = np.zeros((6, 1), np.float32)
        label, features = int(generator.integers(6)), {"evidence": silent, "recent_evidence": silent}
        features["popularity"] = silent[:, 0]
        lists.append(RankingExample(0, history, np.ones(8), candidates, silent[:, 0], label, **features))
    kinds = set()
    for one in with_easy_lists(lists, 1.0):
        if not any(one is given for given in lists):
            known = np.isin(one.candidates, one.history)
            assert known.all() or not known.any()
            kinds.add(bool(known[0]))
    assert kinds == {True, False}


def test_weights_of_candidates_are_fitted_on_repeated_targets_too(heard):
    """Every list stands for all that can be ranked at its position, and no list has a target that cannot."""
    for repeats, data in heard.items():
        graph = KnowledgeGraph.from_dataset(data).with_co_ratings(co_ratings(data, min_people=2))
        counts = log_popularity(data.training_counts())
        fold = Fold(
            data.positions("train"), PopularityRetriever.from_dataset(data), EvidenceIndex.from_graph(graph), counts
        )
        positions = np.arange(1, PLAYS - 2)  # of the first user
        features, stands_for = _features(data, fold, positions, 1.0, np.random.default_rng(0))
        wanted = [SONGS] * len(positions) if repeats == "allowed" else [SONGS - 1, SONGS - 2, SONGS - 3]
        assert stands_for.sum(axis=1).tolist() == wanted
        weights = fit_candidate_weights(data, [fold], progress=False)
        assert np.isfinite([weights.retriever, *weights.evidence, *weights.recent, weights.popularity]).all()


@pytest.mark.parametrize("window", [None, 2])
def test_coming_back_to_an_item_ties_it_neither_to_itself_nor_more_to_others(heard, window):
    data = heard["allowed"]
    first = np.where(np.arange(len(data.labels)) % PLAYS < 4, TRAIN, UNUSED).astype(np.int8)
    once = co_ratings(replace(data, labels=first), min_people=2, window=window)
    again = co_ratings(data, min_people=2, window=window)
    assert len(once) and (once.items < once.others).all()
    for name in ("items", "others", "weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(once, name))


def test_hidden_items_keep_the_setting(heard):
    data, hidden = hide_items(heard["allowed"], 0.25)
    asked = hidden[data.item_sequence[data.positions("test")]]
    ranks = retriever_ranks(data, PopularityRetriever.from_dataset(data), "test")
    assert asked.any() and (ranks[asked] <= SONGS).all() and (ranks[asked] > SONGS - hidden.sum()).all()


# -- a trained ranker -------------------------------------------------------------------------------------------------


HISTORY = ["2", "3", "4", "5", "2", "3", "4"]


@pytest.fixture(scope="module")
def recommender(heard, retriever):
    proc = processor(heard["allowed"], repeats=heard["allowed"].settings.repeats).fit(examples(heard["allowed"]))
    config = proc.model_config(use_language_model=False, retrieval_weight=5.0)
    return Recommender(LlamaRecLKGForRanking(config), proc, retriever)


def ids(items):
    return {item.item_id for item in items}


def test_a_saved_ranker_answers_as_it_was_trained(recommender, tmp_path):
    recommender.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    assert loaded.processor.repeats == "allowed"
    wanted = recommender.recommend(HISTORY, k=3)
    assert wanted[0].item_id == "5"
    assert [item.item_id for item in loaded.recommend(HISTORY, k=3)] == [item.item_id for item in wanted]
    assert ids(loaded.recommend(HISTORY, k=SONGS)) == set(loaded.item_ids)
    new = ItemTable.from_frame(pd.DataFrame({ITEM_ID: ["new"], TITLE: ["A new song"]}))
    assert loaded.processor.with_items(new).repeats == "allowed"
    description = read_json(tmp_path / "processor_config.json")
    assert description.pop("repeats") == "allowed"
    write_json(tmp_path / "processor_config.json", description)  # as saved before there was a choice
    older = Recommender.from_pretrained(tmp_path)
    assert ids(older.recommend(HISTORY, k=SONGS)) == set(older.item_ids) - set(HISTORY)


def test_a_request_can_ask_for_the_other(recommender, tmp_path, capsys):
    fresh = set(recommender.item_ids) - set(HISTORY)
    assert ids(recommender.recommend(HISTORY, repeats="excluded", k=SONGS)) == fresh
    with pytest.raises(LKGError, match="repeats='no' was given"):
        recommender.recommend(HISTORY, repeats="no")
    pipe = RecommendationPipeline(recommender.model, recommender.processor, retriever=recommender.retriever)
    requests = [{"history": HISTORY, "repeats": "excluded"}, {"history": HISTORY}]
    found = [{item["item_id"] for item in items} for items in pipe(requests, top_k=SONGS, batch_size=2)]
    assert found == [fresh, set(recommender.item_ids)]
    recommender.save_pretrained(tmp_path)
    command = ["recommend", "--model", str(tmp_path), "--json", "-k", str(SONGS), "--history", *HISTORY]
    for more, wanted in (([], set(recommender.item_ids)), (["--repeats", "excluded"], fresh)):
        assert main([*command, *more]) == 0
        assert {item["item_id"] for item in json.loads(capsys.readouterr().out)} == wanted


def test_a_processor_refuses_another_value(heard):
    with pytest.raises(LKGError, match="repeats='sometimes' was given"):
        processor(heard["allowed"], repeats="sometimes")


def test_a_run_keeps_what_its_configuration_says(tmp_path):
    world = tmp_path / "world"
    world.mkdir()
    rows = pd.DataFrame(plays(), columns=["user_id", "item_id", "timestamp"])
    rows.to_csv(world / "interactions.csv", index=False)
    songs = range(1, SONGS + 1)
    items = {"item_id": songs, "title": [f"Song {song}" for song in songs], "artist": [song // 2 for song in songs]}
    pd.DataFrame(items).to_csv(world / "items.csv", index=False)
    backbone().save_pretrained(tmp_path / "backbone")
    tokenizer().save_pretrained(tmp_path / "backbone")
    content = settings(tmp_path)
    content["preprocessing"] = {"min_user_interactions": 1, "min_item_interactions": 1}
    content["examples"]["per_user"] = 5
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert main(["evaluate", "--config", str(tmp_path / "config.yaml"), "preprocessing.repeats=allowed"]) == 0
    report = read_json(tmp_path / "run" / "report.json")
    assert report["protocol"]["repeats"].startswith("allowed")
    assert report["protocol"]["repeated_targets"] == report["protocol"]["targets"] == USERS
    rows = {row["name"]: row["metrics"]["recall@10"] for row in report["rows"]}
    assert rows["popularity"] > 0 and min(rows[name] for name in ("retriever", "candidates", "ranker")) > 0.5
    loaded = Recommender.from_pretrained(tmp_path / "run")
    assert ids(loaded.recommend(HISTORY, k=SONGS)) == set(loaded.item_ids)
