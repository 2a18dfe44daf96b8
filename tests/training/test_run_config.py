"""The configuration of a run: what it takes, and what it says of what it does not know."""

import re

import pytest
from peft import IA3Config, LoraConfig

from llamarec_lkg import LKGError
from llamarec_lkg.cli import main
from llamarec_lkg.data.sequences import PreprocessingSettings
from llamarec_lkg.training.run_config import EvaluationSection, RunConfig


@pytest.mark.parametrize(
    "override, said",
    [
        ("bogus.key=1", r"'bogus.key' in the override 'bogus.key=1' is no setting.*sections are output_dir,"),
        ("bogus=1", "'bogus' in the override 'bogus=1' is no setting"),
        ("trainig.seed=1", r"Did you mean .*'training.seed'.*\?"),
        ("learning_rate=1", "Did you mean .*'training.learning_rate'"),
        ("model.num_paths=1", "Did you mean .*'prompt.num_paths'"),
        ("training.learning_rat=1", "Did you mean 'training.learning_rate'"),
        ("training=1", "'training' in the override .* is no setting"),
        ("training={bogus: 1, seed: 2}", "'training.bogus' in the override .* is no setting"),
        ("output_dir.x=1", "'output_dir.x' in the override .* is no setting.*'output_dir'"),
        ("training.learning_rate=fast", "training.learning_rate is 'fast' in the override .*; it must be a number"),
        ("training.seed=[1", "is not YAML"),
        ("training", "not of the form section.key=value"),
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
    assert re.search(said, capsys.readouterr().err)


def test_overrides_change_what_the_file_says_and_no_more(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training: {lr_scheduler_kwargs: {num_cycles: 2}, seed: 7}\nadapter:\n")
    overrides = [
        "training.lr_scheduler_kwargs.power=3", "training.learning_rate=1e-4", "graph.exclude_relations=[CO_RATED]",
        "adapter.r=2", "adapter.peft_type=LORA", "card.emissions.x=1",
    ]  # fmt: skip
    config = RunConfig.from_yaml(path, overrides)
    schedule = {"num_cycles": 2, "power": 3}
    assert config.training == {"lr_scheduler_kwargs": schedule, "seed": 7, "learning_rate": 1e-4}
    assert config.adapter == {"r": 2, "peft_type": "LORA"} and config.card.emissions == {"x": 1}
    assert config.graph.exclude_relations == ["CO_RATED"]
    assert RunConfig.from_mapping(config.to_mapping()).to_mapping() == config.to_mapping()
    assert RunConfig.from_yaml(path, ["training={seed: 1}"]).training == {"seed": 1}


@pytest.mark.parametrize("name", ["eval_strategy", "save_strategy", "logging_strategy"])
def test_no_is_the_name_of_a_strategy_not_false(name):
    config = RunConfig.from_yaml(None, [f"training.{name}=no", "training.bf16=no"])
    assert config.training == {name: "no", "bf16": False}


def test_a_file_is_told_from_its_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training: {bogus: 1}\n")
    with pytest.raises(LKGError, match="'training.bogus' in the file .*run.yaml is no setting"):
        RunConfig.from_yaml(path, ["training.seed=1"])
    path.write_text("- training\n")
    with pytest.raises(LKGError, match="A configuration is a mapping of sections; the file .* is a list"):
        RunConfig.from_yaml(path, ["training.seed=1"])
    with pytest.raises(LKGError, match=r"controls \['nothing'\]"):
        RunConfig.from_yaml(None, ["evaluation.controls=[nothing]"])


def test_an_adapter_is_any_peft_configuration():
    pissa = {"peft_type": "LORA", "r": 3, "init_lora_weights": "pissa", "target_modules": ["q_proj"]}
    config = RunConfig.from_mapping({"adapter": pissa}).peft_config()
    assert isinstance(config, LoraConfig) and (config.r, config.init_lora_weights) == (3, "pissa")
    assert config.task_type == "CAUSAL_LM" and config.target_modules == {"q_proj"}
    ia3 = RunConfig.from_mapping({"adapter": {"peft_type": "IA3", "target_modules": ["v_proj"]}}).peft_config()
    assert isinstance(ia3, IA3Config)
    assert RunConfig().peft_config().r == 8, "LoRA of the backbone section"
    for wrong, said in (({"peft_type": "LORRA"}, "LORRA.*one of .*'IA3'"), ({**pissa, "lora_rank": 3}, "'lora_rank'")):
        with pytest.raises(LKGError, match=f"adapter is no configuration of PEFT.*{said}"):
            RunConfig.from_mapping({"adapter": wrong})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"graph": {"co_rating_min_people": 1}}, "it is 2 at least, so that no weight of a pair is one person's"),
        ({"examples": {"negatives": "retrived"}}, "negatives is 'retrieved' or 'uniform'"),
        ({"examples": {"folds": 0}}, "folds a whole number from 1 up"),
        ({"examples": {"easy_share": 1.5}}, "easy_share is 1.5; it is a share of the lists, from 0 to 1"),
        ({"examples": {"max_weighed": 0}}, "max_weighed is 0; it is a number of lists from 1 up, null for all"),
        ({"model": {"use_path_gate": "flase"}}, "model.use_path_gate is 'flase' in .*; it must be true or false"),
    ],
)
def test_what_a_section_cannot_be_is_told_before_anything_is_trained(content, said):
    with pytest.raises(LKGError, match=said):
        RunConfig.from_mapping(content)


def test_how_many_items_are_targets_is_one_setting_wherever_it_is_given():
    for config in (
        RunConfig(preprocessing=PreprocessingSettings(last=8)),
        RunConfig(evaluation=EvaluationSection(last=8)),
        RunConfig.from_mapping({"evaluation": {"last": 8}}),
        RunConfig.from_mapping(RunConfig(preprocessing=PreprocessingSettings(last=8)).to_mapping()),
    ):
        assert config.preprocessing.last == config.evaluation.last == 8
        assert config.changed({"evaluation.last": 1}).preprocessing.last == 1
    with pytest.raises(LKGError, match="preprocessing.last is 8, evaluation.last is 2.*Give evaluation.last alone"):
        RunConfig(preprocessing=PreprocessingSettings(last=8), evaluation=EvaluationSection(last=2))
