"""Prompts without padding, one behind the other, say what padded ones say; the letters' prior is kept no longer than
the weights."""

from dataclasses import replace
from os.path import commonprefix

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from test_backbone_check import FAMILIES, HYBRIDS, REFUSED, made
from tiny import LORA, examples, model, processor

from llamarec_lkg.ranking.candidate_blocks import block_attention
from llamarec_lkg.ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.ranking.packed_attention import PackedMask
from llamarec_lkg.ranking.packed_prompts import LEAST_SHARED, Packing, block_pieces


READ = [
    {"readout": "candidates"},
    {"readout": "candidates", "candidate_attention": "causal", "num_candidates": 6},
    {"readout": "letters"},
]


def moved(ranker):
    """As training would move it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for head in (ranker.preference, ranker.readout):
            for weight in () if head is None else head.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return ranker.eval()


def said(ranker, batch, layout):
    """The language model's scores, and the gradients of their squares."""
    ranker._layouts[ranker._how_it_reads] = [layout]
    ranker.zero_grad()
    scores = ranker(**batch).lm_logits
    scores.square().sum().backward()
    gradients = {name: weight.grad for name, weight in ranker.named_parameters() if weight.grad is not None}
    return scores.detach(), gradients


@pytest.mark.parametrize("gate", ["attention_bias", "straight_through", None])
@pytest.mark.parametrize("settings", READ, ids=["isolated", "causal", "letters"])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_scores_and_gradients_are_those_of_padded_prompts(film_dataset, settings, gate, checkpoints):
    proc = processor(film_dataset, **settings).fit(examples(film_dataset))
    gated = {"use_path_gate": False} if gate is None else {"path_gate": gate}
    ranker = moved(model(proc, **gated))
    assert ranker._layout(ranker.device) == "packed"
    if checkpoints:
        ranker.activation_checkpointing_enable()
        ranker.language_model.train()
    batch = proc(examples(film_dataset, count=4))
    assert not batch["prefix_attention_mask"].all(), "some row is shorter"
    lengths = []
    ranker.get_input_embeddings().register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape))
    (packed, gradients), (padded, expected) = said(ranker, batch, "packed"), said(ranker, batch, "padded")
    assert lengths[0][0] == 1 and lengths[0].numel() < lengths[-1 if settings["readout"] != "letters" else -2].numel()
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gate", ["attention_bias", "straight_through", None])
@pytest.mark.parametrize("settings", READ, ids=["isolated", "causal", "letters"])
def test_what_prompts_begin_with_alike_is_read_once(film_dataset, settings, gate):
    proc = processor(film_dataset, **settings).fit(examples(film_dataset))
    gated = {"use_path_gate": False} if gate is None else {"path_gate": gate}
    ranker = moved(model(proc, **gated))
    one, other = examples(film_dataset, count=2)
    earlier = replace(one, history=one.history[:-1], ratings=one.ratings[:-1], candidates=one.candidates[::-1])
    batch = proc([earlier, other, one, replace(one, label=0)])
    (packed, gradients), (padded, expected) = said(ranker, batch, "packed"), said(ranker, batch, "padded")
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[2], packed[3], rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)
    prior, lengths = len(proc.empty_prompt_ids()), []
    ranker.get_input_embeddings().register_forward_pre_hook(lambda module, args: lengths.append(args[0].numel()))

    def tokens_read(*lists):
        lengths.clear()
        said(ranker, proc(lists), "packed")
        return sum(lengths) - (prior if settings["readout"] == "letters" else 0)

    prefixes = [batch["prefix_input_ids"][row, batch["prefix_attention_mask"][row].bool()].tolist() for row in (1, 2)]
    common = len(commonprefix(prefixes))
    assert LEAST_SHARED < common < min(map(len, prefixes))
    alone = tokens_read(one)
    assert tokens_read(one, other) == alone + tokens_read(other) - common
    whole = settings["readout"] == "letters" and gate is None
    assert tokens_read(one, replace(one, label=0)) == (alone if whole else 2 * alone - len(prefixes[1]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("readout", ["candidates", "letters"])
def test_every_family_reads_prompts_laid_out_together_as_padded_ones_or_not_at_all(
    monkeypatch, film_dataset, family, readout
):
    monkeypatch.setattr("llamarec_lkg.ranking.shared_rows._work", lambda rows, width, hidden_size: rows * width)
    proc = processor(film_dataset, readout=readout).fit(examples(film_dataset))
    config = proc.model_config(use_path_gate=readout == "candidates")  # letters' gate is not for every family
    ranker = moved(LlamaRecLKGForRanking.from_backbone(made(family, FAMILIES[family]), config))
    lists = examples(film_dataset, count=4)
    batch = proc([*lists, *(replace(one, candidates=one.candidates[::-1]) for one in lists)])
    works = ranker._layouts.pop(ranker._how_it_reads, [])
    assert works == (["packed", "shared rows"] if ranker._kernel == "sdpa" else [])
    read = []
    ranker.get_input_embeddings().register_forward_pre_hook(lambda module, args: read.append(args[0].numel()))
    expected = ranker.score(batch)
    padded = max(read)
    read.clear()
    for layout in works:
        ranker._layouts[ranker._how_it_reads] = [layout]
        torch.testing.assert_close(ranker.score(batch), expected, rtol=1e-4, atol=1e-4)
    assert len(read) == len(works) and all(tokens < padded for tokens in read), "the prior is kept"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", READ[1:], ids=["causal", "letters"])
@pytest.mark.parametrize("family", HYBRIDS)
def test_layers_that_read_tokens_one_after_the_other_are_given_each_prompt_by_itself(
    film_dataset, family, settings, dtype
):
    proc = processor(film_dataset, **settings).fit(examples(film_dataset))
    backbone = made(family, REFUSED[family][0]).to(dtype)
    ranker = LlamaRecLKGForRanking.from_backbone(backbone, proc.model_config(use_path_gate=False))
    assert [ranker._layout(torch.device(name)) for name in ("cpu", "cuda")] == ["padded", "padded"]


def test_a_window_that_a_prompt_outgrows_is_left_to_the_backbone(film_dataset):
    proc = processor(film_dataset, readout="letters")
    windowed = {**FAMILIES["llama"], "sliding_window": 16}
    ranker = LlamaRecLKGForRanking.from_backbone(made("mistral", windowed), proc.model_config())
    assert ranker._layout(ranker.device) == "padded"
    ranker.check_reading(short := proc.model_config(max_length=16))  # of another tenant, whose prompts fit
    assert ranker._layout(ranker.device) == "padded"
    long, ranker.config = ranker.config, short
    assert ranker._layout(ranker.device) == "packed"
    ranker.check_reading(long)
    assert ranker._layout(ranker.device) == "packed"
    wide = {**windowed, "sliding_window": proc.max_length}
    ranker = LlamaRecLKGForRanking.from_backbone(made("mistral", wide), proc.model_config())
    assert ranker._layout(ranker.device) == "packed"


def alone(real):
    """The packing of prompts that begin differently."""
    return Packing.of(torch.arange(real.numel()).view_as(real), real, real.sum(1))


def test_pieces_hold_whole_blocks_and_see_what_a_block_sees(monkeypatch):
    monkeypatch.setattr("llamarec_lkg.ranking.packed_prompts.PIECE", 3)
    owner = torch.tensor([[-1, 0, 0, 1, 1, 2, 2, 3], [0, 0, 0, 2, 2, 2, 2, 3]])  # of the second, a block is empty
    found = [
        (piece.queries, piece.keys, None if piece.seen is None else piece.seen.int().tolist())
        for piece in block_pieces(owner, alone(owner >= 0))
    ]
    assert found == [
        (slice(0, 2), (slice(0, 2),), None),
        (
            slice(2, 6),
            (slice(0, 6),),
            [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1]],
        ),
        (slice(6, 7), (slice(0, 2), slice(6, 7)), [[1, 1, 1]]),
        (slice(7, 10), (slice(7, 10),), None),
        (
            slice(10, 14),
            (slice(7, 14),),
            [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]],
        ),
        (slice(14, 15), (slice(7, 10), slice(14, 15)), [[1, 1, 1, 1]]),
    ]


@pytest.mark.parametrize("piece", [1, 100])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_keep_what_is_shared_once_however_many_pieces_there_are(monkeypatch, piece, dropout):
    monkeypatch.setattr("llamarec_lkg.ranking.packed_prompts.PIECE", piece)
    owner = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 3]])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 8, 4, generator=generator).requires_grad_() for heads in (4, 2, 2))
    gate = torch.randn(8, generator=generator).requires_grad_()
    kept, inputs = {}, [query, key, value, gate]

    def bias():
        return gate.masked_fill(owner[0] == 0, 0.0)

    def packed(mask, shared):
        return F.scaled_dot_product_attention(
            query,
            *(part.repeat_interleave(shared, dim=1) for part in (key, value)),
            mask,
            dropout,
            enable_gqa=shared == 1,
        )

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    found = []
    for shared in (1, 2):  # what the kernel repeats, and what upstream has repeated
        torch.manual_seed(0)
        kept.clear()
        added = bias()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = packed(PackedMask.of(block_pieces(owner, alone(owner >= 0)), 8, added, 2), shared)
        once = 2 * query.numel() + key.numel() + value.numel()  # what is given and, as much as queries, what is read
        assert dropout or sum(kept.values()) == once + query.shape[1] * 8 + 8, "a sum for each head and place, a gate"
        found.append((states, *torch.autograd.grad(states.square().sum(), inputs)))
    torch.testing.assert_close(found[0], found[1])
    if not dropout:
        mask = torch.where(block_attention(owner), bias(), -torch.inf)
        states = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        torch.testing.assert_close(found[0], (states, *torch.autograd.grad(states.square().sum(), inputs)))


@pytest.mark.parametrize("repeated", [1, 2])
def test_without_the_kernel_attention_is_left_to_torch(monkeypatch, repeated):
    generator, owner = torch.Generator().manual_seed(0), torch.tensor([[0, 0, 0, 1, 1, 2, 2, 3]])
    query, *parts = (torch.randn(1, heads, 8, 4, generator=generator) for heads in (4, 2, 2))
    parts, how = [part.repeat_interleave(repeated, dim=1) for part in parts], {"enable_gqa": repeated == 1}
    mask = PackedMask.of(block_pieces(owner, alone(owner >= 0)), 8, None, 2)
    expected = F.scaled_dot_product_attention(query, *parts, mask, **how)
    monkeypatch.setattr("llamarec_lkg.ranking.packed_attention._FLASH", None)
    torch.testing.assert_close(F.scaled_dot_product_attention(query, *parts, mask, **how), expected)


def test_the_letters_prior_is_read_again_when_the_backbone_says_something_else(letters, film_dataset):
    ranker, batch = model(letters), letters(examples(film_dataset))
    ranker.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    passes = []
    ranker.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))

    def fresh():
        """Scores by a prior that is read now, and whether one was read without asking for it."""
        passes.clear()
        scores, read = ranker.score(batch), len(passes) == 2
        ranker._kept_prior = None
        torch.testing.assert_close(scores, ranker.score(batch), rtol=0, atol=0)
        return read

    assert fresh() and not fresh() and not fresh()
    weight = next(weight for weight in ranker.language_model.parameters() if weight.requires_grad)
    with torch.no_grad():
        weight.mul_(1.5)
    assert fresh() and not fresh()
    weight.data = weight.data * 1.5
    assert fresh() and not fresh()
    ranker.language_model.base_model.disable_adapter_layers()
    assert fresh() and not fresh()
    ranker.language_model.base_model.enable_adapter_layers()
    assert fresh() and not fresh()
    fused = torch.optim.AdamW([weight], lr=0.1, fused=True)  # which writes without being counted
    ranker(**batch).loss.backward()
    fused.step()
    assert fresh() and not fresh()
