"""SASRec, a first stage: self-attention over a user's item history that scores every item.

Self-Attentive Sequential Recommendation (Kang and McAuley, ICDM 2018, arXiv 1808.09781), trained with the full
cross-entropy, which puts it above most of what came later (arXiv 2408.14238). The encoder is a GPT-NeoX of
`transformers`: norms before attention and feed-forward (as in eSASRec, arXiv 2508.06450), and rotary positions. These
tell how far back an item lies and nothing else, so that padding shifts nothing, and a state in the middle of a
training history, where most of what is learned is learned, sees what one at its end will see.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel, GPTNeoXConfig

from ..utils.errors import LKGError
from .configuration_sasrec import SASRecConfig
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

    def encode_vectors(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # short histories share a row, in which each sees itself alone: else most of a batch would be padding
        rows, starts = _shared_rows(mask.sum(dim=1).tolist(), mask.shape[1])
        rows, starts = (torch.tensor(places, device=mask.device) for places in (rows, starts))
        owner, _ = mask.nonzero(as_tuple=True)
        order = (mask.cumsum(dim=1) - 1)[mask]
        row, column = rows[owner], starts[owner] + order
        shape = int(rows.max()) + 1, mask.shape[1]
        inputs = vectors.new_zeros(*shape, vectors.shape[-1])
        inputs[row, column] = self.embedding_norm(vectors[mask])
        history = torch.full(shape, -1, device=mask.device)
        history[row, column] = owner
        places = torch.zeros(shape, dtype=torch.long, device=mask.device)
        places[row, column] = order
        seen = (history[:, None, :, None] == history[:, None, None, :]).tril()
        bias = torch.zeros_like(seen, dtype=inputs.dtype).masked_fill(~seen, torch.finfo(inputs.dtype).min)
        states = self.encoder(inputs_embeds=inputs, attention_mask=bias, position_ids=places).last_hidden_state
        hidden = states.new_zeros(*mask.shape, states.shape[-1])
        hidden[mask] = states[row, column]
        return hidden


def _shared_rows(lengths: list[int], width: int) -> tuple[list[int], list[int]]:
    """Row and first column of each history when as many as fit, in their order, share a row of `width` places."""
    rows, starts, row, used = [], [], 0, 0
    for length in lengths:
        if used + length > width:
            row, used = row + 1, 0
        rows.append(row)
        starts.append(used)
        used += length
    return rows, starts


AutoModel.register(SASRecConfig, SASRecForRetrieval, exist_ok=True)
