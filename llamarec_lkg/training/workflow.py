"""The stages of a run, each finished before the next begins, each reused when nothing it depends on has changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.trainer import TRAINER_STATE_NAME
from trl import get_quantization_config

from ..data.schema import RankingExample
from ..evaluation.report import Report
from ..evaluation.slices import target_slices
from ..graph.statistics import STATISTICS
from ..hub.layout import CARD_FACTS, REPORT_FILE
from ..hub.model_card import ModelCard, read_record
from ..ranking.backbones import resolve_backbone
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..retrieval.base import log_popularity
from ..retrieval.candidates import evaluation_examples, with_easy_lists, with_features
from ..retrieval.fused import CandidateWeights
from ..utils.errors import LKGError
from ..utils.files import atomic_folder, write_json
from ..utils.fingerprints import as_plain, fingerprint
from ..utils.precision import describe_dtype, resolve_dtype
from .evaluated import Evaluated
from .first_stages import STAGE_FILE, FirstStages, is_done
from .lists import FoldParts, TrainingLists, make_lists, sampled
from .report_rows import COMPARISONS, evaluate_rows, protocol_of_report
from .run_config import RunConfig
from .sampling import share_histories
from .test_readings import note_test_reading
from .trainer import LlamaRecLKGTrainer
from .training_args import LlamaRecLKGTrainingArguments
from .warm_up import weigh_parts


logger = logging.getLogger(__name__)

MODEL_VERSION = 12  # goes up when the same settings make another model; older runs are then made anew
REPORT_VERSION = 8  # goes up when the same settings make other rows; older reports are then made anew
# training arguments that change what is shown, not what is learned
COSMETIC_ARGUMENTS = ("disable_tqdm", "logging_steps", "report_to", "per_device_eval_batch_size")


class Workflow(FirstStages):
    """One run in one folder.

    Args:
        config: what to do.
        progress: whether to print a line for each stage, and to show bars.
        retrievers: the folder of another run, whose retrievers are used where they are those of this one.
    """

    def __init__(self, config: RunConfig, *, progress: bool = True, retrievers: Path | None = None):
        super().__init__(config, progress=progress, retrievers=retrievers)
        self._lists: tuple[TrainingLists, CandidateWeights | None, list[float]] | None = None
        self._found: dict[tuple[str, str], list[RankingExample]] = {}  # by split and what candidates are found by

    def run(self) -> Report:
        """All stages."""
        return self.evaluate()

    # -- stages -----------------------------------------------------------------------------------------------------

    def training_lists(self, processor: LlamaRecLKGProcessor) -> TrainingLists:
        """The ranker's training lists with what graph and counts say of them (`TrainingLists`). Sets the processor's
        scale of evidence, and what candidates are found by."""
        if self._lists is not None:
            lists, processor.candidate_weights, scale = self._lists
            processor.set_evidence_scale(scale)
            return lists
        self.train_retriever()
        folds = self.folds() if self.config.examples.folds > 1 else None
        with self._stage("4/6 training lists"):
            section, seed, data = self.config.examples, self.config.retriever.seed, self.prepare()
            if folds is None:
                log_counts = log_popularity(data.dataset.training_counts())
                folds = [FoldParts(None, self.train_retriever(), data.graph, log_counts)]
            lists = make_lists(data.dataset, folds, processor, section, seed=seed, progress=self.progress)
            if lists.held_out:
                lists = replace(lists, validation=self._validation_lists(processor))
            self._say(f"    {lists.describe()}")
        self._lists = lists, processor.candidate_weights, processor.evidence_scale
        return lists

    def _validation_lists(self, processor: LlamaRecLKGProcessor) -> list[RankingExample]:
        """With their features, which several rows need and the processor would read each time."""
        found = [example for example in self.lists(processor, "validation") if example.label >= 0]
        features = {"log_counts": processor.log_counts, "recent_half_life": processor.recent_half_life}
        return with_features(found, processor.evidence_index, **features, progress=self.progress)

    def lists(self, processor: LlamaRecLKGProcessor, split: str) -> list[RankingExample]:
        """The candidates found for every target of a split, in their order; made once a run."""
        key = split, repr(processor.candidate_weights)
        if key not in self._found:
            retriever, settings = processor.fused_retriever(self.train_retriever()), {"progress": self.progress}
            settings["num_candidates"] = processor.num_candidates
            self._found[key] = evaluation_examples(self.prepare().dataset, retriever, split, **settings)
        return self._found[key]

    def lists_to_weigh_by(self, lists: TrainingLists) -> Sequence[RankingExample]:
        """The unseen lists that a second opinion is weighed by, such as the language model's."""
        # not of `training_arguments`: new ones reset the state of accelerate, which a sharded model is saved by
        seed = self.config.training.get("seed", LlamaRecLKGTrainingArguments.seed)
        return sampled(lists.unseen, self.config.examples.max_weighed, seed)

    def _ranker_key(self, config: RunConfig | None = None) -> str:
        sections = (config or self.config).to_mapping()
        for unrelated in ("output_dir", "evaluation", "data", "card", "benchmark"):
            sections.pop(unrelated)
        sections["training"] = {k: v for k, v in sections["training"].items() if k not in COSMETIC_ARGUMENTS}
        return fingerprint(MODEL_VERSION, STATISTICS, self.prepare().key, sections)

    def train(self, *, resume: bool = False) -> Path:
        """Fine-tune the ranker and save it, with its processor, beside the retriever. Returns the folder."""
        key = self._ranker_key()
        if is_done(self.folder, key):
            with self._stage("5/6 ranker", reused=True):
                return self.folder
        args = self.training_arguments()
        checkpoint = _last_checkpoint(args.output_dir) if resume else None
        if resume and checkpoint is None:
            raise LKGError(
                f"There is no whole checkpoint of this very run in {args.output_dir} to resume from. Train from the "
                "start, without resume."
            )
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
            groups = None
            if args.share_histories > 1:
                _, groups = share_histories(trainer.train_dataset, args.share_histories, processor.history_length)
            trainer.train_dataset = sampled(trainer.train_dataset, section.max_train, args.seed, groups)
            trainer.eval_dataset = sampled(trainer.eval_dataset, section.max_validation, args.seed)
            if reads:
                if lists.unseen:  # what the parts weigh is fitted after it, on what is retrieved
                    trainer.train_dataset = with_easy_lists(trainer.train_dataset, section.easy_share, seed=args.seed)
                trainer.train(resume_from_checkpoint=checkpoint)
            elif not model.config.heads_trained:
                raise LKGError(
                    "Nothing of this ranker would be trained. Without model.use_language_model it needs "
                    "model.use_evidence_fusion or model.use_retrieval_scores, and training.heads_warm_up_epochs."
                )
            read = self.lists_to_weigh_by(lists)
            sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
            if read and not sharded:
                trainer.fit_parts(lists.unseen, read)
            if self.state.is_main_process:  # while the new model is written, nothing must pass for a finished one
                for name in (STAGE_FILE, REPORT_FILE, "report.md", "report.png"):
                    (self.folder / name).unlink(missing_ok=True)
            self.state.wait_for_everyone()
            trainer.save_model(str(self.folder))  # by all: sharded weights are gathered, one process writes
            self.state.wait_for_everyone()
            if read and sharded:  # no part of a model in shards can be read by itself
                whole = self.load_model()
                weigh_parts(whole, processor, lists.unseen, read, progress=self.progress)
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
        others = {}
        if section.split == "test" and self.state.is_main_process:
            seedless = self.config.changed({"retriever.seed": 0, "training.seed": 0})
            count = note_test_reading(self.prepare().data_key, self._ranker_key(seedless))
            others["tested_before"] = f"{count} other configurations of this machine"
        return Report.from_ranks(
            ranks,
            found,
            {**protocol_of_report(self), **others, **(facts or {})},
            users=dataset.user_of(dataset.positions(section.split)),
            slices=target_slices(dataset, section.split),
            recommended=recommended,
            training_counts=dataset.training_counts(),
            comparisons=comparisons,
            resamples=section.resamples,
            seed=section.seed,
        )

    # -- parts ------------------------------------------------------------------------------------------------------

    def build_processor(self) -> LlamaRecLKGProcessor:
        """A new processor for this run's data, graph and prompt settings; its evidence scale is not set yet. It knows
        users only where the model is to have weights for each."""
        data = self.prepare()
        with self.state.main_process_first():
            tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(self.config.backbone.model_name_or_path))
        items = data.dataset.items
        users = data.dataset.user_ids if self.config.model.get("use_user_embedding") else ()
        counts = data.dataset.training_counts()[1:]
        settings = {"item_counts": counts, "repeats": data.dataset.settings.repeats, **self.config.prompt}
        return LlamaRecLKGProcessor(tokenizer, data.graph, items.ids, items.titles, users, **settings)

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
        config = AutoConfig.from_pretrained(name)
        folder = self.folder / f"random-backbone-{fingerprint(config.to_dict())[:8]}"
        if self.state.is_main_process and not folder.exists():
            with atomic_folder(folder) as temporary:
                AutoModelForCausalLM.from_config(config).save_pretrained(temporary)
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


def _last_checkpoint(folder: str) -> str | None:
    """The newest one that was written to its end: the trainer's state is the last of its files."""
    named = {path.name.partition("-")[2]: path for path in Path(folder).glob("checkpoint-*")}
    for _, path in sorted(((int(step), path) for step, path in named.items() if step.isdecimal()), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            logger.warning(f"{path} was not written to its end, and is passed over.")
        else:
            return str(path)
    return None
