"""What requests do, whichever door they came in by: upload, invoke, run, sessions.

    invoke ─► who may (token, scope) ─► what (version) ─► when (admission) ─► a fresh guest ─► result

Everything here runs on one event loop. What blocks goes to threads: hashing and writing uploads, compiling,
the registry's writes. A guest that computes goes to the host's workers by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from .._log import get_logger
from ..aio.pipe import Pipe
from ..errors import GuestExit, OutOfBounds, SandhostError
from ..host import Host
from ..limits import Limits
from ..modules.types import FuncType
from ..tenants import Tenant
from ..wasi import Wasi
from .blobs import Blobs
from .config import Settings
from .loaded import Loaded, Versions
from .overload import Admission
from .problems import (
    DeadlinePassed,
    Denied,
    GuestFailed,
    Invalid,
    TooLarge,
    Unavailable,
    problem_of,
)
from .registry import Principal, Registry, Version, VersionSettings
from .sessions import Sessions
from .tokens import Scope
from .values import from_json, to_json

__all__ = ["Invocation", "Service"]

_T = TypeVar("_T")
_LOGGER = "sandhost.serve"


class Invocation(NamedTuple):
    """Which function of which plugin, for whom, and until when."""

    who: Principal
    plugin: str
    ref: str
    function: str
    deadline_s: float | None = None
    """Seconds that are left; None: as long as the version's own limit allows."""
    session: str | None = None
    """Of a guest that was kept; None: a fresh one."""


class Service:
    """Plugins of many tenants, and what they are asked to do."""

    def __init__(self, settings: Settings, host: Host, registry: Registry, blobs: Blobs) -> None:
        self.settings, self.host, self.registry = settings, host, registry
        self.versions = Versions(host)
        self.admission = Admission(
            most=settings.concurrency, queue_s=settings.queue_s, level=self._pressure_level
        )
        self.sessions = Sessions(settings.session_idle_s, settings.sessions)
        self.stopping = False
        self._blobs = blobs
        self._background: set[asyncio.Task[None]] = set()
        self._answers: dict[
            tuple[str, str], asyncio.Future[Any]
        ] = {}  # to idempotency keys, on their way

    def _pressure_level(self) -> int:
        return int(self.host.pressure.level)

    # ---- beginning and end ----

    async def start(self) -> None:
        """Go on with what a stop has interrupted."""
        for version in self.registry.compiling():
            self._compile_later(version)

    async def drain(self) -> None:
        """Take nothing new, let what runs finish or cancel it, and close every guest."""
        self.stopping = True
        self.admission.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.admission.idle(), self.settings.drain_s)
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.sessions.aclose()

    # ---- who may ----

    def who(self, token: str | None, scope: Scope) -> Principal:
        """Return whose token it is.

        Raises:
            Unknown, Denied: nobody's; it is not for this.
        """
        principal = self.registry.who(token or "")
        if scope not in principal.scopes:
            raise Denied(f"the token has not the scope {scope.value!r}")
        return principal

    def tenant(self, name: str) -> Tenant:
        """Return the tenant as the host knows it, made with its quotas at its first request."""
        return self.host.tenant(name, **self.registry.quotas(name))

    # ---- plugins ----

    async def upload(
        self, who: Principal, plugin: str, chunks: AsyncIterator[bytes], settings: VersionSettings
    ) -> Version:
        """Keep a module as the plugin's next version, and compile it in the background.

        Raises:
            TooLarge: more bytes than are taken.
            TooMany: the tenant has as many versions as it may.
        """
        self._check_running()
        writer = await asyncio.to_thread(self._blobs.writer)
        try:
            async for chunk in chunks:
                if writer.size + len(chunk) > self.settings.upload_bytes:
                    raise TooLarge(
                        f"a module has at most {self.settings.upload_bytes:,} bytes here"
                    )
                await asyncio.to_thread(writer.write, chunk)
            digest, size = await asyncio.to_thread(writer.finish)
        finally:
            await asyncio.to_thread(writer.close)
        version = await asyncio.to_thread(
            self.registry.add_version, who, plugin, digest, size, settings
        )
        self._compile_later(version)
        return version

    def _compile_later(self, version: Version) -> None:
        task = asyncio.create_task(self._compile(version))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _compile(self, version: Version) -> None:
        try:
            await asyncio.to_thread(self._load, version)
        except Exception as error:  # noqa: BLE001 - a module may fail in any way; its owner is told
            problem = problem_of(error)
            if isinstance(error, SandhostError):
                get_logger(_LOGGER).info(
                    "a plugin cannot be loaded", version=version.id, why=str(error)
                )
            else:
                get_logger(_LOGGER).exception("a plugin could not be loaded", version=version.id)
            await asyncio.to_thread(self.registry.mark_failed, version, problem.detail)
        else:
            await asyncio.to_thread(self.registry.mark_ready, version)

    def _load(self, version: Version) -> Loaded:
        return self.versions.load(
            version.id,
            f"{version.tenant}/{version.plugin}@{version.number}",
            lambda: self._blobs.read(version.digest),
            version.settings.guest_limits(),
            version.settings.warm,
        )

    async def loaded(self, version: Version) -> Loaded:
        """Return a version that is ready, loading it if this process has not yet."""
        return self.versions.get(version.id) or await asyncio.to_thread(self._load, version)

    # ---- invoking ----

    async def call(self, what: Invocation, arguments: object) -> list[object]:
        """Call a function with numbers, in JSON."""

        async def work(guest: Any, loaded: Loaded) -> list[object]:
            signature = loaded.signature(what.function)
            values = from_json(what.function, signature, arguments)
            return to_json(signature, await guest.call_async(what.function, *values))

        return await self._with_guest(what, work)

    async def call_bytes(self, what: Invocation, body: bytes) -> bytes:
        """Call a function that takes and returns bytes.

        The guest exports `alloc(i32) -> i32`, and the function is `(i32, i32) -> i64`: address and
        length in, address << 32 | length out.
        """

        async def work(guest: Any, loaded: Loaded) -> bytes:
            _check_bytes_call(loaded, what.function)
            at = await guest.call_async("alloc", len(body)) & 0xFFFFFFFF
            guest.memory.write(at, body)
            packed = await guest.call_async(what.function, at, len(body))
            length = packed & 0xFFFFFFFF
            if length > self.settings.body_bytes:
                raise GuestFailed(f"the plugin returned {length:,} bytes, more than are taken")
            return bytes(guest.memory.read(packed >> 32 & 0xFFFFFFFF, length))

        return await self._with_guest(what, work)

    async def run(
        self, what: Invocation, argv: list[str], stdin: Pipe, stdout: Pipe, stderr: Pipe
    ) -> int:
        """Run a command of WASI between streams; return its exit status. Closes what it writes to."""

        async def work(_guest: Any, loaded: Loaded) -> int:
            if not loaded.is_command:
                raise Invalid("the plugin is no command: it has no _start, or uses no WASI")
            wasi = Wasi(argv=argv, stdin=stdin, stdout=stdout, stderr=stderr)
            limits = self._limits(what, loaded)
            async with loaded.spawn(what.who.tenant, limits, wasi) as guest:
                try:
                    await guest.call_async("_start")
                except GuestExit as error:
                    return error.status
                return 0

        try:
            return await self._admitted(what, lambda loaded: work(None, loaded))
        finally:
            await stdout.aclose()
            await stderr.aclose()

    async def _with_guest(
        self, what: Invocation, work: Callable[[Any, Loaded], Awaitable[_T]]
    ) -> _T:
        async def inner(loaded: Loaded) -> _T:
            if what.session is not None:
                async with self.sessions.use(what.session, what.who.tenant) as guest:
                    return await work(guest, loaded)
            limits = self._limits(what, loaded)
            async with loaded.spawn(what.who.tenant, limits) as guest:
                return await work(guest, loaded)

        return await self._admitted(what, inner)

    async def _admitted(self, what: Invocation, work: Callable[[Loaded], Awaitable[_T]]) -> _T:
        self._check_running()
        version = self.registry.resolve(what.who.tenant, what.plugin, what.ref)
        self.tenant(what.who.tenant)
        try:
            loaded = self.versions.get(version.id) or await self.loaded(version)
            async with self.admission.enter(what.who.tenant, what.deadline_s):
                return await work(loaded)
        except OutOfBounds as error:
            raise GuestFailed(f"the plugin gave an address outside its memory: {error}") from error
        except (SandhostError, TypeError, OverflowError) as error:
            raise problem_of(error) from error

    def _limits(self, what: Invocation, loaded: Loaded) -> Limits:
        if what.deadline_s is None:
            return loaded.limits
        if what.deadline_s <= 0:
            raise DeadlinePassed("the request's time was over before it could begin")
        own_s = loaded.limits.deadline_ns / 1e9
        left_s = min(what.deadline_s, own_s) if own_s else what.deadline_s
        return Limits(*loaded.limits._replace(deadline=left_s))

    # ---- sessions ----

    async def open_session(self, what: Invocation) -> str:
        """Start a guest that is kept between calls; return what to call it."""

        async def spawn(loaded: Loaded) -> str:
            async def start() -> Any:
                return await loaded.spawn(what.who.tenant, loaded.limits)

            return await self.sessions.open(what.who.tenant, start)

        return await self._admitted(what, spawn)

    async def close_session(self, who: Principal, session: str) -> None:
        """End it."""
        await self.sessions.close(session, who.tenant)

    # ---- retries ----

    async def once(
        self, who: Principal, key: str | None, request: bytes, work: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Do the work, unless it was done before under the tenant's key: then return what came of it.

        A second request that comes while the first is at work waits for it.

        Raises:
            Conflict: the key belongs to another request.
        """
        if key is None:
            return await work()
        digest = hashlib.sha256(request).digest()
        known = self.registry.recall(who.tenant, key, digest)
        if known is not None:
            return known
        at = (who.tenant, key)
        waiting = self._answers.get(at)
        if waiting is not None:
            await asyncio.wait([waiting])
            return await self.once(who, key, request, work)
        self._answers[at] = asyncio.get_running_loop().create_future()
        try:
            answer = await work()
            await asyncio.to_thread(self.registry.remember, who.tenant, key, digest, answer)
            return answer
        finally:
            self._answers.pop(at).set_result(None)

    def _check_running(self) -> None:
        if self.stopping:
            raise Unavailable("the service is stopping", retry_after_s=1.0)


def _check_bytes_call(loaded: Loaded, function: str) -> None:
    wanted = {
        "alloc": FuncType(("i32",), ("i32",)),
        function: FuncType(("i32", "i32"), ("i64",)),
    }
    for name, type_ in wanted.items():
        if loaded.signature(name) != type_:
            raise Invalid(f"to take bytes, {name[:100]} has to be {type_}")
