"""What can be wrong with a request: one class each, with its status in HTTP and in gRPC.

The service raises them where it finds them, a client where it reads them in an answer.

The text of a problem goes to whoever made the request. It names nothing of other tenants: what a tenant
may not see does not exist for it (404), whether or not it does for others.
"""

from __future__ import annotations

from http import HTTPStatus

from ..errors import SandhostError

__all__ = [
    "BadPlugin",
    "Conflict",
    "DeadlinePassed",
    "Denied",
    "GuestFailed",
    "Internal",
    "Invalid",
    "Missing",
    "NotReady",
    "Problem",
    "TooLarge",
    "TooMany",
    "Unavailable",
    "Unknown",
    "WrongMethod",
    "kind_of",
]


class Problem(SandhostError):
    """A request that does not get what it asked for."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    grpc: str = "INTERNAL"
    """Name of a grpc.StatusCode."""
    code: str = "problem"
    """What programs compare; `title` in HTTP."""

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: float | None = None,
        facts: dict[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        """When it is worth to try again, in seconds."""
        self.facts = facts or {}
        """More for programs: a trap's code, a version's number."""

    def __init_subclass__(cls) -> None:
        """Name the problem as its class is named, in lower case with dashes."""
        name = cls.__name__
        cls.code = "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


class Unknown(Problem):
    """Nobody is known by the token, or there is none."""

    status, grpc = HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED"


class Denied(Problem):
    """The token lacks the scope."""

    status, grpc = HTTPStatus.FORBIDDEN, "PERMISSION_DENIED"


class Missing(Problem):
    """It does not exist for who asks."""

    status, grpc = HTTPStatus.NOT_FOUND, "NOT_FOUND"


class WrongMethod(Problem):
    """It is there, for requests by other methods."""

    status, grpc = HTTPStatus.METHOD_NOT_ALLOWED, "UNIMPLEMENTED"


class Invalid(Problem):
    """The request cannot be meant as it stands."""

    status, grpc = HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT"


class BadPlugin(Problem):
    """The module is not one that sandhost can load."""

    status, grpc = HTTPStatus.UNPROCESSABLE_ENTITY, "INVALID_ARGUMENT"


class TooLarge(Problem):
    """More bytes than are taken."""

    status, grpc = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "OUT_OF_RANGE"


class Conflict(Problem):
    """Somebody else was first, or it is in use."""

    status, grpc = HTTPStatus.CONFLICT, "FAILED_PRECONDITION"


class NotReady(Problem):
    """The version is still being compiled, or could not be."""

    status, grpc = HTTPStatus.CONFLICT, "FAILED_PRECONDITION"


class TooMany(Problem):
    """A limit of the tenant, or the service has more to do than it can; with a hint when to come again."""

    status, grpc = HTTPStatus.TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED"


class Unavailable(Problem):
    """The service is stopping, or as many are connected to it as may be."""

    status, grpc = HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"


class DeadlinePassed(Problem):
    """The request's time was over first."""

    status, grpc = HTTPStatus.GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED"


class GuestFailed(Problem):
    """The plugin trapped, exited, or reached a limit of its own."""

    status, grpc = HTTPStatus.UNPROCESSABLE_ENTITY, "ABORTED"


class Internal(Problem):
    """A fault of ours. The log has more; the requester gets no detail."""


_KINDS = {kind.code: kind for kind in Problem.__subclasses__()}


def kind_of(code: str) -> type[Problem]:
    """Return the class of a code; Problem itself for one that is not known here."""
    return _KINDS.get(code, Problem)
