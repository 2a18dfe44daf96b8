"""Reading bodies: no more bytes than allowed, and no longer."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import Problem


class LimitBodies:
    """Refuses a body that is too large (413) or does not come in time (408). When a request began is noted in its
    state as `start`, in the time of the event loop."""

    def __init__(self, app: ASGIApp, max_body: int, timeout: float):
        self.app, self.max_body, self.timeout = app, max_body, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = asyncio.get_running_loop().time()
        scope.setdefault("state", {})["start"] = start
        size, whole = 0, False

        async def limited() -> Message:
            nonlocal size, whole
            if whole:  # then this waits for the client to hang up
                return await receive()
            try:
                async with asyncio.timeout_at(start + self.timeout):
                    message = await receive()
            except TimeoutError:
                raise Problem(408, f"The body did not come within {self.timeout:g} s.") from None
            size += len(message.get("body", b""))
            if size > self.max_body:
                text = f"The body has more than {self.max_body} bytes. Shorten history or candidates."
                raise Problem(413, text, headers={"Connection": "close"})
            whole = not message.get("more_body", False)
            return message

        await self.app(scope, limited, send)
