"""Configuration of the ranker."""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..hub.mixin import Registered
from ..utils.errors import LKGError


# The candidates' letters, in order: "A" is the first candidate. 52 is the longest list one forward pass can rank.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

CHOICES = {
    "readout": ("candidates", "letters"),
    "candidate_attention": ("isolated", "causal"),
    "path_gate": ("attention_bias", "straight_through"),
    "path_weighting": ("evidence", "tfidf"),
    "path_style": ("compact", "published"),
}


class LlamaRecLKGConfig(Registered, PreTrainedConfig):
    """Everything about the ranker but its weights.

    Args:
        text_config: the backbone's own configuration; any causal language model.
        num_hidden_layers (`int`, optional): only so many of the backbone's first layers are used (its final norm
            stays); by default all.
        backbone_name_or_path, backbone_revision (`str`, optional): where the backbone came from: a Hub id, a folder,
            or a name of `backbones.py`; and its branch, tag or commit on the Hub.
        external_backbone (`bool`): the checkpoint holds only what was trained, without the backbone.
        has_adapter (`bool`): the checkpoint holds an adapter, in `adapter/`.
        relations (`list[str]`): the graph's R relations, in the order of `evidence` and `path_relation_weights`.
        num_users (`int`): users with weights of their own, ids 1 to `num_users`; needs `use_user_embedding`. Their
            weights are saved in `private/`; without that folder every user is the average user.
        user_embedding_size (`int`): 0 gives each known user one logit a relation; otherwise the published form, an
            embedding of that size with layer norm and a linear map.
        preference_hidden_size (`int`), preference_dropout (`float`): of the preference module.
        user_dropout (`float`): how often training hides the user's id, so that the history alone carries new users.
        user_shrinkage (`float`): weight of the squared logits that ids add, in the training loss.
        use_history_preferences, use_user_embedding (`bool`): the two inputs of the preference module.
        use_language_model (`bool`): off, only retriever and evidence rank, and no backbone is needed.
        readout (`"candidates"` or `"letters"`): where the language model's scores are read: in its state at the end of
            each candidate, or in the logits of the letters that candidates stand behind, as published.
        candidate_attention (`"isolated"` or `"causal"`): what a candidate sees beside the history: itself alone, so
            that scores do not depend on the other candidates and a list may be of any length; or all before it, too.
        candidates_per_pass (`int`, optional): isolated candidates of a longer list are read in so many at a time,
            behind a prefix that is read once. By default 64; on a CPU 128, read again behind their prefix, or 10 where
            the backbone cannot do without padding.
        use_evidence_fusion (`bool`): gradient route 1, the evidence term.
        use_path_gate (`bool`): gradient route 2, preferences weigh the paths inside the backbone.
        path_gate (`"attention_bias"` or `"straight_through"`): how; the second works with every attention kernel.
        path_gate_temperature (`float`): of the gate: the lower, the more a path's preference matters.
        use_retrieval_scores, use_popularity (`bool`): add the first stage's score; how often an item was trained on.
        use_letter_prior (`bool`): subtract the letters' own bias.
        learn_lm_scale (`bool`), lm_scale, evidence_weight, retrieval_weight (`float`): of the parts, at the start. By
            default `lm_scale` is 1, and 0.1 with letters, which start with much to say about nothing.
        lm_loss_weight (`float`): weight, in the training loss, of the cross-entropy of the language model's scores
            alone.
        num_paths (`int`): K, how many paths stand behind each candidate; with letters, in the whole prompt. 0 writes
            none.
        one_path_per_history_item (`bool`): among the paths of one history item only the best may enter (of those to
            one candidate; with letters of all, as published).
        path_weighting (`"evidence"` or `"tfidf"`): what a path weighs: its own share of the evidence, or the
            published formula.
        path_style (`"compact"` or `"published"`), history_length, max_title_tokens, num_candidates, max_length
            (`int`): prompt settings. `max_length` bounds the assembled prompt in tokens: what one candidate sees.
            `num_candidates` is how long lists are; letters and causal attention rank no longer ones at once.
        evidence_half_life, recent_half_life (`float`): in evidence, an item of the history counts half as much as one
            so many places later; the second is that of "recent evidence", a part of its own.
        letter_token_ids, prior_input_ids (`list[int]`): tokens of the letters, where there are any, and of the empty
            prompt, on which their own bias is read and by which model and processor know each other's tokenizer; set
            from the processor.
        catalogue, users (`str`, optional): fingerprints of the items it ranks and of the users it has weights for, set
            from the processor; None leaves them unchecked.
        heads_trained (`bool`): whether preferences and fusion weights have been fitted; set by whoever fits them.
    """

    model_type = "llamarec_lkg"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}
    keys_to_ignore_at_inference = ["preferences", "path_scores", "selected_paths", "lm_logits", "lm_scores"]

    text_config: dict | PreTrainedConfig | None = None
    num_hidden_layers: int | None = None
    backbone_name_or_path: str | None = None
    backbone_revision: str | None = None
    external_backbone: bool = False
    has_adapter: bool = False
    relations: list[str] | None = None
    num_users: int = 0
    user_embedding_size: int = 0
    preference_hidden_size: int = 32
    preference_dropout: float = 0.1
    user_dropout: float = 0.5
    user_shrinkage: float = 1.0
    use_history_preferences: bool = True
    use_user_embedding: bool = False
    use_language_model: bool = True
    readout: Literal["candidates", "letters"] = "candidates"
    candidate_attention: Literal["isolated", "causal"] = "isolated"
    candidates_per_pass: int | None = None
    use_evidence_fusion: bool = True
    use_path_gate: bool = True
    path_gate: Literal["attention_bias", "straight_through"] = "attention_bias"
    path_gate_temperature: float = 0.2
    use_retrieval_scores: bool = True
    use_popularity: bool = True
    use_letter_prior: bool = True
    learn_lm_scale: bool = True
    lm_scale: float | None = None
    evidence_weight: float = 1.0
    retrieval_weight: float = 1.0
    lm_loss_weight: float = 0.5
    num_paths: int = 1
    one_path_per_history_item: bool = False
    path_weighting: Literal["evidence", "tfidf"] = "evidence"
    path_style: Literal["compact", "published"] = "compact"
    history_length: int = 20
    max_title_tokens: int = 16
    num_candidates: int = 20
    max_length: int = 768
    evidence_half_life: float = 10.0
    recent_half_life: float = 1.0
    letter_token_ids: list[int] | None = None
    prior_input_ids: list[int] | None = None
    catalogue: str | None = None
    users: str | None = None
    heads_trained: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.relations = list(self.relations or [])
        self.letter_token_ids = list(self.letter_token_ids or [])
        self.prior_input_ids = list(self.prior_input_ids or [])
        if self.lm_scale is None:
            self.lm_scale = 0.1 if self.readout == "letters" else 1.0
        self.check()
        # with tied backbones the output rows are the input rows; `save_pretrained` of the composite has to know
        self.tie_word_embeddings = self.tie_word_embeddings or bool(
            getattr(self.text_config, "tie_word_embeddings", False)
        )

    def check(self) -> None:
        """Raise `LKGError` where a field is none that it can be."""
        if len(set(self.relations)) != len(self.relations):
            raise LKGError(f"relations holds a name twice: {self.relations}. Name each once.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise LKGError(f"{name} is {getattr(self, name)!r}; it is one of {choices}.")
        if self.readout == "letters" and not 2 <= self.num_candidates <= len(LETTERS):
            raise LKGError(
                f"num_candidates is {self.num_candidates}; one forward pass ranks 2 to {len(LETTERS)} candidates "
                "behind letters. Rank longer lists through windows (`rank_windows`), or with readout='candidates'."
            )
        for name, least in {
            "num_candidates": 2,
            "candidates_per_pass": 1,
            "num_paths": 0,
            "num_hidden_layers": 1,
        }.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise LKGError(f"{name} is {getattr(self, name)}; it is at least {least}.")

    @property
    def longest_list(self) -> int | None:
        """How many candidates can be ranked together; None if any number can. Longer lists go through windows."""
        free = self.readout == "candidates" and self.candidate_attention == "isolated"
        return None if free else self.num_candidates

    @property
    def num_relations(self) -> int:
        return len(self.relations)

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds: all fields, without the users, who are in `private/`."""
        return {**super().to_dict(), "num_users": 0, "users": None}

    @classmethod
    def paper(cls, relations: list[str], num_users: int, **overrides: Any) -> LlamaRecLKGConfig:
        """The published recipe (arXiv 2506.07449) with nothing added: prompt alone, preferences from the user's id
        alone.

        In the released code the preferences leave the graph of gradients once they have chosen the paths; pass
        `use_path_gate=True` for the closest honest reading of "trained end to end". Paths are at most two edges long.
        """
        published: dict[str, Any] = {
            "readout": "letters",
            "lm_loss_weight": 0.0,
            "user_embedding_size": 128,
            "preference_dropout": 0.2,
            "user_dropout": 0.0,
            "user_shrinkage": 0.0,
            "use_history_preferences": False,
            "use_user_embedding": True,
            "use_evidence_fusion": False,
            "use_path_gate": False,
            "use_retrieval_scores": False,
            "use_popularity": False,
            "use_letter_prior": False,
            "learn_lm_scale": False,
            "lm_scale": 1.0,
            "num_paths": 20,
            "one_path_per_history_item": True,
            "path_weighting": "tfidf",
            "path_style": "published",
            "history_length": 20,
            "max_title_tokens": 32,
            "max_length": 2286,
        }
        return cls(relations=relations, num_users=num_users, **{**published, **overrides})


AutoConfig.register(LlamaRecLKGConfig.model_type, LlamaRecLKGConfig, exist_ok=True)
