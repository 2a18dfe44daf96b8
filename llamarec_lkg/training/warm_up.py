"""What learns before the language model does, and after it.

Preferences and fusion learn without it: retriever and evidence alone are a ranker already. Features do not change, so
they are computed once; an epoch is then a few small matrix products. At the end the parts of the score are weighed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import trange

from ..data.examples import as_examples
from ..data.schema import RankingExample
from ..ranking.heads import ScoreFusion, evaluating, less_mean
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..ranking.scoring import longest, ranker_scores, score_heads, without_language_model
from ..retrieval.fused import listwise_weights


logger = logging.getLogger(__name__)
PRIOR_LISTS = 2.0  # what a weight's distance, in deviations of its part, from that without the language model costs


def heads_batch(
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample | Mapping[str, Any]],
    *,
    progress: bool = True,
) -> dict[str, torch.Tensor]:
    """The batch of all `examples` without its text: what `forward` needs when the backbone is off. It is as wide as
    the longest list, like `ranker_scores` of these examples."""
    lists = as_examples(examples)
    width, pieces = longest(lists), []
    for start in trange(0, len(lists), 256, desc="read evidence", disable=not progress):
        pieces.append(processor(lists[start : start + 256], with_prompt=False, pad_to_candidates=width))
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def fit_heads(
    model: LlamaRecLKGForRanking,
    train: Mapping[str, torch.Tensor],
    validation: Mapping[str, torch.Tensor] | None = None,
    *,
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    weight_decay: float = 0.01,
    patience: int = 5,
    seed: int = 42,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train the preference module and the weights of the other parts, the backbone left out; keep the best epoch by
    validation loss, where the state before the first epoch competes. The weights beside the language model start from
    them.

    Args:
        train, validation: from `heads_batch`. Rows whose label is negative are left out.

    Returns:
        one record an epoch: `{"epoch", "loss", "eval_loss"}`.
    """
    config, alone = model.config, model.fusion.alone
    learned = [name for name, _ in alone.named_parameters() if getattr(model.fusion, name).requires_grad]
    parameters = [p for p in model.preference.parameters() if p.requires_grad]
    parameters += [getattr(alone, name).requires_grad_() for name in learned]
    if not parameters or not (config.use_evidence_fusion or config.use_retrieval_scores):
        return []  # without the backbone, the scores would not depend on anything that learns
    device = model.fusion.retrieval_weight.device
    train, validation = _labelled(train, device), _labelled(validation or train, device)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    log: list[dict[str, float]] = []
    with evaluating(model), without_language_model(model), torch.random.fork_rng():
        torch.manual_seed(seed)  # of dropout: the same on every process, so that their weights stay equal
        best_loss, best, best_epoch = _loss(model, validation), deepcopy(model.own_state_dict()), 0
        bar = trange(1, epochs + 1, desc="fit preferences", unit="epoch", disable=not progress)
        for epoch in bar:
            model.preference.train()
            total = 0.0
            for rows in torch.randperm(len(train["labels"]), generator=generator).split(batch_size):
                batch = {name: value[rows.to(device)] for name, value in train.items()}
                loss = model(**batch).loss
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            schedule.step()
            log.append({"epoch": epoch, "loss": total / len(train["labels"]), "eval_loss": _loss(model, validation)})
            bar.set_postfix({"loss": f"{log[-1]['loss']:.4f}", "eval_loss": f"{log[-1]['eval_loss']:.4f}"})
            if log[-1]["eval_loss"] < best_loss:
                best_loss, best, best_epoch = log[-1]["eval_loss"], deepcopy(model.own_state_dict()), epoch
            elif epoch - best_epoch >= patience:
                break
        optimizer.zero_grad(set_to_none=True)
    alone.requires_grad_(False)
    model.load_state_dict(best, strict=False)
    model.fusion.load_state_dict(alone.state_dict(), strict=False)
    logger.info("Preferences and fusion alone: validation loss %.4f (epoch %d).", best_loss, best_epoch)
    return log


@torch.no_grad()
def fit_parts(
    model: LlamaRecLKGForRanking, batch: Mapping[str, torch.Tensor], lm_scores: torch.Tensor | None = None
) -> dict[str, list[float]]:
    """Fit what the parts of a score weigh, preferences and language model as they are, to the least listwise
    cross-entropy: the weights beside the language model given its scores, else those without it. Beside it, recent
    evidence is weighed as a whole: relations compare as without it.

    Args:
        batch: from `heads_batch`, of lists that trained nothing else: what has been learned by heart deserves less
            weight on other lists.
        lm_scores (N, C): what the language model says of them.

    Returns:
        the weights, by name.
    """
    fusion, config = model.fusion, model.config
    lm_scores = None if lm_scores is None else lm_scores[batch["labels"] >= 0].cpu()
    batch = _labelled(batch, torch.device("cpu"))
    mask, labels = batch["candidate_mask"], batch["labels"]
    columns: dict[str, torch.Tensor] = {}
    if config.use_retrieval_scores:
        columns["retrieval_weight"] = less_mean(batch["retrieval_scores"], mask)[..., None]
    if config.use_popularity:
        columns["popularity_weight"] = less_mean(batch["popularity"], mask)[..., None]
    if config.use_evidence_fusion:
        preferences = model.preferences(batch).cpu()
        columns["evidence_weight"] = (preferences[:, None] * batch["evidence"]).sum(-1, keepdim=True)
        columns["recent_weight"] = recent = batch["recent_evidence"]
        if lm_scores is not None:  # relations beside each other as without it: a few hundred lists say no more
            columns["recent_weight"] = (recent * fusion.alone.recent_weight.cpu()).sum(-1, keepdim=True)
    said = None if lm_scores is None else less_mean(lm_scores, mask)
    if said is not None and config.learn_lm_scale:
        columns["lm_scale"], said = said[..., None], None
    if columns:
        features = torch.cat(list(columns.values()), dim=-1)
        spread = features[mask].std(0).clamp(min=1e-6)
        how: dict[str, Any] = {"given": None if said is None else fusion.lm_scale.cpu() * said}
        if lm_scores is not None:  # a few hundred lists: without a reason the weights stay what they are without it
            how["prior"] = torch.cat([_weight_alone(fusion, name) for name in columns]) * spread
            how["shrinkage"] = PRIOR_LISTS / len(labels)
        found = listwise_weights(features / spread, mask, labels, **how) / spread
        weights = fusion.weights(lm_scores is not None)
        for name, values in zip(columns, found.split([one.shape[-1] for one in columns.values()]), strict=True):
            as_a_whole = name == "recent_weight" and lm_scores is not None
            getattr(weights, name).copy_(values * fusion.alone.recent_weight.cpu() if as_a_whole else values)
    return {name: value.tolist() for name, value in fusion.state_dict().items()}


def weigh_parts(
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    unseen: Sequence[RankingExample],
    read: Sequence[RankingExample] | None = None,
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, list[float]]:
    """`fit_parts` for both cases, without the language model and beside it.

    Args:
        unseen: lists that trained nothing else, in the order of retrieval: of users in none of the training lists, or
            of validation targets.
        read: those of them that the language model reads, which takes long; by default all. The weights beside it are
            fitted on these, and those without it on all `unseen`.
        batch_size: lists that the language model reads at once.

    Returns:
        the weights, by name.
    """
    told = fit_parts(model, heads_batch(processor, unseen, progress=False))
    if not model.config.use_language_model:
        return told
    read = unseen if read is None else read
    options = {"batch_size": batch_size, "description": "weigh the language model", "progress": progress}
    said = torch.from_numpy(ranker_scores(model, processor, read, part="language model", **options))
    return fit_parts(model, heads_batch(processor, read, progress=False), said)


def _weight_alone(fusion: ScoreFusion, name: str) -> torch.Tensor:
    """A part's weight without the language model, whose own is 0 there; recent evidence as a whole counts once."""
    if name in ("lm_scale", "recent_weight"):
        return torch.full((1,), float(name == "recent_weight"))
    return getattr(fusion.alone, name).detach().cpu().float()


def _labelled(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    rows = batch["labels"] >= 0
    return {name: value[rows].to(device) for name, value in batch.items()}


def _loss(model: LlamaRecLKGForRanking, batch: Mapping[str, torch.Tensor]) -> float:
    return float(F.cross_entropy(score_heads(model, batch), batch["labels"].cpu()))
