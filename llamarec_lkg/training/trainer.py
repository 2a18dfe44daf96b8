"""The ranker's trainer: `transformers.Trainer` with ranking batches, ranking metrics, two learning rates and a model
card."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, EarlyStoppingCallback, EvalPrediction, ProgressCallback

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
from .callbacks import FiniteStepsCallback, ShortProgressCallback
from .hub_trainer import PushingTrainer, check_push
from .training_args import LlamaRecLKGTrainingArguments
from .warm_up import fit_heads, heads_batch, weigh_parts


logger = logging.getLogger(__name__)


class LlamaRecLKGTrainer(PushingTrainer):
    """Fine-tunes the ranker.

    Args:
        model: a [`LlamaRecLKGForRanking`], the place of a saved one, or the name of a causal language model to build
            one on.
        args: [`LlamaRecLKGTrainingArguments`].
        train_dataset, eval_dataset: [`RankingExample`]s, or a `datasets.Dataset` with their columns. Features that
            they carry are used as they are (see `retrieval.candidates.with_features`). Rows of `eval_dataset` with
            label -1 (target not retrieved) count as misses and are not run through the model.
        processing_class: the [`LlamaRecLKGProcessor`]. If it has no evidence scale yet, it is fitted on
            `train_dataset`.
        peft_config: for the backbone; preferences and fusion are always trained.
        quantization_config: for a backbone given by name.
        retriever: a [`SequentialRetrieverModel`] to save and push beside the ranker, so that a `Recommender` can
            load both.
        config: for a backbone given by name; by default the processor's `model_config()`.
        kwargs: for `transformers.Trainer`.

    Raises:
        LKGError: the parts were not made for each other, `train_dataset` has rows without a target, or popularity is
            known of its lists or of the processor's items alone.
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
        **kwargs: Any,
    ):
        args = args or LlamaRecLKGTrainingArguments(output_dir="trainer_output")
        if not isinstance(processing_class, LlamaRecLKGProcessor):
            raise LKGError(
                f"processing_class is {type(processing_class).__name__}; the trainer needs a LlamaRecLKGProcessor."
            )
        train_dataset, eval_dataset = _as_examples(train_dataset), _as_examples(eval_dataset)
        missed = sum(example.label < 0 for example in train_dataset or ())
        if missed:
            raise LKGError(
                f"{missed} of {len(train_dataset)} training rows have no target among their candidates (label -1). "
                "Make them with `candidates.training_examples`, or filter them out."
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
        self._heads_are_warm = False
        self._missed = 0
        self._retriever_ranks = np.zeros(0, dtype=np.int64)
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
        if args.load_best_model_at_end and args.early_stopping_patience and eval_dataset is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.add_callback(FiniteStepsCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(ShortProgressCallback)

    # -- training ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As upstream, with the warm-up before and the model card after it."""
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
        retrieved = [example for example in self.eval_dataset or () if example.label >= 0]
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

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss over the re-ranked lists, and metrics over all lists: `eval_ndcg@10`, beside
        `eval_retriever_ndcg@10`."""
        examples = _as_examples(self.eval_dataset if eval_dataset is None else eval_dataset)
        retrieved = [example for example in examples or () if example.label >= 0]
        if not retrieved:
            raise LKGError(f"No target is retrieved in {len(examples or ())} lists: there is nothing to re-rank.")
        self._missed = len(examples) - len(retrieved)
        self._retriever_ranks = np.concatenate(
            [target_ranks(example.retrieval_scores[None], np.array([example.label])) for example in retrieved]
        )
        return super().evaluate(retrieved, *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Logits of every row, also of those whose target was not retrieved."""
        self._missed, self._retriever_ranks = 0, np.zeros(0, dtype=np.int64)
        return super().predict(_as_examples(test_dataset), *args, **kwargs)

    def _ranking_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        require_finite(prediction.predictions)
        ranks = target_ranks(prediction.predictions, prediction.label_ids)
        share = len(ranks) / (len(ranks) + self._missed)
        metrics = {name: value * share for name, value in mean_metrics(ranks).items()}
        if len(self._retriever_ranks) == len(ranks):
            first_stage = mean_metrics(self._retriever_ranks)
            metrics |= {f"retriever_{name}": value * share for name, value in first_stage.items()}
        return metrics

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


def _as_examples(dataset: Any) -> list[RankingExample] | None:
    if dataset is None:
        return None
    return [row if isinstance(row, RankingExample) else RankingExample.from_mapping(row) for row in dataset]


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
