"""SASRec, a first stage: self-attention over a user's item history that scores every item.

Self-Attentive Sequential Recommendation (Kang and McAuley, ICDM 2018, arXiv 1808.09781), trained with the full
cross-entropy, which puts it above most of what came later (arXiv 2408.14238). The encoder is a GPT-NeoX of
`transformers`: norms before attention and feed-forward (as in eSASRec, arXiv 2508.06450), and rotary positions. These
tell how far back an item lies and nothing else, so that padding shifts nothing, and a state in the middle of a
training history, where most of what is learned is learned, sees what one at its end will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, GPTNeoXConfig

from ..utils.errors import LKGError
from .configuration_sasrec import SASRecConfig
from .dropout import add_dropped, dropout
from .packing import Groups, places_of
from .products import ROUND, linear
from .sequential import SequentialRetrieverModel


FILLED = 4 * ROUND  # a batch has a multiple of so many places: few lengths, which come again, for quick products


class SASRecForRetrieval(SequentialRetrieverModel):
    """Scores all items for a left-padded history of dense item ids.

    Raises:
        LKGError: the heads do not part the width into even pieces.
    """

    config: SASRecConfig
    config_class = SASRecConfig
    base_model_prefix = "sasrec"

    def __init__(self, config: SASRecConfig):
        super().__init__(config)
        if config.hidden_size % (2 * config.num_attention_heads):
            raise LKGError(
                f"hidden_size is {config.hidden_size} and num_attention_heads {config.num_attention_heads}; rotary "
                "positions need heads of the same even width. Change one of them."
            )
        self.embedding_norm = nn.LayerNorm(config.hidden_size)
        self.encoder = AutoModel.from_config(
            GPTNeoXConfig(
                vocab_size=1,
                bos_token_id=None,
                eos_token_id=None,
                hidden_size=config.hidden_size,
                intermediate_size=4 * config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                hidden_dropout=config.hidden_dropout_prob,
                attention_dropout=config.hidden_dropout_prob,
                max_position_embeddings=config.max_length,
                initializer_range=config.initializer_range,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
                use_parallel_residual=False,
                use_cache=False,
            )
        )
        self.encoder.set_input_embeddings(None)  # it is given vectors
        self.post_init()

    def encode_packed(self, vectors: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        # the layers of the encoder, computed by hand: its own forward needs a mask, which rules the quick kernels out,
        # and rows of the same length
        drop = self.config.hidden_dropout_prob, self.training
        layout = _Layout.of(lengths, self.config.num_attention_heads, self.encoder.rotary_emb.inv_freq)
        count, vectors = len(vectors), F.pad(vectors, (0, 0, 0, -len(vectors) % FILLED))
        hidden = dropout(self.embedding_norm(vectors), *drop)
        for layer in self.encoder.layers:
            hidden = add_dropped(hidden, _attend(layer.attention, layer.input_layernorm(hidden), layout, *drop), *drop)
            enter, leave = layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h
            inner = layer.mlp.act(linear(layer.post_attention_layernorm(hidden), enter.weight, enter.bias))
            hidden = add_dropped(hidden, linear(inner, leave.weight, leave.bias), *drop)
        return self.encoder.final_layer_norm(hidden[:count])


@dataclass(frozen=True)
class _Layout:
    """How queries, keys and values of H heads lie for attention: of each group of [`~packing.Groups`] a block
    (3, H, n, l, head size), one block after the other.

    Args:
        shapes: n and l of each group.
        heads: H.
        rows (`long`, (R,)): for each row of the blocks, the one of the projection, (N, 3, H).
        turns (complex, (R, head size / 2)): what it is multiplied by. Queries and keys are turned by their places, and
            queries scaled besides.
        back (`long`, (N' * H,)): rows of the states (H, n, l, head size), block after block, in the packed order, N
            filled up to a multiple of `FILLED`.
    """

    shapes: tuple[tuple[int, int], ...]
    heads: int
    rows: torch.Tensor
    turns: torch.Tensor
    back: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], heads: int, frequencies: torch.Tensor) -> _Layout:
        groups, lengths = Groups.of(lengths), np.asarray(lengths, dtype=np.int64)
        parts, places, longest = np.arange(3 * heads)[:, None], places_of(lengths), int(lengths.max(initial=0))
        rows, turns, back, start = [], [], np.empty((len(groups.sources), heads), dtype=np.int64), 0
        for size, length in groups.shapes:
            sources = groups.sources[start : start + size * length]
            rows.append((sources * 3 * heads + parts).ravel())
            # of a table that holds the turns of queries, those of keys, and no turn
            turns.append(np.where(parts < 2 * heads, places[sources] + parts // heads * longest, 2 * longest).ravel())
            within = np.arange(heads) * size * length + np.arange(size * length)[:, None]
            back[start : start + size * length] = start * heads + within
            start += size * length
        angles = torch.arange(longest, device=frequencies.device)[:, None] * frequencies.float()
        keys = torch.polar(torch.ones_like(angles), angles)
        table = torch.cat([keys * (2 * len(frequencies)) ** -0.5, keys, torch.ones_like(keys[:1])])
        rows, turns, back = (
            torch.from_numpy(np.concatenate([*found, np.empty(0, np.int64)])).to(frequencies.device)
            for found in (
                rows,
                turns,
                [np.pad(back[groups.slots].ravel(), (0, heads * (-len(groups.slots) % FILLED)))],
            )
        )
        return cls(groups.shapes, heads, rows, table[turns], back)


def _attend(
    attention: nn.Module, hidden: torch.Tensor, layout: _Layout, probability: float, training: bool
) -> torch.Tensor:
    """What the attention of a GPT-NeoX layer gives for packed histories (N, D), each of which sees itself alone."""
    heads, half = layout.heads, layout.turns.shape[-1]
    # in the order (q, k, v), heads, and the two numbers that turn together beside each other; the weights are brought
    # into it, which are small
    weight, bias = (
        values.unflatten(0, (heads, 3, 2, half)).transpose(0, 1).transpose(2, 3).flatten(0, 3)
        for values in (attention.query_key_value.weight, attention.query_key_value.bias)
    )
    rows = linear(hidden, weight, bias).view(-1, 2 * half).index_select(0, layout.rows)
    turned = torch.view_as_complex(rows.float().unflatten(-1, (half, 2))) * layout.turns
    sizes = [3 * heads * size * length for size, length in layout.shapes]
    blocks = torch.view_as_real(turned).flatten(1).to(rows.dtype).split(sizes)
    states = [
        _causal(*block.view(3, heads * size, length, 2 * half), probability if training else 0.0).flatten(0, 1)
        for block, (size, length) in zip(blocks, layout.shapes, strict=True)
    ]
    states = torch.cat(states).index_select(0, layout.back) if states else rows
    weight = attention.dense.weight.unflatten(1, (heads, 2, half)).transpose(2, 3).flatten(1)
    return linear(states.view(len(hidden), weight.shape[1]), weight, attention.dense.bias)


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, probability: float) -> torch.Tensor:
    """Attention of scaled queries to keys no later than they, each (B, L, head size), with dropout of its weights."""
    if not probability or query.device.type != "cpu":
        parts = query[None], key[None], value[None]
        return F.scaled_dot_product_attention(*parts, dropout_p=probability, is_causal=True, scale=1.0)[0]
    # torch's quick kernel for a CPU knows no dropout
    later = torch.full((query.shape[1], query.shape[1]), -torch.inf, dtype=query.dtype).triu(1)
    weights = torch.baddbmm(later, query, key.mT).softmax(dim=-1)
    return dropout(weights, probability, True) @ value


AutoModel.register(SASRecConfig, SASRecForRetrieval, exist_ok=True)
