"""The sum of scores: its parts add up to it, each behind its switch, with weights of their own where the language
model is silent."""

from types import SimpleNamespace

import pytest
import torch

from llamarec_lkg.ranking.configuration_llamarec_lkg import LlamaRecLKGConfig
from llamarec_lkg.ranking.heads import PartWeights, ScoreFusion


SWITCHES = ("use_retrieval_scores", "use_popularity", "use_evidence_fusion")


@pytest.fixture
def inputs():
    """Two lists of four and three candidates, three relations."""
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        lm_scores=torch.randn(2, 4, generator=generator),
        preferences=torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]),
        evidence=torch.rand(2, 4, 3, generator=generator),
        retrieval_scores=torch.randn(2, 4, generator=generator),
        candidate_mask=torch.tensor([[True] * 4, [True] * 3 + [False]]),
        recent_evidence=torch.rand(2, 4, 3, generator=generator),
        popularity=torch.rand(2, 4, generator=generator),
    )


def fusion(**switches) -> ScoreFusion:
    """Every weight another number, those without the language model minus them."""
    made = ScoreFusion(LlamaRecLKGConfig(relations=["A", "B", "C"], **switches))
    with torch.no_grad():
        for weights, sign in ((made, 1.0), (made.alone, -1.0)):
            weights.evidence_weight.fill_(sign * 2.0)
            weights.retrieval_weight.fill_(sign * 0.5)
            weights.popularity_weight.fill_(sign * 0.7)
            weights.recent_weight.copy_(sign * torch.tensor([0.1, 0.0, -3.0]))
        made.lm_scale.fill_(1.5)
    return made


@pytest.mark.parametrize("off", [None, *SWITCHES])
@pytest.mark.parametrize("silent", [False, True])
def test_parts_add_up_to_the_logits(inputs, off, silent):
    given = vars(inputs) | ({"lm_scores": None} if silent else {})
    with torch.no_grad():
        logits, parts = fusion(**({} if off is None else {off: False}))(**given)
    flat = sum(part.sum(-1) if name == "evidence" else part for name, part in parts.items())
    real = inputs.candidate_mask
    torch.testing.assert_close(logits[real], flat[real])
    assert (logits[~real] < -1e30).all()
    spoke = {name for name, part in parts.items() if part[real].any()}
    wanted = {"language model", "retriever", "popularity", "evidence"}
    wanted -= {"language model"} if silent else set()
    wanted -= {dict(zip(SWITCHES, ("retriever", "popularity", "evidence"), strict=True)).get(off)}
    assert spoke == wanted


@pytest.mark.parametrize("silent", [False, True])
def test_every_part_by_hand(inputs, silent):
    given = vars(inputs) | ({"lm_scores": None} if silent else {})
    with torch.no_grad():
        _, parts = fusion()(**given)
    sign, three = -1.0 if silent else 1.0, slice(0, 3)

    def apart(values):
        return values[1, three] - values[1, three].mean()

    wanted = {
        "retriever": sign * 0.5 * apart(inputs.retrieval_scores),
        "popularity": sign * 0.7 * apart(inputs.popularity),
        "language model": torch.zeros(3) if silent else 1.5 * apart(inputs.lm_scores),
        "evidence": sign * 2.0 * inputs.preferences[1] * inputs.evidence[1, three]
        + sign * torch.tensor([0.1, 0.0, -3.0]) * inputs.recent_evidence[1, three],
    }
    assert parts.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(parts[name][1, three], values, msg=name)


def test_what_is_not_given_counts_as_nothing(inputs):
    nothing = vars(inputs) | {"recent_evidence": torch.zeros(2, 4, 3), "popularity": torch.zeros(2, 4)}
    absent = vars(inputs) | {"recent_evidence": None, "popularity": None}
    torch.testing.assert_close(fusion()(**absent)[0], fusion()(**nothing)[0])


def test_a_new_ranker_weighs_retriever_and_evidence_alike_with_and_without_its_language_model(inputs):
    config = LlamaRecLKGConfig(relations=["A", "B", "C"])
    new, own = ScoreFusion(config), dict(PartWeights(config).named_parameters())
    for weights in (new, new.alone):
        assert not weights.recent_weight.any() and not weights.popularity_weight.any()
        assert all(torch.equal(getattr(weights, name), value) for name, value in own.items())
    assert new.weights(True) is new and new.weights(False) is new.alone
    assert not any(weight.requires_grad for weight in new.alone.parameters()), "they are fitted by themselves"
    trained = {name for name, weight in new.named_parameters() if weight.requires_grad}
    assert trained == {"evidence_weight", "retrieval_weight", "recent_weight", "popularity_weight", "lm_scale"}
