"""SASRec's own: histories that share a row. What it does as every retriever does is in `test_sequential`."""

import pytest
import torch

from llamarec_lkg.retrieval.modeling_sasrec import SASRecConfig, SASRecForRetrieval, _shared_rows
from llamarec_lkg.utils.errors import LKGError


def test_as_many_histories_share_a_row_as_fit_in_their_order():
    assert _shared_rows([2, 1, 2, 5, 0, 3, 2, 1], 5) == ([0, 0, 0, 1, 1, 2, 2, 3], [0, 2, 3, 0, 5, 0, 3, 0])
    assert _shared_rows([0, 0], 1) == ([0, 0], [0, 0])
    assert _shared_rows([], 4) == ([], [])


def test_the_encoder_is_given_no_padding_to_speak_of(monkeypatch):
    model = SASRecForRetrieval(SASRecConfig(num_items=9, hidden_size=8)).eval()
    seen = []
    forward = model.encoder.forward
    monkeypatch.setattr(
        model.encoder, "forward", lambda **inputs: seen.append(inputs["inputs_embeds"].shape) or forward(**inputs)
    )
    items = torch.zeros(8, 10, dtype=torch.long)
    items[:, -2:] = torch.arange(16).view(8, 2) % 9 + 1
    items[0] = 3
    hidden = model.encode(items)
    assert seen == [(3, 10, 8)], "ten, and seven times two, in rows of ten"
    assert hidden.shape == (8, 10, 8) and not hidden[1:, :8].any() and hidden[:, 8:].abs().sum(-1).min() > 0


def test_the_encoder_is_pre_norm_with_rotary_positions_and_has_no_table_of_words():
    model = SASRecForRetrieval(SASRecConfig(num_items=9, hidden_size=8, num_hidden_layers=3, hidden_dropout_prob=0.1))
    config = model.encoder.config
    assert config.model_type == "gpt_neox" and not config.use_parallel_residual and len(model.encoder.layers) == 3
    assert config.hidden_dropout == config.attention_dropout == 0.1
    assert model.encoder.get_input_embeddings() is None and model.get_input_embeddings() is model.item_embedding


def test_heads_must_fit_the_width():
    with pytest.raises(LKGError, match="hidden_size is 10 and num_attention_heads 2"):
        SASRecForRetrieval(SASRecConfig(num_items=3, hidden_size=10, num_attention_heads=2))
