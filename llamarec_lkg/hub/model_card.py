"""The model card: what the user said, what the trainer knows and what is computed, rendered by a template."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData, RepoCard
from huggingface_hub import ModelCard as HubModelCard

from ..evaluation.report import CEILING, JUDGED, RANKER, REFERENCE, Report, table, verdict
from ..utils.errors import LKGError
from ..utils.files import atomic_file, read_json, write_json
from ..utils.fingerprints import as_plain
from ..utils.hub import HUB_IDS, is_hub_id, template_text
from .layout import CARD_FACTS, CARD_FILE, USER_EMBEDDING_FILE, USERS_FILE


if TYPE_CHECKING:
    from transformers import Trainer


logger = logging.getLogger(__name__)


MARK = "<!-- llamarec_lkg: every push writes this card anew; remove this line to keep your own text -->"
OWN_TAGS = ("recommendation", "knowledge-graph", "llamarec-lkg", "peft", "lora")
PRIVATE_WORDS = {USERS_FILE: "user ids", USER_EMBEDDING_FILE: "weights of single users"}


@dataclass
class ModelCard:
    """What a card says. `card.json` holds it without the report.

    Without `training` the card is a short one: what the repository holds and how to load it.

    Args:
        model_id: name on the Hub, or of the folder: what the card's snippets load.
        emissions: of the training, as the Hub's `co2_eq_emissions` has it: `emissions` in grams of CO2 equivalent, and
            optionally `source`, `training_type`, `geographical_location`, `hardware_used`.
        training: settings of the run.
        adapter: the PEFT adapter in words; empty where the backbone itself was trained, or none.
        has_model, has_processor, has_retriever: what the repository holds.
        backbone_by_name: whether the backbone is loaded by its name, and not from the repository.
        private_files: what the repository holds of `private/`.
        graph: one line on the knowledge graph.
        metrics: of the trainer's own evaluation, shown where there is no report.
    """

    model_id: str
    dataset_name: str = "unknown"
    base_model: str | None = None
    language: str | None = "en"
    license: str | None = None
    tags: list[str] = field(default_factory=list)
    emissions: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    adapter: str = ""
    uses_language_model: bool = True
    has_model: bool = True
    has_processor: bool = True
    has_retriever: bool = False
    backbone_by_name: bool = False
    private_files: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    graph: str = ""
    prompt: dict[str, Any] = field(default_factory=dict)
    data_citation: str = ""
    data_license: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    report: Report | None = None

    def __post_init__(self) -> None:
        figure = (self.emissions or {"emissions": 0}).get("emissions")
        if isinstance(figure, bool) or not isinstance(figure, int | float) or not figure >= 0:
            raise LKGError(
                f"emissions is {self.emissions!r}; it needs `emissions`, grams of CO2 equivalent as a number, beside "
                "what else the Hub's co2_eq_emissions may hold. Leave it out where it is not known."
            )

    @classmethod
    def from_trainer(cls, trainer: Trainer, report: Report | None = None, **given: Any) -> ModelCard:
        """A card with all that a trainer knows, and codecarbon's figure where its file is in the output folder;
        `given` overrides it."""
        import accelerate
        import peft
        import torch
        import transformers

        args, config = trainer.args, trainer.model.config
        training = {
            "learning_rate": args.learning_rate,
            "heads_learning_rate": args.heads_learning_rate,
            "effective batch size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "epochs": args.num_train_epochs if args.max_steps <= 0 else None,
            "optimiser steps": trainer.state.global_step or None,
            "training lists": None if trainer.train_dataset is None else len(trainer.train_dataset),
            "warm-up of preferences and fusion (epochs)": args.heads_warm_up_epochs or None,
            "trained weights": f"{sum(p.numel() for p in trainer.model.parameters() if p.requires_grad):,}",
            "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
            "quantization": _quantization(trainer.model.language_model),
            "seed": args.seed,
            "best checkpoint by": args.metric_for_best_model if args.load_best_model_at_end else None,
        }
        modules = (transformers, peft, accelerate, torch)
        known = {
            "model_id": trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).resolve().name,
            "base_model": config.backbone_name_or_path,
            "backbone_by_name": trainer.model.has_adapter,
            "training": {key: value for key, value in training.items() if value is not None},
            "adapter": _adapter_words(trainer.model),
            "uses_language_model": config.use_language_model,
            "emissions": read_emissions(args.output_dir),
            "versions": {module.__name__: module.__version__ for module in modules},
            "graph": trainer.processing_class.knowledge_graph.describe(),
            "prompt": dict(trainer.processing_class.settings),
            "metrics": _trainer_metrics(trainer),
        }
        return cls(**{**known, "report": report, **given})

    @classmethod
    def from_config(cls, model_id: str, config: Mapping[str, Any], **given: Any) -> ModelCard:
        """A short card, from the configuration of a ranker; empty where there is none."""
        known = {
            "base_model": config.get("backbone_name_or_path"),
            "uses_language_model": bool(config.get("use_language_model", True)),
            "backbone_by_name": bool(config.get("external_backbone")),
            "language": None,
        }
        return cls(model_id, **{**known, **given})

    def to_hub_card(self, before: str | None = None) -> HubModelCard:
        """The rendered card with its metadata, as `huggingface_hub` knows it.

        Args:
            before: the card that this one takes the place of. Its tags stay, and so does its licence where this one
                states none: the Hub's pages let owners set both.
        """
        earlier = RepoCard(before, ignore_metadata_errors=True).data.to_dict() if before else {}
        keys = ("license", "license_name", "license_link")
        licence = {"license": self.license} if self.license else {key: earlier[key] for key in keys if key in earlier}
        tags = [tag for tag in earlier.get("tags") or [] if tag not in OWN_TAGS]
        kind = ["peft", "lora"] if "LORA" in self.adapter else ["peft"] if self.adapter else []
        base = self.base_id
        results = None if self.report is None else self._eval_results()
        data = ModelCardData(
            model_name=self.model_id if results else None,
            language=self.language,
            **licence,
            library_name="llamarec_lkg",
            pipeline_tag="text-ranking" if self.has_model else None,
            base_model=base,
            base_model_relation=("adapter" if self.adapter or self.backbone_by_name else "finetune") if base else None,
            datasets=[self.dataset_name] if is_hub_id(self.dataset_name) else None,
            metrics=sorted({name.split("@")[0] for name in self.report.rows[0]["metrics"]}) if results else None,
            co2_eq_emissions=self.emissions,
            tags=list(dict.fromkeys([*OWN_TAGS[:3], *kind, *self.tags, *tags])),
            eval_results=results,
        )
        rows = None if self.report is None else self.report.rows
        return HubModelCard.from_template(
            data,
            template_str=template_text("model_card.md.j2"),
            card=self,
            results=None if rows is None else "\n".join(table(rows)),
            verdicts=None if rows is None else "\n".join(verdict(r) for r in rows if r["name"] in JUDGED),
            license=licence.get("license"),
            people=[words for path, words in PRIVATE_WORDS.items() if path in self.private_files],
            mark=MARK,
            hub_id=HUB_IDS.get(self.base_model or ""),
        )

    def _eval_results(self) -> list[EvalResult]:
        """Every metric of every row, first those of the ranker, without the ceiling, which is no system.

        `metric_args` names the row, its 95% interval, and the paired difference to the retriever with its own.
        """
        protocol = self.report.protocol
        rows = [row for row in self.report.rows if row["name"] != CEILING]
        results = []
        for row in sorted(rows, key=lambda row: row["name"] != RANKER):
            suffix = "" if row["name"] == RANKER else f" ({row['name']})"
            for metric, value in row["metrics"].items():
                details = {"row": row["name"], "ci95": _rounded(row["ci95"][metric])}
                if row["name"] != REFERENCE:
                    details["minus_retriever"] = round(row["difference_to_retriever"][metric], 5)
                    details["minus_retriever_ci95"] = _rounded(row["difference_ci95"][metric])
                results.append(
                    EvalResult(
                        task_type="text-ranking",
                        task_name="Sequential recommendation, re-ranking",
                        dataset_type=self.dataset_name,
                        dataset_name=self.dataset_name,
                        dataset_split=str(protocol.get("split", "test")),
                        dataset_args={"targets": protocol["targets"], "retrieved": protocol["retrieved"]},
                        metric_type=metric,
                        metric_name=metric.upper() + suffix,
                        metric_value=round(value, 5),
                        metric_args=details,
                    )
                )
        return results

    @property
    def base_id(self) -> str | None:
        """The backbone's name on the Hub, if it has one."""
        if not self.uses_language_model or not self.base_model:
            return None
        name = HUB_IDS.get(self.base_model, self.base_model)
        return name if is_hub_id(name) else None

    def save(self, folder: str | Path) -> None:
        """Write what the card says as `card.json`, without the report, and the card as `README.md`."""
        write_json(Path(folder) / CARD_FACTS, {k: v for k, v in as_plain(self).items() if k != "report"})
        with atomic_file(Path(folder) / CARD_FILE) as temporary:
            temporary.write_text(str(self.to_hub_card()), encoding="utf-8")


def read_record(path: str | Path, kind: type) -> Any:
    """What a run wrote down of a `ModelCard` or `Report`. Raise `LKGError` where another version wrote it."""
    try:
        return kind(**read_json(path))
    except TypeError as error:
        raise LKGError(
            f"{path} is not of this version ({error}). Evaluate the run again, or delete the file."
        ) from error


def read_emissions(folder: str | Path) -> dict[str, Any] | None:
    """What codecarbon wrote into a trainer's folder, as the Hub's `co2_eq_emissions`, the rows of a run that was
    resumed added up; None where there is no such file, or it is another's."""
    path = Path(folder) / "emissions.csv"
    if not path.exists():
        return None
    try:
        rows = pd.read_csv(path)
        grams = 1000 * float(rows["emissions"].sum())
        last = rows.iloc[-1]
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        logger.warning(f"{path} is not codecarbon's ({error!r}); the card says nothing about emissions.")
        return None
    places = [str(last[name]) for name in ("region", "country_name") if pd.notna(last.get(name))]
    hardware = [str(last[name]) for name in ("gpu_model", "cpu_model") if pd.notna(last.get(name))]
    return {
        "emissions": round(grams, 3),
        "source": "codecarbon",
        "training_type": "fine-tuning",
        **({"geographical_location": ", ".join(places)} if places else {}),
        **({"hardware_used": ", ".join(hardware)} if hardware else {}),
    }


def _trainer_metrics(trainer: Trainer) -> dict[str, float]:
    """What the trainer's last evaluation found, of each validation set, if it was of the weights as they are now."""
    logs = trainer.state.log_history
    if trainer.args.load_best_model_at_end:  # at the end of training older weights came back
        ends = [place for place, entry in enumerate(logs) if "train_runtime" in entry]
        logs = logs[ends[-1] :] if ends else []
    speed = ("_runtime", "_per_second", "_time")
    return {
        name.removeprefix("eval_"): round(float(value), 5)
        for entry in logs
        if entry.get("step") == trainer.state.global_step
        for name, value in entry.items()
        if name.startswith("eval_") and not name.endswith(speed)
    }


def _rounded(interval: Any) -> list[float]:
    return [round(float(end), 5) for end in interval]


def _adapter_words(model: Any) -> str:
    if not model.has_adapter:
        return ""
    config = model.language_model.peft_config[model.active_adapter]
    settings = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    words = [f"{text} {getattr(config, name)}" for name, text in settings.items() if hasattr(config, name)]
    words += [text for name, text in (("use_dora", "DoRA"), ("use_rslora", "rsLoRA")) if getattr(config, name, False)]
    targets = config.target_modules
    targets = ", ".join(sorted(targets)) if not isinstance(targets, str) else targets
    return f"{config.peft_type.value} ({'; '.join([*words, f'on {targets}'])})"


def _quantization(backbone: Any) -> str | None:
    config = getattr(getattr(backbone, "config", None), "quantization_config", None)
    if config is None:
        return None
    four = getattr(config, "load_in_4bit", False)
    return f"4 bits, {config.bnb_4bit_quant_type}" if four else str(config.quant_method)
