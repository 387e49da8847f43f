"""Problems as gRPC has them: a status with details, and a hint when to come again.

    grpc-status, grpc-message     the problem's code and its words
    grpc-status-details-bin       google.rpc.Status: ErrorInfo, and RetryInfo where there is a hint
    grpc-retry-pushback-ms        the hint for clients that retry by themselves

All of it together has to fit into 8 KiB of headers, which is what clients take; a client gets no status at
all of an answer with more. So texts are cut.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as Packed
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from ..._log import get_logger
from ..problems import Internal, problem_of
from ..problems import Problem as Wrong
from .messages import Problem

__all__ = ["as_message", "refuse"]

_DETAIL_BYTES = 1000
"""Up to three times as many in grpc-message, which is percent-encoded, and once in the details."""
_FACTS_BYTES = 1000


async def refuse(
    context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception
) -> NoReturn:
    """End an RPC with what is wrong."""
    if isinstance(error, grpc.aio.BaseError):  # of reading or writing: nobody is there any more
        raise asyncio.CancelledError from error
    problem = _problem(method, error)
    code, detail = grpc.StatusCode[problem.grpc], _cut(problem.detail, _DETAIL_BYTES)
    try:
        await context.abort(code, detail, _trailers(code, detail, problem))
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as gone:
        raise asyncio.CancelledError from gone


def as_message(method: str, error: Exception) -> Problem:
    """Return what is wrong with one call of many."""
    problem = _problem(method, error)
    return Problem(
        reason=_reason(problem),
        status=grpc.StatusCode[problem.grpc].value[0],
        detail=_cut(problem.detail, _DETAIL_BYTES),
        facts=_facts(problem),
        retry_after_s=problem.retry_after_s or 0.0,
    )


def _problem(method: str, error: Exception) -> Wrong:
    problem = problem_of(error)
    if isinstance(problem, Internal):
        get_logger("sandhost.serve").error("an RPC failed", method=method, exc_info=error)
    return problem


def _trailers(
    code: grpc.StatusCode, detail: str, problem: Wrong
) -> tuple[tuple[str, str | bytes], ...]:
    status = Status(code=code.value[0], message=detail)
    details = [ErrorInfo(reason=_reason(problem), domain="sandhost", metadata=_facts(problem))]
    trailers: list[tuple[str, str | bytes]] = []
    if problem.retry_after_s is not None:
        after_ms = math.ceil(problem.retry_after_s * 1000)
        details.append(RetryInfo())
        details[-1].retry_delay.FromMilliseconds(after_ms)
        trailers.append(("grpc-retry-pushback-ms", str(after_ms)))
    for one in details:
        packed = Packed()
        packed.Pack(one)
        status.details.append(packed)
    return (*trailers, ("grpc-status-details-bin", status.SerializeToString()))


def _reason(problem: Wrong) -> str:
    return problem.code.replace("-", "_").upper()


def _facts(problem: Wrong) -> dict[str, str]:
    facts, left = {}, _FACTS_BYTES
    for name, value in problem.facts.items():
        text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        facts[name] = _cut(text, left)
        left -= len(facts[name].encode())
    return facts


def _cut(text: str, most_bytes: int) -> str:
    whole = text.encode(errors="replace")
    return text if len(whole) <= most_bytes else whole[:most_bytes].decode(errors="ignore")
