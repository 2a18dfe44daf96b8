"""SASRec's own: attention over packed histories. What it does as every retriever does is in `test_sequential`."""

import pytest
import torch

from llamarec_lkg.retrieval import attention as module
from llamarec_lkg.retrieval.attention import FILLED, AttentionLayout, attend
from llamarec_lkg.retrieval.dropout import noise
from llamarec_lkg.retrieval.modeling_sasrec import SASRecConfig, SASRecForRetrieval
from llamarec_lkg.utils.errors import LKGError


def random_model(**sizes) -> SASRecForRetrieval:
    torch.manual_seed(0)
    model = SASRecForRetrieval(SASRecConfig(num_items=50, hidden_size=16, initializer_range=0.3, **sizes)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_packed_histories_give_what_the_encoder_gives_for_each_alone(heads):
    """Values and gradients; the encoder's own forward is the plain one."""
    model, lengths = random_model(num_attention_heads=heads), [7, 0, 3, 12, 11, 1, 6]
    vectors = torch.randn(sum(lengths), 16)
    found = model.encode_packed(vectors, lengths)
    parts = [model.embedding_norm(part)[None] for part in vectors.split(lengths) if len(part)]
    wanted = torch.cat([model.encoder(inputs_embeds=part).last_hidden_state[0] for part in parts])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    parameters = dict(model.encoder.named_parameters())
    weights = torch.randn(found.shape)
    mine, plain = (torch.autograd.grad((one * weights).sum(), parameters.values()) for one in (found, wanted))
    for name, one, other in zip(parameters, mine, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_attention_in_training_is_that_of_its_parts(monkeypatch):
    """Values and gradients, beside dropout of each history's own weights."""
    model, lengths = random_model(num_attention_heads=2), [7, 0, 3, 12, 11, 1, 6]
    layout = AttentionLayout.of(lengths, 2, model.encoder.rotary_emb.inv_freq)
    rows = torch.randn(FILLED * 6, 8, requires_grad=True)
    drawn = []
    monkeypatch.setattr(module, "noise", lambda *args: drawn.append(noise(*args)) or drawn[0])
    found = module._Attention.apply(rows, layout, 0.3)

    def plain(query, key, value, **_):
        later = torch.ones(query.shape[-2:][:1] * 2, dtype=torch.bool).triu(1)
        weights = (query @ key.mT).masked_fill(later, -torch.inf).softmax(-1)
        return (weights * next(factors)) @ value

    factors = iter(layout.squares(drawn[0]))
    assert len(drawn) == 1
    monkeypatch.setattr(module.F, "scaled_dot_product_attention", plain)
    wanted = module._attention(rows, layout, 0.3)
    torch.testing.assert_close(found, wanted)
    count = sum(lengths) * 2
    weights = torch.randn(count, 8)
    mine, theirs = (torch.autograd.grad((one[:count] * weights).sum(), rows)[0] for one in (found, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not mine[sum(lengths) * 6 :].any(), "places that only fill the batch up"


def test_without_dropout_training_keeps_no_weights():
    model = random_model(hidden_dropout_prob=0.0).train()
    kept, vectors = [], torch.randn(300, 16)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        model.encode_packed(vectors, [300])
    assert kept and max(kept) < 300 * 300


def test_in_training_attention_drops_weights_and_keeps_their_mean():
    model, lengths = random_model(num_attention_heads=2), [9, 9]
    layout = AttentionLayout.of(lengths, 2, model.encoder.rotary_emb.inv_freq)
    rows = torch.rand(FILLED * 6, 8)
    wanted = module._attention(rows, layout, 0.0)
    many = torch.stack([module._Attention.apply(rows, layout, 0.2) for _ in range(2000)])
    assert (many[0] - wanted).abs().max() > 0.1, "one is off"
    torch.testing.assert_close(many.mean(0), wanted, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("dtype", "mixed", "wanted"),
    [
        (torch.bfloat16, False, torch.bfloat16),
        (torch.float64, False, torch.float64),
        (torch.float32, True, torch.bfloat16),
    ],
)
def test_attention_in_training_gives_back_the_type_of_its_projection(dtype, mixed, wanted):
    model = random_model().to(dtype).train()
    layer, layout = model.encoder.layers[0].attention, AttentionLayout.of([3, 2], 2, model.encoder.rotary_emb.inv_freq)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        found = attend(layer, torch.randn(FILLED, 16, dtype=dtype), layout, 0.2, True)
    found[:5].sum().backward()
    assert found.dtype == wanted and layer.query_key_value.weight.grad.abs().sum() > 0


def test_no_history_has_no_states():
    model = random_model()
    for lengths in ([], [0, 0]):
        assert model.encode_packed(torch.empty(0, 16), lengths).shape == (0, 16)


def test_the_encoder_is_pre_norm_with_rotary_positions_and_has_no_table_of_words():
    model = SASRecForRetrieval(SASRecConfig(num_items=9, hidden_size=8, num_hidden_layers=3, hidden_dropout_prob=0.1))
    config = model.encoder.config
    assert config.model_type == "gpt_neox" and not config.use_parallel_residual and len(model.encoder.layers) == 3
    assert config.hidden_dropout == config.attention_dropout == 0.1
    assert model.encoder.get_input_embeddings() is None and model.get_input_embeddings() is model.item_embedding


def test_heads_must_fit_the_width():
    with pytest.raises(LKGError, match="hidden_size is 10 and num_attention_heads 2"):
        SASRecForRetrieval(SASRecConfig(num_items=3, hidden_size=10, num_attention_heads=2))
