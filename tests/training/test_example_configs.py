"""The example configurations do what they say: each takes two steps with a tiny backbone of its architecture; each
accelerate file is read by accelerate itself and, where the machine can, starts a run."""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from hub_stand_in.card_checks import metadata, validate
from safetensors.torch import load_file
from tiny import backbone, tokenizer
from tiny_run import settings, write_world

from llamarec_lkg import LlamaRecLKGConfig, LlamaRecLKGForRanking, LlamaRecLKGProcessor
from llamarec_lkg.hub.model_card import ModelCard
from llamarec_lkg.ranking.scoring import ranker_scores
from llamarec_lkg.training.run_config import RunConfig
from llamarec_lkg.training.workflow import Workflow


pytestmark = pytest.mark.hub

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, ACCELERATE = ROOT / "examples" / "configs", ROOT / "examples" / "accelerate"
WIDE = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes packs blocks of 64
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
# architecture and peculiarities of each configuration's backbone, in small
BACKBONES = {
    "llama-2-7b-qlora": ("llama", {"num_key_value_heads": 4, "max_position_embeddings": 4096}),
    "llama-3.1-8b-qlora": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "qwen3-4b": ("qwen3", {"tie_word_embeddings": True}),
    "smollm2": ("llama", {"tie_word_embeddings": True}),
    "ml-100k": ("llama", {"tie_word_embeddings": True}),
    "quickstart": ("llama", {"tie_word_embeddings": True}),
    "ml-latest-small": ("llama", {"tie_word_embeddings": True}),
    "amazon-games": ("llama", {"tie_word_embeddings": True}),
}
OVERLAYS = {"gpu", "gpu-all-layers"}  # which are laid over another configuration


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    write_world(folder / "world")
    for name, (kind, sizes) in BACKBONES.items():
        backbone(kind, **{**WIDE, **sizes}).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return folder


def small(world, tmp_path, name):
    """Overrides that make a configuration small: other data, another backbone, two steps; all else is its own."""
    return [
        f"output_dir={tmp_path / name}",
        f"data.dataset={world / 'world'}",
        "preprocessing.min_user_interactions=3",
        "preprocessing.min_item_interactions=1",
        "retriever.max_steps=4",
        "retriever.eval_steps=4",
        "retriever.hidden_size=16",
        "examples.max_train=4",
        "examples.max_validation=2",
        "prompt.num_candidates=12",
        f"backbone.model_name_or_path={world / name}",
        "training.max_steps=2",  # the first moves what reads the language model, the second the model
        "training.load_best_model_at_end=false",  # which may be that after the first
        "training.per_device_train_batch_size=2",
        "training.gradient_accumulation_steps=1",
        "training.heads_warm_up_epochs=1",
        "training.eval_steps=1",
        "training.save_steps=1",
        "training.warmup_steps=0",
        "training.use_cpu=true",
        "training.disable_tqdm=true",
    ]


def test_every_configuration_is_tested_here():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(BACKBONES) | OVERLAYS


def laid_over(base, overlay):
    alone, over = (RunConfig.from_yaml([CONFIGS / f"{n}.yaml" for n in names]) for names in ((base,), (base, overlay)))
    assert set(alone.benchmark.variants) <= set(over.benchmark.variants), "an overlay takes nothing away"
    for changes in over.benchmark.variants.values():
        over.changed(changes)
    return alone, over


def test_a_size_for_one_gpu_reads_all_lists_and_has_rows_with_all_layers():
    alone, over = laid_over("amazon-games", "gpu")
    assert over.examples.max_train is None and alone.examples.max_train
    assert over.changed(over.benchmark.variants["ranker-all-layers-4bit"]).backbone.load_in_4bit


def test_a_size_for_one_gpu_has_all_layers_throughout():
    alone, over = laid_over("ml-latest-small", "gpu-all-layers")
    assert over.model["num_hidden_layers"] is None and alone.model["num_hidden_layers"] == 6
    assert over.examples.max_train == 12_000


@pytest.mark.parametrize("name", BACKBONES)
def test_a_configuration_claims_no_licence_that_its_data_do_not_give(name):
    """MovieLens and the Amazon reviews are for research: what learned from them is under no licence with a name."""
    config = RunConfig.from_yaml(CONFIGS / f"{name}.yaml")
    assert config.data.dataset in ("ml-100k", "ml-latest-small", "amazon-games")
    card = str(ModelCard("you/ranker", base_model="you/backbone", **config.card.given()).to_hub_card())
    assert validate(card, "model") == ([], [])
    assert metadata(card)["license"] == "other"


@pytest.mark.parametrize("name", BACKBONES)
def test_a_configuration_takes_steps_with_its_own_settings(world, tmp_path, name):
    whole = RunConfig.from_yaml(CONFIGS / f"{name}.yaml")
    if whole.backbone.load_in_4bit:
        pytest.importorskip("bitsandbytes")
    cut = ["model.num_hidden_layers=1"] if "num_hidden_layers" in whole.model else []
    config = RunConfig.from_yaml(CONFIGS / f"{name}.yaml", [*small(world, tmp_path, name), *cut])
    workflow = Workflow(config, progress=False)
    folder = workflow.train()
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    for name, key in (("r", "lora_r"), *((key, key) for key in ("lora_alpha", "lora_dropout", "use_rslora"))):
        assert adapter[name] == getattr(whole.backbone, key)
    if whole.backbone.lora_target_modules != "all-linear":
        assert set(adapter["target_modules"]) == set(whole.backbone.lora_target_modules)
    log = json.loads((folder / "training_log.json").read_text())
    assert any("train_loss" in record for record in log) and any("eval_ndcg@10" in record for record in log)
    model = LlamaRecLKGForRanking.from_pretrained(folder, **workflow.backbone_arguments())
    four_bit = any("Linear4bit" in type(module).__name__ for module in model.language_model.modules())
    assert four_bit == whole.backbone.load_in_4bit
    weights = [p for n, p in model.language_model.named_parameters() if "lora_B" in n]
    assert weights and any(bool(p.any()) for p in weights), "the adapter learned something"
    processor = LlamaRecLKGProcessor.from_pretrained(folder)
    lists = workflow.lists(processor, "validation")[:3]
    scores = ranker_scores(model, processor, lists, progress=False)
    assert scores.shape == (3, 12)


def test_the_published_run_is_the_published_recipe(world):
    config = RunConfig.from_yaml(CONFIGS / "llama-2-7b-qlora.yaml")
    given = {**config.prompt, **config.model}
    paper = LlamaRecLKGConfig.paper(["GENRE_IS"], num_users=610)
    ours = LlamaRecLKGConfig(relations=["GENRE_IS"], num_users=610, **given)
    assert ours.to_dict() == paper.to_dict()
    backbone, training = config.backbone, config.training
    assert (backbone.load_in_4bit, backbone.bnb_4bit_quant_type) == (True, "nf4")
    assert (backbone.lora_r, backbone.lora_alpha, backbone.lora_dropout) == (8, 32, 0.05)
    assert backbone.lora_target_modules == ["q_proj", "v_proj"]
    expected = {"learning_rate": 1e-4, "num_train_epochs": 1, "per_device_train_batch_size": 12, "warmup_steps": 100}
    expected |= {"eval_steps": 100, "early_stopping_patience": 20, "metric_for_best_model": "eval_ndcg@10"}
    assert {name: training[name] for name in expected} == expected
    assert (config.examples.folds, config.examples.negatives, config.examples.shuffle) == (1, "uniform", True)
    assert config.retriever.learning_rate == 1e-3 and config.retriever.batch_size == 16


# -- accelerate

KINDS = {
    "ddp": ("MULTI_GPU", {"multi_gpu": True}),
    "fsdp2": ("FSDP", {"use_fsdp": True, "fsdp_version": 2, "fsdp_reshard_after_forward": "true"}),
    "deepspeed_zero2": ("DEEPSPEED", {"use_deepspeed": True, "zero_stage": 2}),
    "deepspeed_zero3": ("DEEPSPEED", {"use_deepspeed": True, "zero_stage": 3, "zero3_save_16bit_model": "true"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_its_files_and_launches_what_they_name(name):
    from accelerate.commands.launch import _validate_launch_command

    path = ACCELERATE / f"{name}.yaml"
    kind, expected = KINDS[name]
    config = load_config_from_file(str(path))  # refuses keys it does not know
    assert config.distributed_type.name == kind and config.mixed_precision == "bf16"
    command = ["--config_file", str(path), str(ROOT / "examples" / "train_ranker.py"), "--config", "x.yaml"]
    args = launch_command_parser().parse_args(command)
    args, defaults, _ = _validate_launch_command(args)
    for key, value in expected.items():
        assert str(getattr(args, key)).lower() == str(value).lower(), key
    assert args.num_processes == 2 and args.mixed_precision == "bf16"
    assert {p.stem for p in ACCELERATE.glob("*.yaml")} == set(KINDS)


# examples/train_ranker.py, and what the first step of each process finds
PROBE = """
import os
import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from llamarec_lkg import LlamaRecLKGTrainer

original = LlamaRecLKGTrainer.training_step


def training_step(self, model, *args, **kwargs):
    sharded = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    own = sum(p.to_local().numel() if name in sharded else p.numel() for name, p in model.named_parameters())
    whole = sum(p.numel() for p in model.parameters())
    print(f"\\nstep: {type(model).__name__}, {len(sharded)} sharded, {own / whole:.2f} held here", flush=True)
    return original(self, model, *args, **kwargs)


LlamaRecLKGTrainer.training_step = training_step
make = LlamaRecLKGTrainer.create_accelerator_and_postprocess


def create_accelerator_and_postprocess(self):
    # accelerate shards on GPUs alone, but gloo can do it as well
    if os.environ["ON_CPU"] == "1" and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    make(self)


LlamaRecLKGTrainer.create_accelerator_and_postprocess = create_accelerator_and_postprocess
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def launched(world):
    """`launched(name)`: a run under an accelerate file, in two processes; its folder and its first lines of steps.

    On a machine without GPUs gloo stands in for NCCL and float32 for bfloat16; all else is the file's.
    """

    @cache
    def launch(name):
        folder, on_cpu = world / f"launched-{name}", torch.cuda.device_count() < 2
        folder.mkdir()
        content = yaml.safe_load((ACCELERATE / f"{name}.yaml").read_text())
        (folder / "accelerate.yaml").write_text(yaml.safe_dump({**content, "mixed_precision": "no"}))
        (folder / "probe.py").write_text(PROBE)
        run = settings(world, max_steps=2, use_cpu=on_cpu, num_train_epochs=2, learning_rate=1e-2, warmup_steps=0)
        run["backbone"] |= {"model_name_or_path": str(world / "smollm2"), "lora_dropout": 0.0}
        run["model"] = {"user_dropout": 0.0, "preference_dropout": 0.0}
        run["output_dir"] = str(folder / "run")
        run["evaluation"] = {"resamples": 20, "second_seed": False, "controls": []}
        (folder / "run.yaml").write_text(yaml.safe_dump(run))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ON_CPU": str(int(on_cpu))}
        if on_cpu:
            environment["ACCELERATE_USE_CPU"] = "true"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", folder / "accelerate.yaml"]
        command += [folder / "probe.py", ROOT / "examples" / "train_ranker.py", "--config", folder / "run.yaml"]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert "2 process(es)" in finished.stdout
        steps = [line for line in finished.stdout.splitlines() if line.startswith("step: ")]
        return folder / "run", steps

    return launch


@pytest.mark.parametrize("name", KINDS)
def test_a_run_starts_under_each_accelerate_file(launched, name):
    if name.startswith("deepspeed") and (find_spec("deepspeed") is None or torch.cuda.device_count() < 2):
        pytest.skip("DeepSpeed needs its package and two GPUs")
    folder, steps = launched(name)
    assert len(steps) == 4, "two steps in two processes"
    if name == "ddp":
        assert all("DistributedDataParallel, 0 sharded" in step for step in steps)
    if name == "fsdp2":
        assert all("FSDPLlamaRecLKGForRanking" in step and "0.50 held here" in step for step in steps)
    assert json.loads((folder / "report.json").read_text())["rows"]


def test_sharded_training_saves_the_weights_that_unsharded_training_does(launched):
    """Whole, gathered from both processes, of the best checkpoint; adapter, preferences and fusion alike."""
    folders = [launched(name)[0] for name in ("ddp", "fsdp2")]
    for file in ("adapter/adapter_model.safetensors", "model.safetensors"):
        first, second = (load_file(folder / file) for folder in folders)
        assert first.keys() == second.keys()
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], rtol=1e-3, atol=1e-5, msg=key)
    assert any(bool(value.any()) for key, value in load_file(folders[0] / file).items() if "relation_embedding" in key)
