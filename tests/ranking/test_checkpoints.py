"""The files of a saved ranker: one form a folder, all of a save or nothing of it, and no weight that goes missing."""

import itertools
import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny import LORA, backbone
from transformers import AutoModel, PreTrainedModel

from llamarec_lkg import LKGError, LlamaRecLKGForRanking
from llamarec_lkg.hub.saved_folder import SavedFolder
from llamarec_lkg.ranking import checkpoints as module


WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter/adapter_model.safetensors"
SHIM = "modeling_llamarec_lkg_hub.py"
SMALL = {"config.json", WEIGHTS, SHIM}
SHARDS = {f"model-0000{n}-of-00005.safetensors" for n in range(1, 6)}
FORMS = {
    "adapter": SMALL | {ADAPTER, "adapter/adapter_config.json"},
    "heads": SMALL,
    "no backbone": SMALL,
    "whole": SMALL,
    "sharded": {"config.json", INDEX, SHIM} | SHARDS,
}


def varied(ranker, seed=0):
    """As if trained: each seed is another ranker."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in ranker.named_parameters():
            if "lora" in name or name.startswith(("preference.", "fusion.", "readout.")):
                weight.add_(0.3 * torch.randn_like(weight))
    return ranker.eval()


def ranker_of(form, proc, base, seed=0):
    """A ranker, and what `save_pretrained` needs to know for it to be saved in a form."""
    if form == "no backbone":
        return varied(LlamaRecLKGForRanking(proc.model_config(use_language_model=False)), seed), {}
    ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config(lm_scale=1.0))
    if form == "adapter":
        ranker.add_adapter(LoraConfig(**LORA))
    options = {"heads": {"include_backbone": False}, "sharded": {"max_shard_size": "40KB"}}
    return varied(ranker, seed), options.get(form, {})


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scores(ranker, batch):
    with torch.no_grad():
        return ranker(**batch).logits


def same(one, other):
    """But for the last bits, which depend on where in memory the weights of a file come to lie."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def lose(folder, *names, file=WEIGHTS):
    weights = {name: value for name, value in load_file(folder / file).items() if not any(n in name for n in names)}
    save_file(weights, folder / file, metadata={"format": "pt"})


# -- one form a folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first, second", [*itertools.permutations(FORMS, 2)])
def test_a_folder_holds_the_form_that_was_saved_last_and_nothing_of_another(
    proc, batch, base, tmp_path, first, second
):
    folder = tmp_path / "run"
    ranker, options = ranker_of(first, proc, base)
    ranker.save_pretrained(folder, **options)
    assert files_in(folder).keys() == FORMS[first]
    (folder / "items.parquet").write_text("of the processor")
    ranker, options = ranker_of(second, proc, base, seed=1)
    ranker.save_pretrained(folder, **options)
    assert files_in(folder).keys() == FORMS[second] | {"items.parquet"}
    assert same(scores(AutoModel.from_pretrained(folder), batch), scores(ranker, batch))
    pushed = SavedFolder(folder, ("model",)).content(backbone="owner/base")
    assert pushed.keys() == FORMS[second], "what is pushed is what is loaded"


@pytest.mark.parametrize("form", ["whole", "adapter"])
def test_somebodys_own_folder_of_the_name_adapter_stays(proc, batch, base, tmp_path, form):
    """A project that keeps its code in `adapter/`, and saves in "."."""
    own = {"adapter/__init__.py": b"code", "adapter/deep/notes.md": b"notes"}
    for path, content in own.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    for first in ("adapter", form):  # the second is beside somebody's files and those of the first
        ranker, options = ranker_of(first, proc, base)
        ranker.save_pretrained(tmp_path, **options)
        assert files_in(tmp_path).items() >= own.items()
        assert files_in(tmp_path).keys() == FORMS[first] | own.keys()
        assert same(scores(AutoModel.from_pretrained(tmp_path), batch), scores(ranker, batch))


@pytest.mark.parametrize("form", ["whole", "adapter"])
def test_arguments_that_transformers_passes_over_are_passed_over(proc, base, tmp_path, form):
    ranker, options = ranker_of(form, proc, base)
    ranker.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="1GB", of_another_version=1, **options)
    proc.save_pretrained(tmp_path / "processor", safe_serialization=True, max_shard_size="1GB")
    assert (tmp_path / "processor" / "processor_config.json").exists()
    kept = {path for path in files_in(tmp_path) if not path.startswith("processor/")}
    assert kept == FORMS[form]
    with pytest.raises(TypeError, match="'of_another_version' is no argument of saving or pushing"):
        ranker.save_pretrained(tmp_path, push_to_hub=True, of_another_version=1)


@pytest.mark.parametrize("form", FORMS)
def test_another_process_than_the_main_one_writes_and_removes_nothing(proc, base, tmp_path, form):
    ranker_of("adapter" if form != "adapter" else "sharded", proc, base)[0].save_pretrained(tmp_path / "run")
    before = files_in(tmp_path / "run")
    ranker, options = ranker_of(form, proc, base, seed=1)
    ranker.save_pretrained(tmp_path / "run", is_main_process=False, **options)
    assert files_in(tmp_path / "run") == before
    ranker.save_pretrained(tmp_path / "new", is_main_process=False, **options)
    assert not (tmp_path / "new").exists() or not files_in(tmp_path / "new")


# -- all of a save or nothing of it -----------------------------------------------------------------------------------


def fails(*arguments, **options):
    raise OSError("disk full")


@pytest.mark.parametrize("first, second", [("adapter", "whole"), ("whole", "adapter"), ("adapter", "adapter")])
@pytest.mark.parametrize("where", ["weights", "adapter", "config", "moving"])
def test_a_save_that_fails_leaves_the_earlier_model(proc, batch, base, tmp_path, monkeypatch, first, second, where):
    folder = tmp_path / "run"
    old, options = ranker_of(first, proc, base)
    old.save_pretrained(folder, **options)
    before, expected = files_in(folder), scores(old, batch)
    new, options = ranker_of(second, proc, base, seed=1)
    external = new.config.external_backbone
    with monkeypatch.context() as patch:
        if where == "weights":
            patch.setattr(
                *((PreTrainedModel, "save_pretrained") if second == "whole" else (module, "save_file")), fails
            )
        elif where == "adapter":
            patch.setattr(LlamaRecLKGForRanking, "_save_adapter", fails)
        elif where == "config":
            patch.setattr(type(new.config), "save_pretrained", fails)
        else:
            replace = os.replace
            patch.setattr(os, "replace", lambda a, b: fails() if str(a).endswith(f"new/{WEIGHTS}") else replace(a, b))
        if (second, where) != ("whole", "adapter"):
            with pytest.raises(OSError, match="disk full"):
                new.save_pretrained(folder, **options)
            assert new.config.external_backbone == external
            assert files_in(folder) == before and not list(folder.glob(".writing*")), "nothing new, nothing less"
            with pytest.raises(OSError, match="disk full"):
                new.save_pretrained(tmp_path / "new" if where != "moving" else folder, **options)
            assert not (tmp_path / "new").exists()
    assert same(scores(AutoModel.from_pretrained(folder), batch), expected)
    new.save_pretrained(folder, **options)
    assert same(scores(AutoModel.from_pretrained(folder), batch), scores(new, batch))


@pytest.mark.parametrize("first, second", [*itertools.product(("adapter", "sharded"), FORMS), ("whole", "sharded")])
def test_a_save_that_is_killed_leaves_one_of_the_two_models_or_none(
    proc, batch, base, tmp_path, monkeypatch, first, second
):
    """What lies in the folder before and after each renaming is what a kill would leave."""
    folder, moments, replace = tmp_path / "run", [], os.replace
    models = [ranker_of(form, proc, base, seed) for seed, form in enumerate((first, second))]
    models[0][0].save_pretrained(folder, **models[0][1])

    def note(source, target):
        replace(source, target)
        if str(folder) == os.path.dirname(target) or str(folder) == os.path.dirname(source):
            moments.append(tmp_path / f"moment{len(moments)}")
            shutil.copytree(folder, moments[-1])

    monkeypatch.setattr(os, "replace", note)
    models[1][0].save_pretrained(folder, **models[1][1])
    expected, seen = [scores(ranker, batch) for ranker, _ in models], []
    for moment in moments:
        try:
            found = scores(AutoModel.from_pretrained(moment), batch)
            seen.append([same(found, one) for one in expected].index(True))
        except (OSError, ValueError):
            seen.append("refused")
    assert len(moments) >= 4 and seen == ["refused"] * (len(moments) - 1) + [1]


# -- no weight that goes missing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_whole_checkpoint_without_some_of_its_backbone_is_refused(proc, batch, tmp_path, sharded, tied):
    plain = backbone(tie_word_embeddings=tied)
    ranker = varied(LlamaRecLKGForRanking.from_backbone(plain, proc.model_config(lm_scale=1.0)))
    ranker.save_pretrained(tmp_path, **({"max_shard_size": "40KB"} if sharded else {}))
    whole, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and same(scores(whole, batch), scores(ranker, batch))
    for file in sorted(path.name for path in tmp_path.glob("model*.safetensors")):
        lose(tmp_path, "layers.1.mlp", file=file)
    with pytest.raises(
        LKGError, match=r"lacks the weights \['language_model.model.layers.1.mlp.down_proj.weight', .*damaged"
    ):
        AutoModel.from_pretrained(tmp_path)


def test_a_configuration_of_a_whole_model_beside_the_weights_of_a_small_one_is_refused(proc, base, tmp_path):
    ranker_of("adapter", proc, base)[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "external_backbone": False}))
    with pytest.raises(LKGError, match=r"lacks the weights \['language_model.* and 16 more. It is damaged, its fi"):
        AutoModel.from_pretrained(tmp_path)
    with pytest.raises(LKGError, match=r"not whole: \['language_model.\*'\] is missing"):
        SavedFolder(tmp_path, ("model",)).content()


@pytest.mark.parametrize("form", ["adapter", "heads"])
def test_a_small_form_beside_the_weights_of_a_whole_model_is_refused(proc, base, tmp_path, form):
    ranker, options = ranker_of(form, proc, base)
    ranker.save_pretrained(tmp_path / "run", **options)
    ranker_of("whole", proc, base, seed=1)[0].save_pretrained(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / WEIGHTS, tmp_path / "run" / WEIGHTS)
    said = rf"{WEIGHTS} does not fit .* 2\d weights differ, .*'language_model.lm_head.weight': \(\(300, 32\), None\)"
    with pytest.raises(LKGError, match=said):
        AutoModel.from_pretrained(tmp_path / "run")
    with pytest.raises(LKGError, match="weights of another model beside those of its config.json"):
        SavedFolder(tmp_path / "run", ("model",)).content(backbone="owner/base")
    if form == "adapter":
        with pytest.raises(LKGError, match=said):
            ranker.load_adapter(tmp_path / "run", "second", same_backbone=True)
        assert ranker.adapter_names == ["default"]


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_a_checkpoint_of_a_whole_model_is_put_in_place(proc, batch, base, tmp_path, form):
    ranker, options = ranker_of(form, proc, base)
    with torch.no_grad():
        ranker.get_input_embeddings().weight.mul_(1.5)
    ranker.save_pretrained(tmp_path, **options)
    fresh = ranker_of(form, proc, base, seed=1)[0]
    fresh.load_trained_weights(tmp_path)
    assert same(scores(fresh, batch), scores(ranker, batch))
    for file in SHARDS if form == "sharded" else [WEIGHTS]:
        lose(tmp_path, "layers.1.mlp", file=file)
    with pytest.raises(LKGError, match="does not fit this model.*layers.1.mlp"):
        fresh.load_trained_weights(tmp_path)


# -- what an earlier version left -------------------------------------------------------------------------------------


def test_a_shard_that_is_missing_is_named_before_the_push(proc, base, tmp_path):
    ranker, options = ranker_of("sharded", proc, base)
    ranker.save_pretrained(tmp_path / "run", **options)
    (tmp_path / "run" / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(LKGError, match=r"not whole: \['model-00002-of-00005.safetensors'\] is missing"):
        SavedFolder(tmp_path / "run", ("model",)).content()
