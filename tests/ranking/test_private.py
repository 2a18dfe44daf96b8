"""Weights of single users: none unless asked for, and then in one folder that is left out of commits and pushes."""

import shutil

import pytest
import torch
from hub_stand_in.world import USERS, named_dataset, readable
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny import LORA, backbone
from transformers import AutoModel, AutoProcessor

from llamarec_lkg import LKGError, LlamaRecLKGConfig, LlamaRecLKGForRanking, LlamaRecLKGProcessor
from llamarec_lkg.hub.layout import USER_EMBEDDING, USER_EMBEDDING_FILE, USERS_FILE


FORMS = ["adapter", "heads", "no backbone", "whole", "sharded"]


@pytest.fixture
def film_dataset(make_dataset, film_items):
    return named_dataset(make_dataset, film_items)


def make(proc, tmp_path, form, seed=0, **config):
    """A ranker that knows its users, as if trained, and what to save it with."""
    config = {"use_user_embedding": True, "lm_scale": 1.0, **config}
    if form == "no backbone":
        ranker = LlamaRecLKGForRanking(proc.model_config(use_language_model=False, **config))
    else:
        backbone().save_pretrained(tmp_path / "base")
        ranker = LlamaRecLKGForRanking.from_backbone(tmp_path / "base", proc.model_config(**config))
    if form == "adapter":
        ranker.add_adapter(LoraConfig(**LORA))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in ranker.named_parameters():
            if "lora" in name or name.startswith(("preference.", "readout.")):
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        ranker.preference.user_embedding.weight[0].zero_()
    options = {"heads": {"include_backbone": False}, "sharded": {"max_shard_size": "40KB"}}
    return ranker.eval(), options.get(form, {})


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_by_default_there_are_none(proc, batch, tmp_path):
    ranker = LlamaRecLKGForRanking(proc.model_config(use_language_model=False))
    assert ranker.preference.user_embedding is None and ranker.config.num_users == 0
    ranker.save_pretrained(tmp_path)
    assert not (tmp_path / "private").exists() and not (tmp_path / ".gitignore").exists()


@pytest.mark.parametrize("size", [0, 8])
@pytest.mark.parametrize("form", FORMS)
def test_users_are_in_private_alone_and_without_it_everybody_is_the_average_user(proc, batch, tmp_path, form, size):
    ranker, options = make(proc, tmp_path, form, user_embedding_size=size)
    folder, copy = tmp_path / "run", tmp_path / "copy"
    folder.mkdir()
    (folder / ".gitignore").write_text("*.log")
    ranker.save_pretrained(folder, **options)
    assert (folder / ".gitignore").read_text().split() == ["*.log", "private/", "checkpoint*/"]
    proc.save_pretrained(folder)
    assert load_file(folder / USER_EMBEDDING_FILE).keys() == {USER_EMBEDDING}

    again = AutoModel.from_pretrained(folder)
    proc.check_model(again.config)
    assert again.config.num_users == 4 and again.config.users == proc.users
    close(again.score(batch), ranker.score(batch))
    assert AutoProcessor.from_pretrained(folder).user_ids == proc.user_ids

    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("private"))
    files = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    text, table = readable(files), ranker.preference.user_embedding.weight[1:].detach().numpy()
    assert not [user for user in USERS if user.encode() in text]
    assert not [row for row in table if row.tobytes() in text] and USER_EMBEDDING.encode() not in text
    assert b'"num_users": 4' not in text and proc.users.encode() not in text
    average = AutoModel.from_pretrained(copy)
    assert average.config.num_users == 0 and AutoProcessor.from_pretrained(copy).user_ids == ()
    nobody = {**batch, "user_ids": torch.zeros_like(batch["user_ids"])}
    close(average.score(batch), ranker.score(nobody))
    close(ranker.score({**batch, "user_ids": torch.full_like(batch["user_ids"], 10_000)}), ranker.score(nobody))
    assert not torch.allclose(average.preferences(batch), ranker.preferences(batch), atol=1e-3)


def test_a_model_saved_over_another_leaves_none_of_its_users(proc, tmp_path):
    make(proc, tmp_path, "no backbone")[0].save_pretrained(tmp_path / "run")
    LlamaRecLKGForRanking(proc.model_config(use_language_model=False)).save_pretrained(tmp_path / "run")
    proc.save_pretrained(tmp_path / "run")
    assert (tmp_path / "run" / USERS_FILE).exists() and not (tmp_path / "run" / USER_EMBEDDING_FILE).exists()
    parts = proc.tokenizer, proc.knowledge_graph, proc.item_ids, proc.titles
    LlamaRecLKGProcessor(*parts, **proc.settings).save_pretrained(tmp_path / "run")
    assert not (tmp_path / "run" / USERS_FILE).exists()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "heads"])  # training saves a backbone it trains
def test_a_checkpoint_gives_back_its_users_in_place(proc, batch, tmp_path, form):
    ranker, options = make(proc, tmp_path, form)
    ranker.save_pretrained(tmp_path / "checkpoint", **options)
    resumed = make(proc, tmp_path, form, seed=1)[0]
    table = resumed.preference.user_embedding.weight
    resumed.load_trained_weights(tmp_path / "checkpoint")
    assert resumed.preference.user_embedding.weight is table, "the one that an optimizer holds"
    close(resumed.score(batch), ranker.score(batch))
    shutil.rmtree(tmp_path / "checkpoint" / "private")
    with pytest.raises(
        LKGError, match="lacks private/user_embedding.safetensors, the weights of this model's 4 users"
    ):
        resumed.load_trained_weights(tmp_path / "checkpoint")


def test_a_further_adapter_brings_its_users(proc, batch, tmp_path):
    ranker = make(proc, tmp_path, "adapter", seed=1)[0]
    ranker.save_pretrained(tmp_path / "run")
    other = LlamaRecLKGForRanking.from_backbone(tmp_path / "base", proc.model_config())
    other.add_adapter(LoraConfig(**LORA))
    other.load_adapter(tmp_path / "run", "run", processor=proc)
    other.set_adapter("run")
    assert other.config.num_users == 4
    close(other.score(batch), ranker.score(batch))


def test_users_of_another_model_are_refused(proc, tmp_path):
    make(proc, tmp_path, "no backbone")[0].save_pretrained(tmp_path / "run")
    save_file({USER_EMBEDDING: torch.zeros(5, 7)}, tmp_path / "run" / USER_EMBEDDING_FILE, metadata={"format": "pt"})
    with pytest.raises(LKGError, match=r"holds .*\(5, 7\).*; this model needs .* with 3 numbers for each user"):
        AutoModel.from_pretrained(tmp_path / "run")


def test_the_published_recipe_keeps_its_table(proc, tmp_path):
    config = LlamaRecLKGConfig.paper(list(proc.relations), 4, use_language_model=False)
    LlamaRecLKGForRanking(config).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).preference.user_embedding.weight.shape == (5, 128)
