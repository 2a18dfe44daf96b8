"""The language model of a ranker on another machine: any server of the OpenAI completions API with log-probabilities
reads the letters; preferences, graph and fusion stay here.

The server holds what `llamarec-lkg export --merged` wrote. It is sent prompts as tokens, so that it reads what the
ranker would have read, and answers with the log-probabilities of the next token.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

import torch

from ..ranking.merged import require_plain_model
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..utils.errors import LKGError


API_KEY = "LLAMAREC_LKG_REMOTE_API_KEY"  # of that server alone: what `serve` asks of clients has another name
LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
REMEDIES = {
    401: f"Set the server's key in the environment variable {API_KEY}.",
    404: "Give the address up to and with /v1, and the name that the model is served under.",
}
REMEDIES |= {403: REMEDIES[401], 405: REMEDIES[404]}
OTHER_REMEDY = (
    "A bound of the server may be the cause: of log-probabilities (top_logprobs here, --max-logprobs of vLLM), of the "
    "context, or of prompts in a request (batch_size here)."
)

logger = logging.getLogger(__name__)


class ServerError(LKGError):
    """A server did not answer as it should: no fault of what it was asked about."""


class RemoteScorer:
    """Asks a server what the language model says of candidates: vLLM, SGLang, or another with the same API.

    vLLM answers for the letters alone (`logprob_token_ids`). Servers that do not know this give the most likely
    tokens; of a letter that is not among them they say only that it is less likely than all of these. It is given the
    score of the least likely one, a bound from above, and counted: `bounded` of `letters` that were asked for.

    It may be shared by threads and by recommenders. The key of a server is taken from `LLAMAREC_LKG_REMOTE_API_KEY`.

    Args:
        base_url: with the version: "http://localhost:8000/v1".
        model: the name that the model is served under; by default the first that the server names.
        batch_size: prompts in one request.
        concurrency: requests under way at once, of all threads together.
        top_logprobs: how many log-probabilities to ask for; vLLM gives 20 unless `--max-logprobs` says otherwise.
        timeout: seconds that a connection, or an answer, may take.
        attempts: how often a request is made that meets no connection, a timeout, or a server that is busy (429) or
            in trouble (5xx); in between it waits as long as the server says (`Retry-After`), or twice as long each
            time, from half a second on.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        batch_size: int = 8,
        concurrency: int = 8,
        top_logprobs: int = 20,
        timeout: float = 60.0,
        attempts: int = 5,
    ):
        if importlib.util.find_spec("httpx") is None:
            raise LKGError('A remote scorer needs httpx, which is not installed: pip install "llamarec-lkg[remote]".')
        import httpx

        if not base_url.startswith(("http://", "https://")):
            raise LKGError(f"The server is {base_url!r}; its address is such as http://localhost:8000/v1.")
        self.base_url, self.batch_size, self.top_logprobs = base_url.rstrip("/"), batch_size, top_logprobs
        self.attempts, self.letters, self.bounded = attempts, 0, 0
        key = os.environ.get(API_KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise LKGError(f"{API_KEY} holds characters that no header can. Set it to the server's key.")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers, limits=httpx.Limits(max_connections=concurrency))
        self._lost: type[Exception] = httpx.TransportError
        if httpx.URL(base_url).userinfo:
            raise LKGError(f"The server's address holds a password, which errors would show. Set {API_KEY} instead.")
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="remote-scorer")
        self._model, self._lock = model, threading.Lock()
        self._priors: dict[tuple[int, ...], torch.Tensor] = {}

    check = staticmethod(require_plain_model)

    def scores(
        self, model: LlamaRecLKGForRanking, processor: LlamaRecLKGProcessor, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """What `forward` takes as `lm_scores` of a batch with prompts, (B, C) in float32, up to a constant for each
        row, which the fusion takes away; 0 where there is no candidate.

        Args:
            model: whose preferences choose the paths; its language model need not be there.

        Raises:
            ServerError: the server cannot be reached or refuses, or answers without log-probabilities.
        """
        prompt, _ = model.letter_prompts(batch)
        rows = [ids[mask].tolist() for ids, mask in zip(prompt.input_ids, prompt.attention_mask.bool(), strict=True)]
        mask = batch["candidate_mask"].cpu()
        letters = processor.letter_token_ids
        found = self._logprobs(rows, letters, mask.sum(1).tolist(), processor)
        if model.config.use_letter_prior:
            found = found - self._prior(processor)
        return found[:, : mask.shape[1]].masked_fill(~mask, 0.0)

    def _prior(self, processor: LlamaRecLKGProcessor) -> torch.Tensor:
        """What the letters are worth by themselves, (1, letters): asked once."""
        ids, letters = processor.empty_prompt_ids(), processor.letter_token_ids
        key = (*ids, *letters)
        if key not in self._priors:
            self._priors[key] = self._logprobs([ids], letters, [len(letters)], processor)
        return self._priors[key]

    def _logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        letters: Sequence[int],
        counts: Sequence[int],
        processor: LlamaRecLKGProcessor,
    ) -> torch.Tensor:
        """Log-probabilities of the letters (B, letters) after prompts of tokens, of the first `counts` of each row."""
        names = [(f"token_id:{letter}", processor.tokenizer.decode([letter])) for letter in letters]
        chunks = [list(prompts[start : start + self.batch_size]) for start in range(0, len(prompts), self.batch_size)]
        tops = [top for answer in self._pool.map(lambda some: self._complete(some, letters), chunks) for top in answer]
        if not any(name.startswith("token_id:") for top in tops for name in top):
            _require_own_texts(names, letters, processor)
        found, bounded = torch.zeros(len(prompts), len(letters)), 0
        for row, (top, count) in enumerate(zip(tops, counts, strict=True)):
            # a token that was drawn stands beside the most likely ones, and may be less likely than all others
            least = sorted(top.values(), reverse=True)[: self.top_logprobs][-1]
            for place, ways in enumerate(names[:count]):
                known = [top[name] for name in ways if name in top]
                found[row, place] = known[0] if known else least
                bounded += not known
        self._count(sum(counts), bounded)
        return found

    def _count(self, letters: int, bounded: int) -> None:
        with self._lock:
            before, self.letters, self.bounded = self.bounded, self.letters + letters, self.bounded + bounded
        # when they are ten times as many it is worth saying again
        if self.bounded and (not before or len(str(self.bounded)) > len(str(before))):
            logger.warning(
                f"{self.bounded:,} of {self.letters:,} letters so far were not among the {self.top_logprobs} "
                f"log-probabilities that {self.base_url} gives; they are given the least of those. Raise "
                "top_logprobs, and the server's bound on it."
            )

    # -- the server -------------------------------------------------------------------------------------------------

    @cached_property
    def model_name(self) -> str:
        if self._model is not None:
            return self._model
        try:
            return str(self._ask("GET", "models")["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ServerError(f"{self.base_url} names no model. Give the name that it is served under.") from None

    def _complete(self, prompts: Sequence[Sequence[int]], letters: Sequence[int]) -> list[dict[str, float]]:
        """For each prompt the tokens that may follow, by name, and their log-probabilities."""
        body = {
            "model": self.model_name,
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0,  # of the token that is drawn; log-probabilities are then nowhere divided by one
            "logprobs": self.top_logprobs,
            # of vLLM; others pass over what they do not know
            "logprob_token_ids": list(letters),
            "return_tokens_as_token_ids": True,
        }
        answer = self._ask("POST", "completions", body)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            tops = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
            tops = [{name: float(value) for name, value in top.items()} for top in tops]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            tops = []
        if len(tops) != len(prompts) or not all(tops):
            raise ServerError(
                f"{self.base_url} gave no log-probabilities with its completions. Serve the model with vLLM or "
                "SGLang, which give them; TGI does not."
            )
        return tops

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        url, wait = f"{self.base_url}/{path}", 0.5
        for attempt in range(1, self.attempts + 1):
            try:
                answer = self._client.request(method, url, json=body)
                if answer.is_success:
                    return answer.json()
            except self._lost as error:
                trouble, asked = f"could not be reached ({type(error).__name__}: {error})", None
            except ValueError as error:
                raise ServerError(f"{url} did not answer with json. {REMEDIES[404]}") from error
            else:
                trouble, asked = f"answered {answer.status_code}: {answer.text[:300]}", _retry_after(answer.headers)
                if answer.status_code != 429 and answer.status_code < 500:
                    raise ServerError(f"{url} {trouble}. {REMEDIES.get(answer.status_code, OTHER_REMEDY)}")
            if attempt < self.attempts:
                # those that were turned away together do not come again together
                time.sleep(min(LONGEST_WAIT, wait * random.uniform(0.5, 1) if asked is None else asked))
                wait *= 2
        raise ServerError(f"{url} {trouble}, {self.attempts} times. Start the server, or give it less at a time.")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: it gives them, or a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return None


def _require_own_texts(
    names: Sequence[tuple[str, str]], letters: Sequence[int], processor: LlamaRecLKGProcessor
) -> None:
    """For a server that names tokens by text: raise `ServerError` where a letter's text is another token's, too."""
    tokenizer = processor.tokenizer
    for (_, text), letter in zip(names, letters, strict=True):
        spaced = tokenizer.convert_tokens_to_ids(f"▁{text}")
        if spaced not in (None, tokenizer.unk_token_id, letter) and tokenizer.decode([spaced]) == text:
            raise ServerError(
                f"The server names tokens by their text, and with this tokenizer {text!r} is that of the tokens "
                f"{letter} and {spaced}. Serve the model with vLLM, which names them by number."
            )
