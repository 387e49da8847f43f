"""The service's OpenAPI 3.1 document: operations.py and shapes.py, written as that standard has it.

It names nothing of anybody, so it is served without a token; `sandhost serve --openapi` prints it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import __version__
from . import shapes
from .operations import OPERATIONS, Body, Operation, Parameter
from .problems import Problem
from .requests import route

__all__ = ["document", "openapi_route"]

_Json = dict[str, Any]
_SCHEMAS = "#/components/schemas/"
_PROBLEM_MEDIA_TYPE = "application/problem+json"
_COMES_AGAIN = {429, 503}
"""Statuses that may say when to come again."""

_TAGS = {
    "calls": "Call what a plugin exports.",
    "plugins": "Upload plugins, and say which version is meant.",
    "admin": "Tenants, tokens and the audit log: for the operator.",
    "operation": "Is it there, and what does it do.",
}
_NAME = {"type": "string", "pattern": shapes.NAME}
_PATH_PARAMETERS: Mapping[str, tuple[str, _Json]] = {
    "plugin": ("A plugin of the tenant's.", {**_NAME, "examples": ["sum"]}),
    "number": ("A version's.", {"type": "integer", "minimum": 1, "examples": [1]}),
    "alias": (
        "A name for a version.",
        {**_NAME, "not": {"pattern": "^(latest|[0-9]+)$"}, "examples": ["live"]},
    ),
    "function": (
        "What the plugin exports.",
        {"type": "string", "pattern": "^[^/]+$", "examples": ["add"]},
    ),
    "session": ("What `open_session` returned.", {"type": "string", "pattern": shapes.SESSION}),
    "tenant": ("Whose plugins are apart from all others'.", {**_NAME, "examples": ["acme"]}),
    "id": ("A token's, which is not the token.", {"type": "string", "pattern": shapes.ID}),
    "profile": ("Which profile.", {"enum": ["heap", "allocs", "guests"]}),
}
_HEADERS: Mapping[str, tuple[str, _Json]] = {
    "Location": ("Where the version is.", {"type": "string", "format": "uri-reference"}),
    "Retry-After": ("Seconds after which to come again.", {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("How to say who you are.", {"const": "Bearer"}),
}


def openapi_route(others: list[Route]) -> Route:
    """Return the route of the document of these routes and itself."""
    own = "GET", "/openapi.json"
    there = {(method, one.path) for one in others for method in one.methods or ()} | {own}

    @functools.cache
    def text() -> bytes:
        return json.dumps(
            document(it for it in OPERATIONS if (it.method, it.path) in there)
        ).encode()

    async def openapi(_request: Request) -> Response:
        return Response(text(), media_type="application/json")

    return route(*own, openapi)


def document(operations: Iterable[Operation] = OPERATIONS) -> _Json:
    """Return the document, of all operations or of those that a service has."""
    known = list(operations)
    paths: dict[str, _Json] = {}
    schemas: dict[str, _Json] = {}
    problems: dict[str, _Json] = {}
    _schema(shapes.Problem, schemas)
    for operation in known:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, schemas, problems
        )
    used = {tag: text for tag, text in _TAGS.items() if any(one.tag == tag for one in known)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sandhost",
            "version": __version__,
            "summary": "Plugins of many tenants, each call in a sandbox of its own.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": text} for tag, text in used.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": dict(sorted(problems.items())),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of a tenant's.",
                },
                "tokenInQuery": {"type": "apiKey", "in": "query", "name": "token"},
            },
        },
    }


def _operation(
    operation: Operation, schemas: dict[str, _Json], problems: dict[str, _Json]
) -> _Json:
    found: _Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": [],
        "responses": {
            **{str(status): _answer(it, schemas) for status, it in operation.answers.items()},
            **_problems(operation, problems),
        },
    }
    if operation.scope is not None:
        found["description"] = f"Needs a token with the scope `{operation.scope.value}`."
        found["security"] = [{"token": []}, *([{"tokenInQuery": []}] * operation.token_in_query)]
    parameters = [
        *map(_path_parameter, operation.path_parameters),
        *map(_parameter, operation.parameters),
    ]
    if parameters:
        found["parameters"] = parameters
    if operation.body is not None:
        shape = getattr(operation.body.shape, "__name__", "")
        found["requestBody"] = {
            "description": operation.body.text,
            "content": _content(operation.body, schemas),
            "required": bool(schemas.get(shape, {}).get("required")),  # an empty one is {}
        }
    return found


def _path_parameter(name: str) -> _Json:
    text, schema = _PATH_PARAMETERS[name]
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}


def _parameter(parameter: Parameter) -> _Json:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.text,
        "schema": dict(parameter.schema),
    }


def _answer(answer: Body, schemas: dict[str, _Json]) -> _Json:
    found: _Json = {"description": answer.text}
    if answer.headers:
        found["headers"] = {name: _header(name, required=True) for name in answer.headers}
    content = _content(answer, schemas)
    if content:
        found["content"] = content
    if answer.links:
        found["links"] = {
            name: {
                "operationId": name,
                "parameters": {to: f"$response.body#/{of}" for to, of in parameters.items()},
            }
            for name, parameters in answer.links.items()
        }
    return found


def _header(name: str, *, required: bool = False) -> _Json:
    text, schema = _HEADERS[name]
    return {"description": text, "required": required, "schema": schema}


def _content(body: Body, schemas: dict[str, _Json]) -> _Json:
    if body.shape is None and not body.media_type:
        return {}
    if body.shape is not None:
        return {body.media_type or "application/json": {"schema": _schema(body.shape, schemas)}}
    example = {} if body.example is None else {"example": body.example}
    return {body.media_type: example}


def _schema(shape: Any, schemas: dict[str, _Json]) -> _Json:
    """Return a reference to a shape's schema, which is added with all that it refers to."""
    if isinstance(shape, dict):
        return shape
    schema = TypeAdapter(shape).json_schema(
        ref_template=f"{_SCHEMAS}{{model}}", schema_generator=_Schemas
    )
    schemas.update(schema.pop("$defs", {}))
    schemas[shape.__name__] = schema
    return {"$ref": f"{_SCHEMAS}{shape.__name__}"}


class _Schemas(GenerateJsonSchema):
    """Without titles that only say a field's name again."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


# ---- problems ----


def _problems(operation: Operation, problems: dict[str, _Json]) -> _Json:
    """Return references by status to answers, which are added: a kind of them for each set of titles."""
    by_status: dict[int, dict[str, type[Problem]]] = {}
    for kind in operation.all_problems:
        by_status.setdefault(int(kind.status), {})[kind.__name__] = kind
    found = {}
    for status, kinds in sorted(by_status.items()):
        name = "Or".join(sorted(kinds))
        problems[name] = _problem(status, list(kinds.values()))
        found[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return found


def _problem(status: int, kinds: list[type[Problem]]) -> _Json:
    always = ["WWW-Authenticate"] if status == 401 else []
    sometimes = ["Retry-After"] if status in _COMES_AGAIN else []
    schema = {
        "allOf": [{"$ref": f"{_SCHEMAS}Problem"}],
        "properties": {
            "title": {"enum": [kind("").code for kind in kinds]},
            "status": {"const": status},
        },
    }
    return {
        "description": " Or: ".join(str(kind.__doc__).partition("\n")[0] for kind in kinds),
        "headers": {
            **{name: _header(name, required=True) for name in always},
            **{name: _header(name) for name in sometimes},
        },
        "content": {_PROBLEM_MEDIA_TYPE: {"schema": schema}},
    }
