"""One YAML file describes a run: a section for each stage, checked against the dataclass that the stage takes."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
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
from ..retrieval.training import RetrieverTrainingArguments
from ..utils.errors import LKGError
from ..utils.hub import SMOLLM2_NAME
from .training_args import LlamaRecLKGTrainingArguments


@dataclass
class DataSection:
    """A name, folder or Hub id, the revision of one on the Hub, and how a folder of tables calls its columns."""

    dataset: str = "ml-100k"
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)  # such as {item_id: asin, timestamp: unixReviewTime}


@dataclass
class GraphSection:
    use_triples: bool = True  # take the data set's own facts beside the items' attributes
    exclude_relations: list[str] = field(default_factory=list)  # CO_RATED is what interactions say
    whole_values: list[str] = field(default_factory=list)  # relations whose values are joined, as published for genres
    co_rating_min_people: int = 5  # a pair of items that fewer people interacted with is not tied
    co_ratings_per_item: int = 50  # how many other items each is tied to
    co_rating_window: int | None = None  # tie only what is so near in a history: for data too large for all pairs

    def __post_init__(self) -> None:
        if self.co_rating_min_people < 2:
            raise LKGError(
                f"graph.co_rating_min_people is {self.co_rating_min_people}; it is 2 at least, so that no weight of a "
                "pair is one person's, and 5 unless asked for otherwise."
            )


@dataclass
class ExamplesSection:
    """The training lists of a fold of users are made by a retriever and read with co-ratings that were fitted on the
    others. The users of one fold train nothing of the ranker but what its parts weigh, with the language model and
    without it. `folds: 1` makes all lists with the one retriever and graph, as published: none of them is an easy one,
    and no weights are fitted at the end. Neither are they with `negatives: uniform`."""

    folds: int = 4
    per_user: int | None = None  # lists of each user's latest training positions; None takes all
    negatives: Literal["retrieved", "uniform"] = "retrieved"
    shuffle: bool = True  # random order of candidates in training
    fuse_candidates: bool = True  # candidates by retriever, evidence and popularity together
    pool: int = 60  # candidates are drawn from so many of the best ...
    pool_share: float = 0.3  # ... in this share of the lists, and where the target is not among the very best
    max_train: int | None = None  # lists that train the language model; the warm-up has more
    easy_share: float = 0.5  # so many of these have the targets of others in place of what was retrieved
    max_validation: int | None = None
    max_weighed: int | None = 1000  # lists that train nothing else, by which the language model is weighed

    def __post_init__(self) -> None:
        if self.negatives not in ("retrieved", "uniform") or self.folds < 1:
            raise LKGError(
                f"examples has negatives {self.negatives!r} and folds {self.folds}; negatives is 'retrieved' or "
                "'uniform', folds a whole number from 1 up."
            )
        if not 0 <= self.easy_share <= 1:
            raise LKGError(f"examples.easy_share is {self.easy_share}; it is a share of the lists, from 0 to 1.")
        for name in ("per_user", "max_train", "max_validation", "max_weighed"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise LKGError(f"examples.{name} is {count}; it is a number of lists from 1 up, null for all.")


@dataclass
class BackboneSection(ModelConfig):
    """A `trl.ModelConfig`: model, LoRA and quantization."""

    random_weights: bool = False  # the control: the same architecture, of which nothing was ever trained


def default_backbone() -> BackboneSection:
    """The quickstart's backbone with the published LoRA settings."""
    return BackboneSection(
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
    split: Literal["validation", "test"] = "test"
    last: int = 1  # how many of each user's last items are test targets (`PreprocessingSettings.last`)
    batch_size: int = 16
    resamples: int = 2000
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))  # with the language model
    second_seed: bool = True  # train the retriever twice more, for a second opinion in the language model's place
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in ("validation", "test") or not set(self.controls) <= set(CONTROLS):
            raise LKGError(
                f"evaluation has split {self.split!r} and controls {self.controls}; split is 'validation' or 'test', "
                f"controls are among {CONTROLS}."
            )


@dataclass
class BenchmarkSection:
    """What `llamarec-lkg benchmark` runs beside the run itself. `retrievers` and `variants` name rows of the report,
    each with the settings in which it differs: from the section `retriever`, and as "section.key" from the run."""

    seeds: list[int] = field(default_factory=lambda: [42, 43, 44])
    retrievers: dict[str, dict[str, Any]] = field(default_factory=lambda: {"retriever": {}})
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    variant_seeds: int = 1  # variants are trained for so many of the seeds
    hidden_items: float = 0.0  # a further report on this share of the items, hidden from training (first seed)

    def __post_init__(self) -> None:
        if not 0 <= self.hidden_items < 1:
            raise LKGError(f"benchmark.hidden_items is {self.hidden_items}; it is a share of the items, 0 for none.")


@dataclass
class CardSection:
    """What only you know about the model card."""

    language: str = "en"  # of the items' titles
    license: str | None = None  # of the trained weights, as the Hub names it ("apache-2.0", "llama2", ...)
    tags: list[str] = field(default_factory=list)
    # grams of CO2 equivalent, or a mapping as the Hub's `co2_eq_emissions`; codecarbon's own file is read without this
    emissions: float | dict[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        """As fields of `ModelCard`; what was left open is left to it."""
        fields = {name: value for name, value in vars(self).items() if name != "emissions"}
        if self.emissions is not None:
            fields["emissions"] = self.emissions if isinstance(self.emissions, dict) else {"emissions": self.emissions}
        return fields


STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; people who train models mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # such as a date that there is not
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
    retriever: RetrieverTrainingArguments = field(default_factory=RetrieverTrainingArguments)
    examples: ExamplesSection = field(default_factory=ExamplesSection)
    backbone: BackboneSection = field(default_factory=default_backbone)
    adapter: dict[str, Any] = field(default_factory=dict)
    prompt: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    card: CardSection = field(default_factory=CardSection)
    benchmark: BenchmarkSection = field(default_factory=BenchmarkSection)

    def __post_init__(self) -> None:
        asked = {self.preprocessing.last, self.evaluation.last} - {EvaluationSection.last}
        if len(asked) > 1:
            raise LKGError(
                f"preprocessing.last is {self.preprocessing.last}, evaluation.last is {self.evaluation.last}; they "
                "are one setting, how many of each user's last items are test targets. Give evaluation.last alone."
            )
        last = asked.pop() if asked else EvaluationSection.last
        if "output_dir" in self.training:  # another run's checkpoints could be taken for this one's
            raise LKGError("training.output_dir cannot be set: checkpoints lie in the folder of the run, output_dir.")
        self.preprocessing = dataclasses.replace(self.preprocessing, last=last)
        self.evaluation = dataclasses.replace(self.evaluation, last=last)

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> RunConfig:
        """
        Raises:
            LKGError: a setting is not known, or its value cannot be used.
        """
        _check(content, "the configuration")
        values = {name: value for name, value in content.items() if value is not None}
        for name, default in vars(cls()).items():
            if name in values and dataclasses.is_dataclass(default):
                with _usable(name, values[name]):
                    values[name] = dataclasses.replace(default, **values[name])
        # YAML 1.1 reads `no` as False, and transformers calls these "no"
        training = values.get("training", {})
        values["training"] = training | {name: "no" for name in STRATEGIES if training.get(name) is False}
        with _usable("configuration", values):
            config = cls(**values)
            yaml.safe_dump(config.to_mapping())  # a run keeps it
        try:
            config.peft_config()
        except (KeyError, TypeError, ValueError) as error:
            raise LKGError(
                f"The section adapter is no configuration of PEFT: {error!r}. It has a `peft_type`, one of "
                f"{[kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING]}, and fields of that kind."
            ) from error
        return config

    @classmethod
    def from_yaml(
        cls, path: str | Path | Sequence[str | Path] | None = None, overrides: Sequence[str] = ()
    ) -> RunConfig:
        """A file or several, each of which adds to and changes those before it, changed by `section.key=value`
        overrides whose values are YAML. Errors are those of `from_mapping`, and name the file or the override."""
        content: dict[str, Any] = {}
        for one in [path] if isinstance(path, str | Path) else path or ():
            try:
                read = _parse(Path(one).read_text(encoding="utf-8")) or {}
            except (OSError, UnicodeDecodeError) as error:
                raise LKGError(f"The configuration {one} cannot be read: {error}.") from error
            _check(read, f"the file {one}")
            content = _merged(content, read)
        for override in overrides:
            key, separator, text = override.partition("=")
            if not separator or not key:
                raise LKGError(
                    f"The override {override!r} is not of the form section.key=value, as in training.seed=1."
                )
            _set(content, key, _parse(text))
            _check(content, f"the override {override!r}")
        return cls.from_mapping(content)

    def changed(self, settings: Mapping[str, Any]) -> RunConfig:
        """The same run with some settings, as {"section.key": value}, changed."""
        content = self.to_mapping()
        for key, value in settings.items():
            _set(content, key, value)
            _check(content, f"the setting {key!r}")
        return self.from_mapping(content)

    def to_mapping(self) -> dict[str, Any]:
        """What `from_mapping` takes."""
        content = dataclasses.asdict(self)
        content["preprocessing"].pop("last")  # it is called evaluation.last
        return content

    def peft_config(self) -> PeftConfig | None:
        """The adapter to train: what `adapter` describes, else LoRA as `backbone` does, or none."""
        if not self.adapter or not self.backbone.use_peft:
            return get_peft_config(self.backbone)
        return peft.get_peft_config({"task_type": self.backbone.lora_task_type, **self.adapter})


@contextlib.contextmanager
def _usable(section: str, given: Any) -> Iterator[None]:
    """Inside, values of another kind than their settings are an `LKGError`."""
    try:
        yield
    except LKGError:
        raise
    except (TypeError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise LKGError(
            f"The section {section} has a value that cannot be used ({error}): {repr(given)[:300]}. Give numbers, "
            "texts, lists and mappings as the defaults are."
        ) from error


def _merged(held: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`held` with what is given added, at any depth."""
    together = {**held, **given}
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(held.get(key), Mapping):
            together[key] = _merged(held[key], value)
    return together


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    """Put a value in its place, "section.key"."""
    *sections, last = key.split(".")
    for section in sections:
        held = content.get(section)
        content[section] = dict(held) if isinstance(held, Mapping) else {}
        content = content[section]
    content[last] = value


def _settings() -> dict[str, Any]:
    """Every setting as "section.key", with its default. `adapter` is left to PEFT."""
    sections = {n: {**vars(d)} if dataclasses.is_dataclass(d) else {} for n, d in vars(RunConfig()).items()}
    model = {f.name: f.default for f in dataclasses.fields(LlamaRecLKGConfig)}
    sections["preprocessing"].pop("last")
    sections["prompt"] = {name: model.pop(name, None) for name in SHARED_SETTINGS}
    sections["model"] = model
    sections["training"] = {f.name: f.default for f in dataclasses.fields(LlamaRecLKGTrainingArguments)}
    flat = {f"{section}.{key}": default for section, keys in sections.items() for key, default in keys.items()}
    return {"output_dir": RunConfig.output_dir, **flat}


def _check(content: Any, where: str) -> None:
    """Raise `LKGError` where a setting is not known, or is text where a number belongs; `where` says who gave it."""
    if not isinstance(content, Mapping):
        raise LKGError(f"A configuration is a mapping of sections; {where} is a {type(content).__name__}.")
    known, sections = _settings(), [field.name for field in dataclasses.fields(RunConfig)]
    for section, given in content.items():
        if section == "adapter" or (section in sections and given is None):
            continue
        named = {f"{section}.{k}": v for k, v in given.items()} if isinstance(given, Mapping) else {section: given}
        for name, value in named.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known)
                meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise LKGError(
                    f"{name!r} in {where} is no setting of a run.{meant} Settings are called section.key; the "
                    f"sections are {', '.join(sections)}."
                )
            if type(known[name]) is bool and type(value) not in (bool, type(None)):
                raise LKGError(f"{name} is {value!r} in {where}; it must be true or false.")
            if type(known[name]) in (int, float) and type(value) not in (int, float, type(None)):
                raise LKGError(f"{name} is {value!r} in {where}; it must be a number.")
