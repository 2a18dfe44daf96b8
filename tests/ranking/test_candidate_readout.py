"""The candidate readout: scores that do not depend on order or company, exact assembly, lists of any length, its head,
its loss, and a backbone that is cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny import LORA, backbone, examples, model, processor
from transformers import AutoModel

from llamarec_lkg.ranking.candidate_blocks import (
    assemble_blocks,
    block_attention,
    fitting,
    select_block_paths,
)
from llamarec_lkg.ranking.configuration_llamarec_lkg import LlamaRecLKGConfig
from llamarec_lkg.ranking.heads import CandidateReadout
from llamarec_lkg.ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.ranking.path_gate import log_path_gate
from llamarec_lkg.utils.errors import LKGError


def moved(ranker, seed=1):
    """The heads as training would move them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for head in (ranker.preference, ranker.readout):
            for weight in head.parameters():
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return ranker.eval()


def with_candidates(example, items):
    scores = np.arange(len(items), dtype=np.float32)
    return replace(example, candidates=np.array(items), retrieval_scores=scores, label=-1)


@torch.no_grad()
def said(ranker, proc, example, items):
    """What the language model says of each item in a list of these, in a batch beside a longer list."""
    lists = [with_candidates(example, items), with_candidates(example, [1, 2, 3, 4, 5, 6])]
    return dict(zip(items, ranker(**proc(lists)).lm_logits[0].tolist(), strict=False))


GATES = ["attention_bias", "straight_through", None]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("kind", "kernel"), [("llama", "sdpa"), ("qwen3", "eager")])
def test_scores_depend_neither_on_order_nor_on_company(proc, film_dataset, gate, kernel, kind):
    plain = backbone(kind)
    plain.set_attn_implementation(kernel)
    gated = {"use_path_gate": False} if gate is None else {"path_gate": gate}
    ranker = moved(LlamaRecLKGForRanking.from_backbone(plain, proc.model_config(**gated)))
    example = examples(film_dataset, count=1)[0]
    whole = said(ranker, proc, example, [1, 2, 3, 4, 5, 6])
    assert np.ptp(list(whole.values())) > 0.01
    generator = np.random.default_rng(0)
    for _ in range(20):
        items = generator.permutation([1, 2, 3, 4, 5, 6])[: generator.integers(2, 7)].tolist()
        for item, score in said(ranker, proc, example, items).items():
            assert score == pytest.approx(whole[item], abs=1e-5)


def test_with_causal_attention_candidates_see_those_before_them(film_dataset):
    proc = processor(film_dataset, candidate_attention="causal", num_candidates=6).fit(examples(film_dataset))
    ranker, example = moved(model(proc)), examples(film_dataset, count=1)[0]
    first, second = (said(ranker, proc, example, items) for items in ([1, 2, 3, 4, 5, 6], [1, 2, 5, 6, 3, 4]))
    apart = {item: abs(first[item] - second[item]) for item in first}
    assert max(apart[1], apart[2]) < 1e-5 < 1e-4 < min(apart[3], apart[4], apart[5], apart[6])
    with pytest.raises(LKGError, match="7 candidates were given; one forward pass ranks 2 to 6"):
        proc([with_candidates(example, [1, 2, 3, 4, 5, 6, 1])])


@pytest.mark.parametrize("attention", ["isolated", "causal"])
def test_the_state_that_is_read_is_the_plain_backbones_on_the_text(film_dataset, attention):
    """Of an isolated candidate, on the history and its own block; else on the whole prompt up to its end."""
    proc = processor(film_dataset, candidate_attention=attention).fit(examples(film_dataset))
    ranker = moved(model(proc, use_path_gate=False))
    lists = examples(film_dataset, count=3)
    output = ranker(**proc(lists))

    def last(texts):
        ids = [token for text in texts for token in proc.tokenizer(text, add_special_tokens=False)["input_ids"]]
        states = ranker.language_model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        return states[0, -1]

    for row, example in enumerate(lists):
        chosen = output.selected_paths[row].tolist()
        prefix = proc.render(with_candidates(example, []), [])
        blocks = [
            proc.render(with_candidates(example, example.candidates), [[-1]] * place + [chosen[place]] + [[-1]] * 9)
            for place in range(5)
        ]
        blocks = [texts[len(prefix) :] for texts in blocks]
        # of each, only what belongs to its own candidate
        blocks = [texts[2 * place : len(texts) - 2 * (4 - place)] for place, texts in enumerate(blocks)]
        before = [[text for block in blocks[:place] for text in block] for place in range(5)]
        states = torch.stack(
            [last(prefix + (before[place] if attention == "causal" else []) + blocks[place]) for place in range(5)]
        )
        expected = ranker.readout(last(prefix)[None], states[None])[0]
        torch.testing.assert_close(output.lm_logits[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_list_of_any_length_is_read_in_passes_with_the_same_scores(proc, film_dataset, size, gate):
    gated = {"use_path_gate": False} if gate is None else {"path_gate": gate}
    ranker = moved(model(proc, **gated))
    batch = proc([with_candidates(example, [6, 5, 4, 3, 2, 1]) for example in examples(film_dataset, count=3)])
    whole = ranker(**batch).lm_logits
    whole.square().sum().backward()
    names = ("readout.key.weight", "language_model.model.layers.0.self_attn.k_proj.weight", "preference.bias")
    weights = [dict(ranker.named_parameters())[name] for name in names]
    expected = [None if weight.grad is None else weight.grad.clone() for weight in weights]
    ranker.config.candidates_per_pass = size
    calls = []
    ranker._decoder().register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["position_ids"].shape[1]), with_kwargs=True
    )
    for recomputes in (False, True):  # the prefix is read once, unless layers are run again for the gradient
        ranker.zero_grad()
        if recomputes:
            ranker.activation_checkpointing_enable()
            ranker.language_model.train()
        found = ranker(**batch).lm_logits
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
        found.square().sum().backward()
        for weight, gradient in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-4)
    parts = -(-6 // size)
    passes, again = calls[: parts + 1], calls[parts + 1 :]
    assert len(again) == parts and all(behind < both for behind, both in zip(passes[1:], again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["padded", "shared rows"])
def test_all_layers_keep_one_mask(proc, film_dataset, dtype, layout):
    """Of a mask that is not of their numbers' type each would make its own, and keep it for the gradient."""
    ranker, kept = model(proc, use_path_gate=False), {}
    ranker._layouts[ranker._how_it_reads] = [layout]

    def keep(tensor):
        if tensor.ndim == 4 and tensor.shape[2] == tensor.shape[3]:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            ranker(**proc([examples(film_dataset)[0]] * 4))
    assert len(ranker._decoder().layers) > 1 and [mask.dtype for mask in kept.values()] == [dtype]
    assert all(stride % 8 == 0 for mask in kept.values() for stride in mask.stride()[:-1]), "or a GPU makes another"


def test_an_untrained_ranker_is_its_retriever_and_evidence_and_learns(proc, batch):
    ranker = model(proc)
    output = ranker(**batch)
    assert not output.lm_logits.any()
    parts = ranker.score_parts(batch)
    assert torch.equal(parts["retriever"] + parts["evidence"].sum(-1), ranker.score(batch))
    output.loss.backward()
    assert ranker.readout.key.weight.grad.any() and ranker.readout.out.weight.grad.any()
    ranker.add_adapter(LoraConfig(**LORA))
    optimizer = torch.optim.AdamW([p for p in ranker.parameters() if p.requires_grad], lr=1e-2)
    before = {name: p.detach().clone() for name, p in ranker.named_parameters() if p.requires_grad}
    ranker.train()
    losses = []
    for _ in range(8):
        loss = ranker(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    still = [
        name for name, weight in ranker.named_parameters() if name in before and torch.equal(weight, before[name])
    ]
    assert not still


def test_the_output_layer_that_is_passed_by_is_not_trained_unless_it_is_the_input_layer(proc):
    assert not model(proc).get_output_embeddings().weight.requires_grad
    tied = LlamaRecLKGForRanking.from_backbone(backbone(tie_word_embeddings=True), proc.model_config())
    assert tied.get_output_embeddings().weight.requires_grad
    letters = model(processor_with_letters(proc))
    assert letters.get_output_embeddings().weight.requires_grad and letters.readout is None


def processor_with_letters(proc):
    parts = proc.tokenizer, proc.knowledge_graph, proc.item_ids, proc.titles, proc.user_ids
    return type(proc)(*parts, **{**proc.settings, "readout": "letters"})


def test_the_training_loss_holds_that_of_the_language_model_alone(proc, batch):
    settings = {"user_shrinkage": 0.0, "preference_dropout": 0.0}
    ranker = moved(model(proc, lm_loss_weight=0.5, **settings))
    batch["candidate_mask"][0, 3:], batch["labels"][0] = False, 1
    ranked = ranker(**batch)
    scores = ranked.lm_scores.masked_fill(~batch["candidate_mask"], -1e30)
    alone = torch.nn.functional.cross_entropy(scores, batch["labels"])
    torch.testing.assert_close(ranker.train()(**batch).loss, ranked.loss + 0.5 * alone)
    ranker.config.lm_loss_weight = 0.0
    torch.testing.assert_close(ranker(**batch).loss, ranked.loss)


def test_the_head_is_what_its_docstring_says():
    torch.manual_seed(0)
    head = CandidateReadout(160)
    for weight in head.parameters():
        torch.nn.init.normal_(weight)
    prefix, candidates = torch.randn(2, 160), torch.randn(2, 3, 160)
    q, k = head.query(head.norm(prefix)), head.key(head.norm(candidates))
    own = head.out(torch.nn.functional.gelu(head.hidden(head.norm(candidates))))[..., 0]
    expected = torch.einsum("bd,bcd->bc", q, k) / 128**0.5 + own
    torch.testing.assert_close(head(prefix, candidates), expected, rtol=1e-4, atol=1e-2)
    assert head(prefix.bfloat16(), candidates.bfloat16()).dtype == torch.float32


# -- assembly


def test_the_best_paths_of_each_candidate_are_selected_ties_by_index():
    inf = -torch.inf
    scores = torch.tensor([[0.1, 0.5, 0.5, 0.3, inf], [inf, 0.2, inf, inf, 0.4]])
    owners = torch.tensor([[0, 2, 2, 2, 1], [0, 1, 1, 1, 1]])
    assert select_block_paths(scores, owners, 3, 2).tolist() == [
        [[0, -1], [-1, -1], [1, 2]],
        [[-1, -1], [4, 1], [-1, -1]],
    ]
    assert select_block_paths(scores, owners, 3, 1)[0].tolist() == [[0], [-1], [1]]
    assert select_block_paths(scores, owners, 3, 0).shape == (2, 3, 0)
    sources = torch.tensor([[5, 5, 5, 7, 5], [1, 1, 1, 1, 1]])
    assert select_block_paths(scores, owners, 3, 2, sources)[0].tolist() == [[0, -1], [-1, -1], [1, 3]]


def test_paths_stay_best_first_until_one_does_not_fit():
    lengths, scores = torch.tensor([[3, 2, 2], [4, 4, 4]]), torch.tensor([[0.1, 0.9, 0.5], [1.0, 2.0, 3.0]])
    assert fitting(lengths, scores, torch.tensor([5, 3])).tolist() == [[False, True, True], [False, False, False]]


def test_assembled_blocks_have_these_exact_tensors():
    parts = {
        "prefix_input_ids": torch.tensor([[0, 1], [2, 3]]),
        "prefix_attention_mask": torch.tensor([[0, 1], [1, 1]]),
        "candidate_input_ids": torch.tensor([[[4, 5], [6, 0]], [[7, 0], [0, 0]]]),
        "candidate_attention_mask": torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]]),
        "path_input_ids": torch.tensor([[[8, 9], [10, 0]], [[11, 0], [0, 0]]]),
        "path_attention_mask": torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]]),
        "selected_paths": torch.tensor([[[1], [0]], [[0], [-1]]]),
    }
    prompt = assemble_blocks(**parts, isolated=True)
    assert prompt.input_ids.tolist() == [[1, 4, 5, 10, 6, 8, 9], [0, 0, 0, 2, 3, 7, 11]]
    assert prompt.owner.tolist() == [[0, 1, 1, 1, 2, 2, 2], [-1, -1, -1, 0, 0, 1, 1]]
    assert prompt.position_ids.tolist() == [[0, 1, 2, 3, 1, 2, 3], [0, 0, 0, 0, 1, 2, 3]]
    assert prompt.path.tolist() == [[-1, -1, -1, 1, -1, 0, 0], [-1, -1, -1, -1, -1, -1, 0]]
    assert prompt.ends.tolist() == [[0, 3, 6], [4, 6, 6]]
    running = assemble_blocks(**parts, isolated=False)
    assert running.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 2, 3]]
    assert running.input_ids.tolist() == prompt.input_ids.tolist()


def test_a_block_sees_the_prefix_and_itself_and_padding_sees_itself():
    owner = torch.tensor([[-1, 0, 0, 1, 1, 2]])
    assert block_attention(owner)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 0, 0, 1],
    ]
    assert torch.equal(block_attention(owner, 2), block_attention(owner)[:, :, 4:])


def test_the_gate_of_a_path_is_its_own_and_open_where_all_relations_are_liked_alike():
    weights = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]])
    even, keen = torch.full((3,), 1 / 3), torch.tensor([0.6, 0.3, 0.1])
    torch.testing.assert_close(log_path_gate(weights @ even, weights, 0.2), torch.zeros(1, 3))
    found = log_path_gate(weights @ keen, weights, 0.5)
    torch.testing.assert_close(found, 2 * torch.tensor([[1.8, 0.6, 1.0]]).log())
    assert torch.equal(log_path_gate(torch.tensor([[-torch.inf] * 3]), weights, 1.0), torch.zeros(1, 3))


@pytest.mark.parametrize("attention", ["isolated", "causal"])
def test_max_length_bounds_what_a_candidate_sees_paths_go_first(film_dataset, attention):
    lists = examples(film_dataset, count=2)
    seen = {}
    for length in (1024, 250 if attention == "isolated" else 300, 215 if attention == "isolated" else 270):
        settings = {"max_length": length, "candidate_attention": attention, "num_paths": 2}
        proc = processor(film_dataset, **settings).fit(lists)
        ranker, positions = moved(model(proc)), []
        hook = ranker._decoder().register_forward_pre_hook(
            lambda module, args, kwargs, found=positions: found.append(int(kwargs["position_ids"].max())),
            with_kwargs=True,
        )
        output = ranker(**proc(lists))
        hook.remove()
        assert max(positions) < length
        seen[length] = int((output.selected_paths >= 0).sum())
    assert sorted(seen.values(), reverse=True) == list(seen.values()) and len(set(seen.values())) > 1


# -- a backbone that is cut


def test_a_cut_backbone_is_its_first_layers_in_every_form(proc, batch, tmp_path):
    plain = backbone(num_hidden_layers=3)
    plain.save_pretrained(tmp_path / "base")
    config = proc.model_config(num_hidden_layers=1)
    ranker = moved(LlamaRecLKGForRanking.from_backbone(tmp_path / "base", config))
    assert len(ranker._decoder().layers) == ranker.config.text_config.num_hidden_layers == 1
    expected = plain.base_model.layers[0].self_attn.q_proj.weight
    assert torch.equal(ranker._decoder().layers[0].self_attn.q_proj.weight, expected)
    assert torch.equal(ranker._decoder().norm.weight, plain.base_model.norm.weight)
    ranker.save_pretrained(tmp_path / "whole", include_backbone=True)
    ranker.add_adapter(LoraConfig(**LORA))
    ranker.save_pretrained(tmp_path / "small")
    for form in ("whole", "small"):
        again = AutoModel.from_pretrained(tmp_path / form)
        assert len(again._decoder().layers) == 1
        torch.testing.assert_close(again(**batch).logits, ranker(**batch).logits, rtol=1e-5, atol=1e-5)
    other = AutoModel.from_pretrained(tmp_path / "small", backbone=backbone(num_hidden_layers=3))
    assert len(other._decoder().layers) == 1
    deeper = LlamaRecLKGForRanking.from_backbone(tmp_path / "base", proc.model_config())
    with pytest.raises(LKGError, match="trained on 1 layers of the backbone, this model has 3"):
        deeper.load_adapter(tmp_path / "small", "small")


@pytest.mark.parametrize(("count", "message"), [(0, "is 0; it is at least 1"), (9, "is 9, but the backbone has 2")])
def test_a_cut_that_cannot_be_is_refused(proc, count, message):
    with pytest.raises(LKGError, match=message):
        LlamaRecLKGForRanking.from_backbone(backbone(), proc.model_config(num_hidden_layers=count))


def test_only_letters_bound_the_length_of_lists():
    LlamaRecLKGConfig(num_candidates=500)
    with pytest.raises(
        LKGError, match="num_candidates is 53; one forward pass ranks 2 to 52 candidates behind letters"
    ):
        LlamaRecLKGConfig(num_candidates=53, readout="letters")
    free = LlamaRecLKGConfig().longest_list, LlamaRecLKGConfig(candidate_attention="causal").longest_list
    assert free == (None, 20)
