"""SASRec, a first stage: self-attention over a user's item history that scores every item.

Self-Attentive Sequential Recommendation (Kang and McAuley, ICDM 2018, arXiv 1808.09781), trained with the full
cross-entropy, which puts it above most of what came later (arXiv 2408.14238). The encoder is a GPT-NeoX of
`transformers`: norms before attention and feed-forward (as in eSASRec, arXiv 2508.06450), and rotary positions. These
tell how far back an item lies and nothing else, so that padding shifts nothing, and a state in the middle of a
training history, where most of what is learned is learned, sees what one at its end will see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, GPTNeoXConfig

from ..utils.errors import LKGError
from .attention import FILLED, AttentionLayout, attend
from .configuration_sasrec import SASRecConfig
from .dropout import add_dropped, dropout
from .products import linear
from .sequential import SequentialRetrieverModel


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
        layout = AttentionLayout.of(lengths, self.config.num_attention_heads, self.encoder.rotary_emb.inv_freq)
        count, vectors = len(vectors), F.pad(vectors, (0, 0, 0, -len(vectors) % FILLED))
        hidden = dropout(self.embedding_norm(vectors), *drop)
        for layer in self.encoder.layers:
            hidden = add_dropped(hidden, attend(layer.attention, layer.input_layernorm(hidden), layout, *drop), *drop)
            enter, leave = layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h
            inner = layer.mlp.act(linear(layer.post_attention_layernorm(hidden), enter.weight, enter.bias))
            hidden = add_dropped(hidden, linear(inner, leave.weight, leave.bias), *drop)
        return self.encoder.final_layer_norm(hidden[:count])


AutoModel.register(SASRecConfig, SASRecForRetrieval, exist_ok=True)
