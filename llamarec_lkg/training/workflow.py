"""The stages of a run, each finished before the next begins, each reused when nothing it depends on has changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import get_quantization_config

from ..data.schema import CO_RATED, DatasetBundle, RankingExample
from ..data.sequences import SequenceDataset, prepare_dataset
from ..data.sources import load_dataset_bundle
from ..evaluation.report import Report
from ..evaluation.slices import target_slices
from ..graph.co_ratings import co_ratings
from ..graph.evidence import STATISTICS
from ..graph.knowledge_graph import KnowledgeGraph
from ..hub.layout import CARD_FACTS, REPORT_FILE, RETRIEVER_FOLDER
from ..hub.model_card import ModelCard, read_record
from ..ranking.backbones import resolve_backbone
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..retrieval.candidates import evaluation_examples, folds_of_users
from ..retrieval.fused import CandidateWeights
from ..retrieval.item_features import ItemFeatures, item_features
from ..retrieval.sequential import NeuralRetriever
from ..retrieval.training import RetrieverTrainingArguments, train_retriever
from ..utils.errors import LKGError
from ..utils.files import atomic_file, atomic_folder, read_json, write_json
from ..utils.fingerprints import as_plain, fingerprint
from ..utils.precision import describe_dtype, resolve_dtype
from ..utils.upstream import quiet_upstream
from .evaluated import Evaluated
from .lists import HELD_OUT_FOLD, FoldParts, TrainingLists, make_lists
from .report_rows import COMPARISONS, evaluate_rows, protocol_of_report
from .run_config import RunConfig
from .trainer import LlamaRecLKGTrainer
from .training_args import LlamaRecLKGTrainingArguments
from .warm_up import weigh_parts


STAGE_FILE = "stage.json"
SECOND_SEED = 1000  # added to the seed, for a second opinion
MODEL_VERSION = 5  # goes up when the same settings make another model; older runs are then made anew
REPORT_VERSION = 5  # goes up when the same settings make other rows; older reports are then made anew
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
        progress: whether to print a line for each stage, and to show bars.
        retrievers: the folder of another run, whose retrievers are used where they are those of this one.
    """

    def __init__(self, config: RunConfig, *, progress: bool = True, retrievers: Path | None = None):
        self.config = config
        self.folder = Path(config.output_dir)
        self.retrievers_folder = self.folder if retrievers is None else retrievers
        self.state = PartialState(cpu=bool(config.training.get("use_cpu", not torch.cuda.is_available())))
        self.progress = progress and self.state.is_main_process
        self._data: PreparedData | None = None
        self._retrievers: dict[str, NeuralRetriever] = {}
        self._features: dict[str, ItemFeatures | None] = {}
        self._folds: list[FoldParts] | None = None
        self._lists: tuple[TrainingLists, CandidateWeights | None, list[float]] | None = None

    def run(self) -> Report:
        """All stages."""
        return self.evaluate()

    # -- stages -----------------------------------------------------------------------------------------------------

    def prepare(self) -> PreparedData:
        """Load, filter, split, and build the graph."""
        if self._data is not None:
            return self._data
        with self._stage("1/6 data and graph"):
            with self.state.main_process_first():
                bundle = load_dataset_bundle(self.config.data.dataset, revision=self.config.data.revision)
                dataset = prepare_dataset(bundle, self.config.preprocessing)
            section = self.config.graph
            triples = bundle.triples if section.use_triples else None
            graph = KnowledgeGraph.from_dataset(dataset, triples, whole_values=section.whole_values)
            graph = self._with_co_ratings(graph.without_relations(section.exclude_relations), dataset)
            data_key = fingerprint(dataset)
            self._data = PreparedData(bundle, dataset, graph, data_key, fingerprint(data_key, graph))
            self._say(f"    {bundle.name}: {dataset.num_users:,} users, {dataset.num_items:,} items")
            self._say(f"    {graph.describe()}")
            if self.state.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_file(self.folder / "config.yaml") as temporary:
                    temporary.write_text(yaml.safe_dump(self.config.to_mapping(), sort_keys=False), encoding="utf-8")
        return self._data

    def _with_co_ratings(self, graph: KnowledgeGraph, dataset: SequenceDataset) -> KnowledgeGraph:
        section = self.config.graph
        if CO_RATED in section.exclude_relations:
            return graph
        bounds = {"min_people": section.co_rating_min_people, "per_item": section.co_ratings_per_item}
        return graph.with_co_ratings(co_ratings(dataset, **bounds))

    def item_features(self, kind: str) -> ItemFeatures | None:
        """What item vectors know beside ids, as `RetrieverTrainingArguments.item_vectors` names it. The run's backbone
        reads the text."""
        if kind not in self._features:
            data, name = self.prepare(), self.config.backbone.model_name_or_path
            given = {"backbone": resolve_backbone(name), "backbone_name": name} if "text" in kind else {}
            given |= {"graph": data.graph, "device": str(self.state.device), "progress": self.progress}
            self._features[kind] = item_features(kind, data.dataset.items, **given)
        return self._features[kind]

    def train_retriever(self) -> NeuralRetriever:
        """The first stage, fitted on all training interactions."""
        return self.retriever(RETRIEVER_FOLDER, self.prepare().dataset, "2/6 retriever")

    def retriever(
        self, name: str, dataset: SequenceDataset, title: str, args: RetrieverTrainingArguments | None = None
    ) -> NeuralRetriever:
        """A retriever fitted on the training interactions of `dataset`, kept in the folder `name`."""
        args = args or self.config.retriever
        if name in self._retrievers:
            return self._retrievers[name]
        folder, data = self.retrievers_folder / name, self.prepare()
        read_by = self.config.backbone.model_name_or_path if "text" in args.item_vectors else None
        known = data.key if "entities" in args.item_vectors else data.data_key
        key = fingerprint(known, as_plain(args), dataset.labels, read_by)
        done = _is_done(folder, key)
        with self._stage(title, reused=done):
            if self.state.is_main_process and not done:
                how = {
                    "features": self.item_features(args.item_vectors),
                    "device": str(self.state.device),
                    "progress": self.progress,
                }
                model, log = train_retriever(dataset, args, **how)
                with atomic_folder(folder) as temporary:
                    model.save_pretrained(temporary)
                    write_json(temporary / "log.json", log)
                    write_json(temporary / STAGE_FILE, {"key": key})
            self.state.wait_for_everyone()
            retriever = NeuralRetriever.from_pretrained(str(folder))
            retriever.model.to(self.state.device)
        self._retrievers[name] = retriever
        return self._retrievers[name]

    def folds(self) -> list[FoldParts]:
        """What is known without the users of each fold."""
        section, data = self.config.examples, self.prepare()
        if self._folds is None:
            fold_of_user = folds_of_users(data.dataset.num_users, section.folds, self.config.retriever.seed)
            self._folds = []
            for fold in range(section.folds):
                users = np.flatnonzero(fold_of_user == fold)
                others = data.dataset.without_users(users)
                title = f"3/6 retriever of fold {fold + 1} of {section.folds}"
                retriever = self.retriever(f"{RETRIEVER_FOLDER}-fold-{fold}", others, title)
                log_counts = np.log1p(others.training_counts()).astype(np.float32)
                graph = self._with_co_ratings(data.graph, others)
                self._folds.append(FoldParts(fold_of_user, retriever, graph, log_counts))
        return self._folds

    def second_retrievers(self) -> tuple[NeuralRetriever, NeuralRetriever]:
        """The retriever by another seed, without the users whose lists are held out, and whole."""
        fold_of_user = self.folds()[0].fold_of_user
        dataset, args = self.prepare().dataset, self.config.retriever
        args = replace(args, seed=args.seed + SECOND_SEED)
        others = dataset.without_users(np.flatnonzero(fold_of_user == HELD_OUT_FOLD))
        title = "6/6 second seed of the retriever"
        return (
            self.retriever(f"{RETRIEVER_FOLDER}-second-fold-{HELD_OUT_FOLD}", others, title, args),
            self.retriever(f"{RETRIEVER_FOLDER}-second", dataset, title, args),
        )

    def training_lists(
        self, processor: LlamaRecLKGProcessor, rewire: Callable[[KnowledgeGraph], KnowledgeGraph] | None = None
    ) -> TrainingLists:
        """The ranker's training lists with what graph and counts say of them, made and read out of fold. Sets the
        processor's scale of evidence, and what candidates are found by.

        Args:
            rewire: changes the graphs that lists are read with, for controls; the processor's must be changed alike.
        """
        if rewire is None and self._lists is not None:
            lists, processor.candidate_weights, scale = self._lists
            processor.set_evidence_scale(scale)
            return lists
        self.train_retriever()
        folds = self.folds() if self.config.examples.folds > 1 else None
        with self._stage("4/6 training lists"):
            section, seed, data = self.config.examples, self.config.retriever.seed, self.prepare()
            if folds is None:
                log_counts = np.log1p(data.dataset.training_counts()).astype(np.float32)
                folds = [FoldParts(None, self.train_retriever(), data.graph, log_counts)]
            lists = make_lists(data.dataset, folds, processor, section, rewire, seed=seed, progress=self.progress)
            self._say(f"    {lists.describe()}")
        if rewire is None:
            self._lists = lists, processor.candidate_weights, processor.evidence_scale
        return lists

    def lists(self, processor: LlamaRecLKGProcessor, split: str) -> list[RankingExample]:
        """The candidates found for every target of a split, in their order."""
        retriever, settings = processor.fused_retriever(self.train_retriever()), {"progress": self.progress}
        settings["num_candidates"] = processor.num_candidates
        return evaluation_examples(self.prepare().dataset, retriever, split, **settings)

    def _ranker_key(self) -> str:
        sections = self.config.to_mapping()
        for unrelated in ("output_dir", "evaluation", "data", "card", "benchmark"):
            sections.pop(unrelated)
        sections["training"] = {k: v for k, v in sections["training"].items() if k not in COSMETIC_ARGUMENTS}
        return fingerprint(MODEL_VERSION, STATISTICS, self.prepare().key, sections)

    def train(self, *, resume: bool = False) -> Path:
        """Fine-tune the ranker and save it, with its processor, beside the retriever. Returns the folder."""
        key = self._ranker_key()
        if _is_done(self.folder, key):
            with self._stage("5/6 ranker", reused=True):
                return self.folder
        args = self.training_arguments()
        checkpoint = get_last_checkpoint(args.output_dir) if resume and Path(args.output_dir).is_dir() else None
        if resume and checkpoint is None:
            raise LKGError(f"There is no checkpoint of this very run in {args.output_dir} to resume from.")
        processor = self.build_processor()
        self.train_retriever()
        lists = self.training_lists(processor)
        with self._stage("5/6 ranker"):
            validation = self.lists(processor, "validation")
            model = self.build_model(processor)
            reads, given = model.config.use_language_model, self.config.backbone.dtype
            if reads:
                automatic = given in (None, "auto")
                self._say(f"    {describe_dtype(self.state.device) if automatic else f'{given}, by backbone.dtype'}")
            adapter = self.config.peft_config() if reads else None
            trainer = LlamaRecLKGTrainer(model, args, lists.train, validation, processor, peft_config=adapter)
            if args.heads_warm_up_epochs and not resume:
                trainer.warm_up_heads()  # on all lists, before the sample for the language model is drawn
            section = self.config.examples
            trainer.train_dataset = _sample(trainer.train_dataset, section.max_train, args.seed)
            trainer.eval_dataset = _sample(trainer.eval_dataset, section.max_validation, args.seed)
            if reads:
                trainer.train(resume_from_checkpoint=checkpoint)
            elif not model.config.heads_trained:
                raise LKGError(
                    "Nothing of this ranker would be trained. Without model.use_language_model it needs "
                    "model.use_evidence_fusion or model.use_retrieval_scores, and training.heads_warm_up_epochs."
                )
            held_out = _sample(lists.held_out, section.max_held_out, args.seed)
            sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
            if held_out and not sharded:
                trainer.fit_parts(held_out, lists.best)
            if self.state.is_main_process:  # while the new model is written, nothing must pass for a finished one
                for name in (STAGE_FILE, REPORT_FILE, "report.md", "report.png"):
                    (self.folder / name).unlink(missing_ok=True)
            self.state.wait_for_everyone()
            trainer.save_model(str(self.folder))  # by all: sharded weights are gathered, one process writes
            self.state.wait_for_everyone()
            if held_out and sharded:  # no part of a model in shards can be read by itself
                whole = self.load_model()
                weigh_parts(whole, processor, held_out, lists.best, progress=self.progress)
                if self.state.is_main_process:
                    whole.save_pretrained(self.folder)
            if self.state.is_main_process:
                write_json(self.folder / "training_log.json", trainer.state.log_history)
                bundle = self.prepare().bundle
                facts = {"dataset_name": bundle.name, "data_citation": bundle.citation, "data_license": bundle.license}
                facts |= {"model_id": str(self.config.output_dir), "has_retriever": True}
                self._write_card(ModelCard.from_trainer(trainer, **facts))
                write_json(self.folder / STAGE_FILE, {"key": key})
            self.state.wait_for_everyone()
        return self.folder

    def evaluate(self) -> Report:
        """Score every row on the same targets and write the report; the card is written anew with it."""
        evaluated = self.evaluated()
        report = self.report(evaluated.ranks, evaluated.found, recommended=evaluated.recommended)
        if self.state.is_main_process:
            report.save(self.folder)
            self._write_card(read_record(self.folder / CARD_FACTS, ModelCard), report)
        self.state.wait_for_everyone()
        return report

    def evaluated(self) -> Evaluated:
        """Every row's view of every target, kept beside the run."""
        section = self.config.evaluation
        key = fingerprint(self._ranker_key(), as_plain(section), REPORT_VERSION)
        if (saved := Evaluated.load(self.folder, key)) is not None:
            with self._stage("6/6 evaluation", reused=True):
                return saved
        self.train()
        with self._stage("6/6 evaluation"):
            processor = LlamaRecLKGProcessor.from_pretrained(self.folder)
            found = evaluate_rows(self, processor, self.lists(processor, section.split))
            if self.state.is_main_process:
                found.save(self.folder, key)
            self.state.wait_for_everyone()
        return found

    def report(
        self,
        ranks: Mapping[str, np.ndarray],
        found: np.ndarray,
        facts: Mapping[str, Any] | None = None,
        *,
        recommended: Mapping[str, np.ndarray] | None = None,
        comparisons: Sequence[tuple[str, str]] = COMPARISONS,
    ) -> Report:
        """The report of this run's targets; arguments are those of `Report.from_ranks`, with further `facts` for its
        protocol."""
        section, dataset = self.config.evaluation, self.prepare().dataset
        return Report.from_ranks(
            ranks,
            found,
            {**protocol_of_report(self), **(facts or {})},
            users=dataset.user_of(dataset.positions(section.split)),
            slices=target_slices(dataset, section.split),
            recommended=recommended,
            training_counts=dataset.training_counts(),
            comparisons=comparisons,
            resamples=section.resamples,
            seed=section.seed,
        )

    # -- parts ------------------------------------------------------------------------------------------------------

    def build_processor(self, graph: KnowledgeGraph | None = None) -> LlamaRecLKGProcessor:
        """A new processor for this run's data and prompt settings, with the run's graph or another one; its evidence
        scale is not set yet. It knows users only where the model is to have weights for each."""
        data = self.prepare()
        with self.state.main_process_first():
            tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(self.config.backbone.model_name_or_path))
        items, graph = data.dataset.items, data.graph if graph is None else graph
        users = data.dataset.user_ids if self.config.model.get("use_user_embedding") else ()
        counts = data.dataset.training_counts()[1:]
        settings = {"item_counts": counts, **self.config.prompt}
        return LlamaRecLKGProcessor(tokenizer, graph, items.ids, items.titles, users, **settings)

    def build_model(self, processor: LlamaRecLKGProcessor) -> LlamaRecLKGForRanking:
        """A new ranker around this run's backbone."""
        config, name = processor.model_config(**self.config.model), self.config.backbone.model_name_or_path
        torch.manual_seed(self.training_arguments().seed)
        if not config.use_language_model:
            return self._placed(LlamaRecLKGForRanking(config))
        if self.config.backbone.random_weights:
            name = self._random_backbone(resolve_backbone(name))
        return self._placed(LlamaRecLKGForRanking.from_backbone(name, config, **self.backbone_arguments()))

    def _random_backbone(self, name: str) -> str:
        """A folder with the architecture of a backbone and weights drawn at random, in this run's folder."""
        folder = self.folder / "random-backbone"
        if self.state.is_main_process and not folder.exists():
            with atomic_folder(folder) as temporary:
                AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name)).save_pretrained(temporary)
        self.state.wait_for_everyone()
        return str(folder)

    def load_model(self) -> LlamaRecLKGForRanking:
        """The trained ranker."""
        arguments = {name: value for name, value in self.backbone_arguments().items() if name != "revision"}
        return self._placed(LlamaRecLKGForRanking.from_pretrained(self.folder, **arguments))

    @property
    def dtype(self) -> torch.dtype:
        """What this run computes in: `backbone.dtype`, where "auto" is what the device computes fast."""
        return resolve_dtype(self.config.backbone.dtype, self.state.device)

    def backbone_arguments(self) -> dict[str, Any]:
        """For loading the backbone: type, attention kernel, revision, quantization."""
        section = replace(self.config.backbone, dtype=str(self.dtype).removeprefix("torch."))
        quantization = get_quantization_config(section)
        # weights that are trained need float32 for their small steps, unless asked for otherwise
        trained = self.config.peft_config() is None and quantization is None
        arguments = {
            "dtype": torch.float32 if trained and self.config.backbone.dtype in (None, "auto") else self.dtype,
            "attn_implementation": section.attn_implementation,
            "revision": section.model_revision if section.model_revision != "main" else None,
            "quantization_config": quantization,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def training_arguments(self) -> LlamaRecLKGTrainingArguments:
        given = self.config.training
        folder = str(self.folder / "checkpoints" / self._ranker_key())
        defaults = {
            "output_dir": folder,
            "disable_tqdm": not self.progress,
            "use_cpu": self.state.device.type == "cpu",
        }
        if "bf16" not in given and "fp16" not in given:
            defaults |= {"bf16": self.dtype == torch.bfloat16, "fp16": self.dtype == torch.float16}
        return LlamaRecLKGTrainingArguments(**{**defaults, **given})

    def _placed(self, model: LlamaRecLKGForRanking) -> LlamaRecLKGForRanking:
        """On this process's device; a quantized backbone is there already and must not be moved."""
        return model if getattr(model.language_model, "is_quantized", False) else model.to(self.state.device)

    def _write_card(self, card: ModelCard, report: Report | None = None) -> None:
        replace(card, report=report, **self.config.card.given()).save(self.folder)

    # -- what is said ------------------------------------------------------------------------------------------------

    @contextmanager
    def _stage(self, title: str, reused: bool = False) -> Iterator[None]:
        """Say that a stage begins and how long it took, or that it is reused. Inside, only our own bars are shown."""
        self._say(f"{title}{': reused, nothing it depends on has changed' if reused else ''}")
        started = time.monotonic()
        with quiet_upstream():
            yield
        if not reused:
            self._say(f"    {time.monotonic() - started:.0f} s")

    def _say(self, text: str) -> None:
        if self.progress:
            tqdm.write(text, file=sys.stderr)  # above a bar, where one is shown


def _is_done(folder: Path, key: str) -> bool:
    return (folder / STAGE_FILE).exists() and read_json(folder / STAGE_FILE).get("key") == key


def _sample(examples: Sequence[RankingExample], count: int | None, seed: int) -> Sequence[RankingExample]:
    """`count` lists whose target was retrieved, drawn by `seed`, in their order; None takes all lists."""
    if count is None:
        return examples
    rows = np.flatnonzero([example.label >= 0 for example in examples])
    return [examples[row] for row in np.sort(np.random.default_rng(seed).permutation(rows)[:count])]
