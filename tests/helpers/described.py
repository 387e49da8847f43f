"""Holds answers of the service against its OpenAPI document: what is not described there is a failure."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from sandhost.serve.openapi import document

CONSOLE = "/console"
"""What is under it is between the console's page and the service of the same release: nobody else's."""


async def check_answer(response: httpx.Response) -> None:
    """Raise AssertionError unless the document has this answer; for httpx's `event_hooks`."""
    request = response.request
    if request.url.path.startswith(CONSOLE):
        return
    operations = _operations(request.url.raw_path.partition(b"?")[0].decode())
    operation = operations.get(request.method.lower())
    await response.aread()
    if response.status_code == 404 and "there is nothing here" in response.text:
        return  # no route: the service may be told to have some of them not
    place = f"{request.method} {request.url.path}: {response.status_code}"
    if operation is None:
        assert response.status_code == 405, place
        return
    answer = operation["responses"].get(str(int(response.status_code)))
    assert answer is not None, f"{place} is not described"
    answer = _resolved(answer)
    for name, header in answer.get("headers", {}).items():
        assert name in response.headers or not header.get("required"), f"{place} without {name}"
    media_type = response.headers.get("content-type", "").partition(";")[0]
    content = answer.get("content", {})
    described = content.get(media_type, content.get("*/*"))
    if described is None:
        assert not content, f"{place} is {media_type!r}"
        assert not response.content, f"{place} is described without a body"
    elif "schema" in described:
        validator = _validator(json.dumps(described["schema"]))
        errors = [error.message for error in validator.iter_errors(response.json())]
        assert not errors, f"{place}: {errors}"


@functools.cache
def _document() -> dict[str, Any]:
    return _closed(json.loads(json.dumps(document())))


def _closed(schema: Any) -> Any:
    """Return it with objects that have no fields but those that are described."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(one) for name, one in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


@functools.lru_cache(1000)
def _operations(path: str) -> dict[str, Any]:
    """Return the operations at a path, by their methods."""
    for template, operations in _document()["paths"].items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path):
            return operations
    return {}


def _resolved(answer: dict[str, Any]) -> dict[str, Any]:
    name = answer.get("$ref", "").rpartition("/")[2]
    return _document()["components"]["responses"][name] if name else answer


@functools.cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator({**json.loads(schema), "components": _document()["components"]})
