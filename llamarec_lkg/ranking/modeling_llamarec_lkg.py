"""The ranker: a causal language model that reads history and candidates, and a preference module that reads the graph.

LlamaRec (arXiv 2311.02089) for ranking in one pass, LlamaRec-LKG-RAG (arXiv 2506.07449) for preferences over
relations. Their letters are one of two ways to read the language model (letter_reading.py); the other is its state at
the end of each candidate (candidate_reading.py): a small model cannot tell twenty letters apart, a large one need not.
Here both gradient routes from the ranking loss to the preferences are real; see `LlamaRecLKGForRanking.forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from ..data.schema import UNKNOWN_USER
from ..graph.ranges import portions
from ..hub.mixin import HubMixin
from ..utils.errors import LKGError
from .adapters import HEADS, AdapterMixin, Tenant
from .backbones import cut_backbone, cut_config, find_backbone
from .candidate_reading import CandidateMixin, state_size
from .checkpoints import CheckpointMixin
from .configuration_llamarec_lkg import LlamaRecLKGConfig
from .heads import CandidateReadout, PartWeights, ScoreFusion, UserPreferenceModule, evaluating
from .letter_reading import LetterMixin
from .prompt_assembly import score_paths


TOKENS_AT_ONCE = 2048  # on a processor: what layers make of more does not stay in its caches


@dataclass
class RankingOutput(ModelOutput):
    """
    Args:
        loss: listwise cross-entropy over the candidates; in training, also that of the language model alone.
        logits (B, C): ranking scores; the lowest float32 where there is no candidate.
        preferences (B, R): distribution over relations.
        path_scores (B, P): score of every path; -inf where there is none.
        selected_paths (`long`, (B, C, K); with letters (B, K)): paths in the prompt, best first; -1 where there is
            none.
        lm_logits (B, C): what the language model said; of letters, their prior not yet subtracted.
        lm_scores (B, C): what the fusion takes: the same, of letters less the prior.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    preferences: torch.Tensor | None = None
    path_scores: torch.Tensor | None = None
    selected_paths: torch.Tensor | None = None
    lm_logits: torch.Tensor | None = None
    lm_scores: torch.Tensor | None = None


def _compiling_layers(forward: Callable[..., RankingOutput]) -> Callable[..., RankingOutput]:
    """What `torch.compile(ranker)` compiles: what `ranker.compile()` does, and nothing else."""
    eager = torch.compiler.disable(forward)
    compile_layers = torch.compiler.disable(lambda ranker: ranker.compiled or ranker.compile())

    @wraps(forward)
    def entered(self: LlamaRecLKGForRanking, *args: Any, **kwargs: Any) -> RankingOutput:
        if torch.compiler.is_compiling():
            compile_layers(self)
        return eager(self, *args, **kwargs)

    return entered


class LlamaRecLKGForRanking(CheckpointMixin, HubMixin, AdapterMixin, CandidateMixin, LetterMixin, PreTrainedModel):
    """Ranks the candidates of a list in one forward pass. `AutoModel.from_pretrained` returns it."""

    config: LlamaRecLKGConfig
    config_class = LlamaRecLKGConfig
    hub_part = "model"
    base_model_prefix = "ranker"
    main_input_name = "prefix_input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # our loss is a mean over lists; the Trainer must not rescale it when it accumulates
    _keep_in_fp32_modules = ["preference", "fusion", "readout"]  # for float16 and quantized weights
    _keep_in_fp32_modules_strict = ["preference", "fusion", "readout"]  # for bfloat16
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    compiled = False

    def __init__(self, config: LlamaRecLKGConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        heads = self.make_heads(config)
        self.preference, self.fusion, self.readout = map(heads.get, HEADS)
        self._tenants: dict[str, Tenant] = {}  # loaded adapters that are not in use
        # first weights of those whose initialisation changed the backbone
        self._adapter_starts: dict[str, dict[str, torch.Tensor]] = {}
        self._own_backbone = False  # whether its weights are others than those of the base it names
        self._kept_prior: tuple[Any, torch.Tensor] | None = None  # of the letters, and by what weights
        # how its backbone can read the prompts of a batch other than each padded by itself, by how it reads them
        self._layouts: dict[tuple[Any, ...], list[str]] = {}
        self._left_backbone_out = False  # whether it was loaded without the one it was trained around
        if config.use_language_model and language_model is None:
            cut_config(config.text_config, config.num_hidden_layers)
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        elif language_model is not None:
            for module in language_model.modules():
                module._is_hf_initialized = True  # a loaded backbone keeps its weights
        self.language_model = language_model
        self.post_init()
        output = self.get_output_embeddings()
        if self.readout is not None and output is not None and output.weight is not self.get_input_embeddings().weight:
            output.requires_grad_(False)  # this readout passes it by

    @staticmethod
    def make_heads(config: LlamaRecLKGConfig) -> dict[str, nn.Module]:
        """New preferences, fusion weights and, where it is used, readout, by name; what no gradient can reach is
        frozen."""
        heads = {"preference": UserPreferenceModule(config), "fusion": ScoreFusion(config)}
        # the preferences learn by two routes; with both closed nothing reaches them
        gated = config.use_language_model and config.use_path_gate
        heads["preference"].requires_grad_(config.use_evidence_fusion or gated)
        if config.use_language_model and config.readout == "candidates":
            heads["readout"] = CandidateReadout(state_size(config.text_config))
        return heads

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, UserPreferenceModule):
            # outputs start at zero, so training starts at uniform preferences and every input can pull them away
            for weight in module.parameters():
                nn.init.zeros_(weight)
            if module.history_in is not None:
                nn.init.xavier_uniform_(module.history_in.weight)
            if module.user_embedding is not None:
                nn.init.normal_(module.user_embedding.weight, std=0.0 if module.user_out is None else 0.1)
                module.user_embedding.weight[UNKNOWN_USER].zero_()
            if module.user_norm is not None:
                nn.init.ones_(module.user_norm.weight)
        elif isinstance(module, PartWeights):
            module.recent_weight.zero_()
            module.popularity_weight.zero_()
            module.evidence_weight.fill_(self.config.evidence_weight)
            module.retrieval_weight.fill_(self.config.retrieval_weight)
            if isinstance(module, ScoreFusion):
                module.lm_scale.fill_(self.config.lm_scale)

    # -- backbone --------------------------------------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls, backbone: str | Path | PreTrainedModel, config: LlamaRecLKGConfig, **kwargs: Any
    ) -> LlamaRecLKGForRanking:
        """A ranker around a pretrained causal language model, which must not carry a PEFT adapter.

        Args:
            backbone: a folder, a Hub id, a name known to `backbones.py`, or a model, which the ranker then owns (its
                layers are cut to `config.num_hidden_layers`). (A model does not know the commit it was loaded from:
                give the id, or set `config.backbone_revision`.)
            config: its `text_config`, `backbone_name_or_path` and `backbone_revision` (the commit) are filled in here.
            kwargs: for `AutoModelForCausalLM.from_pretrained`: `revision`, `quantization_config`, `device_map`, ...
                `dtype` and `output_loading_info` as of the ranker's own `from_pretrained`.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        backbone, info = find_backbone(backbone, config, **kwargs)
        cut_backbone(backbone, config.num_hidden_layers)
        config.text_config = backbone.config
        model = cls(config, language_model=backbone)
        for head in model.heads().values():
            head.to(backbone.device)
        model.check_reading()
        return (model.eval(), info) if wants_info else model.eval()

    def heads(self) -> dict[str, nn.Module]:
        """What is trained beside the backbone, by name."""
        return {name: head for name in HEADS if (head := getattr(self, name)) is not None}

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's, where there is one; preferences and fusion stay in float32 beside it."""
        return super().dtype if self.language_model is None else self.language_model.dtype

    def get_input_embeddings(self) -> nn.Module | None:
        return None if self.language_model is None else self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return None if self.language_model is None else self.language_model.get_output_embeddings()

    def compile(self, *args: Any, dynamic: bool | None = True, **kwargs: Any) -> None:
        """As upstream, but of the backbone's layers alone, for sequences of any length: they compute nearly all, what
        one was compiled to serves for all of them, and the steps around them would break into many small graphs."""
        if self.language_model is not None:
            layers = next(part for part in self._decoder().modules() if isinstance(part, nn.ModuleList))
            for layer in layers:
                layer.compile(*args, dynamic=dynamic, **kwargs)
            self.compiled = True

    # -- the computation --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of a batch in eval mode, (B, C) in float32; beside a half-precision backbone its adapter computes in
        half precision, too."""
        return self._evaluate(batch)[0].logits

    @torch.inference_mode()
    def language_model_scores(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the language model says of the candidates, before the fusion weighs it, (B, C) in float32."""
        return self._evaluate(batch)[0].lm_scores.float()

    @torch.inference_mode()
    def score_parts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The logits of `score` taken apart.

        Returns:
            The parts of [`ScoreFusion`], which add up to the logits of real candidates ("evidence" is absent without
            `use_evidence_fusion`), and beside them "preferences" (B, R), what the evidence was weighed with.
        """
        found = []
        for some in self._portions(batch):
            output, inputs = self._evaluate(some)
            names = ("evidence", "retrieval_scores", "candidate_mask", "recent_evidence", "popularity")
            _, parts = self.fusion(output.lm_scores, output.preferences, *(inputs.get(name) for name in names))
            found.append({**parts, "preferences": output.preferences})
        return {name: torch.cat([parts[name] for parts in found]) for name in found[0]}

    def _portions(self, batch: Mapping[str, torch.Tensor]) -> list[Mapping[str, torch.Tensor]]:
        """The batch, for a backbone on a processor in portions of rows."""
        names = [f"{part}_attention_mask" for part in ("prefix", "candidate", "suffix")]
        masks = [batch[name].flatten(1) for name in names if name in batch]
        if self.language_model is None or self.device.type != "cpu" or not masks or "lm_scores" in batch:
            return [batch]
        tokens_read = torch.cat(masks, dim=1)
        if self._layout(self.device) != "packed":  # padding is read, too
            tokens_read = torch.ones_like(tokens_read)
        parts = portions(tokens_read.sum(1).tolist(), TOKENS_AT_ONCE)
        return [{name: value[part] for name, value in batch.items()} for part in parts]

    def _evaluate(self, batch: Mapping[str, torch.Tensor]) -> tuple[RankingOutput, dict[str, torch.Tensor]]:
        backbone = self.get_input_embeddings()
        dtype = torch.float32 if backbone is None else backbone.weight.dtype
        inputs = {name: value.to(self.device) for name, value in batch.items() if name != "labels"}
        with evaluating(self), torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return self(**inputs), inputs

    def preferences(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Distribution over relations of each row, shape (B, R), from `user_ids` and `history_relations` of a batch;
        that of evaluation, without dropout, whatever mode the model is in."""
        with evaluating(self.preference):
            logits = self.preference(batch["user_ids"].to(self.device), batch["history_relations"].to(self.device))
        return logits.softmax(-1)

    @_compiling_layers
    def forward(
        self,
        evidence: torch.Tensor,
        retrieval_scores: torch.Tensor,
        candidate_mask: torch.Tensor,
        user_ids: torch.Tensor,
        history_relations: torch.Tensor,
        prefix_input_ids: torch.Tensor | None = None,
        prefix_attention_mask: torch.Tensor | None = None,
        path_input_ids: torch.Tensor | None = None,
        path_attention_mask: torch.Tensor | None = None,
        path_relation_weights: torch.Tensor | None = None,
        path_sources: torch.Tensor | None = None,
        path_candidates: torch.Tensor | None = None,
        candidate_input_ids: torch.Tensor | None = None,
        candidate_attention_mask: torch.Tensor | None = None,
        suffix_input_ids: torch.Tensor | None = None,
        suffix_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        recent_evidence: torch.Tensor | None = None,
        popularity: torch.Tensor | None = None,
        lm_scores: torch.Tensor | None = None,
        preferences: torch.Tensor | None = None,
        smoothing: float = 0.0,
    ) -> RankingOutput:
        """Rank the candidates of each row.

        The prompt's parts are needed only with `config.use_language_model`. The ranking loss reaches the preferences
        by two routes: through `evidence` in the fusion, exactly; and through the gate on the tokens of the selected
        paths, whose choice itself is discrete.

        Args:
            evidence (B, C, R): how strongly the history points at each candidate along each relation.
            retrieval_scores (B, C): first-stage scores.
            candidate_mask (`bool`, (B, C)): real candidates.
            user_ids (`long`, (B,)): dense users, 0 unknown.
            history_relations (B, R, S): relation statistics of the history.
            prefix_input_ids, prefix_attention_mask (B, Lp): instruction and history.
            path_input_ids, path_attention_mask (B, P, Lr): every path as text.
            path_relation_weights (B, P, R): weight of each relation in each path.
            path_sources, path_candidates (`long`, (B, P)): history item and candidate that each path joins.
            candidate_input_ids, candidate_attention_mask (B, C, Lc): the candidates' titles; not with letters.
            suffix_input_ids, suffix_attention_mask (B, Ls): candidates and response cue; with letters.
            labels (`long`, (B,)): index of the target; negative is left out of the loss.
            recent_evidence (B, C, R), popularity (B, C): as the examples carry them; None counts as nothing.
            lm_scores (B, C): what the language model says, where that is known; it is not run then.
            preferences (B, R): distributions over relations in place of those that the preference module reads.
            smoothing: the share of the target's probability that the loss spreads over the row's real candidates.
        """
        if evidence.shape[-1] != self.config.num_relations:
            raise LKGError(
                f"The batch has evidence along {evidence.shape[-1]} relations; this model (adapter "
                f"{self.active_adapter!r}) has {self.config.relations}. Use the processor that was saved with it."
            )
        exact = torch.autocast(user_ids.device.type, enabled=False)  # preferences and fusion stay in float32
        if preferences is None:
            with exact:
                preferences = self.preference(user_ids, history_relations).softmax(-1)
        lm_logits = path_scores = selected = None
        if self.config.use_language_model and lm_scores is None:
            texts = {
                "prefix_input_ids": prefix_input_ids,
                "prefix_attention_mask": prefix_attention_mask,
                "path_input_ids": path_input_ids,
                "path_attention_mask": path_attention_mask,
                "path_relation_weights": path_relation_weights,
                "path_candidates": path_candidates,
                "candidate_input_ids": candidate_input_ids,
                "candidate_attention_mask": candidate_attention_mask,
                "suffix_input_ids": suffix_input_ids,
                "suffix_attention_mask": suffix_attention_mask,
            }
            with exact:
                path_scores = score_paths(path_relation_weights, path_attention_mask, preferences)
            sources = path_sources if self.config.one_path_per_history_item else None
            if self.config.readout == "candidates":
                selected, lm_logits = self._read_candidates(texts, path_scores, sources)
                lm_scores = lm_logits
            else:
                selected, lm_logits = self._read_letters(texts, path_scores, sources, candidate_mask.shape[1])
                prior = self.config.use_letter_prior
                lm_scores = lm_logits - self._letter_prior(lm_logits.shape[1], evidence.device) if prior else lm_logits
        with exact:
            logits, _ = self.fusion(
                lm_scores, preferences, evidence, retrieval_scores, candidate_mask, recent_evidence, popularity
            )
        loss = None
        if labels is not None:
            loss = _listwise(logits, labels, candidate_mask, smoothing)
            if self.training and lm_scores is not None and self.config.lm_loss_weight:
                alone = lm_scores.masked_fill(~candidate_mask, torch.finfo(lm_scores.dtype).min)
                loss = loss + self.config.lm_loss_weight * _listwise(alone, labels, candidate_mask, smoothing)
            if self.preference.training and self.config.user_shrinkage:  # in the heads' warm-up, too
                loss = loss + self.config.user_shrinkage * self.preference.personal(user_ids).square().sum(1).mean()
        return RankingOutput(loss, logits, preferences, path_scores, selected, lm_logits, lm_scores)


def _listwise(scores: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy of (B, C) scores, over the rows with a target; smoothed over the candidates of the mask alone,
    where the others' would be infinite."""
    known = labels >= 0
    if not known.any():
        return scores.sum() * 0.0
    loss = F.cross_entropy(scores[known], labels[known])
    if smoothing:
        surprise = -scores[known].log_softmax(-1).masked_fill(~mask[known], 0.0)
        loss = (1 - smoothing) * loss + smoothing * (surprise.sum(-1) / mask[known].sum(-1)).mean()
    return loss


AutoModel.register(LlamaRecLKGConfig, LlamaRecLKGForRanking, exist_ok=True)
