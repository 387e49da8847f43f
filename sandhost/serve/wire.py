"""HTTP/1.1 as uvicorn speaks it, with bounds for the head of a request, and a gate behind it.

connected ──► its tenant's turn ──► head, body ──► gate ──► application, with a place
   ▲          see shares.py          │    │          └────► answered or refused, without having become a task
   │                                 │    └ comes slowly: application, without a place; see requests.py
   │                                 └ within _HEAD_S and _HEAD_BYTES, else the connection is closed
   └── next request: it may rest for uvicorn's timeout_keep_alive, where many are connected for _CROWDED_S
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .durations import GONE
from .gate import Gate, Place
from .inflow import PIECE_BYTES, Inflow
from .problems import Problem, TooMany, Unavailable
from .replies import Reply, refusal
from .shares import NOBODY
from .steps import Steps

__all__ = ["BoundedProtocol", "GatedProtocol"]

_Headed = tuple[RequestResponseCycle, Any, Place]
_Again = Callable[[bytes, tuple[str, int] | None], tuple[str, Reply | None]]

_HEAD_S = 10.0
_HEAD_BYTES = 64 << 10
_CROWDED_S = 5.0
_LAST_LOOK_S = 0.01
_LINGER_S = 1.0
"""Arbitrary."""
_READ_ON_BYTES = 64 << 10
"""Of a refused request's body, so that its connection may be kept. Whoever sends more has to connect again."""


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a time and a size for the head of a request."""

    _head_bytes = 0
    """Of the head that is being read."""
    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True
    between = True
    """No byte of the next request has come; the last one may still be at work."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self.end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head is too long."""
        if self._head_timer is not None:
            if self._head_bytes > _HEAD_BYTES:
                self.transport.close()
                return
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_timer is None and not self.between:
            self._begin_head()  # most heads come in one piece, and need no timer

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head, self.between = True, False

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self.end_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of it is here."""
        self.between = True
        super().on_message_complete()

    def _begin_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(_HEAD_S, self._give_up)

    def end_head(self) -> None:
        """The head has come in its time."""
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self.transport.close()


class GatedProtocol(BoundedProtocol):
    """A connection whose requests start when the gate says so."""

    gate: Gate
    """Set by whoever makes a class for a service."""
    _tenant = NOBODY
    """Whose its last request was."""
    flow: Inflow
    _ended = False
    """Whether nothing more will come."""
    _waiting: Place | None = None
    """Of the request that waits for its place."""
    _serving: RequestResponseCycle | None = None
    """What is at work, or waits for its place."""
    _headed: _Headed | None = None
    """What has its head here, and perhaps all of its body, while bytes are being read."""
    _idle_since_s = math.inf
    """Infinite while a request is at work."""
    _rested_long = False
    """Whether the last look said so."""
    _reading = False
    _lingering = False
    _received: bytes | None = None
    """What is being read, if nothing of it was."""
    _fresh: bytes | None = None
    """The same, while its first request is at its turn."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.flow = Inflow(transport, self.pipeline)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more. What has started gives its place back when its task ends."""
        if self._waiting is not None:
            self._waiting.leave()
            self._waiting = None
            if self._serving is not None:
                self.gate.over(self._serving.scope, GONE)  # type: ignore[arg-type] # a TypedDict
        # uvicorn tells the last cycle of a pipeline only, and what is at work would write to nowhere.
        if self._serving is not None and not self._serving.response_complete:
            self._serving.disconnected = True
            self._serving.message_event.set()
        super().connection_lost(exc)
        self._serving = None  # both refer to this: a cycle for each connection
        self.cycle = None  # type: ignore[assignment] # as uvicorn has it at first
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def data_received(self, data: bytes) -> None:
        """Read on, when it is its tenant's turn."""
        shares = self.gate.shares
        if not self.flow.holds:
            began_s = time.monotonic()
            if self._tenant == NOBODY and self.between:
                self._tenant = self.gate.tenant_of(data)
            if not shares.must_wait(self._tenant):
                self._receive(data[:PIECE_BYTES])
                data = data[PIECE_BYTES:]
            elif shares.has_time_to_refuse(self._tenant) and self._answers(
                data, self.gate.refuse_again
            ):
                data = b""
            shares.charge(self._tenant, time.monotonic() - began_s)
        if data:
            if not self.flow.holds:
                shares.wait(self._tenant, self._go_on)
            self.flow.hold(data)
            self._idle_since_s = math.inf

    def _go_on(self) -> None:
        """It is its tenant's turn."""
        piece = self.flow.take()
        if not piece or self.transport.is_closing():
            return  # it was needed before, or its client has gone
        try:
            self._receive(piece)
        except Exception:  # as the event loop would, if this came from there
            self.transport.abort()
            raise
        if self.flow.holds:
            self.gate.shares.wait(self._tenant, self._go_on)
        elif self._ended:
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override] # of a Protocol's, which uvicorn narrows
        """Answer what was asked for; the connection ends with that."""
        self._ended = True
        return self.flow.holds

    def shutdown(self) -> None:
        """Answer what was asked for, and end."""
        while self.flow.holds:
            self._go_on()
        super().shutdown()

    def _receive(self, data: bytes) -> None:
        """Read a request, unless it is known and can be answered at once."""
        if self._lingering or self._answers(data, self.gate.answer_again):
            return
        if self._rests:
            self._received = data
        self._reading = True
        super().data_received(data)
        self._reading = False
        self._received = self._fresh = None
        if self._headed is not None:
            self._start_slow(*self._take_headed())

    @property
    def _rests(self) -> bool:
        """Whether nothing of a request has come, and all before are answered."""
        return self.between and (self.cycle is None or self.cycle.response_complete)

    def _answers(self, data: bytes, again: _Again) -> bool:
        if not self._rests or not self._may_answer():
            return False
        tenant, answer = again(data, self.client)
        if answer is None:
            return False
        self._tenant = tenant
        self.end_head()
        self._answer(answer)
        return True

    def on_message_begin(self) -> None:
        """A request begins: the first of what is being read, or another one."""
        super().on_message_begin()
        self.gate.begin(self.scope)  # type: ignore[arg-type] # a TypedDict
        self._fresh, self._received = self._received, None

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self.flow.resume_reading()

    # uvicorn's own on_response_complete makes a timer for each request, and cancels that of the one before.

    def on_response_complete(self) -> None:
        """Go on with the next request, unless nobody reads the answers."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.write_paused:
            self.flow.pause_reading()
        else:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again_in(min(self.timeout_keep_alive, _CROWDED_S))

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since_s = math.inf

    def timeout_keep_alive_handler(self) -> None:
        """Close it, if it has rested for long."""
        self.timeout_keep_alive_task = None
        crowded = self.limit_concurrency and len(self.connections) > self.limit_concurrency / 2
        may_s = min(self.timeout_keep_alive, _CROWDED_S) if crowded else self.timeout_keep_alive
        left_s = self._idle_since_s + may_s - self.loop.time()
        # Twice, since this may be late, and the next request be there, unread: with that its client would get a reset.
        if left_s <= 0 and self._rested_long:
            self.transport.close()
            return
        self._rested_long = left_s <= 0
        if left_s < math.inf:  # else a request is at work, whose end looks after it
            self._look_again_in(_LAST_LOOK_S if left_s <= 0 else min(left_s, _CROWDED_S))

    def _look_again_in(self, seconds: float) -> None:
        handler = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(seconds, handler)

    def on_message_complete(self) -> None:
        """All of the request is here."""
        super().on_message_complete()
        if self._headed is not None:
            self._start_whole(*self._take_headed())

    def _take_headed(self) -> _Headed:
        assert self._headed is not None
        headed, self._headed = self._headed, None
        return headed

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._lingering:  # it came behind what ends the connection
            return
        self._serving = cycle
        if app is not self.app:  # uvicorn's own answer where as many are connected as may be
            full = Unavailable("as many are connected as may be", retry_after_s=_CROWDED_S)
            self._refuse(cycle, full, close=True)
            self.transport.close()  # not in its time: others want the place
            return
        try:
            self._tenant, place = self.gate.place_for(cycle.scope)  # type: ignore[arg-type] # a TypedDict
        except Problem as problem:
            self._tenant = NOBODY
            self._refuse(cycle, problem)
            return
        if place is None:
            self._begin(cycle, app)
        elif not cycle.more_body:  # it was in the pipeline
            self._start_whole(cycle, app, place)
        elif self._reading:
            self._headed = (cycle, app, place)
        else:
            self._start_slow(cycle, app, place)

    def _start_slow(self, cycle: RequestResponseCycle, app: Any, place: Place) -> None:
        """Start a request without a place, which it would keep from others while its body comes."""
        problem = place.turn_away()
        if problem is not None:
            self._refuse(cycle, problem)
        else:
            self._begin(cycle, app)

    def _start_whole(self, cycle: RequestResponseCycle, app: Any, place: Place) -> None:
        if self._may_answer():
            answer = self.gate.answer(place, cycle.body)
            if answer is not None:
                if cycle.keep_alive:
                    self._remember(cycle, place)
                cycle.response_started = cycle.response_complete = True
                self._answer(answer if cycle.keep_alive else answer.closing())
                return

        def settle(problem: Problem | None) -> None:
            self._waiting = None
            if problem is None:
                self._begin(cycle, app, place)
            else:
                self._refuse(cycle, problem)

        self._waiting = place
        place.ask(settle)

    def _begin(self, cycle: RequestResponseCycle, app: Any, place: Place | None = None) -> None:
        steps = Steps(cycle.run_asgi(app), self.gate.shares, self._tenant)
        task = self.loop.create_task(steps)
        self.tasks.add(task)

        def ended(_task: asyncio.Task[None]) -> None:
            self.tasks.discard(task)
            if place is not None:
                place.leave()

        task.add_done_callback(ended)

    def _refuse(
        self, cycle: RequestResponseCycle, problem: Problem, *, close: bool = False
    ) -> None:
        close = close or not cycle.keep_alive or _has_more(cycle)
        if not close and isinstance(problem, TooMany):
            self._remember(cycle, None)
        cycle.response_started = cycle.response_complete = True
        self.gate.over(cycle.scope, problem.status)  # type: ignore[arg-type] # a TypedDict
        self._answer(refusal(problem, close=close))

    def _remember(self, cycle: RequestResponseCycle, place: Place | None) -> None:
        if self._fresh is not None:
            target = None if place is None else place.target
            self.gate.remember(self._fresh, cycle.scope, target)  # type: ignore[arg-type]

    def _may_answer(self) -> bool:
        """Whether what comes on this connection may be answered here: its client reads, and uvicorn takes it."""
        return not self.flow.write_paused and not (
            self.limit_concurrency and len(self.connections) >= self.limit_concurrency
        )

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP, if anything may still be said."""
        if not self._lingering:
            super().send_400_response(msg)

    def _answer(self, answer: Reply) -> None:
        if self._lingering or self.transport.is_closing():
            return
        headers = self.gate.lines_of(self.server_state.default_headers)
        self.transport.write(answer.first + headers + answer.rest)
        if answer.close:
            self._linger()
        elif self.pipeline:
            # Not from here: there may be hundreds, each in the frame of the one before.
            self.gate.shares.wait(self._tenant, self.on_response_complete)
        else:
            self.on_response_complete()

    def _linger(self) -> None:
        """Close, but read for a while: whoever still sends would get a reset, and no answer."""
        self._lingering = True
        with contextlib.suppress(OSError):  # it has gone
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)


def _has_more(cycle: RequestResponseCycle) -> bool:
    """Whether more of the request may come than is worth reading."""
    scope = cycle.scope
    if cycle.waiting_for_100_continue or scope["method"] == "HEAD":
        return True
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return True
        if name == b"content-length" and (len(value) > 9 or int(value) > _READ_ON_BYTES):
            return True
    return False
