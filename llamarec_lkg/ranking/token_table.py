"""Tokens of texts, each made once and kept in one flat array, so that to write prompts is to gather."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import repeat
from threading import RLock
from typing import Any

import numpy as np
import torch


class TokenTable:
    """Texts and the tokens that a tokenizer makes of them. A text is known by its entry, a number from 0 on.

    It may be used by one thread at a time: whoever adds or gathers holds its `lock`.

    Args:
        tokenize: texts -> the tokens of each.
    """

    def __init__(self, tokenize: Callable[[list[str]], Iterable[Sequence[int]]]) -> None:
        self.lock = RLock()
        self._tokenize = tokenize
        self._entries: dict[Hashable, int] = {}
        self._texts: list[str | None] = []
        self._tokens = np.zeros(1 << 10, dtype=np.int32)
        self._starts = np.zeros(1 << 7, dtype=np.int64)
        self._lengths = np.zeros(1 << 7, dtype=np.int64)
        self._used = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=RLock())

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._entries)

    def entry(self, text: str) -> int:
        """The entry of a text."""
        known = self._entries.get(text)
        return int(self.entries([text])[0]) if known is None else known

    def entries(
        self, keys: Sequence[Hashable], text_of: Callable[[Any], str] = str, longest: int | None = None
    ) -> np.ndarray:
        """The entry of each key, `int64`, (N,).

        Args:
            keys: by which texts are known again.
            text_of: gives the text of a key that is new.
            longest: of a text so many tokens are kept, and the text itself is not.
        """
        found = np.fromiter(map(self._entries.get, keys, repeat(-1)), dtype=np.int64, count=len(keys))
        if len(unknown := np.flatnonzero(found < 0)):
            new = list(dict.fromkeys(keys[row] for row in unknown))
            texts = [text_of(key) for key in new]
            for key, text, tokens in zip(new, texts, self._tokenize(texts), strict=True):
                self.add(key, text if longest is None else None, tokens[:longest])
            found[unknown] = [self._entries[keys[row]] for row in unknown]
        return found

    def add(self, key: Hashable, text: str | None, tokens: Sequence[int]) -> int:
        """The entry of a new key whose tokens are known."""
        entry, end = len(self._entries), self._used + len(tokens)
        self._tokens = _with_room(self._tokens, end)
        self._starts, self._lengths = (_with_room(array, entry + 1) for array in (self._starts, self._lengths))
        self._tokens[self._used : end] = tokens
        self._starts[entry], self._lengths[entry] = self._used, len(tokens)
        self._used, self._entries[key] = end, entry
        self._texts.append(text)
        return entry

    def text(self, entry: int) -> str | None:
        """The text of an entry; None where it may have been cut."""
        return self._texts[entry]

    def lengths(self, entries: np.ndarray) -> np.ndarray:
        """How many tokens entries have, in their shape."""
        return self._lengths[entries]

    def tokens(self, entries: np.ndarray) -> np.ndarray:
        """The tokens of entries (N,), one after the other."""
        lengths = self._lengths[entries]
        ends = np.cumsum(lengths)
        places = np.repeat(self._starts[entries] - ends + lengths, lengths)
        return self._tokens[places + np.arange(len(places))]

    def padded(
        self, entries: np.ndarray, counts: Sequence[int] | np.ndarray, *, left: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of entries as token ids and mask, `long`, (B, longest); padding is id 0 under mask 0.

        Args:
            entries (N,): of all rows, one behind the other.
            counts (B,): how many each row has.
        """
        ends = np.append(0, self._lengths[entries]).cumsum()[np.cumsum(counts)]
        lengths = np.diff(ends, prepend=0)
        width = max(1, int(lengths.max(initial=0)))
        places = np.arange(width)
        mask = places >= width - lengths[:, None] if left else places < lengths[:, None]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = self.tokens(entries)
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def _with_room(array: np.ndarray, size: int) -> np.ndarray:
    if size <= len(array):
        return array
    return np.concatenate([array, np.zeros(max(size, 2 * len(array)) - len(array), dtype=array.dtype)])
