"""A short run on real films, always: from the published tables to a report, with a backbone of a few thousand
weights."""

import numpy as np
import pytest
from tiny import backbone, tokenizer

from llamarec_lkg import Recommender
from llamarec_lkg.training.run_config import RunConfig
from llamarec_lkg.training.workflow import Workflow


@pytest.fixture(scope="module")
def films(movielens_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    backbone().save_pretrained(folder / "backbone")
    tokenizer().save_pretrained(folder / "backbone")
    config = RunConfig.from_mapping(
        {
            "output_dir": str(folder / "run"),
            "data": {"dataset": str(movielens_folder)},
            "retriever": {"max_steps": 100, "eval_steps": 50, "learning_rate": 0.004, "max_length": 50, "seed": 1},
            "examples": {"folds": 2, "per_user": 5, "max_train": 16, "max_validation": 8},
            "prompt": {"history_length": 4, "num_paths": 2, "max_title_tokens": 12, "max_length": 1500},
            "backbone": {"model_name_or_path": str(folder / "backbone"), "dtype": "float32"},
            "training": {
                "per_device_train_batch_size": 8,
                "num_train_epochs": 1,
                "heads_warm_up_epochs": 5,
                "disable_tqdm": True,
                "save_strategy": "no",
            },
            "evaluation": {"resamples": 200, "second_seed": False},
        }
    )
    workflow = Workflow(config, progress=False)
    return workflow, workflow.run()


def test_the_report_covers_all_users_and_the_retriever_beats_popularity(films):
    _, report = films
    assert report.protocol["targets"] == 610 and report.protocol["items"] == 3650
    assert 0 < report.protocol["retrieved"] < 610
    ndcg = {row["name"]: row["metrics"]["ndcg@10"] for row in report.rows}
    assert ndcg["retriever"] > ndcg["popularity"] > 0
    assert ndcg["ceiling"] == pytest.approx(report.protocol["retrieved"] / 610)
    assert ndcg["ceiling"] >= ndcg["ranker"]
    for name in ("no-kg", "shuffled-kg"):
        assert ndcg[f"ranker-no-lm-{name}"] != ndcg["ranker-no-lm"], "the graph has a say"


def test_the_graph_holds_nobody_and_co_ratings_of_five_people_at_least(films):
    workflow, _ = films
    data = workflow.prepare()
    assert not data.graph.has_people and data.graph.relations[0] == "CO_RATED"
    trained = data.dataset.positions("train")
    pairs = np.stack([data.graph.edge_sources(), data.graph.targets])[:, np.asarray(data.graph.edge_relations) == 0]
    items = data.graph.item_of_node()
    people = {item: set(data.dataset.user_of(trained[data.dataset.item_sequence[trained] == item]).tolist())
              for item in np.unique(items[pairs[:, :200]])}  # fmt: skip
    assert all(len(people[items[one]] & people[items[other]]) >= 5 for one, other in pairs[:, :200].T)


def test_a_film_lover_gets_films_with_reasons(films):
    workflow, _ = films
    recommender = Recommender.from_pretrained(workflow.folder)
    items = recommender.recommend(["1", "3114", "2355", "4886"], k=5)
    assert len(items) == 5
    assert any("->" in path for item in items for path in item.paths)
    assert all(item.title for item in items)
