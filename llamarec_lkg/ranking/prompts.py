"""The prompt's text: its pieces, how they are tokenized, and the letters that stand for candidates.

Each line of the sketch is made of pieces that are tokenized on their own and cached:

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

import numpy as np

from ..data.schema import RankingExample, clean_text
from ..graph.paths import Paths
from ..utils.errors import LKGError
from .configuration_llamarec_lkg import LETTERS


INSTRUCTION = (
    "### Instruction: Given what the user liked, oldest first, choose what the user will like next. "
    "Answer with its letter."
)

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
        head: list[str | int] = [f"{INSTRUCTION}\n### History:\n"]
        tail: list[str | int] = ["### Paths:\n"] if self.num_paths else []
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
        """Candidates behind their letters, and the response cue."""
        pieces: list[str | int] = ["### Candidates:\n"]
        for letter, item in zip(LETTERS, example.candidates.tolist(), strict=False):
            pieces += [f"({letter})", item, "\n"]
        return [*pieces, RESPONSE_CUE]

    def path_pieces(self, example: RankingExample, found: Paths, row: int) -> list[str | int]:
        """One path as text, from an item of the history to the letter of a candidate."""
        source = int(self._shown(example)[found.source_index[row]])
        letter = LETTERS[found.target_index[row]]
        graph, length = self.knowledge_graph, int(found.lengths[row])
        relations = [sanitize(graph.relations[code // 2]) for code in found.edge_codes[row, :length]]
        names = [sanitize(str(graph.node_names[node])) for node in found.nodes[row, 1:length]] + [""]
        if self.path_style == "published":
            steps = [step for pair in zip(relations, names, strict=True) for step in pair if step]
            target = int(example.candidates[found.target_index[row]])
            return [source, f" -> {' -> '.join(steps)} -> ({letter})", target, " \n "]
        text = ""
        for previous, relation, name in zip([None, *relations[:-1]], relations, names, strict=True):
            text += "" if relation == previous else f" -> {relation}"  # there and back is named once
            text += f" {name}" if name else ""
        return [source, f"{text} -> ({letter})\n"]

    def empty_prompt_ids(self) -> list[int]:
        """The prompt without a history, paths or titles: what the letters alone make of themselves."""
        pieces = [f"{INSTRUCTION}\n### History:\n", "### Paths:\n" if self.num_paths else "", "### Candidates:\n"]
        pieces += [piece for letter in LETTERS[: self.num_candidates] for piece in (f"({letter})", "\n")]
        return self._join([*pieces, RESPONSE_CUE])

    def _join(self, pieces: Sequence[str | int]) -> list[int]:
        start = self._bos() if pieces and isinstance(pieces[0], str) and pieces[0].startswith(INSTRUCTION) else []
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
        cue = self._ids(RESPONSE_CUE)
        letters = []
        for letter in LETTERS[: self.num_candidates]:
            ids = self._ids(RESPONSE_CUE + letter)
            if ids[: len(cue)] != cue or len(ids) != len(cue) + 1:
                raise LKGError(
                    f"This tokenizer writes the response cue followed by {letter!r} as {list(ids)}, not as the cue's "
                    f"tokens {list(cue)} and one token a letter. Use another backbone, or fewer candidates."
                )
            letters.append(ids[-1])
        if len(set(letters)) < len(letters):
            raise LKGError("This tokenizer writes two letters as the same token. Use another backbone.")
        return letters

    def _shown(self, example: RankingExample) -> np.ndarray:
        return example.history[-self.history_length :] if self.history_length else example.history[:0]
