"""The whole run on a folder of tables: stages out of fold, reuse, what is said, two processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from tiny import backbone, tokenizer
from tiny_run import settings, write_world

from llamarec_lkg import LKGError, Recommender
from llamarec_lkg.cli import main
from llamarec_lkg.ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from llamarec_lkg.ranking.scoring import ranker_scores
from llamarec_lkg.retrieval.base import log_popularity
from llamarec_lkg.retrieval.candidates import evaluation_examples, folds_of_users
from llamarec_lkg.training import first_stages, report_rows
from llamarec_lkg.training import workflow as workflows
from llamarec_lkg.training.run_config import RunConfig
from llamarec_lkg.training.trainer import LlamaRecLKGTrainer
from llamarec_lkg.training.workflow import Workflow, _last_checkpoint


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, its folder and its configuration file; the cache lasts as long as the module."""
    folder = tmp_path_factory.mktemp("whole")
    write_world(folder / "world")
    (folder / "world" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    backbone().save_pretrained(folder / "backbone")
    tokenizer().save_pretrained(folder / "backbone")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(folder)))
    old = os.environ.get("LLAMAREC_LKG_CACHE")
    os.environ["LLAMAREC_LKG_CACHE"] = str(folder / "cache")
    try:
        status = main(["evaluate", "--config", str(folder / "config.yaml")])
    finally:
        os.environ.pop("LLAMAREC_LKG_CACHE") if old is None else os.environ.update(LLAMAREC_LKG_CACHE=old)
    assert status == 0
    return folder


def test_one_command_leaves_model_report_and_card(run):
    out = run / "run"
    for name in (
        "config.yaml", "config.json", "model.safetensors", "adapter/adapter_model.safetensors",
        "processor_config.json", "knowledge_graph/graph.safetensors", "retriever/model.safetensors", "report.json",
        "report.md", "report.png", "training_log.json",
    ):  # fmt: skip
        assert (out / name).exists(), name
    report = json.loads((out / "report.json").read_text())
    names = [row["name"] for row in report["rows"]]
    assert names[:4] == ["popularity", "retriever", "candidates", "ranker"]
    silent = {f"ranker-no-lm{name}" for name in ("", "-no-kg", "-shuffled-kg", "-uniform-preferences")}
    assert {"ranker-shuffled-kg", "stacker", "second-seed", "ceiling"} | silent <= set(names)
    assert "ranker-no-lm-permuted-titles" not in names, "only a language model reads titles"
    pairs = {(one["row"], one["minus"]) for one in report["comparisons"]}
    assert pairs == {("ranker", o) for o in ("retriever", "candidates", "ranker-no-lm", "stacker", "second-seed")}
    for name in ("retriever", "candidates", "ranker"):
        assert {"coverage@10", "popularity@10"} <= set(next(row for row in report["rows"] if row["name"] == name))
    assert {one["slice"] for one in report["slices"]} == {"item popularity"}, "all histories are as long"
    ceiling = next(row for row in report["rows"] if row["name"] == "ceiling")["metrics"]["recall@1"]
    assert ceiling == pytest.approx(report["protocol"]["retrieved"] / report["protocol"]["targets"])
    assert not [p for p in out.glob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    card = (out / "README.md").read_text()
    assert "| ranker |" in card and "FOLLOWED_BY" in card
    assert "Data: cc-by-4.0" in card, "as the data set's own card says"


def test_a_second_run_reuses_every_stage_and_says_so(run, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError("this stage was done already")

    for place, names in (
        (first_stages, ("train_retriever",)),
        (workflows, ("make_lists", "LlamaRecLKGTrainer", "evaluate_rows")),
    ):
        for name in names:
            monkeypatch.setattr(place, name, refuse)
    assert main(["evaluate", "--config", str(run / "config.yaml")]) == 0
    out, err = capsys.readouterr()
    assert "| ranker |" in out and "6/6 evaluation: reused" in err
    assert main(["train", "--config", str(run / "config.yaml")]) == 0
    assert "5/6 ranker: reused" in capsys.readouterr().err
    assert main(["train-retriever", "--config", str(run / "config.yaml")]) == 0
    assert "2/6 retriever: reused" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="done already"):
        main(["train-retriever", "--config", str(run / "config.yaml"), "retriever.seed=7"])


def workflow(run, **changes):
    """Over the data of `run`, with some settings changed: `section__key=value`."""
    mapping = settings(run)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        mapping[section] = {**mapping.get(section, {}), field: value} if field else value
    return Workflow(RunConfig.from_mapping(mapping), progress=False)


def test_the_lists_of_a_fold_come_from_a_retriever_and_co_ratings_that_never_saw_its_users(run, tmp_path, monkeypatch):
    flow = workflow(run, output_dir=str(tmp_path), examples__folds=3)
    dataset = flow.prepare().dataset
    seen = {name: Mock(side_effect=getattr(first_stages, name)) for name in ("train_retriever", "co_ratings")}
    for name, watched in seen.items():
        monkeypatch.setattr(first_stages, name, watched)
    lists = flow.training_lists(flow.build_processor())
    folds = folds_of_users(dataset.num_users, 3, flow.config.retriever.seed)
    parts = [everybody(dataset), *({user for user in everybody(dataset) if folds[user] != fold} for fold in range(3))]
    for name, watched in seen.items():  # the first retriever is that of the run; its graph was there before
        trained = [call.args[0] for call in watched.call_args_list]
        assert [set(part.user_of(part.positions("train")).tolist()) for part in trained] == (
            parts if name == "train_retriever" else parts[1:]
        )
    for fold, part in enumerate(flow.folds()):
        np.testing.assert_array_equal(part.fold_of_user, folds)
        counts = dataset.without_users(np.flatnonzero(folds == fold)).training_counts()
        np.testing.assert_allclose(part.log_counts, log_popularity(counts))
    processor = flow.build_processor()
    flow.training_lists(processor)
    retriever = processor.fused_retriever(flow.train_retriever())
    found = evaluation_examples(dataset, retriever, "validation", num_candidates=processor.num_candidates)
    found = [example for example in found if example.label >= 0]
    assert lists.unseen == [*lists.held_out, *lists.validation] and len(lists.validation) == len(found) > 0
    for example, read in zip(found, lists.validation, strict=True):
        np.testing.assert_array_equal(example.candidates, read.candidates)
        np.testing.assert_allclose(read.popularity, log_popularity(dataset.training_counts())[read.candidates])
    evidence = processor.evidence_index.evidence([e.history for e in found], [e.candidates for e in found])
    for rows, read in zip(evidence, lists.validation, strict=True):
        np.testing.assert_allclose(rows[: len(read.candidates)], read.evidence, rtol=1e-5, atol=1e-6)
    plain = flow.lists(flow.build_processor(), "validation")  # of a processor that finds without evidence
    assert any(
        (a.candidates != b.candidates).any() for a, b in zip(plain, flow.lists(processor, "validation"), strict=True)
    )
    again = workflow(run, output_dir=str(tmp_path), examples__folds=3)
    monkeypatch.setattr(
        first_stages, "train_retriever", lambda *args, **kwargs: pytest.fail("each is a finished stage")
    )
    processor = again.build_processor()
    same = again.training_lists(processor)
    assert same.describe() == lists.describe() and again.training_lists(again.build_processor()) is same, "made once"
    other = again.build_processor()
    again.training_lists(other)
    assert (other.candidate_weights, other.evidence_scale) == (processor.candidate_weights, processor.evidence_scale)


def everybody(dataset) -> set[int]:
    return set(range(1, dataset.num_users + 1))


def test_a_second_opinion_leaves_the_model_as_it_was_also_after_an_error(run, monkeypatch):
    flow = workflow(run)
    model, processor = flow.load_model(), LlamaRecLKGProcessor.from_pretrained(flow.folder)
    lists, examples = flow.training_lists(processor), flow.lists(processor, "test")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    cut = {"held_out": lists.held_out, "validation": lists.validation}
    for name, kept in cut.items():  # lists of a small catalogue are short
        short = [replace(one, candidates=one.candidates[:3], retrieval_scores=one.retrieval_scores[:3],
                         evidence=one.evidence[:3], recent_evidence=one.recent_evidence[:3],
                         popularity=one.popularity[:3]) for one in kept if one.label < 3]  # fmt: skip
        report_rows._second_opinion(flow, model, processor, replace(lists, **{name: short}), examples)
    scores = report_rows._second_opinion(flow, model, processor, lists, examples)
    assert np.isfinite(scores[[example.label >= 0 for example in examples]]).any()
    assert not np.allclose(scores, ranker_scores(model, processor, examples, progress=False), equal_nan=True)
    monkeypatch.setattr(report_rows, "ranker_scores", Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        report_rows._second_opinion(flow, model, processor, lists, examples)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    whole, aside = flow.second_retrievers()[1], flow.second_retrievers()[0]
    first = flow.train_retriever().score([np.array([1, 2])])
    assert not np.allclose(whole.score([np.array([1, 2])]), first), "another seed"
    assert not np.allclose(aside.score([np.array([1, 2])]), whole.score([np.array([1, 2])]))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_nothing_is_fitted_on_the_targets_that_are_measured(run, monkeypatch, split):
    flow = workflow(run, evaluation__split=split, evaluation__controls=[])
    processor = LlamaRecLKGProcessor.from_pretrained(flow.folder)
    examples, lists = flow.lists(processor, split), flow.training_lists(processor)
    read = []
    for name in ("heads_batch", "weigh_parts"):
        original = getattr(report_rows, name)

        def noted(*args, original=original, at=1 if name == "heads_batch" else 2, **kwargs):
            read.extend(args[at])
            return original(*args, **kwargs)

        monkeypatch.setattr(report_rows, name, noted)
    report_rows.evaluate_rows(flow, processor, examples)
    fitted_on = {id(example) for example in read} & {id(example) for example in lists.validation}
    assert len(fitted_on) == (0 if split == "validation" else len(lists.validation))
    assert {id(example) for example in lists.held_out} <= {id(example) for example in read}


def test_precision_is_the_devices_and_training_follows(run, monkeypatch):
    for fast in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("llamarec_lkg.utils.precision.fast_dtype", lambda device=None, fast=fast: fast)
        flow = workflow(run, backbone__dtype="auto")
        assert flow.backbone_arguments()["dtype"] == fast
        assert flow.training_arguments().bf16 == (fast == torch.bfloat16)
        four_bit = workflow(run, backbone__dtype="auto", backbone__load_in_4bit=True).backbone_arguments()
        assert four_bit["quantization_config"].bnb_4bit_compute_dtype == fast
        whole = workflow(run, backbone__dtype="auto", backbone__use_peft=False)
        assert whole.backbone_arguments()["dtype"] == torch.float32, "what is trained takes small steps"
        asked = workflow(run, backbone__dtype="float32")
        assert asked.backbone_arguments()["dtype"] == torch.float32 and not asked.training_arguments().bf16
        given = workflow(run, backbone__dtype="auto", training__bf16=False)
        assert not given.training_arguments().bf16


def test_nothing_untrained_passes_for_a_finished_ranker(run, tmp_path):
    without = {"output_dir": str(tmp_path), "model__use_language_model": False}
    for changes in (
        {"training__heads_warm_up_epochs": 0},
        {"model__use_evidence_fusion": False, "model__use_retrieval_scores": False},
    ):
        with pytest.raises(LKGError, match="Nothing of this ranker would be trained"):
            workflow(run, **without, **changes).train()
    assert not (tmp_path / "config.json").exists()


def test_what_is_said_names_each_stage_with_its_time_and_nothing_of_others(run):
    """In a new process, as in a terminal: our lines and bars, none of the libraries' own."""
    code = "import sys; from llamarec_lkg.cli import main; sys.exit(main(sys.argv[1:]))"
    out = run / "said"
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", "--config", str(run / "config.yaml"), f"output_dir={out}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split("\r")[-1] for line in done.stderr.splitlines()]
    for stage in ("1/6 data and graph", "2/6 retriever", "3/6 retriever of fold 2 of 2", "4/6 training lists",
                  "5/6 ranker", "    float32, by backbone.dtype", "6/6 evaluation",
                  "6/6 second seed of the retriever"):  # fmt: skip
        assert stage in lines, done.stderr
    assert sum(line.startswith("    ") and line.endswith(" s") for line in lines) == 9
    for noise in ("Warning", "Loading weights", "gemm_4bit"):
        assert noise not in done.stderr


def test_prepare_and_train_retriever_say_what_they_made(run, tmp_path, capsys):
    overrides = [f"output_dir={tmp_path}", "retriever.max_steps=5"]
    assert main(["prepare", "--config", str(run / "config.yaml"), *overrides]) == 0
    assert main(["train-retriever", "--config", str(run / "config.yaml"), *overrides]) == 0
    text = capsys.readouterr().out
    assert "40 users, 30 items" in text and "FOLLOWED_BY" in text and "recall@10" in text
    assert {path.name for path in tmp_path.iterdir()} <= {"retriever", "checkpoints", "config.yaml"}


def test_stage_keys_follow_what_matters_and_nothing_else(run):
    def key(**changes):
        return workflow(run, **changes)._ranker_key()

    assert key() == key(training__logging_steps=3) == key(evaluation__seed=5)
    changed = [
        {"graph__use_triples": False}, {"training__seed": 3}, {"prompt__num_paths": 1}, {"retriever__seed": 1},
        {"examples__folds": 3}, {"graph__co_rating_min_people": 4},
    ]  # fmt: skip
    keys = {key(**change) for change in changed}
    assert len(keys) == len(changed) and key() not in keys


def test_resume_needs_a_checkpoint_of_this_very_run(run, tmp_path, capsys):
    with pytest.raises(LKGError, match="checkpoints lie in the folder of the run"):
        workflow(run, training__output_dir=str(tmp_path))
    other = workflow(run, output_dir=str(tmp_path), training__seed=3)
    half = Path(other.training_arguments().output_dir, "checkpoint-10")
    half.mkdir(parents=True)
    (half / "trainer_state.json").write_text('{"epoch": ')
    command = ["train", "--resume", "--config", str(run / "config.yaml"), f"output_dir={tmp_path}"]
    assert main(command) == 1
    assert "no whole checkpoint of this very run" in capsys.readouterr().err
    for name in ("checkpoint-9", "checkpoint-8"):
        (half.parent / name).mkdir()
        (half.parent / name / "trainer_state.json").write_text("{}")
    assert _last_checkpoint(str(half.parent)).endswith("checkpoint-9")


def test_published_negatives_and_a_run_without_language_model(run, tmp_path):
    flow = workflow(
        run, output_dir=str(tmp_path / "published"), model={"use_language_model": False},
        examples={"folds": 1, "negatives": "uniform", "max_train": 8, "max_validation": 4},
        evaluation__resamples=50, training__heads_warm_up_epochs=2,
    )  # fmt: skip
    report = flow.run()
    assert report.row("ranker")["metrics"] == report.row("ranker-no-lm")["metrics"]
    assert not {row["name"] for row in report.rows} & {"candidates", "stacker", "second-seed"}, "nothing out of fold"
    recommender = Recommender.from_pretrained(tmp_path / "published")
    assert recommender.recommend(["1"], k=2) and recommender.model.config.heads_trained


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_language_model_alone_learns_from_easy_lists(run, tmp_path, monkeypatch, share):
    seen = {}

    def stop(name):
        def noted(trainer, *args, **kwargs):
            seen[name] = [example.retrieval_scores.any() for example in trainer.train_dataset]
            if name == "train":
                raise KeyboardInterrupt

        return noted

    for name in ("warm_up_heads", "train"):
        monkeypatch.setattr(LlamaRecLKGTrainer, name, stop(name))
    with pytest.raises(KeyboardInterrupt):
        workflow(run, output_dir=str(tmp_path), examples__easy_share=share).train()
    assert all(seen["warm_up_heads"]) and np.mean(seen["train"]) == 1 - share
    with pytest.raises(KeyboardInterrupt):
        workflow(run, output_dir=str(tmp_path), examples={"folds": 1, "easy_share": share}).train()
    assert all(seen["train"]), "as published"


def test_there_is_nobody_in_a_run_unless_asked_for(run, tmp_path):
    assert [path.name for path in (run / "run" / "private").iterdir()] == ["evaluated.safetensors"]
    assert "private/" in (run / "run" / ".gitignore").read_text().splitlines()
    flow = workflow(
        run, output_dir=str(tmp_path), model={"use_language_model": False, "use_user_embedding": True},
        examples__folds=1,
    )  # fmt: skip
    flow.train()
    assert {path.name for path in (tmp_path / "private").iterdir()} == {
        "users.parquet", "user_embedding.safetensors"
    }  # fmt: skip
    assert Recommender.from_pretrained(tmp_path).processor.user_index("3") == 3


def test_two_processes_give_the_metrics_of_one(run, tmp_path):
    """Two gloo processes evaluate and train; no user is counted twice."""
    environment = {**os.environ, "LLAMAREC_LKG_CACHE": str(run / "cache"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(ROOT / "examples" / "train_ranker.py"), "--config", str(run / "config.yaml")]

    def each(*overrides):
        for count, command in ((1, [sys.executable]), (2, launch)):
            done = subprocess.run(
                [*command, *script, *(override.format(count=count) for override in overrides)],
                env=environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-2000:]
            assert f"{count} process(es)" in done.stdout
            yield count

    # trained by one process, evaluated by one and by two
    commands = each(f"output_dir={run / 'run'}", "evaluation.resamples=10{count}")
    reports = [json.loads((run / "run" / "report.json").read_text()) for _ in commands]
    assert reports[0]["protocol"]["targets"] == reports[1]["protocol"]["targets"]
    for first, second in zip(reports[0]["rows"], reports[1]["rows"], strict=True):
        assert first["metrics"] == pytest.approx(second["metrics"], abs=1e-6), first["name"]
    # training in two: what the trainer itself measures before its first step is what one process measures
    logs = []
    for count in each(
        f"output_dir={tmp_path}/{{count}}", "training.eval_on_start=true", "evaluation.second_seed=false"
    ):
        assert (tmp_path / f"{count}" / "adapter" / "adapter_model.safetensors").exists()
        log = json.loads((tmp_path / f"{count}" / "training_log.json").read_text())
        logs.append(next(record for record in log if "eval_loss" in record))
    metrics = [name for name in logs[0] if "@" in name or name == "eval_loss"]
    assert len(metrics) > 10
    assert {m: logs[0][m] for m in metrics} == pytest.approx({m: logs[1][m] for m in metrics}, abs=1e-5)
