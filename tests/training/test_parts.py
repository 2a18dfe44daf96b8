"""What the parts of a score weigh, fitted on lists that trained nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import backbone, examples, model, processor

from llamarec_lkg import LlamaRecLKGConfig, LlamaRecLKGForRanking, LlamaRecLKGTrainer, LlamaRecLKGTrainingArguments
from llamarec_lkg.evaluation.metrics import target_ranks
from llamarec_lkg.ranking.ablations import control_scores
from llamarec_lkg.ranking.scoring import ranker_scores, without_language_model
from llamarec_lkg.training.report_rows import _without_graph
from llamarec_lkg.training.warm_up import fit_parts, heads_batch, weigh_parts


WANTED = {
    "retrieval_weight": [0.8],
    "popularity_weight": [-0.5],
    "evidence_weight": [4.0],
    "recent_weight": [0.0, 1.0, -1.0],
    "lm_scale": [1.2],
}


@pytest.fixture
def ranker(film_dataset):
    """Three relations, preferences uniform."""
    return model(processor(film_dataset))


def choices(with_language_model: bool, count: int = 8000):
    """Lists of six, the first third of them shorter, and targets drawn as a sum with the weights `WANTED` says."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(count, 6, *shape, generator=generator)

    mask = torch.ones(count, 6, dtype=torch.bool)
    mask[: count // 3, 4:] = False
    batch = {
        "retrieval_scores": random(),
        "popularity": random(),
        "evidence": random(3).abs(),
        "recent_evidence": random(3).abs(),
        "candidate_mask": mask,
        "user_ids": torch.zeros(count, dtype=torch.long),
        "history_relations": torch.zeros(count, 3, 7),
    }
    said = random()
    logits = WANTED["retrieval_weight"][0] * batch["retrieval_scores"]
    logits = logits + WANTED["popularity_weight"][0] * batch["popularity"]
    logits = logits + WANTED["evidence_weight"][0] * batch["evidence"].mean(-1)
    logits = logits + batch["recent_evidence"] @ torch.tensor(WANTED["recent_weight"])
    logits = logits + (WANTED["lm_scale"][0] * said if with_language_model else 0.0)
    chances = logits.masked_fill(~mask, -torch.inf).softmax(1)
    batch["labels"] = torch.multinomial(chances, 1, generator=generator)[:, 0]
    batch["labels"][::50] = -1  # not found
    said = said.masked_fill(~mask, -torch.inf)
    said[::50] = torch.nan  # and so not scored
    return batch, said


@pytest.mark.parametrize("beside", [True, False])
def test_planted_weights_are_found_beside_the_language_model_and_without_it(ranker, beside):
    batch, said = choices(beside)
    if beside:  # how relations compare is what it is without the language model; what they weigh is not
        with torch.no_grad():
            ranker.fusion.alone.recent_weight.copy_(torch.tensor(WANTED["recent_weight"]) / 2)
    before = {name: weight.clone() for name, weight in ranker.fusion.named_parameters()}
    told = fit_parts(ranker, batch, said if beside else None)
    fitted = {name: value for name, value in told.items() if name.startswith("alone.") is not beside}
    other = {name: before[name].tolist() for name in told if name not in fitted}
    fitted = {name.removeprefix("alone."): value for name, value in fitted.items()}
    wanted = {name: value for name, value in WANTED.items() if beside or name != "lm_scale"}
    assert fitted.keys() == wanted.keys()
    for name, value in wanted.items():
        assert fitted[name] == pytest.approx(value, abs=0.1 if len(value) == 1 and name != "evidence_weight" else 0.3)
    assert {name: told[name] for name in other} == other, "the weights of the other case stay"


def test_few_lists_do_not_say_how_relations_compare(ranker):
    """Beside the language model they are weighed as a whole: 40 lists would tell three weights anything."""
    batch, said = choices(True, 40)
    fit_parts(ranker, batch)
    told = fit_parts(ranker, batch, said)
    alone, beside = (torch.tensor(told[name]) for name in ("alone.recent_weight", "recent_weight"))
    factors = beside / alone
    torch.testing.assert_close(factors, factors.mean().expand(3), rtol=1e-4, atol=1e-4)


def test_the_fusion_uses_what_was_fitted(ranker):
    batch, said = choices(True)
    fit_parts(ranker, batch, said)
    with torch.no_grad():
        known = batch["labels"] >= 0
        given = {name: value[known] for name, value in batch.items()}
        loss = ranker(**given, lm_scores=said[known].masked_fill(~given["candidate_mask"], 0.0)).loss.item()
        for weight in ranker.fusion.parameters():
            weight.mul_(1.1)
        worse = ranker(**given, lm_scores=said[known].masked_fill(~given["candidate_mask"], 0.0)).loss.item()
    assert loss < worse


def test_a_scale_that_is_not_learned_stays_and_the_others_are_fitted_beside_it(film_dataset):
    ranker = model(processor(film_dataset), learn_lm_scale=False, lm_scale=WANTED["lm_scale"][0])
    told = fit_parts(ranker, *choices(True))
    assert told["lm_scale"] == pytest.approx(WANTED["lm_scale"])
    assert told["retrieval_weight"] == pytest.approx(WANTED["retrieval_weight"], abs=0.1)


def test_where_the_language_model_is_all_there_is_nothing_to_weigh(film_dataset):
    config = LlamaRecLKGConfig.paper(["CO_RATED", "DIRECTED_BY", "GENRE_IS"], film_dataset.num_users)
    ranker = LlamaRecLKGForRanking.from_backbone(backbone(), config)
    before = {name: weight.tolist() for name, weight in ranker.fusion.state_dict().items()}
    batch, said = choices(True, count=100)
    assert fit_parts(ranker, batch) == fit_parts(ranker, batch, said) == before


def test_the_trainer_weighs_both_cases_each_on_its_lists(film_dataset, tmp_path):
    proc, lists = processor(film_dataset).fit(examples(film_dataset)), examples(film_dataset, count=8)
    ranker = model(proc)
    args = LlamaRecLKGTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no")
    trainer = LlamaRecLKGTrainer(ranker, args, lists, None, proc)
    before = {name: weight.tolist() for name, weight in ranker.fusion.state_dict().items()}
    told = trainer.fit_parts(lists, lists[:4])
    assert {name for name in told if told[name] != before[name]} >= {"retrieval_weight", "alone.retrieval_weight"}
    assert told["retrieval_weight"] != told["alone.retrieval_weight"]
    silent = fit_parts(ranker, heads_batch(proc, lists, progress=False))
    assert silent["alone.retrieval_weight"] == pytest.approx(told["alone.retrieval_weight"], rel=1e-3), "on all lists"


def test_lists_longer_than_the_processors_are_weighed_too(film_dataset, tmp_path):
    """A processor's number of candidates is what it was configured for; with isolated candidates it bounds nothing."""
    proc = processor(film_dataset, num_candidates=3, candidate_attention="isolated").fit(examples(film_dataset))
    lists, ranker = examples(film_dataset, count=8), model(proc)
    said = ranker_scores(ranker, proc, lists, part="language model", progress=False)
    batch = heads_batch(proc, [vars(example) for example in lists], progress=False)
    assert said.shape == batch["candidate_mask"].shape == (8, 5)
    assert np.isfinite(weigh_parts(ranker, proc, lists, progress=False)["retrieval_weight"]).all()


def test_without_the_graph_the_parts_that_are_left_are_weighed_anew(film_dataset):
    proc, lists = processor(film_dataset).fit(examples(film_dataset)), examples(film_dataset, count=40)
    # the target is the retriever's last but one: it deserves a negative weight
    lists = [replace(one, label=int(one.retrieval_scores.argsort()[1])) for one in lists]
    ranker = model(proc)
    with torch.no_grad():
        for weight in ranker.fusion.alone.parameters():
            weight.fill_(0.7)
    before = {name: value.clone() for name, value in ranker.fusion.state_dict().items()}
    with without_language_model(ranker):
        knocked_out = control_scores("no-kg", ranker, proc, lists, progress=False)
        scores = _without_graph(ranker, proc, lists, lists)
    labels = np.array([one.label for one in lists])
    assert (target_ranks(scores, labels) < target_ranks(knocked_out, labels)).mean() > 0.5
    assert all(torch.equal(value, before[name]) for name, value in ranker.fusion.state_dict().items())
