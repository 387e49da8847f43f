"""Routes for who watches: /metrics for Prometheus, profiles for `go tool pprof`, and what `sandhost top --url` shows.

They name tenants and plugins of all, so they want an admin token, or the setting `observe_token`: as
`Authorization: Bearer`, or as `?token=`, since `go tool pprof` sends no header.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from http import HTTPStatus
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..observe.http import ROOT, handle
from ..observe.metrics import HostCollector
from ..observe.picture import VIEW_PATH
from .durations import BOUNDS_S
from .problems import Invalid, Missing
from .requests import Endpoint, peer_of, route, token_of
from .service import Service
from .threads import in_thread
from .tokens import Scope

__all__ = ["ServiceCollector", "observe_routes"]

_LE = (*map(str, BOUNDS_S), "+Inf")


def observe_routes(service: Service) -> list[Route]:
    """Return the routes that the settings want."""
    secret = service.settings.observe_token
    registry = CollectorRegistry()
    registry.register(HostCollector(service.host))
    registry.register(ServiceCollector(service))

    def guarded(read: Endpoint) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            token = (token_of(request) or request.query_params.get("token", "")).encode()
            known = secret is not None and hmac.compare_digest(
                token, secret.get_secret_value().encode()
            )
            if not known:
                service.who(token.decode(), Scope.ADMIN, peer_of(request))
            return await read(request)

        return endpoint

    async def metrics(_request: Request) -> Response:
        text = await in_thread(lambda: generate_latest(registry))
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def debug(request: Request) -> Response:
        path, query = request.url.path, dict(request.query_params)
        answer = await in_thread(lambda: handle(service.host, path, query))
        if answer.status != HTTPStatus.OK:
            kind = Missing if answer.status == HTTPStatus.NOT_FOUND else Invalid
            raise kind(answer.body.decode().strip())
        return Response(answer.body, answer.status, media_type=answer.content_type)

    routes = []
    if service.settings.metrics:
        routes.append(route("GET", "/metrics", guarded(metrics)))
    if service.settings.debug:
        paths = (VIEW_PATH, ROOT.rstrip("/"), ROOT, f"{ROOT}{{profile}}")
        routes += [route("GET", path, guarded(debug)) for path in paths]
    return routes


class ServiceCollector(Collector):
    """Who is let in, who is refused, who stays. Reads without a lock: figures may be a moment apart."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Return the names."""
        return list(self.collect())

    def collect(self) -> Iterator[Metric]:
        """Read the service."""
        admission, sessions = self._service.admission.stats(), self._service.sessions.stats()
        bags = self._service.bags.stats()
        for name, kind, value, text in (
            ("requests_admitted", "counter", admission.admitted, "Requests that were let in."),
            (
                "requests_at_once",
                "counter",
                admission.at_once,
                "Of those, calls that were answered at the wire, within a turn of the loop.",
            ),
            ("requests_in_flight", "gauge", admission.in_flight, "Requests in service."),
            ("requests_waiting", "gauge", admission.waiting, "Requests that wait for a place."),
            (
                "requests_limit",
                "gauge",
                admission.limit,
                "Requests that may be in service at once.",
            ),
            ("sessions_live", "gauge", sessions.live, "Sessions that are open."),
            ("sessions_in_use", "gauge", sessions.in_use, "Sessions with a call in them."),
            ("sessions_opened", "counter", sessions.opened, "Sessions that were opened."),
            (
                "sessions_idled",
                "counter",
                sessions.idled,
                "Sessions that ended since nobody used them.",
            ),
            ("bags_live", "gauge", bags.live, "Requests that are not over."),
            (
                "bags_failed",
                "counter",
                bags.failed,
                "Releases of a request's resources that failed.",
            ),
        ):
            metric = Metric(f"sandhost_serve_{name}", text, kind)
            metric.add_sample(
                f"{metric.name}_total" if kind == "counter" else metric.name, {}, value
            )
            yield metric
        refused = Metric(
            "sandhost_serve_requests_refused",
            "Requests that were not let in, by why: line, late, pressure, deadline.",
            "counter",
        )
        for why in ("line", "late", "pressure", "deadline"):
            refused.add_sample(f"{refused.name}_total", {"why": why}, admission.refused.get(why, 0))
        yield refused
        tokens = Metric(
            "sandhost_serve_tokens_refused",
            "Requests that were refused for their token: nobody's (unknown), or not for this (denied).",
            "counter",
        )
        for code in ("unknown", "denied"):
            tokens.add_sample(
                f"{tokens.name}_total", {"code": code}, self._service.refusals.total[code]
            )
        yield tokens
        yield self._durations()

    def _durations(self) -> Metric:
        metric = Metric(
            "sandhost_serve_request_seconds",
            "How long requests took from their first byte to the last of the answer, by door, kind of "
            'operation and class of status, "gone" where a client did not wait for one.',
            "histogram",
        )
        for taken in self._service.durations.taken():
            labels = {"door": taken.door, "operation": taken.operation, "status": taken.status}
            sums = list(accumulate(taken.counts))
            for bound, count in zip(_LE, sums):
                metric.add_sample(f"{metric.name}_bucket", {**labels, "le": bound}, count)
            metric.add_sample(f"{metric.name}_count", labels, sums[-1])
            metric.add_sample(f"{metric.name}_sum", labels, taken.sum_s)
        return metric
