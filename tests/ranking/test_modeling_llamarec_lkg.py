"""The ranker: letters, both gradient routes, assembly, saving in every form."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from tiny import LORA, backbone, examples, model, processor
from transformers import AutoModel

from llamarec_lkg.ranking.configuration_llamarec_lkg import LlamaRecLKGConfig
from llamarec_lkg.ranking.heads import straight_through
from llamarec_lkg.ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.ranking.prompt_assembly import assemble_prompt, select_paths
from llamarec_lkg.utils import precision
from llamarec_lkg.utils.errors import LKGError


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_letter_logits_are_those_of_the_plain_backbone_on_the_text_prompt(letters, film_dataset, kind):
    ranker = model(letters, kind, use_path_gate=False)
    lists = examples(film_dataset, count=3)
    with torch.no_grad():
        output = ranker(**letters(lists))
        for row, example in enumerate(lists):
            texts = letters.render(example, output.selected_paths[row].tolist())
            ids = [token for text in texts for token in letters.tokenizer(text, add_special_tokens=False)["input_ids"]]
            logits = ranker.language_model(torch.tensor([ids])).logits[0, -1, letters.letter_token_ids]
            torch.testing.assert_close(output.lm_logits[row], logits, rtol=1e-4, atol=1e-4)


def test_scores_are_the_documented_sum(letters, film_dataset):
    batch = dict(letters(examples(film_dataset)))
    ranker = model(letters, lm_scale=0.7, evidence_weight=1.3, retrieval_weight=0.4)
    with torch.no_grad():
        output = ranker(**batch)
        prior = ranker.language_model(torch.tensor([letters.empty_prompt_ids()])).logits[
            :, -1, letters.letter_token_ids
        ]
    retrieval = batch["retrieval_scores"] - batch["retrieval_scores"].mean(1, keepdim=True)
    evidence = (batch["evidence"] * output.preferences[:, None, :]).sum(-1)
    said = output.lm_logits - prior
    expected = 0.7 * (said - said.mean(1, keepdim=True)) + 1.3 * evidence + 0.4 * retrieval
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)
    plain = 0.7 * said + 1.3 * evidence + 0.4 * batch["retrieval_scores"]
    torch.testing.assert_close(output.logits.softmax(1), plain.softmax(1), rtol=1e-4, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(expected, batch["labels"])
    torch.testing.assert_close(output.loss, loss, rtol=1e-4, atol=1e-4)


def test_padding_rows_and_candidates_does_not_change_a_row(either, film_dataset):
    proc, ranker = either, varied(model(either))
    lists = examples(film_dataset, count=4)
    short = replace(lists[1], history=lists[1].history[-1:], ratings=lists[1].ratings[-1:])
    small = replace(short, candidates=short.candidates[:3], retrieval_scores=short.retrieval_scores[:3], label=-1)
    with torch.no_grad():
        alone = ranker(**proc([small])).logits
        together = ranker(**proc([lists[0], small, lists[2]])).logits
    torch.testing.assert_close(together[1, :3], alone[0], rtol=1e-4, atol=1e-4)
    assert (together[1, 3:] < -1e30).all()


@pytest.mark.parametrize("count", [2, 52])
def test_lists_from_2_to_52_candidates_are_ranked(make_dataset, count):
    rows = [(user, (user * 7 + step) % 60 + 1, step) for user in range(1, 31) for step in range(6)]
    dataset = make_dataset(rows)
    proc = processor(dataset, num_candidates=52, max_length=2000, readout="letters")
    lists = examples(dataset, count=2, num_candidates=count)
    output = model(proc)(**proc(lists))
    assert output.logits.shape == (2, count)
    assert torch.isfinite(output.logits).all()


def test_untrained_preferences_are_uniform(proc, batch):
    output = model(proc)(**batch)
    torch.testing.assert_close(output.preferences, torch.full_like(output.preferences, 1 / len(proc.relations)))


def route(name, **config):
    evidence, gate = name in ("evidence", "both"), name != "evidence"
    kind = "straight_through" if name == "straight_through" else "attention_bias"
    return {"use_evidence_fusion": evidence, "use_path_gate": gate, "path_gate": kind, "lm_scale": 1.0, **config}


def varied(ranker):
    """Random small weights where training starts from zero, so that nothing is at a symmetric point."""
    torch.manual_seed(1)
    with torch.no_grad():
        for part in (ranker.preference, ranker.readout):
            for parameter in () if part is None else part.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        if ranker.preference.user_embedding is not None:
            ranker.preference.user_embedding.weight[0].zero_()
    return ranker


def everything_in_double_precision(monkeypatch):
    """Also what the ranker and its backbone do in float32 (norms, scores): it would blur small differences."""
    to = torch.Tensor.to

    def wider(tensor, *args, **kwargs):
        return to(tensor, *(torch.float64 if arg is torch.float32 else arg for arg in args), **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", wider)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def gradient_check(ranker, batch, wrong=None):
    """Relative error of each preference weight's gradient, along its own direction, against central differences.

    `wrong` is applied to the gates' gradient, to see that the check would notice.
    """
    if wrong is not None:
        hook = torch.nn.Module.register_forward_hook(
            ranker.preference, lambda module, inputs, logits: logits.register_hook(wrong) and None
        )
    ranker.zero_grad()
    ranker(**batch).loss.backward()
    if wrong is not None:
        hook.remove()
    errors = {}
    for name, parameter in ranker.preference.named_parameters():
        size = float(parameter.grad.norm())
        assert size > 1e-5, f"no gradient to speak of reaches {name}"
        direction, losses, step = parameter.grad / size, [], 1e-4
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                losses.append(float(ranker(**batch).loss.double()))
                parameter.sub_(sign * step * direction)
        errors[name] = abs((losses[0] - losses[1]) / (2 * step) - size) / size
    return errors


@pytest.mark.parametrize("name", ["evidence", "attention_bias", "straight_through", "both"])
def test_preference_gradients_equal_finite_differences(either, film_dataset, name, monkeypatch):
    """Every weight of the preference module, by each route alone and by both, on a loss that feels them."""
    ranker, batch = varied(model(either, **route(name, path_gate_temperature=0.5))), either(examples(film_dataset))
    everything_in_double_precision(monkeypatch)
    ranker = ranker.double().eval()
    with torch.no_grad():
        for weight in ranker.language_model.parameters():
            weight.mul_(6.0)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    if name == "straight_through":  # what it promises is the gradient of gates that start at 1, so let them be that
        start = []
        monkeypatch.setattr(
            "llamarec_lkg.ranking.path_gate.straight_through",
            lambda gate: start.append(gate.detach()) or 1.0 + gate - start[0],
        )
    errors = gradient_check(ranker, batch)
    assert max(errors.values()) < 1e-3, errors
    assert min(gradient_check(ranker, batch, wrong=lambda g: -10.0 * g).values()) > 0.5, "it would see a wrong one"


def test_the_straight_through_gradient_is_that_of_its_gate():
    gate = torch.tensor([0.2, 3.0], requires_grad=True)
    assert straight_through(gate).tolist() == [1.0, 1.0]
    straight_through(gate).mul(torch.tensor([5.0, -2.0])).sum().backward()
    assert gate.grad.tolist() == [5.0, -2.0]


def test_ids_are_shrunk_towards_what_the_history_says(proc, batch):
    """In training the loss holds the mean squared logits that ids add; unknown users add none."""
    plain, shrunk = (
        varied(model(proc, user_shrinkage=weight, user_dropout=0.0, use_user_embedding=True)) for weight in (0.0, 0.5)
    )
    personal = shrunk.preference.user_embedding.weight[batch["user_ids"]]
    for ranker in (plain, shrunk):
        ranker.train()
        ranker.preference.dropout.p = 0.0
    difference = shrunk(**batch).loss - plain(**batch).loss
    torch.testing.assert_close(difference, 0.5 * personal.square().sum(1).mean(), rtol=1e-4, atol=1e-5)
    nobody = {**batch, "user_ids": torch.zeros_like(batch["user_ids"])}
    torch.testing.assert_close(shrunk(**nobody).loss, plain(**nobody).loss)
    torch.testing.assert_close(shrunk.eval()(**batch).loss, plain.eval()(**batch).loss)


def test_relations_are_read_by_one_network_and_told_apart_by_their_vector(proc, batch):
    ranker = varied(model(proc, use_user_embedding=False)).eval()
    statistics = batch["history_relations"]
    users, order = batch["user_ids"], torch.tensor([2, 0, 1])
    with torch.no_grad():
        ranker.preference.bias.zero_()
        told_apart = ranker.preference(users, statistics)
        assert not torch.allclose(ranker.preference(users, statistics[:, order]), told_apart[:, order])
        ranker.preference.relation_embedding.zero_()
        alike = ranker.preference(users, statistics)
        torch.testing.assert_close(ranker.preference(users, statistics[:, order]), alike[:, order])


@pytest.mark.parametrize("whole", [True, False])
def test_preferences_load_without_the_backbone(proc, batch, tmp_path, whole):
    ranker = varied(model(proc))
    ranker.config.backbone_name_or_path = "somewhere/else"
    ranker.save_pretrained(tmp_path, include_backbone=whole, max_shard_size="20KB")
    for options in ({"backbone": False}, {"use_language_model": False}):
        light = LlamaRecLKGForRanking.from_pretrained(tmp_path, **options)
        assert light.language_model is None and not light.training
        torch.testing.assert_close(light.preferences(batch), ranker.preferences(batch))
        with pytest.raises(LKGError, match="Save it in a folder of its own"):
            light.save_pretrained(tmp_path)


@pytest.mark.parametrize("given", [False, True])
def test_a_field_given_by_name_is_checked_like_a_saved_one(letters, tmp_path, given):
    ranker = model(letters)
    ranker.save_pretrained(tmp_path)
    options = {"config": ranker.config} if given else {}
    with pytest.raises(LKGError, match=r"path_gate is 'nonsense'; it is one of \('attention_bias', 'straight_"):
        LlamaRecLKGForRanking.from_pretrained(tmp_path, path_gate="nonsense", **options)
    with pytest.raises(LKGError, match="num_candidates is 53; one forward pass ranks 2 to 52"):
        LlamaRecLKGForRanking.from_pretrained(tmp_path, num_candidates=53, **options)


def test_weights_of_another_shape_are_named(proc, tmp_path):
    ranker = model(proc)
    ranker.preference.history_in = torch.nn.Linear(3, 32)
    ranker.save_pretrained(tmp_path, include_backbone=True)
    with pytest.raises(LKGError, match=r"does not fit.*'preference.history_in.weight': \(\(32, 3\), \(32, 14\)\)"):
        LlamaRecLKGForRanking.from_pretrained(tmp_path, backbone=False)


def test_large_batches_are_scored_in_portions(either, film_dataset, monkeypatch):
    proc, ranker = either, model(either)
    batch, sizes, forward = proc(examples(film_dataset, count=6)), [], type(ranker).forward

    def counted(self, **inputs):
        sizes.append(len(inputs["user_ids"]))
        return forward(self, **inputs)

    monkeypatch.setattr(type(ranker), "forward", counted)
    whole = ranker.score_parts(batch)
    texts = [name for name in ("prefix", "candidate", "suffix") if f"{name}_attention_mask" in batch]
    first = sum(int(batch[f"{name}_attention_mask"][:2].sum()) for name in texts)
    monkeypatch.setattr("llamarec_lkg.ranking.modeling_llamarec_lkg.TOKENS_AT_ONCE", first)
    portions = ranker.score_parts(batch)
    assert sizes[:2] == [6, 2] and sum(sizes) == 12 and max(sizes[1:]) < 6
    assert whole.keys() == portions.keys()
    for name in whole:
        torch.testing.assert_close(portions[name], whole[name], rtol=1e-5, atol=1e-5)
    sizes.clear()
    monkeypatch.setattr("llamarec_lkg.ranking.modeling_llamarec_lkg.TOKENS_AT_ONCE", 1)
    ranker.score_parts(batch)
    assert sizes == [1] * 6, "a row that is longer is read by itself"
    sizes.clear()
    LlamaRecLKGForRanking(proc.model_config(use_language_model=False)).score_parts(batch)
    assert sizes == [6], "prompts that nobody reads"


def test_score_parts_sum_to_the_scores(either, film_dataset):
    proc, batch = either, dict(either(examples(film_dataset)))
    batch["candidate_mask"][0, 3:] = False
    for config in ({}, {"use_evidence_fusion": False}, {"use_letter_prior": False}, {"use_retrieval_scores": False}):
        ranker = varied(model(proc, lm_scale=0.7, evidence_weight=1.3, **config))
        parts = ranker.score_parts(batch)
        torch.testing.assert_close(parts["preferences"], ranker.preferences(batch))
        for name in ("language model", "retriever"):
            mean = parts[name].masked_fill(~batch["candidate_mask"], 0.0).sum(1)
            torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
        assert ("evidence" in parts) == config.get("use_evidence_fusion", True)
        total = parts["language model"] + parts["retriever"]
        total = total + (parts["evidence"].sum(-1) if "evidence" in parts else 0.0)
        real = batch["candidate_mask"]
        torch.testing.assert_close(total[real], ranker.score(batch)[real], rtol=1e-5, atol=1e-5)
        assert parts["language model"].abs().max() > 0


def test_straight_through_gate_is_one_in_the_forward_pass_and_carries_gradient(either, film_dataset):
    proc, batch = either, dict(either(examples(film_dataset)))
    gated, plain = (varied(model(proc, **route("straight_through", use_path_gate=on))) for on in (True, False))
    first, second = gated(**batch), plain(**batch)
    torch.testing.assert_close(first.logits, second.logits)
    first.loss.backward()
    assert gated.preference.bias.grad.abs().max() > 0


def test_with_both_routes_off_no_gradient_reaches_the_preferences(proc, batch):
    ranker = varied(model(proc, use_evidence_fusion=False, use_path_gate=False))
    ranker(**batch).loss.backward()
    assert ranker.preference.bias.grad is None or not ranker.preference.bias.grad.any()


def test_the_gate_makes_the_backbone_read_preferred_paths_more_strongly(either, film_dataset):
    proc, batch = either, dict(either(examples(film_dataset)))
    with torch.no_grad():
        even, keen = (varied(model(proc, path_gate_temperature=t))(**batch).lm_logits for t in (1e6, 0.01))
        none = varied(model(proc, use_path_gate=False))(**batch).lm_logits
    torch.testing.assert_close(even, none, rtol=1e-3, atol=1e-3)
    assert (keen - none).abs().max() > 1e-4


def test_user_dropout_hides_ids_in_training_only(proc, batch):
    ranker = varied(model(proc, user_dropout=1.0, preference_dropout=0.0, use_user_embedding=True))
    hidden = {**batch, "user_ids": torch.zeros_like(batch["user_ids"])}
    seen = [ranker.train()(**inputs).preferences for inputs in (batch, hidden)]
    torch.testing.assert_close(*seen)
    for training in (False, True):  # what `preferences` says is what evaluation sees, in any mode
        ranker.train(training)
        assert not torch.allclose(ranker.preferences(batch), ranker.preferences(hidden))
    assert ranker.preference.training


def test_select_paths_orders_by_score_breaks_ties_by_index_and_takes_one_a_history_item():
    inf = -torch.inf
    scores = torch.tensor([[0.1, 0.5, 0.5, 0.3], [inf, 0.2, inf, inf]])
    indices, best = select_paths(scores, 3)
    assert indices.tolist() == [[1, 2, 3], [1, -1, -1]]
    assert best[0].tolist() == pytest.approx([0.5, 0.5, 0.3])
    indices, _ = select_paths(scores, 3, torch.tensor([[0, 7, 7, 7], [1, 1, 1, 1]]))
    assert indices.tolist() == [[1, 0, -1], [1, -1, -1]]


def test_assembled_prompt_has_these_exact_tensors():
    prompt = assemble_prompt(
        prefix_input_ids=torch.tensor([[0, 1], [2, 3]]),
        prefix_attention_mask=torch.tensor([[0, 1], [1, 1]]),
        path_input_ids=torch.tensor([[[4, 5], [6, 0]], [[7, 0], [0, 0]]]),
        path_attention_mask=torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]]),
        suffix_input_ids=torch.tensor([[8, 9], [9, 0]]),
        suffix_attention_mask=torch.tensor([[1, 1], [1, 0]]),
        selected_paths=torch.tensor([[1, 0], [0, -1]]),
        max_length=100,
    )
    assert prompt.input_ids.tolist() == [[1, 6, 4, 5, 8, 9], [0, 0, 2, 3, 7, 9]]
    assert prompt.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    assert prompt.path_rank.tolist() == [[-1, 0, 1, 1, -1, -1], [-1, -1, -1, -1, 0, -1]]


def test_a_model_without_backbone_ranks_by_retriever_and_evidence(proc, film_dataset):
    ranker = LlamaRecLKGForRanking(proc.model_config(use_language_model=False))
    output = ranker(**proc(examples(film_dataset), with_prompt=False))
    assert output.lm_logits is None and torch.isfinite(output.logits).all()


def test_from_backbone_keeps_the_backbones_weights(proc):
    plain = backbone()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    ranker = LlamaRecLKGForRanking.from_backbone(plain, proc.model_config())
    assert all(torch.equal(before[name], value) for name, value in ranker.language_model.state_dict().items())


def test_what_is_saved_names_the_backbone_and_no_folder_of_a_cache(proc, base, tmp_path, monkeypatch):
    monkeypatch.setattr("llamarec_lkg.ranking.backbones.resolve_backbone", lambda name: base)
    ranker = LlamaRecLKGForRanking.from_backbone("a-known-name", proc.model_config())
    ranker.add_adapter(LoraConfig(**LORA))
    ranker.save_pretrained(tmp_path / "saved")
    texts = [path.read_text() for path in (tmp_path / "saved").rglob("*.json")]
    assert not any(base in text for text in texts)
    assert any('"base_model_name_or_path": "a-known-name"' in text for text in texts)


def test_rows_without_a_target_are_left_out_of_the_loss(proc, batch):
    ranker = model(proc)
    labels = batch["labels"].clone()
    labels[1:] = -1
    alone = ranker(**{**batch, "labels": labels}).loss
    logits = ranker(**batch).logits
    torch.testing.assert_close(alone, torch.nn.functional.cross_entropy(logits[:1], batch["labels"][:1]))
    assert ranker(**{**batch, "labels": torch.full_like(labels, -1)}).loss == 0


def test_a_checkpoint_that_names_no_backbone_says_what_to_do(proc, tmp_path):
    ranker = model(proc)
    ranker.config.backbone_name_or_path = None
    ranker.save_pretrained(tmp_path, include_backbone=False)
    with pytest.raises(LKGError, match="does not name one"):
        LlamaRecLKGForRanking.from_pretrained(tmp_path)


def test_gradient_checkpointing_changes_nothing(proc, batch):
    plain, checkpointed = varied(model(proc)), varied(model(proc))
    checkpointed.activation_checkpointing_enable()
    for ranker in (plain, checkpointed):
        ranker.train()
        torch.manual_seed(0)
        ranker(**batch).loss.backward()
    weight = "language_model.model.layers.0.self_attn.q_proj.weight"
    grads = [dict(ranker.named_parameters())[weight].grad for ranker in (plain, checkpointed)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


# -- the configuration to load with -----------------------------------------------------------------------------------


@pytest.fixture
def saved(proc, base, tmp_path):
    """A ranker with an adapter, in its small form."""
    ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config())
    ranker.add_adapter(LoraConfig(**LORA))
    ranker.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("whole", [False, True])
def test_a_given_configuration_is_used_and_stays_as_it_is(proc, saved, tmp_path, whole):
    if whole:
        LlamaRecLKGForRanking.from_pretrained(saved).merge_adapter().save_pretrained(saved)
    config = LlamaRecLKGConfig.from_pretrained(saved)
    config.num_paths, config.backbone_revision = 1, "v1"
    config.save_pretrained(tmp_path / "other")
    for place in (tmp_path / "other", str(tmp_path / "other" / "config.json")):
        assert LlamaRecLKGForRanking.from_pretrained(saved, config=place, backbone=False).config.num_paths == 1
    before = config.to_dict()
    for options in ({"backbone": False}, {} if whole else {"backbone": backbone()}):
        ranker = LlamaRecLKGForRanking.from_pretrained(saved, config=config, **options)
        assert ranker.config.num_paths == 1 and ranker.config is not config
    assert config.to_dict() == before and config.use_language_model and config.has_adapter != whole


@pytest.mark.parametrize("given", [{"num_paths": 1}, backbone().config])
def test_what_is_no_configuration_of_ours_is_refused(saved, given):
    with pytest.raises(LKGError, match=f"config is a {type(given).__name__}; it is .* by their names"):
        LlamaRecLKGForRanking.from_pretrained(saved, config=given)


@pytest.mark.parametrize("kind", [AutoModel, LlamaRecLKGForRanking])
@pytest.mark.parametrize("whole", [False, True])
def test_fields_of_the_configuration_are_given_by_name(saved, batch, kind, whole):
    if whole:
        LlamaRecLKGForRanking.from_pretrained(saved).merge_adapter().save_pretrained(saved)
    ranker = kind.from_pretrained(saved, num_paths=0, dtype=torch.bfloat16)
    assert ranker.config.num_paths == 0 and ranker.score(batch).isfinite().all()
    assert kind.from_pretrained(saved).config.num_paths == 3
    given = LlamaRecLKGConfig.from_pretrained(saved)
    assert kind.from_pretrained(saved, config=given, num_paths=1).config.num_paths == 1 and given.num_paths == 3


@pytest.mark.parametrize("form", ["adapter", "whole", "no backbone"])
def test_the_dtype_is_the_backbones_where_there_is_one(proc, batch, saved, tmp_path, form):
    if form == "whole":
        LlamaRecLKGForRanking.from_pretrained(saved).merge_adapter().save_pretrained(saved)
    options = {"backbone": False} if form == "no backbone" else {}
    for dtype in (torch.float32, torch.bfloat16):
        ranker = LlamaRecLKGForRanking.from_pretrained(saved, dtype=dtype, **options)
        assert ranker.dtype == (torch.float32 if form == "no backbone" else dtype)
        assert {weight.dtype for weight in ranker.own_state_dict().values()} == {torch.float32}
        assert ranker.score(batch).dtype == torch.float32


@pytest.mark.parametrize("form", ["adapter", "whole", "backbone"])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fast", [torch.float32, torch.bfloat16])
def test_without_a_dtype_the_checkpoints_own_is_kept_where_the_device_computes_it_fast(
    proc, base, saved, monkeypatch, form, kept, fast
):
    """A float32 checkpoint is never narrowed; half precision is widened where it would be slow."""
    monkeypatch.setattr(precision, "fast_dtype", lambda device=None: fast)
    if form == "whole":
        whole = LlamaRecLKGForRanking.from_pretrained(saved, dtype=kept)
        whole.merge_adapter().save_pretrained(saved)
    else:
        backbone().to(kept).save_pretrained(base)
    expected = kept if kept == fast else torch.float32
    for options in ({}, {"dtype": "auto"}):
        if form == "backbone":
            ranker = LlamaRecLKGForRanking.from_backbone(base, proc.model_config(), **options)
        else:
            ranker = LlamaRecLKGForRanking.from_pretrained(saved, **options)
        assert ranker.dtype == expected and ranker.preference.bias.dtype == torch.float32


def test_a_given_device_decides_the_precision(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(precision, "fast_dtype", lambda device=None: asked.append(device) or torch.float32)
    for device_map in ("cpu", "auto", {"": "cpu"}):
        LlamaRecLKGForRanking.from_pretrained(saved, device_map=device_map)
    assert asked == ["cpu", None, None]
    assert LlamaRecLKGForRanking.from_pretrained(saved, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scoring_computes_in_half_precision_only_where_the_backbone_is(proc, batch, dtype):
    ranker, seen = model(proc), []
    ranker.add_adapter(LoraConfig(**LORA))
    ranker.language_model.to(dtype)
    ranker._decoder().register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    parts = ranker.score_parts(batch)
    assert set(seen) == {dtype == torch.bfloat16}
    total = parts["language model"] + parts["retriever"] + parts["evidence"].sum(-1)
    torch.testing.assert_close(total, ranker.score(batch), rtol=1e-5, atol=1e-5)


def test_under_autocast_the_bias_of_the_gate_is_float32(either, film_dataset):
    """Upstream puts the least number of the keys' type into it, and those of a quantized backbone are float32: half
    precision cannot hold it, which CUDA refuses."""
    ranker, seen = model(either), []
    ranker._layouts.clear()  # each padded by itself
    name = "position_bias" if either.readout == "letters" else "attention_mask"  # whose mask holds the bias
    ranker._decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get(name)), with_kwargs=True
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ranker(**either(examples(film_dataset)))
    assert [bias.dtype for bias in seen if bias is not None] == [torch.float32]


@pytest.mark.parametrize("use", ["score", "score_parts", "preferences", "prior"])
def test_every_part_is_in_its_own_mode_again_also_after_an_error(letters, film_dataset, use):
    """As while the heads are fitted beside a backbone that is not trained."""
    ranker, batch = model(letters), dict(letters(examples(film_dataset)))
    ranker.eval().preference.train()
    modes = {name: module.training for name, module in ranker.named_modules()}
    assert set(modes.values()) == {True, False}

    def run():
        return ranker._letter_prior(3, ranker.device) if use == "prior" else getattr(ranker, use)(batch)

    run()
    assert {name: module.training for name, module in ranker.named_modules()} == modes
    if use == "prior":
        ranker.language_model.train()
        modes = {name: module.training for name, module in ranker.named_modules()}
        ranker.language_model.forward = None
    else:
        ranker.preference.forward = None
    with pytest.raises(TypeError):
        run()
    assert {name: module.training for name, module in ranker.named_modules()} == modes
