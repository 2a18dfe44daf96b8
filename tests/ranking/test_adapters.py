"""Adapters: every tenant gets its own scores back bit for bit, whatever is loaded beside it; what does not fit is
refused."""

import json
import re
import shutil
from copy import deepcopy

import pandas as pd
import pytest
import torch
from huggingface_hub import HfApi
from peft import IA3Config, LoraConfig, PromptTuningConfig, VeraConfig
from safetensors.torch import load_file, save_file
from tiny import LORA, backbone, examples, processor
from transformers import AutoModel, AutoModelForCausalLM

from llamarec_lkg import (
    LKGError,
    LlamaRecLKGForRanking,
    LlamaRecLKGTrainer,
    LlamaRecLKGTrainingArguments,
    Recommender,
)
from llamarec_lkg.ranking.scoring import ranker_scores
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval


pytestmark = pytest.mark.hub


def perturbed(ranker, seed):
    """Everything that is trained is moved, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in ranker.named_parameters():
            if parameter.requires_grad or not name.startswith("language_model."):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return ranker.eval()


@pytest.fixture
def books(make_dataset):
    """Another domain: other items and users, RATED as the only relation, another prompt."""
    rows = [(user, (user * 3 + step) % 9 + 1, step) for user in range(1, 8) for step in range(5)]
    dataset = make_dataset(rows)
    return dataset, processor(dataset, num_paths=1, history_length=3).fit(examples(dataset))


def save_tenant(proc, base, folder, seed, adapter=None, retriever=False, **config):
    """A trained adapter repository and the model it was saved from."""
    ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config(**config))
    torch.manual_seed(seed)
    ranker.add_adapter(adapter or LoraConfig(**LORA))
    perturbed(ranker, seed).save_pretrained(folder)
    proc.save_pretrained(folder)
    if retriever:
        torch.manual_seed(seed)
        catalogue = LRURecConfig(num_items=len(proc.item_ids), hidden_size=8)
        LRURecForRetrieval(catalogue).save_pretrained(folder / "retriever")
    return ranker


@pytest.fixture
def tenants(proc, books, film_dataset, base, tmp_path):
    """Three repositories on one base: two domains, and a second tenant of the first. Name -> (batch, logits)."""
    dataset, book_proc = books
    batches = {
        "films": dict(proc(examples(film_dataset))),
        "books": dict(book_proc(examples(dataset))),
        "cinema": dict(proc(examples(film_dataset, seed=4))),
    }
    expected = {}
    for seed, (name, own) in enumerate({"films": proc, "books": book_proc, "cinema": proc}.items()):
        config = {"use_user_embedding": False, "evidence_weight": 2.0} if name == "cinema" else {}
        ranker = save_tenant(own, base, tmp_path / name, seed + 1, retriever=True, **config)
        with torch.no_grad():
            expected[name] = (batches[name], ranker(**batches[name]).logits)
    return expected


def loaded(tmp_path, names=("films", "books", "cinema")):
    first, *others = names
    ranker = AutoModel.from_pretrained(tmp_path / first, adapter_name=first)
    for name in others:
        ranker.load_adapter(tmp_path / name, adapter_name=name)
    return ranker


@torch.no_grad()
def logits(ranker, batch):
    return ranker(**batch).logits


def answers_as(ranker, tenants, name):
    """In use is what was saved as this tenant: its scores come back bit for bit."""
    batch, expected = tenants[name]
    assert torch.equal(logits(ranker, batch), expected), name


# -- switching


def test_every_tenant_gets_its_own_scores_bit_for_bit_however_often_one_switches(tenants, tmp_path):
    ranker = loaded(tmp_path)
    assert ranker.adapter_names == ["films", "books", "cinema"] and ranker.active_adapter == "films"
    base_weights = [p for n, p in ranker.named_parameters() if n.startswith("language_model.") and "lora" not in n]
    for name in ("films", "books", "cinema", "books", "films", "films"):
        ranker.set_adapter(name)
        answers_as(ranker, tenants, name)
        assert ranker.active_adapters() == [name]
    after = [p for n, p in ranker.named_parameters() if n.startswith("language_model.") and "lora" not in n]
    assert all(first is second for first, second in zip(base_weights, after, strict=True)), "nothing was loaded again"


def test_preferences_fusion_and_configuration_change_with_the_adapter(tenants, proc, books, tmp_path):
    ranker = loaded(tmp_path, ("films", "books"))
    assert ranker.config.num_paths == 3 and len(ranker.preference.bias) == len(proc.relations)
    ranker.set_adapter("books")
    assert ranker.config.num_paths == 1 and ranker.config.relations == list(books[1].relations)
    assert len(ranker.preference.bias) == 1 and ranker.fusion.config is ranker.config
    own = load_file(tmp_path / "books" / "model.safetensors")
    assert own.keys() == ranker.own_state_dict().keys()
    assert all(torch.equal(own[name], value) for name, value in ranker.own_state_dict().items())


def test_saving_one_of_several_adapters_names_those_that_are_left_out(tenants, tmp_path, caplog):
    ranker = loaded(tmp_path)
    with caplog.at_level("WARNING"):
        ranker.save_pretrained(tmp_path / "again")
    assert "'films', is saved" in caplog.text and "['books', 'cinema'] are loaded, but not saved" in caplog.text
    for name in ("books", "cinema"):
        ranker.delete_adapter(name)
    caplog.clear()
    ranker.save_pretrained(tmp_path / "again")
    assert not caplog.text, "alone it leaves nothing out"


# substrings of the names of weights: "self" of the backbone's (self_attn), "a" and "lora" of an adapter's (lora_A)
@pytest.mark.parametrize("name", ["a", "b", "self", "proj", "lora"])
def test_a_tenant_may_be_called_by_a_substring_of_a_weights_name(tenants, tmp_path, name):
    ranker = loaded(tmp_path, ("films",))
    ranker.load_adapter(tmp_path / "books", adapter_name=name)
    for use, tenant in ((name, "books"), ("films", "films"), (name, "books")):
        ranker.set_adapter(use)
        batch, expected = tenants[tenant]
        assert torch.equal(logits(ranker, batch), expected)
        ranker.save_pretrained(tmp_path / "again")
        assert torch.equal(logits(AutoModel.from_pretrained(tmp_path / "again", adapter_name=name), batch), expected)


@pytest.mark.parametrize("name", ["model", "layers", "q_proj", "0", "weight"])
def test_a_tenant_is_not_called_like_a_whole_part_of_the_backbone(tenants, tmp_path, name):
    """Loaded beside one called "layers", PEFT would save an adapter without any weight."""
    ranker = loaded(tmp_path, ("films",))
    for use in (
        lambda: ranker.load_adapter(tmp_path / "books", adapter_name=name),
        lambda: ranker.add_adapter(LoraConfig(**LORA), name),
        lambda: AutoModel.from_pretrained(tmp_path / "books", adapter_name=name),
    ):
        with pytest.raises(LKGError, match=f"cannot be called '{name}'.*'{name}-adapter' say"):
            use()
    unchanged(ranker, tenants)


@pytest.mark.parametrize("training", [True, False])
def test_loading_an_adapter_leaves_the_model_in_the_mode_it_was_in(tenants, proc, base, tmp_path, training):
    def modes(ranker):
        return {module.training for module in ranker.modules()}

    plain = LlamaRecLKGForRanking.from_backbone(base, proc.model_config()).train(training)
    plain.load_adapter(tmp_path / "films", "films", is_trainable=not training)  # PEFT would decide by this
    assert modes(plain) == {training}
    plain.load_adapter(tmp_path / "books", "books", is_trainable=not training)
    assert modes(plain) == {training}
    plain.set_adapter("books")
    assert modes(plain) == {training}
    (tmp_path / "cinema" / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    for ranker in (plain, LlamaRecLKGForRanking.from_backbone(base, proc.model_config()).train(training)):
        with pytest.raises(LKGError, match="not readable"):
            ranker.load_adapter(tmp_path / "cinema", "cinema")
        assert modes(ranker) == {training}


def test_an_adapter_can_be_loaded_on_a_plain_backbone(tenants, proc, base, tmp_path):
    ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config())
    ranker.load_adapter(tmp_path / "books", adapter_name="books")
    assert ranker.adapter_names == ["books"]
    answers_as(ranker, tenants, "books")


def test_deleting_forgets_everything_about_a_tenant(tenants, tmp_path):
    ranker = loaded(tmp_path)
    with pytest.raises(LKGError, match="'films' is in use"):
        ranker.delete_adapter("films")
    ranker.delete_adapter("books")
    assert ranker.adapter_names == ["films", "cinema"]
    with pytest.raises(LKGError, match="No adapter 'books' is loaded; loaded are \\['films', 'cinema'\\]"):
        ranker.set_adapter("books")
    assert not [name for name, _ in ranker.named_parameters() if "books" in name]
    ranker.load_adapter(tmp_path / "books", adapter_name="books")
    ranker.set_adapter("books")
    answers_as(ranker, tenants, "books")


def test_merging_is_for_the_only_adapter_and_the_result_is_no_base(tenants, proc, tmp_path):
    ranker = loaded(tmp_path, ("films", "cinema"))
    with pytest.raises(LKGError, match="changes the backbone that \\['cinema'\\] were trained on"):
        ranker.merge_adapter()
    ranker.delete_adapter("cinema")
    batch, expected = tenants["films"]
    torch.testing.assert_close(logits(ranker.merge_adapter(), batch), expected, rtol=1e-4, atol=1e-4)
    ranker.save_pretrained(tmp_path / "merged")
    for merged in (ranker, AutoModel.from_pretrained(tmp_path / "merged")):
        for use in (
            lambda model: model.load_adapter(tmp_path / "cinema", adapter_name="cinema"),
            lambda model: model.add_adapter(LoraConfig(**LORA)),
        ):
            with pytest.raises(LKGError, match="backbone of this model has weights of its own"):
                use(merged)


TIED = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "words": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "neither": {"target_modules": ["q_proj"]},
    "head, saved whole": {"modules_to_save": ["lm_head"]},
    "both, tied in PEFT": {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
    "some words": {"trainable_token_indices": [5, 6]},
}


@pytest.mark.parametrize("kind", TIED)
def test_tied_embeddings_say_after_the_merge_what_they_said_before(either, film_dataset, tmp_path, kind):
    proc, batch = either, dict(either(examples(film_dataset)))
    backbone(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    ranker = LlamaRecLKGForRanking.from_backbone(tmp_path / "base", proc.model_config(lm_scale=1.0))
    torch.manual_seed(0)
    ranker.add_adapter(LoraConfig(**{**LORA, **TIED[kind]}))
    expected = logits(perturbed(ranker, 1), batch)
    ranker.save_pretrained(tmp_path / "small")
    ranker.merge_adapter().save_pretrained(tmp_path / "whole")
    fresh = LlamaRecLKGForRanking.from_backbone(tmp_path / "base", proc.model_config(lm_scale=1.0))
    fresh.add_adapter(LoraConfig(**{**LORA, **TIED[kind]}))
    fresh.merge_adapter().load_trained_weights(tmp_path / "whole")
    for merged in (
        AutoModel.from_pretrained(tmp_path / "small"),
        ranker,
        AutoModel.from_pretrained(tmp_path / "whole"),
    ):
        torch.testing.assert_close(logits(merged.eval(), batch), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(fresh.eval(), batch), expected, rtol=1e-5, atol=1e-5)
    plain = json.loads((tmp_path / "whole" / "config.json").read_text())["text_config"]
    assert plain["tie_word_embeddings"] == (kind == "neither")


@pytest.mark.parametrize("untied", [True, False])
def test_a_merge_that_changes_what_is_said_is_told(either, caplog, monkeypatch, untied):
    """Whatever the reason: here the one that `untie_adapted` mends."""
    if not untied:
        monkeypatch.setattr("llamarec_lkg.ranking.adapters.untie_adapted", lambda language_model: None)
    ranker = LlamaRecLKGForRanking.from_backbone(backbone(tie_word_embeddings=True), either.model_config())
    ranker.add_adapter(LoraConfig(**{**LORA, **TIED["head"]}))
    perturbed(ranker, 1).merge_adapter()
    assert ("Merging 'default' has moved what the backbone says by" in caplog.text) != untied


def resized(base, proc):
    """The backbone of a folder and the processor's tokenizer with 63 tokens more, in memory."""
    proc.tokenizer.add_tokens([f"<word {number}>" for number in range(63)])
    grown = AutoModelForCausalLM.from_pretrained(base)
    grown.resize_token_embeddings(len(proc.tokenizer))
    return grown


@pytest.mark.parametrize("when", ["before the adapter", "in the trainer", "after the adapter", "no adapter"])
def test_a_backbone_that_was_resized_in_memory_is_refused_and_from_a_folder_it_comes_back(
    either, film_dataset, base, tmp_path, when
):
    proc, message = either, "has 320 token embeddings, and .* has 300: it was resized in memory.*save_pretrained"
    grown = resized(base, proc)
    ranker = LlamaRecLKGForRanking.from_backbone(
        base if when == "after the adapter" else grown, proc.model_config(lm_scale=1.0)
    )
    if when == "after the adapter":
        ranker.add_adapter(LoraConfig(**LORA))
        ranker.language_model.resize_token_embeddings(320)
    with pytest.raises(LKGError, match=message):
        if when == "before the adapter":
            ranker.add_adapter(LoraConfig(**LORA))
        elif when == "no adapter":
            ranker.save_pretrained(tmp_path / "run", include_backbone=False)
        else:
            trained(ranker, proc, film_dataset, tmp_path, None if ranker.has_adapter else LoraConfig(**LORA))
    grown.save_pretrained(tmp_path / "grown")
    ranker = LlamaRecLKGForRanking.from_backbone(tmp_path / "grown", ranker.config)
    trained(ranker, proc, film_dataset, tmp_path, LoraConfig(**LORA))
    ranker.save_pretrained(tmp_path / "run")
    batch = dict(proc(examples(film_dataset)))
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path / "run"), batch), logits(ranker.eval(), batch))


@pytest.mark.parametrize("how", ["merged", "fine-tuned", "checkpoint", "whole"])
def test_a_changed_backbone_is_never_left_out_of_what_is_saved(proc, film_dataset, base, tmp_path, how):
    ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config())
    if how == "merged":
        ranker.add_adapter(LoraConfig(**LORA))
        perturbed(ranker, 1).merge_adapter()
    elif how in ("checkpoint", "whole"):
        perturbed(ranker, 1).save_pretrained(tmp_path / "first", include_backbone=True)
        if how == "whole":
            ranker = AutoModel.from_pretrained(tmp_path / "first")
        else:
            ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config())
            ranker.load_trained_weights(tmp_path / "first")
    else:
        ranker.get_input_embeddings().weight.requires_grad_(True)
        before = ranker.get_input_embeddings().weight.detach().clone()
        trained(ranker, proc, film_dataset, tmp_path)
        assert not torch.equal(before, ranker.get_input_embeddings().weight)
    ranker.eval()
    batch = dict(proc(examples(film_dataset)))
    expected = logits(ranker, batch)
    small = tmp_path / "small"
    with pytest.raises(LKGError, match=f"would name '{base}' in their place.*include_backbone=True"):
        ranker.save_pretrained(small, include_backbone=False)
    assert not small.exists(), "nothing is written before it is known to be whole"
    with pytest.raises(LKGError, match="weights of its own"):
        ranker.add_adapter(LoraConfig(**LORA))
    Recommender(ranker, proc).save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(AutoModel.from_pretrained(tmp_path / "saved"), batch), expected)


def test_a_backbone_is_not_trained_beside_an_adapter(proc, film_dataset, base, tmp_path):
    ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config())
    ranker.add_adapter(LoraConfig(**LORA))
    ranker.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(LKGError, match="1 weights of the backbone would be trained.*embed_tokens.weight"):
        trained(ranker, proc, film_dataset, tmp_path)
    ranker.mark_backbone_changed()
    with pytest.raises(LKGError, match="merge_adapter"):
        ranker.save_pretrained(tmp_path / "small")


@pytest.mark.parametrize("adapter", [None, LoraConfig(**LORA), LoraConfig(**LORA, bias="all")])
def test_a_backbone_that_was_not_trained_is_still_left_out(proc, film_dataset, base, tmp_path, adapter):
    ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config())
    if adapter is None:
        ranker.language_model.requires_grad_(False)
    else:
        ranker.add_adapter(adapter)
    trained(ranker, proc, film_dataset, tmp_path)
    ranker.save_pretrained(tmp_path / "small", include_backbone=False)
    assert ranker.config.external_backbone and (tmp_path / "small" / "model.safetensors").stat().st_size < 30_000


def trained(ranker, proc, dataset, tmp_path, adapter=None):
    args = LlamaRecLKGTrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        warmup_steps=0,
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        heads_warm_up_epochs=0,
    )
    LlamaRecLKGTrainer(ranker, args, examples(dataset), None, proc, adapter).train()


def test_an_adapter_that_was_loaded_frozen_is_not_trained_without_a_word(tenants, proc, film_dataset, tmp_path):
    frozen = "The adapter '{}' is frozen: training would move only preferences.*is_trainable=True"
    ranker = loaded(tmp_path, ("films",))
    before = {name: p.detach().clone() for name, p in ranker.named_parameters()}
    with pytest.raises(LKGError, match=frozen.format("films")):
        trained(ranker, proc, film_dataset, tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in ranker.named_parameters())
    ranker.load_adapter(tmp_path / "cinema", "cinema", is_trainable=True)
    with pytest.raises(LKGError, match=frozen.format("films")):
        trained(ranker, proc, film_dataset, tmp_path)
    ranker.set_adapter("cinema")
    before = {name: p.detach().clone() for name, p in ranker.named_parameters()}
    trained(ranker, proc, film_dataset, tmp_path)
    moved = {name for name, p in ranker.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora_B.cinema." in name for name in moved) and not any(".films." in name for name in moved)
    assert any(name.startswith("preference.") for name in moved)


def test_a_tenant_is_trained_beside_others_which_stay_as_they_are(tenants, proc, film_dataset, tmp_path):
    ranker = loaded(tmp_path, ("films", "books"))
    ranker.add_adapter(LoraConfig(**LORA), "new", config=proc.model_config(user_dropout=0.0, preference_dropout=0.0))
    assert ranker.active_adapter == "new" and ranker.fusion.evidence_weight.item() == 1.0
    before = {name: p.detach().clone() for name, p in ranker.named_parameters()}
    trained(ranker, proc, film_dataset, tmp_path)
    moved = {name for name, p in ranker.named_parameters() if not torch.equal(before[name], p)}
    assert any(".new." in name for name in moved) and any("preference" in name for name in moved)
    assert all(".new." in name or name.startswith(("preference.", "fusion.", "readout.")) for name in moved)
    ranker.eval()
    for name in ("films", "books"):
        ranker.set_adapter(name)
        answers_as(ranker, tenants, name)
        assert not [n for n, p in ranker.named_parameters() if f".{name}." in n and p.requires_grad]
    ranker.set_adapter("new")
    assert [n for n, p in ranker.named_parameters() if ".new." in n and p.requires_grad], "still trainable"


def test_recommenders_share_a_backbone_and_each_answers_as_alone(tenants, tmp_path):
    alone = {name: Recommender.from_pretrained(tmp_path / name) for name in ("films", "books")}
    films = Recommender.from_pretrained(tmp_path / "films")
    books = films.load_adapter(tmp_path / "books", adapter_name="books")
    assert books.model is films.model
    for _ in range(2):
        for name, shared in (("films", films), ("books", books)):
            for history in (["1"], ["2", "3"]):
                assert shared.recommend(history, k=3) == alone[name].recommend(history, k=3)
            assert shared.preferences(["1"]) == alone[name].preferences(["1"])
    expected = alone["films"].preferences(["2"], user="2")
    assert films.preferences(["2"], user="2") == expected, "after the other's answer"


def test_items_are_added_to_the_recommender_that_was_asked(tenants, tmp_path):
    """Not to the one whose adapter answered last."""
    films = Recommender.from_pretrained(tmp_path / "films")
    books = films.load_adapter(tmp_path / "books", adapter_name="books")
    wanted = books.recommend(["1"], k=3)
    catalogue = books.model.config.catalogue
    films.retriever = None  # it knows items by their ids alone
    films.add_items(pd.DataFrame({"item_id": ["new"], "title": ["New"]}))
    assert films.recommend(["1"], candidates=["new", "2"], k=2)
    assert films.model.config.catalogue == films.processor.catalogue != catalogue
    assert books.recommend(["1"], k=3) == wanted
    assert books.model.config.catalogue == books.processor.catalogue == catalogue


def test_adapters_are_loaded_from_the_hub_at_a_revision(hub, tenants, tmp_path):
    for name in ("films", "books"):
        HfApi().create_repo(f"tester/{name}", private=True)
        HfApi().upload_folder(repo_id=f"tester/{name}", folder_path=tmp_path / name, ignore_patterns=".gitignore")
    revision = (
        HfApi()
        .upload_file(repo_id="tester/books", path_in_repo="adapter/adapter_config.json", path_or_fileobj=b"{}")
        .oid
    )
    first = HfApi().list_repo_commits("tester/books")[1].commit_id
    ranker = AutoModel.from_pretrained("tester/films", adapter_name="films")
    with pytest.raises(LKGError, match="peft_type is None"):
        ranker.load_adapter("tester/books", adapter_name="books", revision=revision)
    unchanged(ranker, tenants)
    ranker.load_adapter("tester/books", adapter_name="books", revision=first)
    for name in ("books", "films"):
        ranker.set_adapter(name)
        answers_as(ranker, tenants, name)


# -- refusals


def test_a_batch_of_another_tenant_is_refused(tenants, proc, film_dataset, tmp_path):
    ranker = loaded(tmp_path, ("films", "books"))
    ranker.set_adapter("books")
    with pytest.raises(LKGError, match="evidence along 3 relations; this model \\(adapter 'books'\\)"):
        ranker(**tenants["films"][0])
    with pytest.raises(LKGError, match="was made for the relations \\['CO_RATED'\\]"):
        ranker_scores(ranker, proc, examples(film_dataset), progress=False)


def unchanged(ranker, tenants):
    assert ranker.adapter_names == ["films"]
    answers_as(ranker, tenants, "films")


def test_what_does_not_fit_is_refused_and_changes_nothing(tenants, proc, base, tmp_path):
    ranker = loaded(tmp_path, ("films",))
    book_folder = tmp_path / "books"

    def load(folder=book_folder, name="books", **options):
        ranker.load_adapter(folder, adapter_name=name, **options)

    with pytest.raises(LKGError, match="was made for the relations \\['CO_RATED'\\], the processor's graph has"):
        load(processor=proc)
    for name in ("films", "v1.0", ""):
        with pytest.raises(LKGError, match=f"cannot be called '{name}': names have no dot"):
            load(name=name)
    with pytest.raises(LKGError, match="does not know \\['quantization_config'\\]"):
        load(quantization_config=None)
    with pytest.raises(LKGError, match="is no adapter repository \\(model_type 'llama'"):
        load(base)
    heads = LlamaRecLKGForRanking.from_backbone(base, proc.model_config())
    heads.save_pretrained(tmp_path / "heads", include_backbone=False)
    with pytest.raises(LKGError, match="has_adapter False"):
        load(tmp_path / "heads")
    unchanged(ranker, tenants)


@pytest.mark.parametrize(
    "damage", ["preference", "half an adapter", "no adapter", "other shapes", "half a json", "half a file"]
)
def test_a_damaged_repository_is_refused_and_changes_nothing(tenants, proc, tmp_path, damage):
    ranker = loaded(tmp_path, ("films",))
    folder = tmp_path / "books"
    path = folder / ("model.safetensors" if damage == "preference" else "adapter/adapter_model.safetensors")
    weights = load_file(path)
    if damage == "preference":
        weights.pop("preference.bias")
    elif damage == "half an adapter":
        weights.pop(next(iter(weights)))
    elif damage == "other shapes":
        weights = {name: value[:, :-1].contiguous() for name, value in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})
    if damage == "half a json":
        (folder / "adapter" / "adapter_config.json").write_text("{")
    if damage == "half a file":
        path.write_bytes(path.read_bytes()[:-100])
    if damage == "no adapter":
        shutil.rmtree(folder / "adapter")
    message = {
        "preference": "preference.bias",
        "half an adapter": "1 weights are missing",
        "no adapter": "adapter/adapter_config.json",
        "other shapes": "does not fit this backbone",
        "half a json": "adapter_config.json is not readable",
        "half a file": "adapter_model.safetensors is not readable",
    }[damage]
    error = OSError if damage == "no adapter" else LKGError
    with pytest.raises(error, match=message):
        ranker.load_adapter(folder, adapter_name="books")
    unchanged(ranker, tenants)
    with pytest.raises(error, match=message):
        AutoModel.from_pretrained(folder)
    plain = LlamaRecLKGForRanking.from_backbone(ranker.config.backbone_name_or_path, proc.model_config())
    with pytest.raises(error, match=message):
        plain.load_adapter(folder, adapter_name="books")
    assert not plain.has_adapter and not [name for name, _ in plain.named_parameters() if "lora" in name]


def test_an_adapter_of_another_backbone_is_refused_unless_it_is_said_to_be_the_same(tenants, base, tmp_path):
    ranker = loaded(tmp_path, ("films",))
    config = json.loads((tmp_path / "books" / "config.json").read_text())
    (tmp_path / "books" / "config.json").write_text(json.dumps({**config, "backbone_name_or_path": "you/other"}))
    with pytest.raises(LKGError, match="works on its own base only"):
        ranker.load_adapter(tmp_path / "books", adapter_name="books")
    ranker.load_adapter(tmp_path / "books", adapter_name="books", same_backbone=True)
    ranker.set_adapter("books")
    answers_as(ranker, tenants, "books")
    assert ranker.config.backbone_name_or_path == base


def test_a_ranker_without_language_model_has_no_adapters(proc, base, tenants, tmp_path):
    ranker = LlamaRecLKGForRanking(proc.model_config(use_language_model=False))
    with pytest.raises(LKGError, match="needs a language model"):
        ranker.add_adapter(LoraConfig(**LORA))
    ranker.config.backbone_name_or_path = base
    with pytest.raises(LKGError, match="needs a language model"):
        ranker.load_adapter(tmp_path / "films", adapter_name="films")


# -- kinds of adapters

KINDS = {
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
    "rslora": LoraConfig(**LORA, use_rslora=True),
    "all-linear": LoraConfig(**{**LORA, "target_modules": "all-linear"}),
    "gaussian": LoraConfig(**LORA, init_lora_weights="gaussian"),
    "pissa": LoraConfig(**LORA, init_lora_weights="pissa"),
    "pissa_niter_4": LoraConfig(**LORA, init_lora_weights="pissa_niter_4"),
    "olora": LoraConfig(**LORA, init_lora_weights="olora"),
    "olora, rslora": LoraConfig(**LORA, init_lora_weights="olora", use_rslora=True),
    "pissa, patterns": LoraConfig(
        **LORA, init_lora_weights="pissa", rank_pattern={"v_proj": 1}, alpha_pattern={"v_proj": 3}
    ),
    "ia3": IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "vera": VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_comes_back_and_merges(proc, film_dataset, base, tmp_path, kind):
    batch = dict(proc(examples(film_dataset)))
    ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config(lm_scale=1.0))
    before = logits(ranker, batch)
    ranker.add_adapter(deepcopy(KINDS[kind]))
    torch.testing.assert_close(logits(ranker, batch), before, rtol=1e-3, atol=1e-3)
    expected = logits(perturbed(ranker, 1), batch)
    assert not torch.allclose(before, expected, atol=1e-3)
    ranker.save_pretrained(tmp_path / "saved")
    back = AutoModel.from_pretrained(tmp_path / "saved")
    if "pissa" in kind or "olora" in kind:  # on the untouched backbone, so equal up to rounding
        torch.testing.assert_close(logits(back, batch), expected, rtol=1e-3, atol=1e-3)
        assert json.loads((tmp_path / "saved/adapter/adapter_config.json").read_text())["init_lora_weights"] is True
        plain = dict(LlamaRecLKGForRanking.from_backbone(base, proc.model_config()).named_parameters())
        found = dict(back.named_parameters())
        first = found["language_model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"]
        assert torch.equal(first, plain["language_model.model.layers.0.self_attn.q_proj.weight"])
    else:
        assert torch.equal(logits(back, batch), expected)
    torch.testing.assert_close(logits(back.merge_adapter(), batch), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_converted_checkpoint_is_resumed_where_it_stood(proc, film_dataset, base, tmp_path, start):
    batch = dict(proc(examples(film_dataset)))

    def fresh(kind=start):
        ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config(lm_scale=1.0))
        torch.manual_seed(5)
        ranker.add_adapter(LoraConfig(**LORA, init_lora_weights=kind))
        return ranker.eval()

    ranker = perturbed(fresh(), 2).train()
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in ranker.named_parameters()}
    ranker.save_pretrained(tmp_path / "checkpoint")
    for name, parameter in ranker.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1], name
    assert {module.training for module in ranker.modules()} == {True} and ranker.adapter_names == ["default"]
    with pytest.raises(LKGError, match="cannot be saved from sharded weights"):
        ranker.save_pretrained(tmp_path / "sharded", state_dict=ranker.state_dict())
    ranker.eval()
    resumed = fresh()
    resumed.load_trained_weights(tmp_path / "checkpoint")
    torch.testing.assert_close(logits(resumed, batch), logits(ranker, batch), rtol=1e-4, atol=1e-5)
    with pytest.raises(LKGError, match="was trained from another start"):
        fresh("olora" if start == "pissa" else "pissa").load_trained_weights(tmp_path / "checkpoint")


PARTIAL = {
    **{kind: KINDS[kind] for kind in ("lora", "dora", "olora", "ia3", "vera")},
    "modules_to_save": LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "bias": LoraConfig(**LORA, bias="all"),
}


@pytest.mark.parametrize("kind", PARTIAL)
def test_an_adapter_file_that_lacks_a_weight_is_refused_where_it_is_loaded_and_where_it_is_resumed(
    proc, film_dataset, tmp_path, kind
):
    """The weight would keep its random start, or the backbone's, without a word. Each weight is tried."""
    backbone(attention_bias=kind == "bias").save_pretrained(tmp_path / "base")
    batch = dict(proc(examples(film_dataset)))

    def fresh():
        ranker = LlamaRecLKGForRanking.from_backbone(str(tmp_path / "base"), proc.model_config(lm_scale=1.0))
        torch.manual_seed(5)
        ranker.add_adapter(deepcopy(PARTIAL[kind]))
        return ranker.eval()

    perturbed(fresh(), 1).save_pretrained(tmp_path / "run")
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights, resumed = load_file(file), fresh()
    untouched = {name: value.clone() for name, value in resumed.language_model.state_dict().items()}
    for lost in weights:
        save_file({name: value for name, value in weights.items() if name != lost}, file, metadata={"format": "pt"})
        with pytest.raises(LKGError, match=f"(?s)not whole.*missing.*{re.escape(lost)}"):
            resumed.load_trained_weights(tmp_path / "run")
        with pytest.raises(LKGError, match=f"does not fit this backbone.*({re.escape(lost)}|vera)"):
            AutoModel.from_pretrained(tmp_path / "run")
    for name, value in resumed.language_model.state_dict().items():
        assert torch.equal(value, untouched[name]), "a refused file changes no weight"
    save_file({**weights, "base_model.model.extra.weight": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.raises(LKGError, match="left over.*extra"):
        resumed.load_trained_weights(tmp_path / "run")
    save_file(weights, file, metadata={"format": "pt"})
    resumed.load_trained_weights(tmp_path / "run")
    whole = AutoModel.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(logits(resumed, batch), logits(whole, batch), rtol=1e-3, atol=1e-3)


def test_pissa_trains_alone_and_shares_a_backbone_once_saved(tenants, proc, film_dataset, base, tmp_path):
    pissa = save_tenant(proc, base, tmp_path / "pissa", 7, LoraConfig(**LORA, init_lora_weights="pissa"))
    batch = tenants["films"][0]
    with pytest.raises(LKGError, match="no other can share it meanwhile"):
        pissa.load_adapter(tmp_path / "films", adapter_name="films")
    ranker = loaded(tmp_path, ("films", "pissa"))
    with pytest.raises(LKGError, match="no other can share it meanwhile"):
        ranker.add_adapter(LoraConfig(**LORA, init_lora_weights="olora"), "olora")
    assert torch.equal(logits(ranker, batch), tenants["films"][1])
    ranker.set_adapter("pissa")
    torch.testing.assert_close(logits(ranker, batch), logits(pissa, batch), rtol=1e-3, atol=1e-3)


def test_kinds_that_cannot_work_are_refused(proc, base, tenants, tmp_path):
    ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config())
    with pytest.raises(LKGError, match="it must be one of weights"):
        ranker.add_adapter(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(LKGError, match="cannot describe"):
        ranker.add_adapter(LoraConfig(**LORA, init_lora_weights="pissa", use_dora=True))
    with pytest.raises(LKGError, match="cannot describe.* without rsLoRA with patterns"):
        ranker.add_adapter(LoraConfig(**LORA, init_lora_weights="olora", use_rslora=True, rank_pattern={"v_proj": 1}))
    with pytest.raises(LKGError, match="cannot describe"):
        config = LoraConfig(**LORA)
        config.init_lora_weights = "loftq"
        ranker.add_adapter(config)
    with pytest.raises(LKGError, match="layer_replication makes a deeper backbone"):
        ranker.add_adapter(LoraConfig(**LORA, layer_replication=[[0, 2], [0, 2]]))
    assert not ranker.has_adapter
    ranker.load_adapter(tmp_path / "films", adapter_name="films")
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        ranker.add_adapter(IA3Config(target_modules=["v_proj"], feedforward_modules=[]), "ia3")
    unchanged(ranker, tenants)


def test_a_start_that_would_be_taken_out_of_tied_embeddings_is_refused_and_each_remedy_works(letters, film_dataset):
    def built():
        config = letters.model_config(lm_scale=1.0)
        return LlamaRecLKGForRanking.from_backbone(backbone(tie_word_embeddings=True), config)

    config = {**LORA, "target_modules": ["q_proj", "lm_head"]}
    ranker, batch = built(), dict(letters(examples(film_dataset)))
    before = logits(ranker, batch)
    with pytest.raises(LKGError, match="'pissa' changes the weights of 'lm_head', which are tied.*Leave it out of"):
        ranker.add_adapter(LoraConfig(**config, init_lora_weights="pissa"))
    for remedy in ({**LORA, "init_lora_weights": "pissa"}, config):
        ranker = built()
        ranker.add_adapter(LoraConfig(**remedy))
        torch.testing.assert_close(logits(ranker.eval(), batch), before, rtol=1e-3, atol=1e-3)


# -- training


def test_the_trainer_quantizes_a_backbone_given_by_name(proc, film_dataset, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    backbone(hidden_size=128, intermediate_size=128).save_pretrained(tmp_path / "wide")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    args = LlamaRecLKGTrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        activation_checkpointing=True,
        warmup_steps=0,
    )
    trainer = LlamaRecLKGTrainer(
        str(tmp_path / "wide"),
        args,
        examples(film_dataset),
        None,
        proc,
        peft_config=LoraConfig(**LORA),
        quantization_config=quantization,
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any("Linear4bit" in type(module).__name__ for module in trainer.model.language_model.modules())
    assert any("lora_B" in name for name in moved) and any("preference" in name for name in moved)
    assert not {n for n in moved if "lora" not in n and not n.startswith(("preference.", "fusion.", "readout."))}
