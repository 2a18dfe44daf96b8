"""On real films, without a language model: preferences beat one set of weights, and the retriever."""

import pytest
from tiny import backbone, example_module, tokenizer

from llamarec_lkg.evaluation.report import comparison_rows


@pytest.fixture(scope="module")
def example():
    return example_module("graph_evidence")


@pytest.mark.slow
def test_preferences_on_real_films(example, movielens_folder, tmp_path):
    backbone().save_pretrained(tmp_path / "backbone")
    tokenizer().save_pretrained(tmp_path / "backbone")
    steps = {"max_steps": 1000, "eval_steps": 250, "learning_rate": 4e-3, "lr_scheduler_type": "one_cycle"}
    found = example.one_seed(
        str(movielens_folder), 42, tmp_path, folds=2, per_user=10, retriever=steps, progress=False,
        backbone={"model_name_or_path": str(tmp_path / "backbone")},
    )  # fmt: skip
    rows = {row["name"]: row for row in comparison_rows(found["validation"], reference="evidence")}
    assert rows["history"]["difference_ci95"]["nll"][1] < 0, "preferences are likelier than one set of weights"
    rows = {row["name"]: row for row in comparison_rows(found["test"])}
    assert rows["history"]["difference_ci95"]["ndcg@10"][0] > 0, "and ranks better than the retriever"
    assert rows["history, rewired graph"]["difference_ci95"]["ndcg@10"][0] < 0
