"""What an evaluation found of every target, kept beside the run: reports of several runs are made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..hub.layout import PRIVATE_FOLDER, ignore_private
from ..utils.files import atomic_file


EVALUATED_FILE = f"{PRIVATE_FOLDER}/evaluated.safetensors"
RANKS, RECOMMENDED, FOUND = "ranks/", "recommended/", "found"


@dataclass(frozen=True)
class Evaluated:
    """Every row's view of the same targets.

    Args:
        ranks: name of a row -> rank of each target (N,), `MISS` where it is not ranked.
        found (`bool`, (N,)): targets among the candidates.
        recommended: name of a row -> the best ten dense items (M, 10) of each list that was ranked, 0 where there are
            fewer.
    """

    ranks: Mapping[str, np.ndarray]
    found: np.ndarray
    recommended: Mapping[str, np.ndarray] = field(default_factory=dict)

    def save(self, folder: str | Path, key: str) -> None:
        """Write it to the run's `private/`, since each line is one user's; `key` says what it was made of."""
        (Path(folder) / PRIVATE_FOLDER).mkdir(parents=True, exist_ok=True)
        ignore_private(folder)
        arrays = {f"{RANKS}{name}": ranks for name, ranks in self.ranks.items()}
        arrays |= {f"{RECOMMENDED}{name}": items for name, items in self.recommended.items()}
        arrays[FOUND] = self.found
        facts = {"key": key, "rows": json.dumps(list(self.ranks))}  # the file itself keeps no order
        with atomic_file(Path(folder) / EVALUATED_FILE) as temporary:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, facts)

    @classmethod
    def load(cls, folder: str | Path, key: str) -> Evaluated | None:
        """What `save` wrote under this key; None where there is nothing or something else."""
        path = Path(folder) / EVALUATED_FILE
        if not path.exists():
            return None
        with safe_open(path, "np") as file:
            facts = file.metadata() or {}
            if facts.get("key") != key:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        rows = json.loads(facts["rows"])
        ranks, recommended = (
            {name: arrays[f"{kind}{name}"] for name in rows if f"{kind}{name}" in arrays}
            for kind in (RANKS, RECOMMENDED)
        )
        return cls(ranks, arrays[FOUND], recommended)
