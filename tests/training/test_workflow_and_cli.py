"""The whole run on a folder of tables: stages, reuse, the command line, two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import backbone, tokenizer
from tiny_run import settings, write_world

from llamarec_lkg import LKGError, Recommender
from llamarec_lkg.cli import main
from llamarec_lkg.training.run_config import RunConfig
from llamarec_lkg.training.workflow import Workflow


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
        "config.yaml",
        "config.json",
        "model.safetensors",
        "adapter/adapter_model.safetensors",
        "processor_config.json",
        "knowledge_graph/graph.safetensors",
        "retriever/model.safetensors",
        "report.json",
        "report.md",
        "report.png",
        "README.md",
        "training_log.json",
    ):
        assert (out / name).exists(), name
    report = json.loads((out / "report.json").read_text())
    names = [row["name"] for row in report["rows"]]
    assert names[:4] == ["popularity", "retriever", "ranker-untrained", "ranker"]
    assert {"ranker-shuffled-kg", "no-lm", "no-lm-no-kg", "no-lm-shuffled-kg", "ceiling"} <= set(names)
    ceiling = next(row for row in report["rows"] if row["name"] == "ceiling")["metrics"]["recall@1"]
    assert ceiling == pytest.approx(report["protocol"]["retrieved"] / report["protocol"]["targets"])
    assert not [p for p in out.glob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_the_card_holds_the_table_and_passes_the_hubs_parser(run):
    from huggingface_hub import ModelCard

    card = ModelCard.load(run / "run" / "README.md")
    assert card.data.library_name == "llamarec_lkg" and card.data.pipeline_tag == "text-ranking"
    assert {"ndcg@10", "mrr@10", "recall@10"} <= {result.metric_type for result in card.data.eval_results}
    assert "| ranker |" in card.content and "FOLLOWED_BY" in card.content
    assert "Data: cc-by-4.0" in card.content, "as the data set's own card says"


def test_a_second_run_reuses_every_stage(run, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError("this stage was done already")

    monkeypatch.setattr("llamarec_lkg.retrieval.training.train_lrurec", refuse)
    monkeypatch.setattr("llamarec_lkg.training.trainer.LlamaRecLKGTrainer", refuse)
    monkeypatch.setattr("llamarec_lkg.ranking.scoring.ranker_scores", refuse)
    assert main(["evaluate", "--config", str(run / "config.yaml")]) == 0
    assert "| ranker |" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="done already"):
        main(["train-retriever", "--config", str(run / "config.yaml"), "retriever.seed=7"])


def test_prepare_and_train_retriever_say_what_they_made(run, tmp_path, capsys):
    overrides = [f"output_dir={tmp_path}", "retriever.max_steps=5"]
    assert main(["prepare", "--config", str(run / "config.yaml"), *overrides]) == 0
    assert main(["train-retriever", "--config", str(run / "config.yaml"), *overrides]) == 0
    text = capsys.readouterr().out
    assert "40 users, 30 items" in text and "FOLLOWED_BY" in text and "recall@10" in text
    assert {path.name for path in tmp_path.iterdir()} <= {"retriever", "checkpoints", "config.yaml"}


def test_stage_keys_follow_what_matters_and_nothing_else(run):
    def key(**changes):
        mapping = settings(run)
        for name, value in changes.items():
            section, _, field = name.partition("__")
            mapping[section] = {**mapping.get(section, {}), field: value}
        return Workflow(RunConfig.from_mapping(mapping), progress=False)._ranker_key()

    assert key() == key(training__logging_steps=3) == key(evaluation__seed=5)
    changed = {key(graph__use_triples=False), key(training__seed=3), key(prompt__num_paths=1), key(retriever__seed=1)}
    assert len(changed) == 4 and key() not in changed


def test_resume_needs_a_checkpoint_of_this_very_run(run, tmp_path, capsys):
    command = ["train", "--resume", "--config", str(run / "config.yaml"), f"output_dir={tmp_path}"]
    assert main(command) == 1
    assert "no checkpoint of this very run" in capsys.readouterr().err


def test_a_graph_saved_beside_other_files_leaves_them_alone(run, tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    Workflow(RunConfig.from_mapping(settings(run)), progress=False).prepare().graph.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "precious"


def test_published_negatives_and_a_run_without_language_model(run, tmp_path):
    mapping = settings(run)
    mapping["output_dir"] = str(tmp_path / "published")
    mapping["examples"] = {"holdout": 0, "negatives": "uniform", "max_train": 8, "max_validation": 4}
    mapping["model"] = {"use_language_model": False}
    mapping["evaluation"] = {"untrained": False, "as_published": False, "resamples": 50}
    mapping["training"]["heads_warm_up_epochs"] = 2
    report = Workflow(RunConfig.from_mapping(mapping), progress=False).run()
    assert report.row("ranker")["metrics"] == report.row("no-lm")["metrics"]
    assert not report.has_row("ranker-as-published") and not report.has_row("ranker-untrained")
    assert Recommender.from_pretrained(tmp_path / "published").recommend(["1"], k=2)


def test_configuration_names_what_it_does_not_know():
    with pytest.raises(LKGError, match="Unknown \\['retreiver'\\] in the file; did you mean \\['retriever'\\]"):
        RunConfig.from_mapping({"retreiver": {}})
    with pytest.raises(LKGError, match="\\['learning_rat'\\] in training"):
        RunConfig.from_mapping({"training": {"learning_rat": 1}})
    with pytest.raises(LKGError, match="\\['num_paths'\\] in model"):
        RunConfig.from_mapping({"model": {"num_paths": 1}})
    with pytest.raises(LKGError, match="not of the form section.key=value"):
        RunConfig.from_yaml(None, ["training"])
    with pytest.raises(LKGError, match="training.learning_rate must be a number, got 'fast'"):
        RunConfig.from_yaml(None, ["training.learning_rate=fast"])
    with pytest.raises(LKGError, match="Unknown key \\['zzz'\\]"):
        RunConfig.from_mapping({"zzz": 1})
    with pytest.raises(LKGError, match="controls \\['nothing'\\]"):
        RunConfig.from_yaml(None, ["evaluation.controls=[nothing]"])
    with pytest.raises(LKGError, match="is not YAML"):
        RunConfig.from_yaml(None, ["training.seed=[1"])
    rate = RunConfig.from_yaml(None, ["training.learning_rate=1e-4", "prompt.path_style=compact"]).training
    assert rate == {"learning_rate": 1e-4}
    config = RunConfig.from_yaml(None, ["training.seed=7", "prompt.num_paths=2", "graph.exclude_relations=[RATED]"])
    assert config.training == {"seed": 7} and config.graph.exclude_relations == ["RATED"]
    assert RunConfig.from_mapping(config.to_mapping()).to_mapping() == config.to_mapping()


SECTIONS = "output_dir, data, preprocessing, graph, retriever, examples, backbone, adapter, prompt, model, training"


@pytest.mark.parametrize(
    "override, said",
    [
        ("bogus.key=1", rf"Unknown section 'bogus' in the override 'bogus.key=1'\. The sections are {SECTIONS}, eval"),
        ("trainig.seed=1", rf"Unknown section 'trainig' in the .*; did you mean 'training.seed'\? The .* {SECTIONS}"),
        ("bogus=1", rf"Unknown section 'bogus' in the override 'bogus=1'\. The sections are {SECTIONS}"),
        ("learning_rate=1", "Unknown section 'learning_rate' in the .*; did you mean .*'training.learning_rate'"),
        ("model.num_paths=1", "Unknown key 'num_paths' in the override .*; did you mean 'prompt.num_paths'"),
        (
            "training.bogus=1",
            r"Unknown key 'bogus' in the override 'training.bogus=1'\. .*training knows .*learning_ra",
        ),
        (
            "training.learning_rat=1",
            "in the override 'training.learning_rat=1'; did you mean 'training.learning_rate'",
        ),
        ("retriever.learning_rat=1", "in the override .*; did you mean 'retriever.learning_rate'"),
        ("adapter.peft_tipe=LORA", "Unknown key 'peft_tipe' in the override .*; did you mean 'adapter.peft_type'"),
        ("training=1", "training is a section; the override 'training=1' gives it 1. .*as in training.key=value"),
        ("data=ml-100k", "data is a section; .*'data=ml-100k' .*as in data.key=value; data knows dataset, revision"),
        ("training={bogus: 1, seed: 2}", r"Unknown key 'bogus' in the override 'training=.bogus: 1, seed: 2.'\."),
        ("output_dir.x=1", "'output_dir.x=1' goes into output_dir, which is no section"),
        ("graph.use_triples.x=1", "'graph.use_triples.x=1' goes into graph.use_triples, which is no section"),
    ],
)
@pytest.mark.parametrize("with_file", [False, True])
def test_an_override_that_is_not_known_is_named_with_what_is_near(tmp_path, override, said, with_file, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: here\ngraph: {use_triples: true}\ntraining: {seed: 1}\n")
    with pytest.raises(LKGError, match=said) as caught:
        RunConfig.from_yaml(path if with_file else None, ["training.seed=3", override, "prompt.num_paths=2"])
    assert "in the file" not in str(caught.value)
    assert main(["prepare", override]) == 1
    assert "override" in capsys.readouterr().err


def test_overrides_of_what_a_section_holds_in_turn(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training: {lr_scheduler_kwargs: {num_cycles: 2}}\nadapter:\n")
    overrides = ["training.lr_scheduler_kwargs.power=3", "adapter.r=2", "adapter.peft_type=LORA", "card.emissions.x=1"]
    config = RunConfig.from_yaml(path, overrides)
    assert config.training["lr_scheduler_kwargs"] == {"num_cycles": 2, "power": 3}
    assert config.adapter == {"r": 2, "peft_type": "LORA"} and config.card.emissions == {"x": 1}
    assert RunConfig.from_yaml(path, ["training={seed: 1}"]).training == {"seed": 1}


def test_a_file_is_told_from_its_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training: {bogus: 1}\n")
    with pytest.raises(LKGError, match="Unknown \\['bogus'\\] in training of the file|Unknown key.*in training"):
        RunConfig.from_yaml(path, ["training.seed=1"])
    path.write_text("- training\n")
    with pytest.raises(LKGError, match="A configuration is a mapping of sections; this is a list"):
        RunConfig.from_yaml(path, ["training.seed=1"])
    with pytest.raises(LKGError, match="training is a section.*'fast'"):
        RunConfig.from_mapping({"training": "fast"})


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_example_configurations_are_valid(path):
    RunConfig.from_yaml(path)


def test_two_processes_give_the_metrics_of_one(run, tmp_path):
    """Two gloo processes evaluate and train; no user is counted twice."""
    environment = {**os.environ, "LLAMAREC_LKG_CACHE": str(run / "cache"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(ROOT / "examples" / "train_ranker.py")
    reports = []
    for name, command in (("one", [sys.executable]), ("two", launch)):
        # trained by one process, evaluated by one and by two
        overrides = [f"output_dir={run / 'run'}", f"evaluation.resamples={100 + len(reports) + 1}"]
        done = subprocess.run(
            [*command, script, "--config", str(run / "config.yaml"), *overrides],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"{len(reports) + 1} process(es)" in done.stdout, name
        reports.append(json.loads((run / "run" / "report.json").read_text()))
    assert reports[0]["protocol"]["targets"] == reports[1]["protocol"]["targets"]
    for first, second in zip(reports[0]["rows"], reports[1]["rows"], strict=True):
        assert first["metrics"] == pytest.approx(second["metrics"], abs=1e-6), first["name"]
    # training in two: what the trainer itself measures before its first step is what one process measures
    logs = []
    for name, command in (("one", [sys.executable]), ("two", launch)):
        overrides = [f"output_dir={tmp_path / name}", "training.eval_on_start=true", "evaluation.untrained=false"]
        done = subprocess.run(
            [*command, script, "--config", str(run / "config.yaml"), *overrides],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert (tmp_path / name / "adapter" / "adapter_model.safetensors").exists()
        log = json.loads((tmp_path / name / "training_log.json").read_text())
        logs.append(next(record for record in log if "eval_loss" in record))
    metrics = [name for name in logs[0] if "@" in name or name == "eval_loss"]
    assert len(metrics) > 10
    assert {m: logs[0][m] for m in metrics} == pytest.approx({m: logs[1][m] for m in metrics}, abs=1e-5)
