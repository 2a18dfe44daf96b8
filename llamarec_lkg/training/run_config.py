"""One YAML file describes a run: a section for each stage, checked against the dataclass that the stage takes."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import peft
import yaml
from peft import PeftConfig
from trl import ModelConfig, get_peft_config

from ..data.sequences import PreprocessingSettings
from ..ranking.ablations import CONTROLS
from ..ranking.configuration_llamarec_lkg import LlamaRecLKGConfig
from ..ranking.processing_llamarec_lkg import SHARED_SETTINGS
from ..retrieval.training import LRURecTrainingArguments
from ..utils.errors import LKGError
from ..utils.hub import SMOLLM2_NAME
from .training_args import LlamaRecLKGTrainingArguments


@dataclass
class DataSection:
    """Args: dataset: name, folder or Hub id; revision: of a Hub data set."""

    dataset: str = "ml-100k"
    revision: str | None = None


@dataclass
class GraphSection:
    """
    Args:
        use_triples: take the data set's own facts beside the items' attributes.
        exclude_relations: leave these out; CO_RATED is what interactions say.
        whole_values: attribute relations whose values are joined into one entity, as published for genres.
        co_rating_min_people: a pair of items that fewer people interacted with is not tied by co-ratings.
        co_ratings_per_item: how many other items each is tied to by co-ratings.
    """

    use_triples: bool = True
    exclude_relations: list[str] = field(default_factory=list)
    whole_values: list[str] = field(default_factory=list)
    co_rating_min_people: int = 5
    co_ratings_per_item: int = 50


@dataclass
class ExamplesSection:
    """
    Args:
        folds: parts of the users. The training lists of a part are made by a retriever and read with co-ratings that
            were fitted on the other parts. 1 makes all of them with the one retriever and graph, as published.
        per_user: lists of each user's latest training positions; None takes all positions.
        negatives: see `candidates.training_examples`.
        shuffle: random order of candidates in training.
        max_train, max_validation: lists that the language model is trained and validated on; None takes all.
            Preferences and fusion warm up on all of them in any case.
    """

    folds: int = 4
    per_user: int | None = None
    negatives: Literal["retrieved", "uniform"] = "retrieved"
    shuffle: bool = True
    max_train: int | None = None
    max_validation: int | None = None


def default_backbone() -> ModelConfig:
    """TRL's description of a model and its adapter, with the published LoRA settings and the backbone of the
    quickstart."""
    return ModelConfig(
        model_name_or_path=SMOLLM2_NAME,
        dtype="auto",
        use_peft=True,
        lora_r=8,
        lora_alpha=32,
        lora_dropout=0.05,
        lora_target_modules=["q_proj", "v_proj"],
    )


@dataclass
class EvaluationSection:
    """
    Args:
        split: "test" or "validation".
        batch_size: lists in a forward pass.
        resamples: of the bootstrap.
        controls: names of `ablations.CONTROLS` to run with the whole ranker. Without the language model, where they
            cost nothing, all of them are always run.
        untrained: whether to score the ranker before training, too.
        seed: of bootstrap and shuffling.
    """

    split: Literal["validation", "test"] = "test"
    batch_size: int = 16
    resamples: int = 2000
    controls: list[str] = field(default_factory=list)
    untrained: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.controls) - set(CONTROLS))
        if unknown or self.split not in ("validation", "test"):
            raise LKGError(
                f"evaluation has split {self.split!r} and controls {self.controls}; split is 'validation' or 'test', "
                f"controls are among {CONTROLS}."
            )


@dataclass
class CardSection:
    """What only you know about the model card.

    Args:
        language: of the items' titles.
        license: of the trained weights, as the Hub names it ("apache-2.0", "llama2", ...).
        tags: further ones.
        emissions: of the training in grams of CO2 equivalent, or a mapping as of the Hub's `co2_eq_emissions`.
            codecarbon's own file is read without this.
    """

    language: str = "en"
    license: str | None = None
    tags: list[str] = field(default_factory=list)
    emissions: float | dict[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        """As fields of `ModelCard`; what was left open is left to it."""
        fields: dict[str, Any] = {"language": self.language, "license": self.license, "tags": self.tags}
        if self.emissions is not None:
            figure = self.emissions
            fields["emissions"] = figure if isinstance(figure, dict) else {"emissions": figure}
        return fields


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; people who train models mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise LKGError(f"{text[:80]!r} is not YAML: {error}.") from error


@dataclass
class RunConfig:
    """A run.

    `backbone` is a `trl.ModelConfig`: model, LoRA and quantization. `adapter` is any PEFT configuration by its own
    field names, with `peft_type` (LORA, IA3, VERA, ...), in place of the LoRA settings there. `prompt` and `model`
    hold fields of `LlamaRecLKGConfig`, `training` those of `LlamaRecLKGTrainingArguments`."""

    output_dir: str = "outputs/run"
    data: DataSection = field(default_factory=DataSection)
    preprocessing: PreprocessingSettings = field(default_factory=PreprocessingSettings)
    graph: GraphSection = field(default_factory=GraphSection)
    retriever: LRURecTrainingArguments = field(default_factory=LRURecTrainingArguments)
    examples: ExamplesSection = field(default_factory=ExamplesSection)
    backbone: ModelConfig = field(default_factory=default_backbone)
    adapter: dict[str, Any] = field(default_factory=dict)
    prompt: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    card: CardSection = field(default_factory=CardSection)

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> RunConfig:
        """
        Raises:
            LKGError: a section or a key in one is not known, or a section is none.
        """
        _check(content, "the configuration")
        values: dict[str, Any] = {}
        for field_ in dataclasses.fields(cls):
            given = content.get(field_.name)
            if given is None:
                continue
            default = None if field_.default_factory is dataclasses.MISSING else field_.default_factory()
            values[field_.name] = dataclasses.replace(default, **given) if dataclasses.is_dataclass(default) else given
        if values.get("adapter"):
            _check_adapter(values["adapter"])
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
        """A file, changed by `section.key=value` overrides whose values are YAML.

        Raises:
            LKGError: the file is absent or not YAML, an override is not of that form, or what either names is not
                known; the error says which of the two it was.
        """
        content: dict[str, Any] = {}
        if path is not None:
            try:
                content = _parse(Path(path).read_text(encoding="utf-8")) or {}
            except OSError as error:
                raise LKGError(f"The configuration {path} cannot be read: {error}.") from error
        _check(content, f"the file {path}")
        for override in overrides:
            key, separator, text = override.partition("=")
            if not separator or not key:
                raise LKGError(
                    f"The override {override!r} is not of the form section.key=value, as in training.seed=1."
                )
            *sections, last = key.split(".")
            value = named = {last: _parse(text)}
            for section in reversed(sections):
                named = {section: named}
            _check(named, f"the override {override!r}")
            target = content
            for section in sections:
                target[section] = dict(target.get(section) or {})
                target = target[section]
            target.update(value)
        return cls.from_mapping(content)

    def to_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def peft_config(self) -> PeftConfig | None:
        """The adapter to train: what `adapter` describes, else LoRA as `backbone` does, or none."""
        if not self.adapter or not self.backbone.use_peft:
            return get_peft_config(self.backbone)
        return peft.get_peft_config({"task_type": self.backbone.lora_task_type, **self.adapter})


def _known_keys() -> dict[str, dict[str, Any]]:
    """Section -> its keys with their defaults; none for what is no section. `adapter` has those of every kind."""
    known: dict[str, dict[str, Any]] = {}
    for field_ in dataclasses.fields(RunConfig):
        default = None if field_.default_factory is dataclasses.MISSING else field_.default_factory()
        known[field_.name] = dict(vars(default)) if dataclasses.is_dataclass(default) else {}
    model = {f.name: f.default for f in dataclasses.fields(LlamaRecLKGConfig)}
    known["prompt"] = {name: model.get(name) for name in SHARED_SETTINGS}
    known["model"] = {name: default for name, default in model.items() if name not in SHARED_SETTINGS}
    known["training"] = {f.name: f.default for f in dataclasses.fields(LlamaRecLKGTrainingArguments)}
    kinds = peft.PEFT_TYPE_TO_CONFIG_MAPPING.values()
    known["adapter"] = {f.name: None for kind in kinds for f in dataclasses.fields(kind)}
    return known


def _check(content: Any, where: str) -> None:
    """Raise `LKGError` where sections, keys or values are not what a run takes; `where` says who gave them."""
    if not isinstance(content, Mapping):
        raise LKGError(f"A configuration is a mapping of sections; {where} is a {type(content).__name__}.")
    known = _known_keys()
    for section, given in content.items():
        if section not in known:
            raise LKGError(
                f"Unknown section {section!r} in {where}{_near(section, given, known)} The sections are "
                f"{', '.join(known)}."
            )
        keys = known[section]
        if not keys and isinstance(given, Mapping):
            raise LKGError(f"{where} goes into {section}, which is no section. Give it a value.")
        if keys and not isinstance(given, Mapping | None):
            raise LKGError(
                f"{section} is a section; {where} gives it {given!r}. Name a key of it, as in {section}.key=value; "
                f"{section} knows {', '.join(sorted(keys))}."
            )
        for key, value in (given or {}).items() if keys else ():
            if key not in keys:
                near = _near(section, [key], known)
                listed = "" if near != "." else f" The section {section} knows {', '.join(sorted(keys))}."
                raise LKGError(f"Unknown key {key!r} of {section} in {where}{near}{listed}")
            default, number = keys[key], isinstance(value, int | float) and not isinstance(value, bool)
            if isinstance(value, Mapping) and isinstance(default, bool | int | float | list):
                raise LKGError(f"{where} goes into {section}.{key}, which is no section. Give it a value.")
            if isinstance(default, int | float) and not isinstance(default, bool) and not number and value is not None:
                raise LKGError(f"{section}.{key} is {value!r} in {where}; it must be a number.")


def _check_adapter(given: Mapping[str, Any]) -> None:
    """Raise `LKGError` unless the section names a kind of adapter that PEFT knows, and fields that this kind has."""
    kinds = {kind.value: settings for kind, settings in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = kinds.get(given.get("peft_type"))
    if kind is None:
        raise LKGError(
            f"adapter.peft_type is {given.get('peft_type')!r}; PEFT knows {sorted(kinds)}. Leave the section out for "
            "LoRA with the settings of `backbone`."
        )
    if unknown := sorted(set(given) - {field.name for field in dataclasses.fields(kind)}):
        raise LKGError(f"{unknown} in adapter are no fields of PEFT's {kind.__name__}. Leave them out.")


def _near(section: str, keys: Iterable[Any] | None, known: Mapping[str, Mapping[str, Any]]) -> str:
    """What may have been meant, as the end of a sentence: the same key in another section, else keys of this one that
    are spelt alike."""
    key = str(next(iter(keys))) if isinstance(keys, Mapping | list) and keys else section
    places = [name for name in known if key in known[name]]
    places = difflib.get_close_matches(section, places, n=1) or places
    names = [f"{name}.{key}" for name in places]
    if not names and section in known:
        names = [f"{section}.{match}" for match in difflib.get_close_matches(key, known[section], n=3)]
    if not names:
        names = difflib.get_close_matches(section, [name for name in known if name != section], n=1)
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else "."
