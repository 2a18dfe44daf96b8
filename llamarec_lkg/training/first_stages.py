"""The first stages of a run: data and graph, and the retrievers: of all users, of those outside each fold, by another
seed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import PartialState
from tqdm.auto import tqdm

from ..data.schema import CO_RATED, DatasetBundle
from ..data.sequences import SequenceDataset, prepare_dataset
from ..data.sources import load_dataset_bundle
from ..graph.co_ratings import co_ratings
from ..graph.knowledge_graph import KnowledgeGraph
from ..hub.layout import RETRIEVER_FOLDER
from ..ranking.backbones import resolve_backbone
from ..retrieval.base import log_popularity
from ..retrieval.candidates import folds_of_users
from ..retrieval.item_features import ItemFeatures, item_features
from ..retrieval.sequential import NeuralRetriever
from ..retrieval.training import RetrieverTrainingArguments, train_retriever
from ..utils.files import atomic_file, atomic_folder, read_json, write_json
from ..utils.fingerprints import as_plain, fingerprint
from ..utils.upstream import quiet_upstream
from .lists import HELD_OUT_FOLD, FoldParts
from .run_config import RunConfig


STAGE_FILE = "stage.json"
SECOND_SEED = 1000  # added to the seed, for a second opinion


@dataclass(frozen=True)
class PreparedData:
    """What every later stage reads. `data_key` and `key` name the content, without and with the graph."""

    bundle: DatasetBundle
    dataset: SequenceDataset
    graph: KnowledgeGraph
    data_key: str
    key: str


class FirstStages:
    """What a [`~workflow.Workflow`] begins with; its arguments. Each retriever is kept in a folder of its own, and
    reused when nothing it depends on has changed."""

    def __init__(self, config: RunConfig, *, progress: bool = True, retrievers: Path | None = None):
        self.config = config
        self.folder = Path(config.output_dir)
        self.retriever_places = [self.folder] if retrievers is None else [retrievers, self.folder]
        self.state = PartialState(cpu=bool(config.training.get("use_cpu", not torch.cuda.is_available())))
        self.progress = progress and self.state.is_main_process
        self._data: PreparedData | None = None
        self._retrievers: dict[str, NeuralRetriever] = {}
        self._features: dict[str, ItemFeatures | None] = {}
        self._folds: list[FoldParts] | None = None

    def prepare(self) -> PreparedData:
        """Load, filter, split, and build the graph."""
        if self._data is not None:
            return self._data
        with self._stage("1/6 data and graph"):
            with self.state.main_process_first():
                data = self.config.data
                bundle = load_dataset_bundle(data.dataset, revision=data.revision, columns=data.columns)
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
        bounds["window"] = section.co_rating_window
        return graph.with_co_ratings(co_ratings(dataset, **bounds))

    def graph_of(self, dataset: SequenceDataset) -> KnowledgeGraph:
        """The run's graph with co-ratings of these training interactions alone."""
        return self._with_co_ratings(self.prepare().graph, dataset)

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
        args, data = args or self.config.retriever, self.prepare()
        read_by = self.config.backbone.model_name_or_path if "text" in args.item_vectors else None
        known = data.key if "entities" in args.item_vectors else data.data_key
        key = fingerprint(known, as_plain(args), dataset.labels, read_by)
        if key in self._retrievers:
            return self._retrievers[key]
        # another run's is used where it is the same; it is never written to
        folder = next((place / name for place in self.retriever_places if is_done(place / name, key)), None)
        done, folder = folder is not None, folder or self.folder / name
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
        self._retrievers[key] = retriever
        return retriever

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
                log_counts = log_popularity(others.training_counts())
                graph = self.graph_of(others)
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


def is_done(folder: Path, key: str) -> bool:
    return (folder / STAGE_FILE).exists() and read_json(folder / STAGE_FILE).get("key") == key
