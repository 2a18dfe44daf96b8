"""The prompt's text: its pieces, and how they are tokenized.

Each line of the sketches is made of pieces that are tokenized on their own and cached. With `readout="candidates"`:

    ### Instruction: ...            prefix
    ### History:
    Heat (1995)
    ### Next:
    Insider, The (1999)             one block a candidate, read at its last token: title,
     -> DIRECTED_BY Michael Mann -> Heat (1995)        and paths; the model chooses which

With `readout="letters"`, as published:

    ### Instruction: ...            prefix
    ### History:
    Heat (1995)
    ### Paths:
    Heat (1995) -> DIRECTED_BY Michael Mann -> (B)      one for each path; the model chooses which
    ### Candidates:                 suffix
    (A) Toy Story (1995)
    (B) Insider, The (1999)
    ### Response:
                                    <- the next token is the answer, a bare letter without a space before it

The letter rule: an answer is the single token that the tokenizer makes of a letter right after the line end of the
response cue. It is looked up once, by tokenizing cue and letter together, and checked to be one distinct token for
every letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np

from ..data.schema import RankingExample
from ..data.values import clean_text
from ..graph.paths import Paths
from ..graph.ranges import joined
from ..utils.errors import LKGError
from .configuration_llamarec_lkg import LETTERS
from .token_table import TokenTable


MOST_TEXTS = 1 << 20  # whose tokens are kept
_OPENING, _TITLE = "opening", "title"  # keys of the token table, of which those of paths are numbers
# by readout
INSTRUCTIONS = {
    "candidates": "### Instruction: Given what the user liked, oldest first, tell what the user will like next.",
    "letters": (
        "### Instruction: Given what the user liked, oldest first, choose what the user will like next. "
        "Answer with its letter."
    ),
}

NEXT_CUE = "### Next:\n"

RESPONSE_CUE = "### Response:\n"


def sanitize(text: str) -> str:
    """A title or name that cannot pass for a part of the prompt, such as line ends, "(B)", "### Response" or "->"."""
    text = re.sub(r"\(\s*([A-Za-z])\s*\)", r"[\1]", clean_text(text))
    return re.sub(r"-+>", "-", re.sub(r"#{2,}", "#", text))


class PromptMixin:
    """The text of a [`LlamaRecLKGProcessor`]'s prompts: pieces are entries of its `token_table`."""

    def _forget_texts(self) -> None:
        for name in ("_head", "_tail", "_letters"):
            self.__dict__.pop(name, None)
        self.token_table = TokenTable(self._tokenize)
        self._title_entries = np.full(len(self.titles) + 1, -1)  # of those that have been read

    @contextmanager
    def _own_texts(self) -> Iterator[None]:
        """Inside, no other thread touches the table, which starts anew where it has grown too large."""
        while True:
            table = self.token_table
            with table.lock:
                if table is self.token_table and len(table) <= MOST_TEXTS:
                    yield
                    return
                if table is self.token_table:
                    self._forget_texts()

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Text that looks like a special token is text."""
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def prefix_pieces(self, examples: Sequence[RankingExample], rooms: Sequence[int]) -> list[np.ndarray]:
        """Instruction and history of each example, whose oldest items are left out until the rest fits into its room,
        which is told in tokens."""
        head, tail = self._head, self._tail
        shown = [self._shown(example) for example in examples]
        lines = self._title_lines(joined(shown, np.int64))
        if self.path_style == "published":
            ratings = [
                one.ratings[len(one.ratings) - len(items) :] for one, items in zip(examples, shown, strict=True)
            ]
            stars = [self._entry(f" {rating:.1f} stars.\n") for rating in joined(ratings, np.float32)]
            begins = np.full(len(lines), self._entry("The user rated the"))
            lines = np.stack([begins, lines[:, 0], np.array(stars, dtype=np.int64)], axis=1)
        # tokens from each line on, to the end of all histories
        behind = np.append(self.token_table.lengths(lines).sum(axis=1)[::-1].cumsum()[::-1], 0)
        taken, end, pieces = len(self._opening_ids) + int(self.token_table.lengths(tail).sum()), 0, []
        for items, room in zip(shown, rooms, strict=True):
            if room < taken:
                raise LKGError(
                    f"max_length is {self.max_length} tokens, but instruction and candidates alone need "
                    f"{taken - room} more. Raise it, lower max_title_tokens, or rank fewer candidates at a time."
                )
            start, end = end, end + len(items)
            fits = np.count_nonzero(behind[start:end] - behind[end] <= room - taken)
            pieces.append(np.concatenate([head, lines[end - fits : end].ravel(), tail]))
        return pieces

    def prefix_lengths(self, examples: Sequence[RankingExample]) -> list[int]:
        """How many tokens instruction and history of each example take."""
        with self._own_texts():
            pieces = self.prefix_pieces(examples, [self.max_length] * len(examples))
            return [int(self.token_table.lengths(entries).sum()) for entries in pieces]

    def suffix_pieces(self, example: RankingExample) -> np.ndarray:
        """Candidates behind their letters, and the response cue; with letters."""
        count = len(example.candidates)
        letters, ends = self._letters[:count], np.full(count, self._entry("\n"))
        lines = np.stack([letters, self._titles(example.candidates), ends], axis=1)
        return np.concatenate([[self._entry("### Candidates:\n")], lines.ravel(), [self._entry(RESPONSE_CUE)]])

    def candidate_pieces(self, items: np.ndarray) -> np.ndarray:
        """The starts of candidates' blocks, which their paths follow, (C, 2)."""
        return self._title_lines(items)

    def candidates_room(self, example: RankingExample) -> int:
        """How many of `max_length` tokens the candidates take without their paths."""
        if self.readout == "letters":
            return int(self.token_table.lengths(self.suffix_pieces(example)).sum())
        if self.candidate_attention == "isolated":  # whatever its neighbours: a score must not depend on them
            return self.max_title_tokens + int(self.token_table.lengths(self._entry("\n")))
        return int(self.token_table.lengths(self.candidate_pieces(example.candidates)).sum())

    def path_pieces(self, examples: Sequence[RankingExample], found: Paths) -> np.ndarray:
        """Paths of all examples together (`paths.ways`) as text, (P, pieces): from a candidate, which each stands
        behind, to an item of the history; with letters from the item to the candidate's letter."""
        shown = joined([self._shown(example) for example in examples], np.int64)
        sources = self._titles(shown).take(found.source_index)
        if self.readout == "candidates":
            ways = self._path_entries(found, np.full(len(found), -1))
            return np.stack([ways, sources, np.full(len(found), self._entry("\n"))], axis=1)
        places = joined([np.arange(len(example.candidates)) for example in examples], np.int64)
        ways = self._path_entries(found, places.take(found.target_index))
        if self.path_style == "published":
            titles = self._titles(joined([example.candidates for example in examples], np.int64))
            ends = np.full(len(found), self._entry(" \n "))
            return np.stack([sources, ways, titles.take(found.target_index), ends], axis=1)
        return np.stack([sources, ways], axis=1)

    def _path_entries(self, found: Paths, letters: np.ndarray) -> np.ndarray:
        """What stands between the ends of paths, (P,). One or two edges and a letter (-1 for none) are told by one
        number, which is faster to look up than a tuple."""
        sizes = 2 * len(self.knowledge_graph.relations) + 1, self.knowledge_graph.num_nodes + 1, len(LETTERS) + 1
        (first, second), middle = found.edge_codes.T, np.where(found.lengths > 1, found.nodes[:, 1], -1)
        keys = first
        for size, values in zip(sizes, (second, middle, letters), strict=True):
            keys = keys * size + (values + 1)

        def text(key: int) -> str:
            values = []
            for size in sizes[::-1]:
                key, value = divmod(key, size)
                values.append(value - 1)
            letter, node, code = values
            steps = (key,) if code < 0 else (key, code, node)
            return self._path_text(steps, None if letter < 0 else letter)

        return self.token_table.entries(keys.tolist(), text)

    def _path_text(self, steps: Sequence[int], target: int | None) -> str:
        """What stands between the ends of a path: its relations, and the names between them.

        Args:
            steps: the codes of its L edges, then the L - 1 nodes between them.
            target: the candidate whose letter it leads to; None where it leads back to the history.
        """
        graph, length = self.knowledge_graph, (len(steps) + 1) // 2
        relations = [sanitize(graph.relations[code // 2]) for code in steps[:length]]
        names = [sanitize(str(graph.node_names[node])) for node in steps[length:]]
        if target is None:
            relations, names = relations[::-1], names[::-1]
        names = [*names, ""]
        end = " ->" if target is None else f" -> ({LETTERS[target]})"
        if self.path_style == "published":
            told = (step for pair in zip(relations, names, strict=True) for step in pair if step)
            return f" -> {' -> '.join(told)}{end}"
        return f"{_compact(relations, names)}{end}" + ("" if target is None else "\n")

    def _opening(self) -> str:
        return f"{INSTRUCTIONS[self.readout]}\n### History:\n"

    def _paths_cue(self) -> list[str]:
        return ["### Paths:\n"] if self.num_paths else []

    def empty_prompt_ids(self) -> list[int]:
        """The prompt without a history, paths or titles: with letters, what these alone make of themselves."""
        if self.readout == "candidates":
            return [*self._opening_ids, *self._ids(NEXT_CUE)]
        pieces = [*self._paths_cue(), "### Candidates:\n"]
        pieces += [piece for letter in LETTERS[: self.num_candidates] for piece in (f"({letter})", "\n")]
        return [*self._opening_ids, *(token for piece in [*pieces, RESPONSE_CUE] for token in self._ids(piece))]

    @cached_property
    def _opening_ids(self) -> list[int]:
        return [*self._bos(), *self._ids(self._opening())]

    @cached_property
    def _head(self) -> np.ndarray:
        """The opening, behind the beginning of the sequence where the tokenizer sets one."""
        return np.array([self.token_table.add(_OPENING, self._opening(), self._opening_ids)])

    @cached_property
    def _tail(self) -> np.ndarray:
        cues = [NEXT_CUE] if self.readout == "candidates" else self._paths_cue()
        return np.array([self._entry(cue) for cue in cues], dtype=np.int64)

    @cached_property
    def _letters(self) -> np.ndarray:
        return np.array([self._entry(f"({letter})") for letter in LETTERS])

    def _entry(self, text: str) -> int:
        return self.token_table.entry(text)

    def _titles(self, items: np.ndarray) -> np.ndarray:
        """The entries of items' titles, in the shape of `items`, (N,)."""
        found = self._title_entries.take(items)
        if len(new := items[found < 0]):
            entries = self.token_table.entries(
                [(_TITLE, item) for item in new.tolist()], self._title_text, self.max_title_tokens
            )
            self._title_entries[new] = entries
            found[found < 0] = entries
        return found

    def _title_lines(self, items: np.ndarray) -> np.ndarray:
        """A title and the end of its line for each item, (N, 2)."""
        lines = np.empty((len(items), 2), dtype=np.int64)
        lines[:, 0], lines[:, 1] = self._titles(items), self._entry("\n")
        return lines

    def _title_text(self, key: tuple[str, int]) -> str:
        return f" {sanitize(self.titles[key[1] - 1])}"

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.token_table.tokens(np.array([self._entry(text)])).tolist())

    def _bos(self) -> list[int]:
        """The beginning-of-sequence token where this tokenizer sets one by itself."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("x")["input_ids"][:1] == [bos] else []

    def _find_letters(self) -> list[int]:
        cue, found = self._ids(RESPONSE_CUE), []
        for letter in LETTERS[: self.num_candidates]:
            ids = self._ids(RESPONSE_CUE + letter)
            if ids[:-1] != cue or ids[-1] in (*found, self.tokenizer.unk_token_id):
                fewer = f"num_candidates={len(found)}, " if len(found) > 1 else ""
                raise LKGError(
                    "Behind letters each candidate needs one token of its own. This tokenizer writes the response cue "
                    f"as {list(cue)}, {letter!r} behind it as {list(ids)}, and the letters before this one as "
                    f"{found}. Use {fewer}readout='candidates', which needs no letters, or another backbone."
                )
            found.append(ids[-1])
        return found

    @cached_property
    def highest_token(self) -> int:
        """The highest token that a prompt can hold; of special ones, which text is never split into, it has two."""
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        own = {self.tokenizer.unk_token_id, *self._bos()} - {None}
        return max(own | set(self.tokenizer.get_vocab().values()) - special)

    def _shown(self, example: RankingExample) -> np.ndarray:
        count = self.history_length if example.shown is None else min(example.shown, self.history_length)
        return example.history[max(0, len(example.history) - count) :]


def _compact(relations: Sequence[str], names: Sequence[str]) -> str:
    """ " -> DIRECTED_BY Michael Mann": a relation there and back is named once."""
    text = ""
    for previous, relation, name in zip([None, *relations[:-1]], relations, names, strict=True):
        text += "" if relation == previous else f" -> {relation}"
        text += f" {name}" if name else ""
    return text
