"""Errors as problem details (RFC 9457, `application/problem+json`). None holds a stack trace or a path."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException


MEDIA_TYPE = "application/problem+json"
SHOWN = 300  # characters of what a client sent that come back to it
ERROR = {"type": "object", "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}}}
SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "what the status says"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what is wrong here, and what to do"},
        "errors": {
            "type": "array",
            "items": ERROR,
            "description": "the fields that are at fault, as JSON pointers into the body",
        },
    },
}


class Problem(HTTPException):
    """An answer that is an error.

    Args:
        field: of the body, that is at fault.
    """

    def __init__(self, status: int, detail: str, *, field: str = "", headers: Mapping[str, str] | None = None):
        super().__init__(status, detail, dict(headers or {}))
        self.errors = [{"pointer": f"#/{field}", "detail": detail}] if field else []


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a route documents the problems it may answer with."""
    content = {MEDIA_TYPE: {"schema": SCHEMA}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def respond_with_problems(app: FastAPI) -> None:
    """Let every error of an app be a problem."""
    app.add_exception_handler(HTTPException, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)


def _known(request: Request, error: HTTPException) -> Response:
    return _response(error.status_code, error.detail, getattr(error, "errors", ()), error.headers)


def _invalid(request: Request, error: RequestValidationError) -> Response:
    if isinstance(error.body, bytes):  # FastAPI has not read it: any web page may have its visitors send such bodies
        text = "A body is only read with the header `Content-Type: application/json`. Send it (curl: -H, or --json)."
        return _response(415, text)
    errors = [{"pointer": _pointer(one["loc"]), "detail": one["msg"]} for one in error.errors()]
    first = f"{errors[0]['pointer']}: {errors[0]['detail']}"
    pages = request.app.docs_url  # there are none where a key is needed
    return _response(
        422, f"The request does not fit: {first}." + (f" See {pages} for what does." if pages else ""), errors
    )


def _unexpected(request: Request, error: Exception) -> Response:
    return _response(500, "The server failed at this request. Its log says why; try again later.")


def _pointer(place: Sequence[str | int]) -> str:
    """A place in the body as a JSON pointer; of another part of a request its name. "body", n: the n-th character."""
    if place[0] != "body":
        return ".".join(map(str, place))
    if len(place) == 2 and isinstance(place[1], int):
        return "#"
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')[:SHOWN]}" for part in place[1:])


def _response(
    status: int,
    detail: str,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if errors:
        content["errors"] = list(errors)
    return Response(json.dumps(content), status, headers=headers, media_type=MEDIA_TYPE)
