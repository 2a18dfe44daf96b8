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
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..data.schema import RankingExample
from ..data.values import clean_text
from ..graph.paths import Paths
from ..utils.errors import LKGError
from .configuration_llamarec_lkg import LETTERS


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


TOKEN_CACHE_SIZE = 200_000


def sanitize(text: str) -> str:
    """A title or name that cannot pass for a part of the prompt, such as line ends, "(B)", "### Response" or "->"."""
    text = re.sub(r"\(\s*([A-Za-z])\s*\)", r"[\1]", clean_text(text))
    return re.sub(r"-+>", "-", re.sub(r"#{2,}", "#", text))


class PromptMixin:
    """The text of a [`LlamaRecLKGProcessor`]'s prompts: pieces are strings, or an `int` for the title of that dense
    item."""

    def prefix_pieces(self, example: RankingExample, room: int) -> list[str | int]:
        """Instruction and history, whose oldest items are left out until the rest fits into `room` tokens."""
        head: list[str | int] = [self._opening()]
        tail: list[str | int] = [NEXT_CUE] if self.readout == "candidates" else self._paths_cue()
        lines: list[list[str | int]] = []
        shown = self._shown(example)
        for item, rating in zip(shown, example.ratings[len(example.ratings) - len(shown) :], strict=True):
            if self.path_style == "published":
                lines.append(["The user rated the", int(item), f" {rating:.1f} stars.\n"])
            else:
                lines.append([int(item), "\n"])
        room -= len(self._join([*head, *tail]))
        if room < 0:
            raise LKGError(
                f"max_length is {self.max_length} tokens, but instruction and candidates alone need {-room} more. "
                "Raise it, lower max_title_tokens, or rank fewer candidates at a time."
            )
        while sum(len(self._join(line)) for line in lines) > room:
            del lines[0]
        return [*head, *(piece for line in lines for piece in line), *tail]

    def suffix_pieces(self, example: RankingExample) -> list[str | int]:
        """Candidates behind their letters, and the response cue; with letters."""
        pieces: list[str | int] = ["### Candidates:\n"]
        for letter, item in zip(LETTERS, example.candidates.tolist(), strict=False):
            pieces += [f"({letter})", item, "\n"]
        return [*pieces, RESPONSE_CUE]

    def candidate_pieces(self, item: int) -> list[str | int]:
        """The start of a candidate's block, which its paths follow."""
        return [int(item), "\n"]

    def candidates_room(self, example: RankingExample) -> int:
        """How many of `max_length` tokens the candidates take without their paths."""
        if self.readout == "letters":
            return len(self._join(self.suffix_pieces(example)))
        if self.candidate_attention == "isolated":  # whatever its neighbours: a score must not depend on them
            return self.max_title_tokens + len(self._ids("\n"))
        return sum(len(self._join(self.candidate_pieces(item))) for item in example.candidates)

    def path_pieces(self, example: RankingExample, found: Paths, row: int) -> list[str | int]:
        """One path as text: from a candidate, which it stands behind, to an item of the history; with letters from the
        item to the candidate's letter."""
        if self.readout == "candidates":
            return self._path_back(example, found, row)
        source, relations, names = self._steps(example, found, row)
        names, letter = [*names, ""], LETTERS[found.target_index[row]]
        if self.path_style == "published":
            steps = [step for pair in zip(relations, names, strict=True) for step in pair if step]
            target = int(example.candidates[found.target_index[row]])
            return [source, f" -> {' -> '.join(steps)} -> ({letter})", target, " \n "]
        return [source, f"{_compact(relations, names)} -> ({letter})\n"]

    def _path_back(self, example: RankingExample, found: Paths, row: int) -> list[str | int]:
        source, relations, names = self._steps(example, found, row)
        relations, names = relations[::-1], [*names[::-1], ""]
        if self.path_style == "published":
            steps = [step for pair in zip(relations, names, strict=True) for step in pair if step]
            return [f" -> {' -> '.join(steps)} ->", source, "\n"]
        return [f"{_compact(relations, names)} ->", source, "\n"]

    def _steps(self, example: RankingExample, found: Paths, row: int) -> tuple[int, list[str], list[str]]:
        """A path's item of the history, its relations, and the names between them."""
        graph, length = self.knowledge_graph, int(found.lengths[row])
        relations = [sanitize(graph.relations[code // 2]) for code in found.edge_codes[row, :length]]
        names = [sanitize(str(graph.node_names[node])) for node in found.nodes[row, 1:length]]
        return int(self._shown(example)[found.source_index[row]]), relations, names

    def _opening(self) -> str:
        return f"{INSTRUCTIONS[self.readout]}\n### History:\n"

    def _paths_cue(self) -> list[str | int]:
        return ["### Paths:\n"] if self.num_paths else []

    def empty_prompt_ids(self) -> list[int]:
        """The prompt without a history, paths or titles: with letters, what these alone make of themselves."""
        if self.readout == "candidates":
            return self._join([self._opening(), NEXT_CUE])
        pieces = [self._opening(), *self._paths_cue(), "### Candidates:\n"]
        pieces += [piece for letter in LETTERS[: self.num_candidates] for piece in (f"({letter})", "\n")]
        return self._join([*pieces, RESPONSE_CUE])

    def _join(self, pieces: Sequence[str | int]) -> list[int]:
        start = self._bos() if pieces and pieces[0] == self._opening() else []
        return start + [token for piece in pieces for token in self._ids(piece)]

    def _ids(self, piece: str | int) -> tuple[int, ...]:
        """Tokens of a piece, each made once. Text that looks like a special token is text."""
        ids = self._token_cache.get(piece)
        if ids is None:
            text = piece if isinstance(piece, str) else f" {sanitize(self.titles[piece - 1])}"
            ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids = tuple(ids if isinstance(piece, str) else ids[: self.max_title_tokens])
            if len(self._token_cache) < TOKEN_CACHE_SIZE:
                self._token_cache[piece] = ids
        return ids

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
        return example.history[-self.history_length :] if self.history_length else example.history[:0]


def _compact(relations: Sequence[str], names: Sequence[str]) -> str:
    """ " -> DIRECTED_BY Michael Mann": a relation there and back is named once."""
    text = ""
    for previous, relation, name in zip([None, *relations[:-1]], relations, names, strict=True):
        text += "" if relation == previous else f" -> {relation}"
        text += f" {name}" if name else ""
    return text
