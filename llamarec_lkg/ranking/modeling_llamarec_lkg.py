"""The ranker: a causal language model that reads candidates behind letters, and a preference module that reads the
graph.

LlamaRec (arXiv 2311.02089) for the verbalizer, LlamaRec-LKG-RAG (arXiv 2506.07449) for preferences over relations.
Here both gradient routes from the ranking loss to the preferences are real; see `LlamaRecLKGForRanking.forward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import CONFIG_NAME, ModelOutput

from ..data.schema import UNKNOWN_USER
from ..graph.evidence import STATISTICS
from ..hub.mixin import HubMixin
from ..hub.saved_folder import refuse_root_adapter
from ..utils.errors import LKGError
from ..utils.files import read_json
from ..utils.hub import HUB_ERRORS, fetch, hub_options, is_local, lasting_name, pinned
from .adapters import DEFAULT_ADAPTER, AdapterMixin, Tenant
from .backbones import check_same_backbone, find_backbone, missing_backbone, saved_name, tell_other_commit
from .checkpoints import ModelFiles
from .configuration_llamarec_lkg import LlamaRecLKGConfig
from .prompt_assembly import AssembledPrompt, assemble_prompt, select_paths
from .weight_files import is_own, load_heads, weight_files


TOKENS: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()
"""What the repositories in a model were reached with: beside it, since a model may be pickled and sent elsewhere."""


@dataclass
class RankingOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor`, shape (), optional): listwise cross-entropy over the candidates.
        logits (`torch.Tensor`, shape (B, C)): ranking scores; the lowest float32 where there is no candidate.
        preferences (`torch.Tensor`, shape (B, R)): distribution over relations.
        path_scores (`torch.Tensor`, shape (B, P)): score of every path; -inf where there is none.
        selected_paths (`torch.Tensor` of `long`, shape (B, K)): paths in the prompt, best first; -1 where there is
            none.
        letter_logits (`torch.Tensor`, shape (B, C), optional): what the backbone said, prior not yet subtracted.
        letter_scores (`torch.Tensor`, shape (B, C), optional): the same less the prior, what the fusion takes.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    preferences: torch.Tensor | None = None
    path_scores: torch.Tensor | None = None
    selected_paths: torch.Tensor | None = None
    letter_logits: torch.Tensor | None = None
    letter_scores: torch.Tensor | None = None


class UserPreferenceModule(nn.Module):
    """Relation logits of a user, from the history's relation statistics and an id embedding that known users add.

    One small network reads each relation's statistics, and how they differ from the mean over relations; a vector of
    its own tells it which relation it is. What "the user keeps to it" looks like is much the same for all relations,
    so few users teach many of them.
    """

    def __init__(self, config: LlamaRecLKGConfig):
        super().__init__()
        self.user_dropout = config.user_dropout
        self.dropout = nn.Dropout(config.preference_dropout)
        self.bias = nn.Parameter(torch.zeros(config.num_relations))
        self.history_in = self.history_out = self.history_skip = self.relation_embedding = None
        self.user_embedding = self.user_norm = self.user_out = None
        if config.use_history_preferences:
            hidden = config.preference_hidden_size
            self.history_in = nn.Linear(2 * len(STATISTICS), hidden)
            self.relation_embedding = nn.Parameter(torch.zeros(config.num_relations, hidden))
            self.history_out = nn.Linear(hidden, 1, bias=False)
            self.history_skip = nn.Linear(2 * len(STATISTICS), 1, bias=False)
        if config.use_user_embedding and config.num_users:
            size = config.user_embedding_size or config.num_relations
            self.user_embedding = nn.Embedding(config.num_users + 1, size, padding_idx=UNKNOWN_USER)
            if config.user_embedding_size:
                self.user_norm = nn.LayerNorm(size)
                self.user_out = nn.Linear(size, config.num_relations, bias=False)

    def forward(self, user_ids: torch.Tensor, history_relations: torch.Tensor) -> torch.Tensor:
        """(B,) dense users and (B, R, S) statistics -> (B, R) logits. User 0 and unseen ids get the history's part
        alone."""
        logits = self.bias.float().expand(len(user_ids), -1)
        if self.history_in is not None:
            statistics = history_relations.to(self.history_in.weight.dtype)
            statistics = torch.cat([statistics, statistics - statistics.mean(1, keepdim=True)], dim=-1)
            hidden = self.dropout(F.gelu(self.history_in(statistics) + self.relation_embedding))
            logits = logits + (self.history_out(hidden) + self.history_skip(statistics))[..., 0].float()
        if self.training and self.user_dropout > 0:
            hide = torch.rand(user_ids.shape, device=user_ids.device) < self.user_dropout
            user_ids = user_ids.masked_fill(hide, UNKNOWN_USER)
        return logits + self.personal(user_ids)

    def personal(self, user_ids: torch.Tensor) -> torch.Tensor:
        """What known users' ids add to the logits, (B, R); zero for all others."""
        if self.user_embedding is None:
            return self.bias.new_zeros(len(user_ids), len(self.bias), dtype=torch.float32)
        user_ids = user_ids.masked_fill(user_ids >= self.user_embedding.num_embeddings, UNKNOWN_USER)
        personal = self.user_embedding(user_ids)
        if self.user_out is not None:
            personal = self.user_out(self.dropout(self.user_norm(personal)))
        return personal.float() * (user_ids != UNKNOWN_USER)[:, None]


class ScoreFusion(nn.Module):
    """logits = s * (letters - prior) + a * evidence . preferences + b * retrieval, each part behind its switch."""

    def __init__(self, config: LlamaRecLKGConfig):
        super().__init__()
        self.config = config
        for name in ("letter_scale", "evidence_weight", "retrieval_weight"):
            # of shape (1,): FSDP2 cannot shard what has no dimension
            self.register_parameter(name, nn.Parameter(torch.tensor([float(getattr(config, name))])))
        self.letter_scale.requires_grad_(config.use_language_model and config.learn_letter_scale)
        self.evidence_weight.requires_grad_(config.use_evidence_fusion)
        self.retrieval_weight.requires_grad_(config.use_retrieval_scores)

    def forward(
        self,
        letter_logits: torch.Tensor | None,
        preferences: torch.Tensor,
        evidence: torch.Tensor,
        retrieval_scores: torch.Tensor,
        candidate_mask: torch.Tensor,
    ) -> torch.Tensor:
        parts = self.parts(letter_logits, preferences, evidence, retrieval_scores, candidate_mask)
        logits = sum(part.sum(-1) if name == "evidence" else part for name, part in parts.items())
        return logits.masked_fill(~candidate_mask, torch.finfo(torch.float32).min)

    def parts(
        self,
        letter_logits: torch.Tensor | None,
        preferences: torch.Tensor,
        evidence: torch.Tensor,
        retrieval_scores: torch.Tensor,
        candidate_mask: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The terms of the sum: "language model" and "retriever" (B, C), "evidence" by relation (B, C, R)."""
        none = torch.zeros_like(retrieval_scores, dtype=torch.float32)
        parts = {"language model": none, "retriever": none}
        if letter_logits is not None:
            parts["language model"] = self.letter_scale * letter_logits
        if self.config.use_retrieval_scores:
            scores = retrieval_scores.float().masked_fill(~candidate_mask, 0.0)
            mean = scores.sum(1, keepdim=True) / candidate_mask.sum(1, keepdim=True).clamp(min=1)
            parts["retriever"] = self.retrieval_weight * (scores - mean)
        if self.config.use_evidence_fusion:
            parts["evidence"] = self.evidence_weight * preferences[:, None, :] * evidence.float()
        return parts


def straight_through(gate: torch.Tensor) -> torch.Tensor:
    """1 in the forward pass; in the backward pass the gradient of `gate`."""
    return 1.0 + gate - gate.detach()


class LlamaRecLKGForRanking(ModelFiles, HubMixin, AdapterMixin, PreTrainedModel):
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
        self._places: dict[str, tuple[str, dict[str, Any]]] = {}  # of the repositories in it, and how they are reached
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
            module.bias.zero_()
            if module.history_in is not None:
                nn.init.xavier_uniform_(module.history_in.weight)
                nn.init.zeros_(module.history_in.bias)
                for weight in (module.relation_embedding, module.history_out.weight, module.history_skip.weight):
                    nn.init.zeros_(weight)
            if module.user_out is not None:
                nn.init.normal_(module.user_embedding.weight, std=0.1)
                module.user_embedding.weight[UNKNOWN_USER].zero_()
                nn.init.zeros_(module.user_out.weight)
                nn.init.ones_(module.user_norm.weight)
                nn.init.zeros_(module.user_norm.bias)
            elif module.user_embedding is not None:
                nn.init.zeros_(module.user_embedding.weight)
        elif isinstance(module, ScoreFusion):
            for name in ("letter_scale", "evidence_weight", "retrieval_weight"):
                getattr(module, name).fill_(getattr(self.config, name))

    # -- backbone --------------------------------------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls, backbone: str | Path | PreTrainedModel, config: LlamaRecLKGConfig, **kwargs: Any
    ) -> LlamaRecLKGForRanking:
        """A ranker around a pretrained causal language model.

        Args:
            backbone: a model, a folder, a Hub id, or a name known to `backbones.py`.
            config: its `text_config`, `backbone_name_or_path` and `backbone_revision` are filled in here. The last
                becomes the commit of a backbone on the Hub, so that what is saved is loaded around the very same one.
            kwargs: for `AutoModelForCausalLM.from_pretrained`: `revision`, `dtype`, `quantization_config`,
                `device_map`, ...; with `output_loading_info=True` what loading the backbone found is returned, too.

        Raises:
            LKGError: the backbone is, or carries, a PEFT adapter.
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

    # -- loading ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any
    ) -> LlamaRecLKGForRanking:
        """Load any of the forms `save_pretrained` writes, from a folder or from the Hub.

        Args:
            config: a `LlamaRecLKGConfig`, of which a copy is used, or the place of one, to use instead of the saved.
            backbone: a folder, Hub id or model to use in place of the one that a small form names; its branch is then
                the default one. False leaves the language model out and ranks by retriever and evidence, as
                `use_language_model=False` does. None and True are what was saved.
            is_trainable (`bool`): whether a saved adapter can be trained on. Default False.
            adapter_name (`str`): what a saved adapter is called, where `load_adapter` adds further ones. Default
                "default".
            kwargs: fields of the configuration, which have the last word; `HUB_KEYS` of hub.py for all files; for the
                backbone `dtype`, `quantization_config`, `device_map`,
                `attn_implementation`, ...; `output_loading_info=True` returns what loading the backbone found, too.

        Raises:
            LKGError: weights are missing, or are not of the configured shapes, the backbone cannot be found or is
                another, one was given where the saved model has its own, `config` is neither, or a field is none that
                it can be.
        """
        hub = pinned(pretrained_model_name_or_path, hub_options(kwargs))
        kwargs.update(hub)
        config = cls._config_to_load_with(pretrained_model_name_or_path, kwargs, hub)
        if Path(pretrained_model_name_or_path).is_dir():
            refuse_root_adapter(Path(pretrained_model_name_or_path, hub.get("subfolder") or ""))
        is_trainable, backbone = kwargs.pop("is_trainable", False), kwargs.pop("backbone", None)
        backbone = None if backbone is True else backbone
        adapter_name = kwargs.pop("adapter_name", DEFAULT_ADAPTER)
        wants_info = kwargs.pop("output_loading_info", False)
        if (
            backbone is None
            and not config.use_language_model
            and cls._has_language_model(pretrained_model_name_or_path, hub)
        ):
            backbone = False  # so that what is loaded knows what it lacks, and is not saved over it
        if backbone is False:
            model, info = cls._without_backbone(pretrained_model_name_or_path, config, hub), {}
        elif backbone is not None and not (config.external_backbone and config.use_language_model):
            raise LKGError(
                f"backbone={str(backbone)[:200]!r} was given, but {pretrained_model_name_or_path} names no backbone "
                "that it could stand for: it was saved whole, or ranks without one. Leave `backbone=` out."
            )
        elif not config.external_backbone and config.use_language_model:
            model, info = cls._from_whole(pretrained_model_name_or_path, *args, config=config, **kwargs)
        else:
            model, info = cls._from_small(pretrained_model_name_or_path, backbone, config, kwargs, hub)
            if config.has_adapter:
                model._attach_adapter(str(pretrained_model_name_or_path), adapter_name, is_trainable, **hub)
            model.eval()
        # a configuration that was passed need not know its place; `place` looks it up by this name
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        model._note_place(pretrained_model_name_or_path, hub)
        empty = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return (model, {**empty, **info}) if wants_info else model

    @staticmethod
    def _config_to_load_with(name: str | Path, kwargs: dict[str, Any], hub: dict[str, Any]) -> LlamaRecLKGConfig:
        """The saved configuration, or a copy of the given one; takes `config` and its fields out of `kwargs`."""
        config = kwargs.pop("config", None)
        fields = {key: kwargs.pop(key) for key in list(kwargs) if key in LlamaRecLKGConfig.__annotations__}
        if isinstance(config, str | Path):
            elsewhere = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
            config = LlamaRecLKGConfig.from_pretrained(config, **elsewhere)
        elif config is None:
            config = LlamaRecLKGConfig.from_pretrained(name, **hub)
        elif isinstance(config, LlamaRecLKGConfig):
            config = deepcopy(config)  # what is loaded is written down in it
        else:
            raise LKGError(
                f"config is a {type(config).__name__}; it is a LlamaRecLKGConfig, or the folder or Hub id of one. "
                "Give single fields by their names: `from_pretrained(..., num_paths=2)`."
            )
        for key, value in fields.items():
            setattr(config, key, value)
        config.check()
        return config

    @staticmethod
    def _has_language_model(name: str | Path, hub: dict[str, Any]) -> bool:
        """Whether a ranker was saved with a language model, in its place or beside it."""
        path = fetch(name, CONFIG_NAME, optional=True, **hub)
        return path is None or read_json(path).get("use_language_model", True)

    def _note_place(self, name: str | Path, hub: dict[str, Any]) -> None:
        """Note how a repository was reached: what else lies in it is loaded the same way."""
        self._places[str(name)] = (lasting_name(str(name)), {k: v for k, v in hub.items() if k != "token"})
        if "token" in hub:
            TOKENS.setdefault(self, {})[str(name)] = hub["token"]

    @property
    def place(self) -> tuple[str, dict[str, Any]] | None:
        """The folder or Hub id that what is in use was loaded from, and the `HUB_KEYS` it was loaded with; None where
        it was made here, or the folder is gone."""
        name = self.config.name_or_path
        place, hub = self._places.get(name, (None, {}))
        if place is None or is_local(place) and not Path(place).is_dir():
            return None
        token = TOKENS.get(self, {}).get(name)
        return place, {**hub, **({} if token is None else {"token": token})}

    @classmethod
    def _from_small(
        cls, name: str | Path, backbone: Any, config: LlamaRecLKGConfig, kwargs: dict[str, Any], hub: dict[str, Any]
    ) -> tuple[LlamaRecLKGForRanking, dict[str, Any]]:
        """The ranker of a small form without its adapter, and what loading the backbone found."""
        # these say where the ranker is, not where its backbone is
        kwargs = {
            k: v for k, v in kwargs.items() if k not in ("revision", "subfolder", "adapter_kwargs", "_from_auto")
        }
        model, info = cls(config) if not config.use_language_model else None, {}
        if model is None:
            model, info = cls._around_backbone(name, backbone, config, kwargs)
        load_heads(model, *weight_files(name, own=True, **hub))
        return model, info

    @classmethod
    def _without_backbone(cls, name: str | Path, config: LlamaRecLKGConfig, hub: dict[str, Any]) -> Any:
        config.use_language_model = config.has_adapter = False
        model = cls(config)
        load_heads(model, *weight_files(name, own=True, **hub), beside_backbone=True)
        model._left_backbone_out = True
        return model.eval()

    @classmethod
    def _around_backbone(
        cls, name: str | Path, backbone: Any, config: LlamaRecLKGConfig, kwargs: dict[str, Any]
    ) -> tuple[LlamaRecLKGForRanking, dict[str, Any]]:
        """A new ranker around the backbone of a small form, or the given one, which must be the same architecture."""
        saved = config.text_config
        wanted = saved_name(config) if backbone is None else backbone
        if wanted is None:
            raise LKGError(f"{name} holds no backbone and does not name one. Give `backbone=`, a folder or Hub id.")
        base, commit = config.backbone_name_or_path, config.backbone_revision
        if isinstance(backbone, str | Path):
            config.backbone_revision = None  # of the one that this one stands for; its own is the default branch
        try:
            model, info = cls.from_backbone(wanted, config, output_loading_info=True, **kwargs)
        except HUB_ERRORS as error:
            raise missing_backbone(name, wanted, config.backbone_revision, error) from error
        check_same_backbone(name, saved, config.text_config)
        if config.backbone_name_or_path == base:
            tell_other_commit(name, base, commit, config.backbone_revision)
        return model, info

    @classmethod
    def _from_whole(cls, name: str | Path, *args: Any, **kwargs: Any) -> Any:
        """A checkpoint with its backbone; a weight that is missing in it is an error, not a new start."""
        try:
            model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise LKGError(
                f"The weights in {name} have other shapes than its config.json asks for: they were made with another "
                f"configuration, or by an earlier version of the library; then train the model again. {error}"
            ) from error
        missing = sorted(info["missing_keys"], key=lambda key: (not is_own(key), key))
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise LKGError(
                f"{name} lacks the weights {missing[:5]}{more}. It is damaged, its files are of two models, or it is "
                "no checkpoint of this class: save or download it again, or make a ranker from a plain backbone with "
                "`LlamaRecLKGForRanking.from_backbone`."
            )
        other = sorted(key for key in info["mismatched_keys"] if is_own(key[0]))
        if other:
            raise LKGError(
                f"The weights in {name} have other shapes than its config.json asks for; (name, found, needed): "
                f"{other}. `ignore_mismatched_sizes` would start them anew without a word; load them with the "
                "configuration they were saved with, or train a new ranker with `from_backbone`."
            )
        for own in (*model.preference.parameters(), *model.fusion.parameters()):
            if own.device.type != "meta":  # out of the file's map, whose alignment changes the last bit of a product
                own.data = own.data.clone()
        model._own_backbone = True
        return model, info

    # -- the computation --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of a batch in eval mode, (B, C); a half-precision backbone's adapter computes in half precision,
        too."""
        return self._evaluate(batch)[0].logits

    @torch.inference_mode()
    def score_parts(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The logits of `score` taken apart: "language model" and "retriever" (B, C), and "evidence" (B, C, R), a part
        for each relation. Summed over parts and relations they are the logits of real candidates."""
        output, inputs = self._evaluate(batch)
        names = ("evidence", "retrieval_scores", "candidate_mask")
        return self.fusion.parts(output.letter_scores, output.preferences, *(inputs[name] for name in names))

    def _evaluate(self, batch: Mapping[str, torch.Tensor]) -> tuple[RankingOutput, dict[str, torch.Tensor]]:
        backbone = self.get_input_embeddings()
        dtype = torch.float32 if backbone is None else backbone.weight.dtype
        inputs = {name: value.to(self.device) for name, value in batch.items() if name != "labels"}
        training = self.training
        self.eval()
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            output = self(**inputs)
        self.train(training)
        return output, inputs

    def preferences(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Distribution over relations of each row, shape (B, R), from `user_ids` and `history_relations` of a batch;
        that of evaluation, without dropout, whatever mode the model is in."""
        training = self.preference.training
        self.preference.eval()
        logits = self.preference(batch["user_ids"].to(self.device), batch["history_relations"].to(self.device))
        self.preference.train(training)
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

        The prompt's parts (all but the first five arguments) are needed only with `config.use_language_model`. The
        ranking loss reaches the preferences by two routes: through `evidence` in the fusion, exactly; and through the
        gate on the tokens of the selected paths, whose choice itself is discrete.

        Args:
            evidence (`torch.Tensor`, shape (B, C, R)): how strongly the history points at each candidate along each
                relation.
            retrieval_scores (`torch.Tensor`, shape (B, C)): first-stage scores.
            candidate_mask (`torch.Tensor` of `bool`, shape (B, C)): real candidates.
            user_ids (`torch.Tensor` of `long`, shape (B,)): dense users, 0 unknown.
            history_relations (`torch.Tensor`, shape (B, R, S)): relation statistics of the history.
            prefix_input_ids, prefix_attention_mask (`torch.Tensor`, shape (B, Lp)): instruction and history.
            path_input_ids, path_attention_mask (`torch.Tensor`, shape (B, P, Lr)): every path as text.
            path_relation_weights (`torch.Tensor`, shape (B, P, R)): weight of each relation in each path.
            path_sources (`torch.Tensor` of `long`, shape (B, P)): history item of each path.
            suffix_input_ids, suffix_attention_mask (`torch.Tensor`, shape (B, Ls)): candidates and response cue.
            labels (`torch.Tensor` of `long`, shape (B,), optional): index of the target; negative is left out of the
                loss.

        Returns:
            [`RankingOutput`]
        """
        if evidence.shape[-1] != self.config.num_relations:
            raise LKGError(
                f"The batch has evidence along {evidence.shape[-1]} relations; this model (adapter "
                f"{self.active_adapter!r}) was trained with {self.config.num_relations}: {self.config.relations}. "
                "Make batches with the processor that was saved with it."
            )
        exact = torch.autocast(user_ids.device.type, enabled=False)  # preferences and fusion stay in float32
        with exact:
            preferences = self.preference(user_ids, history_relations).softmax(-1)
        letter_logits = path_scores = selected = relative = None
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
            letter_logits = relative = self._letter_logits(prompt, scores, candidate_mask.shape[1])
            if self.config.use_letter_prior:
                relative = letter_logits - self._letter_prior(candidate_mask.shape[1], evidence.device)
        with exact:
            logits = self.fusion(relative, preferences, evidence, retrieval_scores, candidate_mask)
        loss = None
        if labels is not None:
            known = labels >= 0
            loss = F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0.0
            if self.preference.training and self.config.user_shrinkage:  # in the heads' warm-up, too
                loss = loss + self.config.user_shrinkage * self.preference.personal(user_ids).square().sum(1).mean()
        return RankingOutput(loss, logits, preferences, path_scores, selected, letter_logits, relative)

    def _letter_logits(self, prompt: AssembledPrompt, path_scores: torch.Tensor, count: int) -> torch.Tensor:
        """One pass of the backbone; the logits of the first `count` letters after the last token, (B, count) in
        float32."""
        inputs: dict[str, torch.Tensor] = {"input_ids": prompt.input_ids}
        if self.config.use_path_gate and path_scores.shape[1]:
            # K * w_p is 1 for every path when all score alike, so an untrained gate changes nothing
            places = torch.arange(path_scores.shape[1], device=path_scores.device)
            present = (prompt.path_rank[:, None, :] == places[None, :, None]).any(-1)  # not left out for length
            share = (
                (path_scores.clamp(min=-1e4) / self.config.path_gate_temperature)
                .masked_fill(~present, -1e4)
                .log_softmax(-1)
            )
            log_gate = share + present.sum(1, keepdim=True).clamp(min=1).float().log()
            token_gate = log_gate.gather(1, prompt.path_rank.clamp(min=0)).masked_fill(prompt.path_rank < 0, 0.0)
            if self.config.path_gate == "attention_bias":
                self._require_bias_kernel()
                dtype = self.get_input_embeddings().weight.dtype
                if torch.is_autocast_enabled(prompt.input_ids.device.type):
                    dtype = torch.get_autocast_dtype(prompt.input_ids.device.type)
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
        training = self.language_model.training
        self.language_model.eval()
        output = self.language_model(ids, logits_to_keep=1, use_cache=False)
        self.language_model.train(training)
        return output.logits[:, -1, self.config.letter_token_ids[:count]].float()

    def _require_bias_kernel(self) -> None:
        kernel = self.language_model.config._attn_implementation
        if kernel != "sdpa":
            raise LKGError(
                f"path_gate='attention_bias' needs the 'sdpa' attention kernel; the backbone uses {kernel!r}, which "
                "would ignore the bias. Load the backbone with attn_implementation='sdpa', or set "
                "path_gate='straight_through'."
            )


AutoModel.register(LlamaRecLKGConfig, LlamaRecLKGForRanking, exist_ok=True)
