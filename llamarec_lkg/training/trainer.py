"""The ranker's trainer: `transformers.Trainer` with ranking batches, ranking metrics, two learning rates and a model
card."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, EvalPrediction, ProgressCallback

from ..data.examples import as_examples
from ..data.schema import RankingExample
from ..evaluation.metrics import mean_metrics, require_finite, target_ranks
from ..hub.layout import RETRIEVER_FOLDER
from ..ranking.adapter_files import trained_outside_adapters
from ..ranking.backbones import resolve_backbone
from ..ranking.configuration_llamarec_lkg import LlamaRecLKGConfig
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..retrieval.base import check_retriever
from ..retrieval.sequential import NeuralRetriever, SequentialRetrieverModel
from ..utils.errors import LKGError
from ..utils.files import atomic_file
from .callbacks import BestSoFarCallback, FiniteStepsCallback, ShortProgressCallback
from .data_sets import choosing, training_examples, validation_examples
from .hub_trainer import PushingTrainer, check_push
from .sampling import SamplingMixin
from .training_args import LlamaRecLKGTrainingArguments, check_without_language_model
from .warm_up import fit_heads, heads_batch, weigh_parts
from .watching import WatchingMixin


logger = logging.getLogger(__name__)


class LlamaRecLKGTrainer(SamplingMixin, WatchingMixin, PushingTrainer):
    """Fine-tunes the ranker.

    Args:
        model: a [`LlamaRecLKGForRanking`], the place of a saved one, or the name of a causal language model to build
            one on.
        args: [`LlamaRecLKGTrainingArguments`].
        train_dataset, eval_dataset: [`RankingExample`]s, or a `datasets.Dataset` with their columns, or any other data
            set of such rows (`data.examples.as_examples`); it is read at once. Of a stream so many rows are taken as
            `args.max_steps` need. Features that rows carry are used as they are (see
            `retrieval.candidates.with_features`). Rows of `eval_dataset` with label -1 (target not retrieved) count as
            misses and are not run through the model. A dictionary of several gives `eval_{name}_ndcg@10`; the first
            of them chooses the best epoch of the warm-up and, unless `args.metric_for_best_model` names another, the
            best checkpoint.
        processing_class: the [`LlamaRecLKGProcessor`]. If it has no evidence scale yet, it is fitted on
            `train_dataset`.
        peft_config: for the backbone; preferences and fusion are always trained.
        quantization_config: for a backbone given by name.
        retriever: a [`SequentialRetrieverModel`] to save and push beside the ranker, so that a `Recommender` can
            load both.
        config: for a backbone given by name; by default the processor's `model_config()`.
        compute_metrics: adds metrics of your own, from the `EvalPrediction` of the lists that are re-ranked.
        kwargs: for `transformers.Trainer`.

    Raises:
        LKGError: the parts were not made for each other, a row is no list to rank, `train_dataset` has rows without a
            target, or popularity is known of its lists or of the processor's items alone.
    """

    def __init__(
        self,
        model: LlamaRecLKGForRanking | str,
        args: LlamaRecLKGTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: LlamaRecLKGProcessor | None = None,
        peft_config: Any = None,
        quantization_config: Any = None,
        config: LlamaRecLKGConfig | None = None,
        retriever: SequentialRetrieverModel | NeuralRetriever | None = None,
        data_collator: Any = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        **kwargs: Any,
    ):
        args = args or LlamaRecLKGTrainingArguments(output_dir="trainer_output")
        if not isinstance(args, LlamaRecLKGTrainingArguments):
            raise LKGError(f"args is {type(args).__name__}; the trainer needs LlamaRecLKGTrainingArguments(...).")
        if not isinstance(processing_class, LlamaRecLKGProcessor):
            raise LKGError(
                f"processing_class is {type(processing_class).__name__}; the trainer needs a LlamaRecLKGProcessor."
            )
        for name in ("model_init", "preprocess_logits_for_metrics"):
            if kwargs.get(name) is not None:
                raise LKGError(f"{name} has no use here: a model is given, and ranked by its logits. Leave it out.")
        train_dataset = training_examples(train_dataset, args)
        if eval_dataset is not None:
            eval_dataset = validation_examples(eval_dataset)
        names = list(eval_dataset) if isinstance(eval_dataset, dict) else []
        args = choosing(args, names, own_metrics=compute_metrics is not None)
        missed = [row for row, example in enumerate(train_dataset or ()) if example.label < 0]
        if missed:
            raise LKGError(
                f"{len(missed)} of {len(train_dataset)} training rows have no target among their candidates (no "
                f"label, or -1), the first is row {missed[0]}. Make them with `candidates.training_examples`, or "
                "filter them out."
            )
        if train_dataset and processing_class.evidence_scale is None:
            if any(example.evidence is not None for example in train_dataset):
                raise LKGError(
                    "The training lists carry evidence, but the processor has no scale to read other lists by. Give "
                    "it `evidence_scale=candidates.evidence_scale(lists, indexes, folds)`, and make the lists' "
                    "features with indexes of that scale (`index.with_scale(scale)`)."
                )
            processing_class.fit(train_dataset)
        if isinstance(model, str):
            model = _load(model, processing_class, config, args, quantization_config, peft_config)
        if not isinstance(model, LlamaRecLKGForRanking):
            raise LKGError(
                f"The model is a {type(model).__name__}; the trainer needs a LlamaRecLKGForRanking. Add an adapter "
                "with `peft_config` or `model.add_adapter(config)`."
            )
        model.check_processor(processing_class)
        if not model.config.use_language_model:
            check_without_language_model(args)
        if model.config.use_popularity:
            _check_popularity(train_dataset or (), processing_class)
        self.retriever = retriever.model if isinstance(retriever, NeuralRetriever) else retriever
        if self.retriever is not None:
            check_retriever(NeuralRetriever(self.retriever), processing_class.item_ids)
        if peft_config is not None:
            if model.has_adapter:
                raise LKGError("The model has an adapter already; leave peft_config out to go on training it.")
            model.add_adapter(peft_config)
        if args.activation_checkpointing and model.has_adapter:
            # whoever checkpoints, and however: a segment whose input needs no gradient may be passed over
            model.enable_input_require_grads()
        if args.push_to_hub:
            check_push(args, model)
        if args.torch_compile:
            model.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
        self._heads_are_warm = False
        self._own_metrics = compute_metrics
        self._expect([])
        # lists are padded to one width, so that batches of several processes can be gathered
        shape = {"with_prompt": model.config.use_language_model, "pad_to_candidates": processing_class.num_candidates}
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or partial(processing_class, **shape),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._ranking_metrics,
            **kwargs,
        )
        self.label_smoother = None  # upstream's would smooth over the padding of short lists, too: see `compute_loss`
        if args.load_best_model_at_end and args.early_stopping_patience and eval_dataset is not None:
            self.add_callback(BestSoFarCallback(args.early_stopping_patience))
        self.add_callback(FiniteStepsCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(ShortProgressCallback)

    # -- training ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As upstream, with the warm-up before and the model card after it."""
        if not self.train_dataset:
            raise LKGError("There are no lists to train on. Give the trainer a train_dataset that has some.")
        self.model.require_trainable_adapter()
        trained = trained_outside_adapters(self.model.language_model)
        if trained and self.model.has_adapter:
            raise LKGError(
                f"{len(trained)} weights of the backbone would be trained beside the adapter, such as {trained[0]!r}, "
                "and no file of an adapter holds them. Freeze them, or name their layers in `modules_to_save`."
            )
        if trained:
            self.model.mark_backbone_changed()  # what is saved from here on is the whole model
        config = self.model.config
        if not resume_from_checkpoint and self.args.heads_warm_up_epochs > 0:
            if not config.heads_trained:
                self.warm_up_heads()
            elif not self._heads_are_warm:
                logger.warning(
                    "Preferences and fusion are trained already (`config.heads_trained`): their warm-up is left out."
                )
        config.heads_trained = True  # they are trained on from here, and so is every checkpoint
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self.create_model_card()
        return result

    def warm_up_heads(self) -> list[dict[str, float]]:
        """Fit preferences and fusion on the training lists, the backbone left out; see `warm_up.fit_heads`."""
        self._heads_are_warm = True
        args, progress = self.args, self.is_world_process_zero() and not self.args.disable_tqdm
        self.model.to(args.device)
        validation = [] if self.eval_dataset is None else validation_examples(self.eval_dataset)
        if isinstance(validation, dict):
            validation = next(iter(validation.values()))
        retrieved = [example for example in validation if example.label >= 0]
        rate = args.heads_warm_up_learning_rate
        log = fit_heads(
            self.model,
            heads_batch(self.processing_class, self.train_dataset, progress=progress),
            heads_batch(self.processing_class, retrieved, progress=progress) if retrieved else None,
            epochs=args.heads_warm_up_epochs,
            learning_rate=args.heads_learning_rate if rate is None else rate,
            weight_decay=args.heads_weight_decay,
            seed=args.seed,
            progress=progress,
        )
        self.model.config.heads_trained |= bool(log)
        return log

    def fit_parts(
        self, unseen: Sequence[RankingExample], read: Sequence[RankingExample] | None = None
    ) -> dict[str, list[float]]:
        """Fit what the parts of a score weigh; arguments and result as of `warm_up.weigh_parts`.

        Raises:
            LKGError: the model is sharded, or the lists' popularity is not the processor's.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise LKGError(
                "The model is in shards, of which no part can be read by itself. Save it, and fit the parts of what "
                "`LlamaRecLKGForRanking.from_pretrained` gives (`training.warm_up.weigh_parts`)."
            )
        unseen = as_examples(unseen, "unseen")
        if self.model.config.use_popularity:
            _check_popularity(unseen, self.processing_class)
        self.model.to(self.args.device)
        how = {"batch_size": self.args.per_device_eval_batch_size, "progress": not self.args.disable_tqdm}
        return weigh_parts(self.model, self.processing_class, unseen, read, **how)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As upstream, but preferences and fusion form a group with a learning rate of their own, and so do LoRA's B
        matrices with `lora_plus_ratio`."""
        optimizer, args = super().create_optimizer(model), self.args
        if any(group.get("name") == "heads" for group in optimizer.param_groups):
            return optimizer
        parts = {"heads": (r"(^|\.)(preference|fusion|readout)\.", args.heads_learning_rate)}
        if args.lora_plus_ratio != 1:
            parts["lora_b"] = (r"\.lora_(embedding_)?B\.", args.learning_rate * args.lora_plus_ratio)
        names = {id(p): name for name, p in (self.model if model is None else model).named_parameters()}
        for group in list(optimizer.param_groups):
            settings = {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}
            for part, (mark, rate) in parts.items():
                own = [p for p in group["params"] if re.search(mark, names.get(id(p), ""))]
                if own:
                    group["params"] = [p for p in group["params"] if not re.search(mark, names.get(id(p), ""))]
                    optimizer.add_param_group({**settings, "params": own, "lr": rate, "name": part})
        return optimizer

    # -- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss over the re-ranked lists, and metrics over all lists: `eval_ndcg@10`, beside it
        `eval_retriever_ndcg@10`, and what the first is ahead of the second, `eval_gain_ndcg@10`; of several data sets
        `eval_{name}_ndcg@10`, as upstream. A name is that of one of the trainer's own."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(given, str) and isinstance(self.eval_dataset, Mapping):
            if given not in self.eval_dataset:
                raise LKGError(f"eval_dataset has no {given!r}; it has {list(self.eval_dataset)}.")
            given = self.eval_dataset[given]
        examples = validation_examples(given)
        if isinstance(examples, dict):
            metrics = {}
            for name, one in examples.items():
                metrics |= self.evaluate(one, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        retrieved = [example for example in examples if example.label >= 0]
        if not retrieved:
            raise LKGError(
                f"No target is retrieved in {len(examples)} lists ({metric_key_prefix}): there is nothing to re-rank. "
                "Give more lists, or longer ones (num_candidates)."
            )
        self._expect(retrieved, missed=len(examples) - len(retrieved))
        with self._reading_all():
            return super().evaluate(retrieved, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Logits of every row, also of those whose target was not retrieved."""
        examples = as_examples(test_dataset, "test_dataset")
        if not examples:
            raise LKGError("test_dataset has no rows: there is nothing to predict.")
        self._expect([])
        with self._reading_all():
            return super().predict(examples, *args, **kwargs)

    @contextmanager
    def _reading_all(self) -> Iterator[None]:
        """Without what only training wants: dropping the last batch, and workers that go on to serve the data set
        they were started for, whatever is evaluated next."""
        names = ("dataloader_drop_last", "dataloader_persistent_workers")
        before = {name: getattr(self.args, name) for name in names}
        vars(self.args).update(dict.fromkeys(names, False))
        try:
            yield
        finally:
            vars(self.args).update(before)

    def _expect(self, retrieved: Sequence[RankingExample], missed: int = 0) -> None:
        """What the next metrics are about: lists in the retriever's order, and how many more it found no target
        for."""
        self._missed, self._ranks = missed, []
        ranks = [target_ranks(one.retrieval_scores[None], np.array([one.label])) for one in retrieved]
        self._retriever_ranks = np.concatenate([np.zeros(0, dtype=np.int64), *ranks])

    def _ranking_metrics(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """The metrics of all lists (`eval_do_concat_batches`), of a list of batches, or of the batches so far when
        the last has come (`batch_eval_metrics`)."""
        scores, labels = prediction.predictions, prediction.label_ids
        for batch, targets in zip(scores, labels, strict=True) if isinstance(scores, list) else [(scores, labels)]:
            batch = batch[0] if isinstance(batch, tuple) else batch  # the logits come first
            batch, targets = (torch.as_tensor(values).cpu() for values in (batch, targets))
            batch = batch.double().numpy()
            require_finite(batch)
            self._ranks.append(target_ranks(batch, targets.numpy()))
        how = {"compute_result": compute_result} if self.args.batch_eval_metrics else {}
        own = self._own_metrics(prediction, **how) if self._own_metrics is not None else {}
        if not compute_result:
            return {}
        ranks, self._ranks = np.concatenate(self._ranks), []
        share = len(ranks) / (len(ranks) + self._missed)
        metrics = {name: value * share for name, value in mean_metrics(ranks).items()}
        if len(self._retriever_ranks) == len(ranks):
            first_stage = mean_metrics(self._retriever_ranks)
            first_stage = {name: value * share for name, value in first_stage.items()}
            ahead = {f"gain_{name}": metrics[name] - value for name, value in first_stage.items()}
            metrics |= ahead | {f"retriever_{name}": value for name, value in first_stage.items()}
        return metrics | own

    # -- saving -----------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model.save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        if self.retriever is not None:
            self.retriever.save_pretrained(folder / RETRIEVER_FOLDER)
        with atomic_file(folder / "training_args.json") as temporary:
            temporary.write_text(self.args.to_json_string(), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.accelerator.unwrap_model(self.model).load_trained_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self.accelerator.unwrap_model(self.model).load_trained_weights(self.state.best_model_checkpoint)


def _check_popularity(examples: Sequence[RankingExample], processor: LlamaRecLKGProcessor) -> None:
    """Raise `LKGError` where these lists and others would be read with different counts."""
    carried = sum(example.popularity is not None for example in examples)
    lacking = sum(example.popularity is None and example.evidence is not None for example in examples)
    if processor.log_counts.any() and lacking:
        raise LKGError(
            f"{lacking} of {len(examples)} lists carry evidence, but no popularity: it would be read from the "
            "processor's counts, which their users are in. Make their features with "
            "`with_features(..., log_counts=...)`, a row a fold, or set `use_popularity=False`."
        )
    if carried and not processor.log_counts.any():
        raise LKGError(
            f"{carried} of {len(examples)} lists carry popularity, but the processor has no counts to read that of "
            "other lists from. Give it `item_counts=dataset.training_counts()[1:]`, or set `use_popularity=False`."
        )


def _load(
    name: str,
    processor: LlamaRecLKGProcessor,
    config: LlamaRecLKGConfig | None,
    args: LlamaRecLKGTrainingArguments,
    quantization_config: Any,
    peft_config: Any,
) -> LlamaRecLKGForRanking:
    path = resolve_backbone(name)
    saved = AutoConfig.from_pretrained(path)
    # frozen weights may be half as wide; weights that are trained need float32 for their small steps
    frozen = peft_config is not None or quantization_config is not None or getattr(saved, "has_adapter", False)
    narrow = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    kwargs = {"dtype": narrow if frozen else torch.float32}
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if isinstance(saved, LlamaRecLKGConfig):
        return LlamaRecLKGForRanking.from_pretrained(path, is_trainable=True, **kwargs)
    return LlamaRecLKGForRanking.from_backbone(name, config or processor.model_config(), **kwargs)
