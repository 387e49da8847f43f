"""Calls that are answered at the wire: numbers in, numbers out, of a guest that is there for one call.

    Target, whose ──► Service.call_at_once ──► answer, or a problem
                        │ not loaded, or it takes long
                        └─► None: the application does it

Most requests are of this kind, and what they ask for takes less time than a task for them, a route and a
response object would. So it is done as soon as all of the request is here, before anything else runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import MutableMapping
from typing import Any, NamedTuple

from .._log import get_logger
from .invocation import SOON_S
from .problems import Internal, Problem
from .records import Principal
from .registry import LATEST
from .requests import arguments_of
from .service import Service
from .tokens import Scope
from .values import from_json, to_json

__all__ = ["Direct", "Target", "target_of"]

_encode = json.JSONEncoder().encode

_MOST_BYTES = 4 << 10
"""Of a body. What has more is worth a task. Arbitrary."""
_PATH = re.compile(r"/v1/plugins/([^/]+)/call/([^/]+)")
_QUERY = re.compile(rb"ref=([A-Za-z0-9._-]+)")
_FOR_THE_APPLICATION = frozenset(
    (b"sandhost-session", b"idempotency-key", b"expect", b"transfer-encoding")
)


class Target(NamedTuple):
    """What is to be called."""

    plugin: str
    ref: str
    function: str


def target_of(scope: MutableMapping[str, Any], deadline_s: float | None) -> Target | None:
    """Return what a request calls; None: it asks for something else, or for more."""
    found = _PATH.fullmatch(scope["path"])
    if found is None or scope["method"] != "POST":
        return None
    if deadline_s is not None and deadline_s < SOON_S:
        return None
    ref, query = LATEST, scope["query_string"]
    if query:
        asked = _QUERY.fullmatch(query)
        if asked is None:
            return None
        ref = asked[1].decode()
    if not _FOR_THE_APPLICATION.isdisjoint([name for name, _ in scope["headers"]]):
        return None
    return Target(found[1], ref, found[2])


class Direct:
    """Answers what it can, for a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def answer(
        self, target: Target, who: Principal, body: bytes | bytearray
    ) -> bytes | Problem | None:
        """Return the JSON of the results, or why there are none; None: ask the application."""
        if Scope.INVOKE not in who.scopes or len(body) > _MOST_BYTES:
            return None
        try:
            return self._service.call_at_once(
                who,
                *target,
                lambda type_: from_json(target.function, type_, arguments_of(bytes(body))),
                lambda type_, returned: _encode({"results": to_json(type_, returned)}).encode(),
            )
        except Problem as problem:
            return problem
        except Exception as error:  # noqa: BLE001 - ours, and no reason to end the connection
            get_logger("sandhost.serve").error("a call failed", exc_info=error)
            return Internal("something went wrong on our side")
