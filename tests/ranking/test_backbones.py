"""Which backbone is loaded: the very one that was trained around, wherever its branch is now; and what is none."""

import json

import pytest
import torch
from hub_stand_in.world import BACKBONE, LORA, RANKER, logits, named_dataset, push_backbone, ranker, uploaded
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from tiny import backbone
from transformers import AutoModel, AutoModelForCausalLM

from llamarec_lkg import LKGError, LlamaRecLKGForRanking
from llamarec_lkg.utils.hub import HUB_IDS, SMOLLM2_NAME, is_local, lasting_name


pytestmark = pytest.mark.hub


@pytest.fixture
def film_dataset(make_dataset, film_items):
    return named_dataset(make_dataset, film_items)


@pytest.fixture
def first(hub) -> str:
    """The commit of a backbone on the Hub."""
    push_backbone()
    return head(BACKBONE)


def head(name: str) -> str:
    return HfApi().model_info(name).sha


def move(name: str = BACKBONE, **branch) -> str:
    """Push other weights of the same shapes, and tell their commit."""
    changed = backbone()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.5)
    return changed.push_to_hub(name, **branch).oid


# -- the commit


def test_the_very_backbone_is_loaded_again_though_its_branch_has_moved(hub, first, proc, film_dataset):
    trained = ranker(proc)
    trained.push_to_hub(RANKER)
    assert "_commit_hash" not in json.loads(uploaded(hub)["config.json"])
    assert trained.config.backbone_revision == first
    assert json.loads(uploaded(hub)["config.json"])["backbone_revision"] == first
    expected = logits(trained, proc, film_dataset)
    assert move() != first
    for local in (False, True):
        again = AutoModel.from_pretrained(RANKER, local_files_only=local)
        assert torch.equal(logits(again, proc, film_dataset), expected)
        assert (again.config.name_or_path, again.config._commit_hash) == (RANKER, head(RANKER))
    again.push_to_hub("tester/again")
    assert torch.equal(logits(AutoModel.from_pretrained("tester/again"), proc, film_dataset), expected)


def test_a_branch_becomes_the_commit_that_it_means_today(first, proc):
    HfApi().create_branch(BACKBONE, branch="v2")
    second = move(revision="v2")
    config = proc.model_config(backbone_revision="v2")
    by_config = LlamaRecLKGForRanking.from_backbone(BACKBONE, config)
    by_argument = LlamaRecLKGForRanking.from_backbone(BACKBONE, proc.model_config(), revision="v2")
    by_commit = LlamaRecLKGForRanking.from_backbone(BACKBONE, proc.model_config(), revision=first)
    assert by_config.config.backbone_revision == by_argument.config.backbone_revision == second
    assert by_commit.config.backbone_revision == first
    weights = [each.get_input_embeddings().weight for each in (by_config, by_argument, by_commit)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_one_configuration_makes_rankers_around_several_backbones(first, proc, tmp_path):
    push_backbone("tester/copy")
    backbone().save_pretrained(tmp_path / "base")
    config = proc.model_config()
    found = []
    for name in (BACKBONE, "tester/copy", str(tmp_path / "base")):
        LlamaRecLKGForRanking.from_backbone(name, config)
        found.append((config.backbone_name_or_path, config.backbone_revision))
    assert found == [(BACKBONE, first), ("tester/copy", head("tester/copy")), (str(tmp_path / "base"), None)]


def test_a_commit_that_is_gone_is_told_with_the_remedy_which_says_what_it_costs(first, proc, film_dataset, tmp_path):
    trained, gone = ranker(proc), "0" * 40
    trained.config.backbone_revision = gone
    trained.save_pretrained(tmp_path / "run")
    message = f"(?s)could not be loaded at {gone}.*Give `backbone=`.* loaded as it is now"
    with pytest.raises(LKGError, match=message):
        AutoModel.from_pretrained(tmp_path / "run")
    again = AutoModel.from_pretrained(tmp_path / "run", backbone=BACKBONE)
    assert again.config.backbone_revision == first
    assert torch.equal(logits(again, proc, film_dataset), logits(trained, proc, film_dataset))


def test_what_is_pushed_under_another_backbones_name_does_not_ask_for_the_first_commit(hub, first, proc, film_dataset):
    push_backbone("tester/copy")
    trained = ranker(proc)
    trained.push_to_hub(RANKER, backbone="tester/copy")
    assert json.loads(uploaded(hub)["config.json"])["backbone_revision"] is None
    again = AutoModel.from_pretrained(RANKER)
    assert torch.equal(logits(again, proc, film_dataset), logits(trained, proc, film_dataset))
    trained.push_to_hub(RANKER, backbone=BACKBONE)
    assert json.loads(uploaded(hub)["config.json"])["backbone_revision"] == first


# -- tenants


def test_adapters_of_two_commits_of_one_backbone_are_not_taken_for_neighbours(first, proc, film_dataset, caplog):
    old = ranker(proc)
    old.push_to_hub("tester/old")
    second = move()
    ranker(proc).push_to_hub("tester/new")
    model = AutoModel.from_pretrained("tester/old", adapter_name="old")
    with pytest.raises(LKGError, match=f"{BACKBONE} at {second}, this model has {BACKBONE} at {first}.*its own"):
        model.load_adapter("tester/new", "new")
    assert model.adapter_names == ["old"]
    model.load_adapter("tester/new", "new", same_backbone=True)
    model.set_adapter("new")
    assert model.config.backbone_revision == first, "all tenants speak of the backbone that is there"
    model.load_adapter("tester/old", "old again")
    model.set_adapter("old again")
    assert torch.equal(logits(model, proc, film_dataset), logits(old, proc, film_dataset))


def test_an_adapter_that_names_no_commit_takes_the_backbone_that_is_there(hub, proc, film_dataset, tmp_path):
    """As the one that was trained on a folder, and pushed with the name that the folder has on the Hub."""
    backbone().save_pretrained(tmp_path / "base")
    push_backbone()
    trained = ranker(proc, name=str(tmp_path / "base"))
    for name in ("tester/one", "tester/two"):
        trained.push_to_hub(name, backbone=BACKBONE)
    model = AutoModel.from_pretrained("tester/one")
    assert model.config.backbone_revision == head(BACKBONE)
    model.load_adapter("tester/two", "two")
    model.set_adapter("two")
    assert torch.equal(logits(model, proc, film_dataset), logits(trained, proc, film_dataset))


# -- a backbone that is loaded already


def test_a_loaded_backbone_is_named_as_it_was_loaded_and_its_commit_is_not_guessed_at(
    first, proc, tmp_path, monkeypatch
):
    loaded = AutoModelForCausalLM.from_pretrained(BACKBONE)
    backbone().save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    folder = AutoModelForCausalLM.from_pretrained("base")
    found = []
    for model, said in (
        (loaded, {}),
        (loaded, {"backbone_revision": first}),
        (loaded, {"backbone_name_or_path": "you/same"}),
        (folder, {}),
    ):
        config = proc.model_config(**said)
        LlamaRecLKGForRanking.from_backbone(model, config)
        found.append((config.backbone_name_or_path, config.backbone_revision))
    assert found == [(BACKBONE, None), (BACKBONE, first), ("you/same", None), (str(tmp_path / "base"), None)]


def test_what_is_a_folder_and_what_is_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("you/base", SMOLLM2_NAME):
        (tmp_path / name).mkdir(parents=True)
    assert is_local("you/base") and not is_local("you/other"), "a folder that is there comes first, as everywhere"
    assert all(map(is_local, ("./gone", "../gone", ".", "~/gone", "~", "/gone")))
    assert not is_local(SMOLLM2_NAME) and not any(map(is_local, HUB_IDS.values()))
    assert lasting_name("you/base") == str(tmp_path / "you" / "base")
    assert [lasting_name(name) for name in ("you/other", SMOLLM2_NAME, "")] == ["you/other", SMOLLM2_NAME, ""]


# -- what is no backbone


@pytest.mark.parametrize("how", ["PEFT model", "its repository", "its folder", "adapter added by transformers"])
def test_a_backbone_with_an_adapter_of_its_own_is_refused_and_merged_it_is_taken(first, proc, tmp_path, how):
    base = AutoModelForCausalLM.from_pretrained(BACKBONE)
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    config = proc.model_config()
    if how == "adapter added by transformers":
        base.add_adapter(lora)
        given = base
    else:
        given = peft_model = get_peft_model(base, lora)
    if how == "its repository":
        given.push_to_hub("tester/sft-lora")
        given = "tester/sft-lora"
    elif how == "its folder":
        given.save_pretrained(tmp_path / "sft-lora")
        given = tmp_path / "sft-lora"
    with pytest.raises(LKGError, match=r"carries a PEFT adapter of its own \('default'\).*merge_and_unload") as told:
        LlamaRecLKGForRanking.from_backbone(given, config)
    assert len(str(told.value)) < 500
    assert config.backbone_name_or_path is None, "a refusal leaves the configuration as it was"
    if how == "PEFT model":
        peft_model.merge_and_unload().save_pretrained(tmp_path / "merged")
        LlamaRecLKGForRanking.from_backbone(tmp_path / "merged", config).add_adapter(LORA)


def test_a_backbone_that_is_no_language_model_is_refused(proc):
    with pytest.raises(LKGError, match="The backbone is a Linear; give a causal language model"):
        LlamaRecLKGForRanking.from_backbone(torch.nn.Linear(2, 2), proc.model_config())
