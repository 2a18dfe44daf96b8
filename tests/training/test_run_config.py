"""The configuration of a run: what it takes, and what it says of what it does not know."""

import pytest

from llamarec_lkg import LKGError
from llamarec_lkg.cli import main
from llamarec_lkg.training.run_config import RunConfig


def test_configuration_names_what_it_does_not_know():
    with pytest.raises(LKGError, match="Unknown section 'retreiver' in the configuration; did you mean 'retriever'"):
        RunConfig.from_mapping({"retreiver": {}})
    with pytest.raises(LKGError, match="Unknown key 'learning_rat' of training"):
        RunConfig.from_mapping({"training": {"learning_rat": 1}})
    with pytest.raises(LKGError, match="Unknown key 'num_paths' of model .*'prompt.num_paths'"):
        RunConfig.from_mapping({"model": {"num_paths": 1}})
    with pytest.raises(LKGError, match="not of the form section.key=value"):
        RunConfig.from_yaml(None, ["training"])
    with pytest.raises(LKGError, match="training.learning_rate is 'fast' in the override .*; it must be a number"):
        RunConfig.from_yaml(None, ["training.learning_rate=fast"])
    with pytest.raises(LKGError, match="Unknown section 'zzz'"):
        RunConfig.from_mapping({"zzz": 1})
    with pytest.raises(LKGError, match="controls \\['nothing'\\]"):
        RunConfig.from_yaml(None, ["evaluation.controls=[nothing]"])
    with pytest.raises(LKGError, match="adapter.peft_type is 'LORO'; PEFT knows"):
        RunConfig.from_mapping({"adapter": {"peft_type": "LORO"}})
    with pytest.raises(LKGError, match=r"\['lora_alpha'\] in adapter are no fields of PEFT's IA3Config"):
        RunConfig.from_mapping({"adapter": {"peft_type": "IA3", "lora_alpha": 1}})
    with pytest.raises(LKGError, match="is not YAML"):
        RunConfig.from_yaml(None, ["training.seed=[1"])
    rate = RunConfig.from_yaml(None, ["training.learning_rate=1e-4", "prompt.path_style=compact"]).training
    assert rate == {"learning_rate": 1e-4}
    config = RunConfig.from_yaml(None, ["training.seed=7", "prompt.num_paths=2", "graph.exclude_relations=[CO_RATED]"])
    assert config.training == {"seed": 7} and config.graph.exclude_relations == ["CO_RATED"]
    assert RunConfig.from_mapping(config.to_mapping()).to_mapping() == config.to_mapping()


SECTIONS = "output_dir, data, preprocessing, graph, retriever, examples, backbone, adapter, prompt, model, training"


@pytest.mark.parametrize(
    "override, said",
    [
        ("bogus.key=1", rf"Unknown section 'bogus' in the override 'bogus.key=1'\. The sections are {SECTIONS}, eval"),
        ("trainig.seed=1", rf"Unknown section 'trainig' in the .*; did you mean 'training.seed'\? The .* {SECTIONS}"),
        ("bogus=1", rf"Unknown section 'bogus' in the override 'bogus=1'\. The sections are {SECTIONS}"),
        ("learning_rate=1", "Unknown section 'learning_rate' in the .*; did you mean .*'training.learning_rate'"),
        ("model.num_paths=1", "Unknown key 'num_paths' of model in the override .*; did you mean 'prompt.num_paths'"),
        (
            "training.bogus=1",
            r"Unknown key 'bogus' of training in the override 'training.bogus=1'\. .*training knows .*learning_ra",
        ),
        (
            "training.learning_rat=1",
            "in the override 'training.learning_rat=1'; did you mean 'training.learning_rate'",
        ),
        ("retriever.learning_rat=1", "in the override .*; did you mean 'retriever.learning_rate'"),
        (
            "adapter.peft_tipe=LORA",
            "Unknown key 'peft_tipe' of adapter .*; did you mean 'adapter.peft_type'",
        ),
        ("training=1", "training is a section; the override 'training=1' gives it 1. .*as in training.key=value"),
        ("data=ml-100k", "data is a section; .*'data=ml-100k' .*as in data.key=value; data knows dataset, revision"),
        (
            "training={bogus: 1, seed: 2}",
            r"'bogus' of training in the override 'training=.bogus: 1, seed: 2.'\.",
        ),
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
    with pytest.raises(LKGError, match="Unknown key 'bogus' of training in the file .*run.yaml"):
        RunConfig.from_yaml(path, ["training.seed=1"])
    path.write_text("- training\n")
    with pytest.raises(LKGError, match="A configuration is a mapping of sections; the file .* is a list"):
        RunConfig.from_yaml(path, ["training.seed=1"])
    with pytest.raises(LKGError, match="training is a section.*'fast'"):
        RunConfig.from_mapping({"training": "fast"})
