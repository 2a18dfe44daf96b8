"""The stages of a run, each finished before the next begins, each reused when nothing it depends on has changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from transformers import AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import get_quantization_config

from ..data.schema import DatasetBundle, RankingExample
from ..data.sequences import SequenceDataset, prepare_dataset
from ..data.sources import load_dataset_bundle
from ..evaluation.report import RANKER, Report
from ..graph.evidence import STATISTICS
from ..graph.knowledge_graph import KnowledgeGraph
from ..hub.layout import RETRIEVER_FOLDER
from ..hub.model_card import ModelCard
from ..ranking.ablations import CONTROLS, control_scores, published_graphs, published_scores
from ..ranking.backbones import resolve_backbone
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..ranking.scoring import ranker_scores, reranked, without_language_model
from ..retrieval.base import retriever_ranks
from ..retrieval.candidates import evaluation_examples, training_examples
from ..retrieval.modeling_lrurec import LRURecForRetrieval, LRURecRetriever
from ..retrieval.popularity import PopularityRetriever
from ..retrieval.training import train_lrurec
from ..utils.errors import LKGError
from ..utils.files import atomic_file, atomic_folder, read_json, write_json
from ..utils.fingerprints import as_plain, fingerprint, weights_fingerprint
from .run_config import RunConfig
from .trainer import LlamaRecLKGTrainer
from .training_args import LlamaRecLKGTrainingArguments


logger = logging.getLogger(__name__)


HONEST_RETRIEVER_FOLDER = "retriever-honest"


STAGE_FILE = "stage.json"


MODEL_VERSION = 2  # goes up when the same settings make another model; older runs are then made anew


REPORT_VERSION = 2  # goes up when the same settings make other rows; older reports are then made anew


# training arguments that change what is shown, not what is learned
COSMETIC_ARGUMENTS = ("disable_tqdm", "logging_steps", "report_to", "per_device_eval_batch_size")


@dataclass(frozen=True)
class PreparedData:
    """What every later stage reads. `data_key` and `key` name the content, without and with the graph."""

    bundle: DatasetBundle
    dataset: SequenceDataset
    graph: KnowledgeGraph
    data_key: str
    key: str


class Workflow:
    """One run in one folder.

    Args:
        config: what to do.
        progress: whether to show bars.
    """

    def __init__(self, config: RunConfig, *, progress: bool = True):
        self.config = config
        self.folder = Path(config.output_dir)
        self.state = PartialState(cpu=bool(config.training.get("use_cpu", not torch.cuda.is_available())))
        self.progress = progress and self.state.is_main_process
        self._data: PreparedData | None = None

    def run(self) -> Report:
        """All stages."""
        self.prepare()
        self.train_retriever()
        self.train()
        return self.evaluate()

    # -- stages -----------------------------------------------------------------------------------------------------

    def prepare(self) -> PreparedData:
        """Load, filter, split, and build the graph."""
        if self._data is None:
            with self.state.main_process_first():
                bundle = load_dataset_bundle(self.config.data.dataset, revision=self.config.data.revision)
                dataset = prepare_dataset(bundle, self.config.preprocessing)
            graph = self._graph(bundle, dataset)
            data_key = fingerprint(dataset)
            key = fingerprint(data_key, graph)
            self._data = PreparedData(bundle, dataset, graph, data_key, key)
            logger.info(
                "%s: %d users, %d items. Graph: %s.",
                bundle.name,
                dataset.num_users,
                dataset.num_items,
                graph.describe(),
            )
            if self.state.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_file(self.folder / "config.yaml") as temporary:
                    temporary.write_text(yaml.safe_dump(self.config.to_mapping(), sort_keys=False), encoding="utf-8")
        return self._data

    def _graph(self, bundle: DatasetBundle, dataset: SequenceDataset) -> KnowledgeGraph:
        section = self.config.graph
        return KnowledgeGraph.from_dataset(
            dataset,
            bundle.triples if section.use_triples else None,
            include_heldout=section.include_heldout,
            whole_values=section.whole_values,
        ).without_relations(section.exclude_relations)

    def train_retriever(self) -> LRURecRetriever:
        """The first stage, fitted on all training interactions."""
        return self._retriever(RETRIEVER_FOLDER, lambda dataset: dataset)

    def train_honest_retriever(self) -> tuple[LRURecRetriever, SequenceDataset]:
        """The one that makes training lists: it has not seen each user's last `examples.holdout` training
        interactions."""
        dataset = self.prepare().dataset.without_last_training(self.config.examples.holdout)
        return self._retriever(HONEST_RETRIEVER_FOLDER, lambda _: dataset), dataset

    def _retriever(self, name: str, select: Callable[[SequenceDataset], SequenceDataset]) -> LRURecRetriever:
        folder, dataset = self.folder / name, select(self.prepare().dataset)
        key = fingerprint(self.prepare().data_key, as_plain(self.config.retriever), dataset.labels)
        if self.state.is_main_process and not _is_done(folder, key):
            device = str(self.state.device)
            model, log = train_lrurec(dataset, self.config.retriever, device=device, progress=self.progress)
            with atomic_folder(folder) as temporary:
                model.save_pretrained(temporary)
                write_json(temporary / "log.json", log)
                write_json(temporary / STAGE_FILE, {"key": key})
        self.state.wait_for_everyone()
        return LRURecRetriever(LRURecForRetrieval.from_pretrained(folder).to(self.state.device))

    def _ranker_key(self) -> str:
        sections = self.config.to_mapping()
        for unrelated in ("output_dir", "evaluation", "data", "card"):
            sections.pop(unrelated)
        if not sections["adapter"]:
            sections.pop("adapter")  # runs from before there was this section keep their names
        sections["training"] = {k: v for k, v in sections["training"].items() if k not in COSMETIC_ARGUMENTS}
        return fingerprint(MODEL_VERSION, STATISTICS, self.prepare().key, sections)

    def train(self, *, resume: bool = False) -> Path:
        """Fine-tune the ranker and save it, with its processor, beside the retriever. Returns the folder."""
        key = self._ranker_key()
        if _is_done(self.folder, key):
            return self.folder
        retriever = self.train_retriever()
        train, validation, train_graph = self.training_lists(retriever)
        processor = self.build_processor()
        args = self._training_arguments()
        model = self.build_model(processor)
        trainer = LlamaRecLKGTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=processor,
            train_knowledge_graph=train_graph,
            peft_config=self.config.peft_config() if model.config.use_language_model else None,
        )
        checkpoint = get_last_checkpoint(args.output_dir) if resume and Path(args.output_dir).is_dir() else None
        if resume and checkpoint is None:
            raise LKGError(f"There is no checkpoint of this very run in {args.output_dir} to resume from.")
        if args.heads_warm_up_epochs and not resume:
            trainer.warm_up_heads()  # on all lists, before the sample for the language model is drawn
        section = self.config.examples
        trainer.train_dataset = _sample(trainer.train_dataset, section.max_train, args.seed)
        trainer.eval_dataset = _sample(trainer.eval_dataset, section.max_validation, args.seed, labelled=True)
        if trainer.model.config.use_language_model:
            trainer.train(resume_from_checkpoint=checkpoint)
        if self.state.is_main_process:  # while the new model is written, nothing must pass for a finished one
            for name in (STAGE_FILE, "report.json", "report.md", "report.png"):
                (self.folder / name).unlink(missing_ok=True)
        self.state.wait_for_everyone()
        trainer.save_model(str(self.folder))  # by all: sharded weights are gathered, one process writes
        if self.state.is_main_process:
            write_json(self.folder / "training_log.json", trainer.state.log_history)
            self._write_card(trainer)
            write_json(self.folder / STAGE_FILE, {"key": key})
        self.state.wait_for_everyone()
        return self.folder

    def evaluate(self) -> Report:
        """Score every row on the same targets and write the report; the card is written anew with it."""
        section = self.config.evaluation
        key = fingerprint(self._ranker_key(), as_plain(section), REPORT_VERSION)
        if (self.folder / "report.json").exists():
            content = read_json(self.folder / "report.json")
            if content["protocol"].get("key") == key:
                report = Report(**content)
                if self.state.is_main_process:
                    self._write_card(None, report)  # its own section may have changed
                return report
        retriever, dataset = self.train_retriever(), self.prepare().dataset
        self.train()
        processor = LlamaRecLKGProcessor.from_pretrained(self.folder)
        examples = self.lists(retriever, section.split)
        ranks = {
            "popularity": retriever_ranks(dataset, PopularityRetriever.from_dataset(dataset), section.split),
            "retriever": retriever_ranks(dataset, retriever, section.split),
        }
        if section.untrained:
            untrained = self.build_model(processor)
            ranks["ranker-untrained"] = self._rank(untrained, processor, examples, "rank, untrained")
            del untrained
        arguments = {name: value for name, value in self._backbone_arguments().items() if name != "revision"}
        model = LlamaRecLKGForRanking.from_pretrained(self.folder, **arguments)
        model = self._placed(model)
        ranks[RANKER] = self._rank(model, processor, examples, "rank")
        for name, graph in published_graphs(processor).items() if section.as_published else ():
            text = f"rank, {name.removeprefix('ranker-')}"
            ranks[name] = self._rank(model, processor, examples, text, partial(published_scores, graph))
        for name in section.controls:
            control = partial(control_scores, name, seed=section.seed)
            ranks[f"ranker-{name}"] = self._rank(model, processor, examples, f"rank, {name}", control)
        with without_language_model(model):
            ranks["no-lm"] = self._rank(model, processor, examples, "rank, no language model")
            for name in CONTROLS:
                text = f"rank, no language model, {name}"
                control = partial(control_scores, name, seed=section.seed)
                ranks[f"no-lm-{name}"] = self._rank(model, processor, examples, text, control)
        report = Report.from_ranks(
            ranks,
            np.array([example.label >= 0 for example in examples]),
            self._protocol(section.split, processor, key),
            resamples=section.resamples,
            seed=section.seed,
        )
        if self.state.is_main_process:
            report.save(self.folder)
            self._write_card(None, report)
        self.state.wait_for_everyone()
        return report

    # -- parts ------------------------------------------------------------------------------------------------------

    def build_processor(self) -> LlamaRecLKGProcessor:
        """A new processor for this run's data and prompt settings; its evidence scale is not fitted yet."""
        data = self.prepare()
        with self.state.main_process_first():
            tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(self.config.backbone.model_name_or_path))
        items = data.dataset.items
        return LlamaRecLKGProcessor(
            tokenizer, data.graph, items.ids, items.titles, data.dataset.user_ids, **self.config.prompt
        )

    def build_model(self, processor: LlamaRecLKGProcessor) -> LlamaRecLKGForRanking:
        """A new ranker around this run's backbone."""
        config = processor.model_config(**self.config.model)
        torch.manual_seed(self._training_arguments().seed)
        if not config.use_language_model:
            return self._placed(LlamaRecLKGForRanking(config))
        model = LlamaRecLKGForRanking.from_backbone(
            self.config.backbone.model_name_or_path, config, **self._backbone_arguments()
        )
        return self._placed(model)

    def _backbone_arguments(self) -> dict[str, Any]:
        section = self.config.backbone
        revision = section.model_revision if section.model_revision != "main" else None
        arguments = {
            "dtype": "auto" if section.dtype == "auto" else getattr(torch, section.dtype or "float32"),
            "attn_implementation": section.attn_implementation,
            "revision": revision,
            "quantization_config": get_quantization_config(section),
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def _training_arguments(self) -> LlamaRecLKGTrainingArguments:
        defaults = {
            "output_dir": str(self.folder / "checkpoints" / self._ranker_key()),
            "disable_tqdm": not self.progress,
            "use_cpu": self.state.device.type == "cpu",
        }
        return LlamaRecLKGTrainingArguments(**{**defaults, **self.config.training})

    def _placed(self, model: LlamaRecLKGForRanking) -> LlamaRecLKGForRanking:
        """On this process's device; a quantized backbone is there already and must not be moved."""
        return model if getattr(model.language_model, "is_quantized", False) else model.to(self.state.device)

    def training_lists(
        self, retriever: LRURecRetriever
    ) -> tuple[list[RankingExample], list[RankingExample], KnowledgeGraph | None]:
        """Training and validation lists, and the graph to read the training lists with: it knows what their retriever
        knows."""
        section, dataset, honest, train_graph = self.config.examples, self.prepare().dataset, None, None
        if section.holdout:
            retriever_for_training, honest = self.train_honest_retriever()
            train_graph = self._graph(self.prepare().bundle, honest)
        else:
            retriever_for_training = retriever
        train = training_examples(
            dataset,
            retriever_for_training,
            honest,
            num_candidates=self._num_candidates(),
            negatives=section.negatives,
            shuffle=section.shuffle,
            seed=self.config.retriever.seed,
            progress=self.progress,
        )
        return train, self.lists(retriever, "validation"), train_graph

    def lists(self, retriever: LRURecRetriever, split: str) -> list[RankingExample]:
        """What `retriever` finds for every target of a split."""
        dataset = self.prepare().dataset
        return evaluation_examples(
            dataset, retriever, split, num_candidates=self._num_candidates(), progress=self.progress
        )

    def _num_candidates(self) -> int:
        return int(self.config.prompt.get("num_candidates", 20))

    def _rank(
        self,
        model: LlamaRecLKGForRanking,
        processor: LlamaRecLKGProcessor,
        examples: list[RankingExample],
        text: str,
        score: Callable[..., np.ndarray] = ranker_scores,
    ) -> np.ndarray:
        options = {"batch_size": self.config.evaluation.batch_size, "progress": self.progress}
        return reranked(score(model, processor, examples, description=text, **options), examples)

    def _protocol(self, split: str, processor: LlamaRecLKGProcessor, key: str) -> dict[str, Any]:
        data = self.prepare()
        return {
            "dataset": data.bundle.name,
            "split": split,
            "users": data.dataset.num_users,
            "items": data.dataset.num_items,
            "settings": json.dumps(as_plain(data.dataset.settings)),
            "graph": data.graph.describe(),
            "graph_holds_heldout_interactions": self.config.graph.include_heldout,
            "graph_time": "training interactions of all users, whatever their date; facts are undated",
            "candidates": processor.num_candidates,
            "backbone": self.config.backbone.model_name_or_path,
            "training_seed": self._training_arguments().seed,
            "weights": weights_fingerprint(self.folder),
            "key": key,
        }

    def _write_card(self, trainer: LlamaRecLKGTrainer | None, report: Report | None = None) -> None:
        data, facts = self.prepare(), self.folder / "card.json"
        if trainer is not None:
            card = ModelCard.from_trainer(
                trainer,
                model_id=str(self.config.output_dir),
                dataset_name=data.bundle.name,
                data_citation=data.bundle.citation,
                data_license=data.bundle.license,
                has_retriever=True,
            )
        else:
            card = ModelCard.from_json(facts)
        card = replace(card, report=report, **self.config.card.given())
        write_json(facts, {k: v for k, v in as_plain(card).items() if k != "report"})
        card.save(self.folder / "README.md")


def _is_done(folder: Path, key: str) -> bool:
    return (folder / STAGE_FILE).exists() and read_json(folder / STAGE_FILE).get("key") == key


def _sample(dataset: Any, count: int | None, seed: int, labelled: bool = False) -> Any:
    """`count` rows drawn by `seed`; with `labelled`, of those whose target was retrieved."""
    if count is None or dataset is None:
        return dataset
    rows = np.flatnonzero(np.asarray(dataset["label"]) >= 0) if labelled else np.arange(len(dataset))
    drawn = np.random.default_rng(seed).permutation(rows)[:count]
    if not len(drawn):
        raise LKGError("No list with a retrieved target is left to sample from.")
    return dataset.select(np.sort(drawn))
