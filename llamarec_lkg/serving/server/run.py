"""Loading models and serving them in a process of its own."""

from __future__ import annotations

import gc
import importlib.util
import os
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ...utils.errors import LKGError
from ..recommender import Recommender
from .options import ServerOptions


API_KEY = "LLAMAREC_LKG_API_KEY"
SMALL_CATALOGUE = 100_000  # items
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def load_app(
    model: str,
    adapters: Mapping[str, str] | None = None,
    options: ServerOptions | None = None,
    *,
    device: str | None = None,
    revision: str | None = None,
) -> Any:
    """The ASGI application of saved models, each of which has ranked one list already. The API key is read from the
    environment, `LLAMAREC_LKG_API_KEY`; without one, everybody is answered. Without a language model torch computes in
    one thread from here on, unless `OMP_NUM_THREADS` says in how many.

    Args:
        model: folder or Hub id.
        adapters: further adapter repositories on the same backbone, by the name that paths call them.
        device: as for `Recommender.from_pretrained`.
        revision: of the model, branch, tag or commit.

    Raises:
        LKGError: the extra `serve` is not installed, or models do not load or do not belong together.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise LKGError(f'A server needs {missing}, not installed here: pip install "llamarec-lkg[serve]".')
    from .app import make_app

    key = os.environ.get(API_KEY)
    if key is not None and not key.strip():
        raise LKGError(f"{API_KEY} is set, and empty: everybody would be answered. Set a key, or unset it.")
    # OpenMP gives each thread that computes a team of its own; once they outnumber the cores, all sleep between steps.
    # Where one thread alone has ever computed, a language model takes two thirds of the time
    thread = ThreadPoolExecutor(1, thread_name_prefix="ranking")
    try:
        recommenders = thread.submit(_loaded, model, adapters or {}, device, revision).result()
    except BaseException:
        thread.shutdown(wait=False)
        raise
    return make_app(recommenders, options, api_key=key, thread=thread)


def _loaded(
    model: str, adapters: Mapping[str, str], device: str | None, revision: str | None
) -> dict[str, Recommender]:
    hub = {} if revision is None else {"revision": revision}
    first = Recommender.from_pretrained(model, device=device, **hub)
    recommenders = {first.adapter_name or "default": first}
    for name, place in adapters.items():
        if name in recommenders:
            raise LKGError(f"Two adapters are called {name!r}. Give the second another name.")
        recommenders[name] = first.load_adapter(place, name)
    if "OMP_NUM_THREADS" not in os.environ and all(map(_computes_little, recommenders.values())):
        torch.set_num_threads(1)  # to wake the others, which a request finds asleep, takes longer than what they do
    for recommender in recommenders.values():
        _warm_up(recommender)
    return recommenders


def check_place(host: str, port: int) -> None:
    """Before a model is loaded, which takes its time.

    Raises:
        LKGError: there is no such place, or somebody listens there.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: what has just ended is free
            tried.bind((host, port))
    except (OSError, OverflowError) as error:  # the second: of a number that no port has
        raise LKGError(f"Nothing can listen at {host}:{port} ({error}). Choose another port or host.") from None


def serve(app: Any, *, host: str, port: int, grace: float) -> None:
    """Answer until the process is told to end (SIGTERM, Ctrl-C); then no longer listen, answer what was taken, and
    return.

    Args:
        grace: seconds for that, at most.
    """
    import uvicorn

    gc.collect()
    gc.freeze()  # what is loaded stays: not to be gone through again and again while requests come and go
    # h11 bounds the headers of a request, which come before a key can be asked for; httptools takes any length
    uvicorn.run(app, host=host, port=port, http="h11", timeout_graceful_shutdown=int(grace) + 1, server_header=False)


def _computes_little(recommender: Recommender) -> bool:
    return recommender.model.language_model is None and len(recommender.item_ids) <= SMALL_CATALOGUE


def _warm_up(recommender: Recommender) -> None:
    """Rank a list, so that the first client does not wait for what is made once."""
    candidates = None if recommender.retriever is not None else recommender.item_ids[1:4]
    recommender.recommend(recommender.item_ids[:1], candidates=candidates)
