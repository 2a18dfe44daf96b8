"""The ranker: a causal language model that reads candidates behind letters, and a preference module that reads the
graph.

LlamaRec (arXiv 2311.02089) for the verbalizer, LlamaRec-LKG-RAG (arXiv 2506.07449) for preferences over relations.
Here both gradient routes from the ranking loss to the preferences are real; see `LlamaRecLKGForRanking.forward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from ..data.schema import UNKNOWN_USER
from ..hub.mixin import HubMixin
from ..utils.errors import LKGError
from .adapters import AdapterMixin, Tenant
from .backbones import find_backbone
from .checkpoints import CheckpointMixin
from .configuration_llamarec_lkg import LlamaRecLKGConfig
from .heads import ScoreFusion, UserPreferenceModule, evaluating, straight_through
from .prompt_assembly import AssembledPrompt, assemble_prompt, select_paths


@dataclass
class RankingOutput(ModelOutput):
    """
    Args:
        loss: listwise cross-entropy over the candidates.
        logits (B, C): ranking scores; the lowest float32 where there is no candidate.
        preferences (B, R): distribution over relations.
        path_scores (B, P): score of every path; -inf where there is none.
        selected_paths (`long`, (B, K)): paths in the prompt, best first; -1 where there is none.
        lm_logits (B, C): what the backbone said, prior not yet subtracted.
        lm_scores (B, C): the same less the prior, what the fusion takes.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    preferences: torch.Tensor | None = None
    path_scores: torch.Tensor | None = None
    selected_paths: torch.Tensor | None = None
    lm_logits: torch.Tensor | None = None
    lm_scores: torch.Tensor | None = None


class LlamaRecLKGForRanking(CheckpointMixin, HubMixin, AdapterMixin, PreTrainedModel):
    """Ranks up to 52 candidates in one forward pass. `AutoModel.from_pretrained` returns it."""

    config: LlamaRecLKGConfig
    config_class = LlamaRecLKGConfig
    hub_part = "model"
    base_model_prefix = "ranker"
    main_input_name = "prefix_input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # our loss is a mean over lists; the Trainer must not rescale it when it accumulates
    _keep_in_fp32_modules = ["preference", "fusion"]  # for float16 and quantized weights
    _keep_in_fp32_modules_strict = ["preference", "fusion"]  # for bfloat16
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: LlamaRecLKGConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.preference, self.fusion = self.make_heads(config)
        self._tenants: dict[str, Tenant] = {}  # loaded adapters that are not in use
        # first weights of those whose initialisation changed the backbone
        self._adapter_starts: dict[str, dict[str, torch.Tensor]] = {}
        self._own_backbone = False  # whether its weights are others than those of the base it names
        self._left_backbone_out = False  # whether it was loaded without the one it was trained around
        if config.use_language_model and language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        elif language_model is not None:
            for module in language_model.modules():
                module._is_hf_initialized = True  # a loaded backbone keeps its weights
        self.language_model = language_model
        self.post_init()

    @staticmethod
    def make_heads(config: LlamaRecLKGConfig) -> tuple[UserPreferenceModule, ScoreFusion]:
        """New preferences and fusion weights; what no gradient can reach is frozen."""
        preference = UserPreferenceModule(config)
        # the preferences learn by two routes; with both closed nothing reaches them
        gated = config.use_language_model and config.use_path_gate
        preference.requires_grad_(config.use_evidence_fusion or gated)
        return preference, ScoreFusion(config)

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
        elif isinstance(module, ScoreFusion):
            for name in ("lm_scale", "evidence_weight", "retrieval_weight"):
                getattr(module, name).fill_(getattr(self.config, name))

    # -- backbone --------------------------------------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls, backbone: str | Path | PreTrainedModel, config: LlamaRecLKGConfig, **kwargs: Any
    ) -> LlamaRecLKGForRanking:
        """A ranker around a pretrained causal language model, which must not carry a PEFT adapter.

        Args:
            backbone: a folder, a Hub id, a name known to `backbones.py`, or a model. (A model does not know the commit
                it was loaded from: give the id, or set `config.backbone_revision`.)
            config: its `text_config`, `backbone_name_or_path` and `backbone_revision` (the commit) are filled in here.
            kwargs: for `AutoModelForCausalLM.from_pretrained`: `revision`, `quantization_config`, `device_map`, ...
                `dtype` and `output_loading_info` as of the ranker's own `from_pretrained`.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        backbone, info = find_backbone(backbone, config, **kwargs)
        config.text_config = backbone.config
        model = cls(config, language_model=backbone)
        model.preference.to(backbone.device)
        model.fusion.to(backbone.device)
        return (model.eval(), info) if wants_info else model.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's, where there is one; preferences and fusion stay in float32 beside it."""
        return super().dtype if self.language_model is None else self.language_model.dtype

    def get_input_embeddings(self) -> nn.Module | None:
        return None if self.language_model is None else self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return None if self.language_model is None else self.language_model.get_output_embeddings()

    # -- the computation --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of a batch in eval mode, (B, C) in float32; beside a half-precision backbone its adapter computes in
        half precision, too."""
        return self._evaluate(batch)[0].logits

    @torch.inference_mode()
    def score_parts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The logits of `score` taken apart.

        Returns:
            The parts of [`ScoreFusion`], which add up to the logits of real candidates ("evidence" is absent without
            `use_evidence_fusion`), and beside them "preferences" (B, R), what the evidence was weighed with.
        """
        output, inputs = self._evaluate(batch)
        names = ("evidence", "retrieval_scores", "candidate_mask")
        _, parts = self.fusion(output.lm_scores, output.preferences, *(inputs[name] for name in names))
        return {**parts, "preferences": output.preferences}

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
        suffix_input_ids: torch.Tensor | None = None,
        suffix_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
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
            path_sources (`long`, (B, P)): history item of each path.
            suffix_input_ids, suffix_attention_mask (B, Ls): candidates and response cue.
            labels (`long`, (B,)): index of the target; negative is left out of the loss.
        """
        if evidence.shape[-1] != self.config.num_relations:
            raise LKGError(
                f"The batch has evidence along {evidence.shape[-1]} relations; this model (adapter "
                f"{self.active_adapter!r}) has {self.config.relations}. Use the processor that was saved with it."
            )
        exact = torch.autocast(user_ids.device.type, enabled=False)  # preferences and fusion stay in float32
        with exact:
            preferences = self.preference(user_ids, history_relations).softmax(-1)
        lm_logits = path_scores = selected = relative = None
        if self.config.use_language_model:
            with exact:
                path_scores = torch.einsum("bpr,br->bp", path_relation_weights.float(), preferences)
            path_scores = path_scores.masked_fill(~path_attention_mask.bool().any(-1), -torch.inf)
            sources = path_sources if self.config.one_path_per_history_item else None
            selected, scores = select_paths(path_scores, self.config.num_paths, sources)
            prompt = assemble_prompt(
                prefix_input_ids,
                prefix_attention_mask,
                path_input_ids,
                path_attention_mask,
                suffix_input_ids,
                suffix_attention_mask,
                selected,
                self.config.max_length,
            )
            lm_logits = relative = self._letter_logits(prompt, scores, candidate_mask.shape[1])
            if self.config.use_letter_prior:
                relative = lm_logits - self._letter_prior(candidate_mask.shape[1], evidence.device)
        with exact:
            logits, _ = self.fusion(relative, preferences, evidence, retrieval_scores, candidate_mask)
        loss = None
        if labels is not None:
            known = labels >= 0
            loss = F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0.0
            if self.preference.training and self.config.user_shrinkage:  # in the heads' warm-up, too
                loss = loss + self.config.user_shrinkage * self.preference.personal(user_ids).square().sum(1).mean()
        return RankingOutput(loss, logits, preferences, path_scores, selected, lm_logits, relative)

    def _letter_logits(self, prompt: AssembledPrompt, path_scores: torch.Tensor, count: int) -> torch.Tensor:
        """The backbone's logits of the first `count` letters after the last token, (B, count) in float32."""
        inputs: dict[str, torch.Tensor] = {"input_ids": prompt.input_ids}
        if self.config.use_path_gate and path_scores.shape[1]:
            # K * w_p is 1 for every path when all score alike, so an untrained gate changes nothing
            places = torch.arange(path_scores.shape[1], device=path_scores.device)
            present = (prompt.path_rank[:, None, :] == places[None, :, None]).any(-1)  # not left out for length
            scores = path_scores.clamp(min=-1e4) / self.config.path_gate_temperature
            share = scores.masked_fill(~present, -1e4).log_softmax(-1)
            log_gate = share + present.sum(1, keepdim=True).clamp(min=1).float().log()
            token_gate = log_gate.gather(1, prompt.path_rank.clamp(min=0)).masked_fill(prompt.path_rank < 0, 0.0)
            if self.config.path_gate == "attention_bias":
                kernel = self.language_model.config._attn_implementation
                if kernel != "sdpa":
                    raise LKGError(
                        f"path_gate='attention_bias' needs the 'sdpa' attention kernel; the backbone uses {kernel!r}. "
                        "Load it with attn_implementation='sdpa', or set path_gate='straight_through'."
                    )
                # Under autocast the kernel casts it. Upstream first fills it with the least number of the keys' type,
                # which is float32 in a quantized backbone.
                autocast = torch.is_autocast_enabled(prompt.input_ids.device.type)
                dtype = torch.float32 if autocast else self.get_input_embeddings().weight.dtype
                inputs["position_bias"] = token_gate[:, None, None, :].to(dtype)
            else:
                gate = token_gate.exp()
                embeds = self.get_input_embeddings()(inputs.pop("input_ids"))
                inputs["inputs_embeds"] = embeds * straight_through(gate)[..., None].to(embeds.dtype)
        position_ids = (prompt.attention_mask.cumsum(1) - 1).clamp(min=0)
        # the last position only: one row of the vocabulary is a thousandth of the pass, and going through the model's
        # own head keeps what some of them do to it (soft caps, scales)
        output = self.language_model(
            **inputs,
            attention_mask=prompt.attention_mask,
            position_ids=position_ids,
            logits_to_keep=1,
            use_cache=False,
        )
        return output.logits[:, -1, self.config.letter_token_ids[:count]].float()

    @torch.no_grad()
    def _letter_prior(self, count: int, device: torch.device) -> torch.Tensor:
        """The letters' logits on the empty prompt, (1, count), by the weights of this moment."""
        ids = torch.tensor([self.config.prior_input_ids], device=device)
        with evaluating(self.language_model):
            output = self.language_model(ids, logits_to_keep=1, use_cache=False)
        return output.logits[:, -1, self.config.letter_token_ids[:count]].float()


AutoModel.register(LlamaRecLKGConfig, LlamaRecLKGForRanking, exist_ok=True)
