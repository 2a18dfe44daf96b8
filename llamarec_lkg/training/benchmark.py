"""A table that anyone can reproduce: the runs of several seeds, every row on the same targets, one report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..evaluation.report import RANKER, REFERENCE, Report
from ..retrieval.base import retriever_ranks
from ..retrieval.fused import MeanRetriever
from ..retrieval.training import RetrieverTrainingArguments
from ..utils.errors import LKGError
from .hidden_items_report import FOLDER as HIDDEN_ITEMS
from .hidden_items_report import hidden_items_report
from .report_rows import COMPARISONS, NO_LM
from .run_config import RunConfig
from .workflow import Workflow


def run_benchmark(config: RunConfig, *, progress: bool = True) -> Report:
    """Run `config` once a seed and report every row's mean over seeds, with intervals over users.

    Each seed's run lies in a folder of its own below `config.output_dir`, and each of its stages is reused when
    nothing it depends on has changed: a benchmark that was cut off goes on where it was. The report is written beside
    them.

    Returns:
        the report. Its rows are those of a run (`evaluate_rows`), one for each retriever of `benchmark.retrievers`,
        one of both encoders on ids together where both are among them, and one for each ranker of
        `benchmark.variants`. The run's own retriever is named after what it is. What `benchmark.hidden_items` asks for
        is another report, in the folder `hidden-items` of this one.

    Raises:
        LKGError: `benchmark.retrievers` lacks "retriever", or a setting cannot be used.
    """
    section, found, shown, hits = config.benchmark, {}, {}, []
    if REFERENCE not in section.retrievers:
        raise LKGError(
            f"benchmark.retrievers has {sorted(section.retrievers)}; it needs {REFERENCE!r}, which rows are compared "
            "with: the settings in which it differs from the section `retriever`."
        )
    retrievers, own_name = _retrievers(config), _retriever_name(config.retriever)
    for settings in section.variants.values():
        config.changed(settings)  # an error here, not after an hour
    if section.hidden_items and config.evaluation.split != "test":
        raise LKGError("benchmark.hidden_items asks for test targets; set it to 0 with evaluation.split=validation.")
    for number, seed in enumerate(section.seeds):
        if progress:
            tqdm.write(f"seed {seed}, {number + 1} of {len(section.seeds)}", file=sys.stderr)
        workflow = Workflow(_of_seed(config, seed), progress=progress)
        own = workflow.evaluated()
        hits.append(own.found)
        rows, items = _renamed(own.ranks, own_name), _renamed(own.recommended, own_name)
        rows |= dict(_more_rows(workflow, retrievers, variants=number < section.variant_seeds))
        for name, ranks in rows.items():
            found.setdefault(name, []).append(ranks)
        for name, best in items.items():
            shown.setdefault(name, []).append(best)
    # a row that not every seed has stands on those that it has
    found, shown = ({name: np.stack(one) for name, one in rows.items()} for rows in (found, shown))
    others = [name for name in (own_name, *retrievers, BOTH) if name != REFERENCE]
    report = workflow.report(
        found,
        np.stack(hits),
        {"training_seed": list(section.seeds), "seeds_of_variants": section.variant_seeds, "weights": "of every seed"},
        recommended=shown,
        comparisons=[*COMPARISONS, *PAIRS, *(_pair(name) for name in (*others, *section.variants))],
    )
    if workflow.state.is_main_process:
        report.save(config.output_dir)
    if section.hidden_items:
        first = Workflow(_of_seed(config, section.seeds[0]), progress=progress)
        hidden = hidden_items_report(first, {**retrievers, own_name: config.retriever}, section.hidden_items)
        if first.state.is_main_process:
            hidden.save(Path(config.output_dir, HIDDEN_ITEMS))
    return report


BOTH = "retrievers-together"  # both encoders on ids
# what the graph and the preferences add to the order of the candidates, with and without a language model
PAIRS = [
    (NO_LM, REFERENCE),
    *((NO_LM, f"{NO_LM}-{name}") for name in ("no-kg", "shuffled-kg", "uniform-preferences")),
    *((RANKER, f"{RANKER}-{name}") for name in ("no-kg", "uniform-preferences", "permuted-titles")),
]


def _pair(name: str) -> tuple[str, str]:
    """What a further row is compared with: the ranker, or for one without a language model the ranker without it."""
    return NO_LM if name.startswith(NO_LM) else RANKER, name


def _renamed(rows: Mapping[str, np.ndarray], own_name: str) -> dict[str, np.ndarray]:
    """A run's rows, its own retriever under another name."""
    return {own_name if name == REFERENCE else name: values for name, values in rows.items()}


def _of_seed(config: RunConfig, seed: int) -> RunConfig:
    return replace(
        config,
        output_dir=str(Path(config.output_dir, f"seed-{seed}")),
        retriever=replace(config.retriever, seed=seed),
        training={**config.training, "seed": seed},
    )


def _retrievers(config: RunConfig) -> dict[str, RetrieverTrainingArguments]:
    """The settings of `benchmark.retrievers` by row, less the run's own."""
    found, known = {}, vars(config.retriever)
    for name, settings in config.benchmark.retrievers.items():
        if strange := sorted(set(settings) - set(known)):
            raise LKGError(f"benchmark.retrievers.{name} has {strange}; settings of a retriever are {sorted(known)}.")
        found[name] = replace(config.retriever, **settings)
    own = _retriever_name(config.retriever)
    if found.pop(own, config.retriever) != config.retriever:
        raise LKGError(
            f"benchmark.retrievers.{own} is called like the run's own retriever, which has other settings. Call it "
            "otherwise."
        )
    return found


def _more_rows(
    workflow: Workflow, retrievers: Mapping[str, RetrieverTrainingArguments], variants: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Retrievers and, where asked for, rankers that the run itself does not have."""
    config = workflow.config
    dataset, split = workflow.prepare().dataset, config.evaluation.split
    trained = {_retriever_name(config.retriever): workflow.train_retriever()}
    for name, args in retrievers.items():
        args = replace(args, seed=config.retriever.seed)
        trained[name] = workflow.retriever(f"benchmark-{name}", dataset, name, args)
        yield name, retriever_ranks(dataset, trained[name], split)
    on_ids = {one.model.config.model_type: one for one in trained.values() if one.model.item_content is None}
    if len(on_ids) > 1:
        yield BOTH, retriever_ranks(dataset, MeanRetriever(list(on_ids.values())), split)
    for name, settings in config.benchmark.variants.items() if variants else ():
        changed = config.changed({**settings, "output_dir": str(workflow.folder / name)})
        changed.evaluation = replace(config.evaluation, controls=[], second_seed=False)
        variant = Workflow(changed, progress=workflow.progress, retrievers=workflow.folder)
        yield name, variant.evaluated().ranks[RANKER]


def _retriever_name(args: RetrieverTrainingArguments) -> str:
    """ "retriever", with what its item vectors know before it and the kind of its encoder after it."""
    content = "" if args.item_vectors == "ids" else f"{args.item_vectors}-"
    return f"{content}{REFERENCE}{'' if args.model_type == 'lrurec' else f'-{args.model_type}'}"
