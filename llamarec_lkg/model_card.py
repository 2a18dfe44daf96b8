"""The model card: what the user said, what the trainer knows and what is computed, rendered by a template."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub import ModelCard as HubModelCard

from .evaluation import Report, table, verdict
from .hub import template_text
from .storage import atomic_file


if TYPE_CHECKING:
    from .trainer import LlamaRecLKGTrainer


CITATION = """@article{llamarec_lkg_rag_2025,
  title   = {LlamaRec-LKG-RAG: A Single-Pass, Learnable Knowledge Graph-RAG Framework for LLM-Based Ranking},
  journal = {arXiv preprint arXiv:2506.07449},
  year    = {2025}
}"""


@dataclass
class ModelCard:
    """
    Args:
        model_id (`str`): name on the Hub, or of the folder.
        dataset_name, base_model, language, license, tags: what the user may set.
        training: settings of the run, from the trainer.
        report: the evaluation, if there is one.
        graph (`str`): one line on the knowledge graph.
    """

    model_id: str
    dataset_name: str = "unknown"
    base_model: str | None = None
    language: str = "en"
    license: str | None = None
    tags: list[str] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    graph: str = ""
    prompt: dict[str, Any] = field(default_factory=dict)
    data_citation: str = ""
    data_license: str = ""
    report: Report | None = None

    @classmethod
    def from_trainer(cls, trainer: LlamaRecLKGTrainer, report: Report | None = None, **given: Any) -> ModelCard:
        """A card with all that a trainer knows; `given` overrides it."""
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
            "seed": args.seed,
            "best checkpoint by": args.metric_for_best_model if args.load_best_model_at_end else None,
        }
        modules = (transformers, peft, accelerate, torch)
        known = {
            "model_id": args.hub_model_id or Path(args.output_dir).resolve().name,
            "base_model": config.backbone_name_or_path,
            "training": {key: value for key, value in training.items() if value is not None},
            "versions": {module.__name__: module.__version__ for module in modules},
            "graph": trainer.processing_class.knowledge_graph.describe(),
            "prompt": dict(trainer.processing_class.settings),
        }
        return cls(**{**known, "report": report, **given})

    def to_hub_card(self) -> HubModelCard:
        """The rendered card with its metadata, as `huggingface_hub` knows it."""
        results = None
        if self.report is not None:
            results = [
                EvalResult(
                    task_type="text-ranking",
                    task_name="Sequential recommendation, re-ranking",
                    dataset_type=self.dataset_name,
                    dataset_name=self.dataset_name,
                    dataset_split=str(self.report.protocol.get("split", "test")),
                    metric_type=metric,
                    metric_name=metric.upper(),
                    metric_value=round(self.report.row("ranker")["metrics"][metric], 4),
                )
                for metric in ("ndcg@10", "mrr@10", "recall@10")
            ]
        base = (
            self.base_model
            if self.base_model and "/" in self.base_model and not Path(self.base_model).exists()
            else None
        )
        data = ModelCardData(
            model_name=self.model_id if results else None,
            language=self.language,
            license=self.license,
            library_name="llamarec_lkg",
            pipeline_tag="text-ranking",
            base_model=base,
            tags=["recommendation", "knowledge-graph", "llamarec-lkg", *self.tags],
            eval_results=results,
        )
        rows = None if self.report is None else self.report.rows
        return HubModelCard.from_template(
            data,
            template_str=template_text("model_card.md.j2"),
            card=self,
            results=None if rows is None else "\n".join(table(rows)),
            verdicts=None if rows is None else "\n".join(verdict(r) for r in rows if r["name"].startswith("ranker")),
            citation=CITATION,
        )

    def save(self, path: str | Path) -> None:
        """Write the card, whole or not at all."""
        with atomic_file(path) as temporary:
            temporary.write_text(str(self.to_hub_card()), encoding="utf-8")
