"""The application: routes, and what a request goes through between arriving and being answered."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.types import Receive

from ..recommender import Recommender
from .batching import Batcher, QueueFull
from .bodies import LimitBodies
from .messages import Answer, Item, example_of, request_models
from .metrics import CountRequests, Metrics
from .options import ServerOptions
from .problems import SHOWN, Problem, respond_with_problems, responses
from .work import Asked, check, item_of, key_of, rank_batch


HUNG_UP = 499  # nobody reads it; for counts
STUCK = 10  # times the time for an answer, that a batch takes before the server calls itself unhealthy
DESCRIPTION = """Ranks items for a history of items, with a language model and a knowledge graph, and says why.

Errors are problem details (RFC 9457). Where several adapters are loaded, `/adapters/{adapter}/...` asks one of them.
"""


def make_app(
    recommenders: Mapping[str, Recommender],
    options: ServerOptions | None = None,
    *,
    api_key: str | None = None,
    thread: ThreadPoolExecutor | None = None,
) -> FastAPI:
    """An ASGI application. One thread ranks for all; while it does, requests gather to the next batch.

    Args:
        recommenders: by the name that paths call them; the first also answers without a name. They may share a model
            (`Recommender.load_adapter`).
        api_key: what clients must send as `Authorization: Bearer ...`, except to /health and /ready; the pages of the
            documentation are left out then.
        thread: of one thread, which ranks and ends with the application; by default a new one.
    """
    return _Server(recommenders, options or ServerOptions(), api_key, thread).app()


class _Server:
    def __init__(
        self,
        recommenders: Mapping[str, Recommender],
        options: ServerOptions,
        api_key: str | None,
        thread: ThreadPoolExecutor | None,
    ):
        self.recommenders, self.options, self.api_key = recommenders, options, api_key
        self.default = next(iter(recommenders))
        self.metrics = Metrics(lambda: len(self.batcher.waiting))
        self.batcher = Batcher(
            partial(rank_batch, recommenders),
            size=options.batch_size,
            wait=options.batch_wait,
            queue_size=options.queue_size,
            told=self.metrics.batch,
            thread=thread,
        )

    def app(self) -> FastAPI:
        name = "llamarec-lkg"
        # with a key these pages, which show ids of the catalogue, are for nobody: a browser sends none
        pages = dict.fromkeys(("docs_url", "redoc_url", "openapi_url")) if self.api_key else {}
        app = FastAPI(title=name, version=version(name), description=DESCRIPTION, lifespan=self._lifespan, **pages)
        respond_with_problems(app)
        app.add_middleware(LimitBodies, max_body=self.options.max_body, timeout=self.options.timeout)
        app.add_middleware(CountRequests, metrics=self.metrics)
        known = [Depends(self._key_check())] if self.api_key else []
        recommend, rank = request_models(self.options, self.recommenders[self.default])
        wrong = responses(401, 404, 408, 413, 415, 422, 429, 500, 504)
        for path in ("", "/adapters/{adapter}"):
            add = partial(app.add_api_route, dependencies=known, responses=wrong)
            for name, model in (("recommend", recommend), ("rank", rank)):
                add(f"{path}/{name}", self._ranking(model), methods=["POST"], response_model=Answer, summary=name)
            add(f"{path}/items/{{item_id:path}}", self._item, response_model=Item, summary="item")
        app.add_api_route("/metrics", self._metrics, dependencies=known, response_class=Response)
        app.add_api_route("/health", self._health, responses=responses(503))
        app.add_api_route("/ready", self._ready, responses=responses(503))
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.batcher.start()
        yield
        await self.batcher.close()

    # -- routes -------------------------------------------------------------------------------------------------------

    def _ranking(self, model: type[BaseModel]) -> Callable[..., Any]:
        """The route of a body."""

        async def route(request: Request, body: Any, adapter: str | None = None) -> Response:
            name, recommender = self._find(adapter)
            sent = body.model_dump()
            candidates, k, num_reasons = sent.pop("candidates", None), sent.pop("k"), sent.pop("num_reasons")
            checked, left_out = check(recommender, candidates=candidates, **{"repeats": None, **sent})
            asked = Asked(checked, k or len(checked.candidates), num_reasons, left_out)
            return await self._answer(request, key_of(recommender, name, asked), asked)

        example = {"example": {"summary": "ids that this model knows", "value": example_of(model)}}
        route.__annotations__["body"] = Annotated[model, Body(openapi_examples=example)]
        route.__annotations__["request"], route.__annotations__["adapter"] = Request, str | None
        return route

    async def _answer(self, request: Request, key: Any, asked: Asked) -> Response:
        """Wait for the batch, the deadline, or the client to hang up."""
        try:
            answer = self.batcher.put(key, asked)
        except QueueFull as full:
            text = f"{self.options.queue_size} lists wait already. Try again in {full.retry_after} s."
            raise Problem(429, text, headers={"Retry-After": str(full.retry_after)}) from None
        gone = asyncio.ensure_future(_hung_up(request.receive))
        left = request.state.start + self.options.timeout - asyncio.get_running_loop().time()
        try:
            await asyncio.wait({answer, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return Response(answer.result(), media_type="application/json")
            if gone.done():
                return Response(status_code=HUNG_UP)
            raise Problem(504, f"There was no answer within {self.options.timeout:g} s. Try again later.")
        finally:
            gone.cancel()
            answer.cancel()

    async def _item(self, item_id: str, adapter: str | None = None) -> Item:
        found = item_of(self._find(adapter)[1], item_id)
        if found is None:
            raise Problem(404, f"The catalogue has no item {item_id[:SHOWN]!r}.")
        return found

    async def _metrics(self) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _health(self) -> dict[str, str]:
        """Whether the process is alive; if not, start it again."""
        if not self.batcher.running or self.batcher.busy_seconds > STUCK * self.options.timeout:
            raise Problem(503, "Nothing is ranked any more. Start the server again.")
        return {"status": "alive"}

    async def _ready(self) -> dict[str, str]:
        """Whether it should be sent requests."""
        if not self.batcher.running:
            raise Problem(503, "Nothing is ranked any more. Start the server again.")
        if len(self.batcher.waiting) >= self.options.queue_size:
            raise Problem(503, "As many lists wait as may.")
        return {"status": "ready"}

    # -- parts --------------------------------------------------------------------------------------------------------

    def _find(self, adapter: str | None) -> tuple[str, Recommender]:
        name = self.default if adapter is None else adapter
        if name not in self.recommenders:
            raise Problem(404, f"There is no adapter of this name; there are {list(self.recommenders)}.")
        return name, self.recommenders[name]

    def _key_check(self) -> Callable[..., Any]:
        wanted = self.api_key.encode()

        async def check_key(
            sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
        ) -> None:
            if sent is None or not hmac.compare_digest(sent.credentials.encode("latin-1"), wanted):
                text = "Send the API key of this server: `Authorization: Bearer KEY`."
                raise Problem(401, text, headers={"WWW-Authenticate": "Bearer"})

        return check_key


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
