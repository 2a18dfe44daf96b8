"""Which paths of the graph a prompt may hold: of thousands those few that some preferences could select."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..data.schema import CO_RATED, RankingExample
from ..graph import paths
from ..graph.knowledge_graph import KnowledgeGraph
from ..graph.path_evidence import PathEvidence
from ..graph.ranges import owners


class CandidatePathsMixin:
    """The paths of a [`LlamaRecLKGProcessor`]."""

    @property
    def writes_paths(self) -> bool:
        """Whether paths of the graph can stand in the prompt."""
        return self.num_paths > 0 and self._path_graph.num_edges > 0

    @cached_property
    def _path_graph(self) -> KnowledgeGraph:
        # through co-ratings run thousands of paths without a word to say; what they know is in the evidence
        return self.knowledge_graph.without_relations([CO_RATED])

    @cached_property
    def _path_evidence(self) -> PathEvidence:
        return PathEvidence.of(self._path_graph, self.evidence_index)

    def candidate_paths(self, example: RankingExample) -> tuple[paths.Paths, np.ndarray]:
        """Paths from the shown history to the candidates that some preferences could select, and (P, R) weights."""
        return self._candidate_paths([example])

    def _candidate_paths(self, examples: Sequence[RankingExample]) -> tuple[paths.Paths, np.ndarray]:
        """The same of several examples, one behind the other; their items are counted through (`paths.ways`)."""
        shown = [self._shown(example) for example in examples]
        wanted = [example.candidates if self.num_paths else example.candidates[:0] for example in examples]
        ways, lengths = paths.ways(self._path_graph, shown, wanted), [len(history) for history in shown]
        targets = ways.target_index
        if self.readout == "letters":
            targets = owners(lengths).take(ways.source_index)
        sources = ways.source_index if self.one_path_per_history_item else None
        if self.path_weighting == "evidence":
            relations, shares = self._path_evidence.of_ways(ways, shown)
            groups, count = targets * len(self.relations) + relations, self.num_paths
            if sources is not None:
                groups, count = groups * sum(lengths) + sources, 1
            kept = paths.heaviest(groups, shares, count)
            weights = np.zeros((len(kept), len(self.relations)), dtype=np.float32)
            weights[np.arange(len(kept)), relations.take(kept)] = shares.take(kept)
        else:
            weights = paths.tfidf(ways.named(self._path_graph), len(self.relations))
            kept = paths.keep_selectable(weights, self.num_paths, sources, targets)
            weights = weights[kept]
        return ways.take(kept).named(self._path_graph), weights
