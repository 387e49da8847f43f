"""What requests do, whichever door they came in by: upload, invoke, run, sessions.

    invoke ─► who may (token, scope) ─► what (version) ─► when (admission) ─► a fresh guest ─► result

Everything here runs on one event loop. What blocks goes to threads: hashing and writing uploads, compiling,
the registry's writes. A guest that computes goes to the host's workers by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from ..aio.pipe import Pipe
from ..errors import GuestExit, SandhostError
from ..guest import Guest
from ..host import Host
from ..memory import GuestMemory
from ..modules.types import FuncType
from ..tenants import Quotas, Tenant
from ..wasi import Wasi
from .background import in_background
from .bag import Bags
from .bodies import Bodies
from .compiler import Compilers
from .config import Settings
from .deployments import Deployments
from .durations import Durations
from .invocation import Answering, Invocation, check_bytes_call
from .loaded import LONG, Loaded, Versions, origin_of, signature
from .overload import Admission
from .problems import (
    Conflict,
    Denied,
    GuestFailed,
    Invalid,
    Missing,
    Unavailable,
    Unknown,
    problem_of,
)
from .refusals import Refusal, Refusals
from .registry import Principal, Registry, Version, VersionSettings
from .retries import Retries
from .sessions import Sessions
from .shares import Terms
from .threads import in_thread
from .tokens import Scope
from .upkeep import Upkeep
from .uploads import receive
from .values import from_json, to_json

__all__ = ["Service"]

_T = TypeVar("_T")
_STOPPED_RETRY_S = 1.0
_NO_MORE_READY = 3  # the level of pressure from which on nobody starts guests


class Service:
    """Plugins of many tenants, and what they are asked to do. Made and used on one event loop."""

    def __init__(
        self, settings: Settings, host: Host, registry: Registry, compilers: Compilers
    ) -> None:
        self.settings, self.host, self.registry = settings, host, registry
        self.versions = Versions(host, warm_s=settings.compile_time)
        self.deployments = Deployments(settings, registry, self.versions, compilers, self.tenant)
        self.admission = Admission(
            wait_s=settings.queue_time,
            pressure=lambda: int(host.pressure.level),
            terms=self._terms,
        )
        self.sessions = Sessions(settings.session_idle)
        self.bags = Bags()
        """What each request holds; all doors share it."""
        self.bodies = Bodies(settings.body_limit, settings.queue_time)
        self.refusals = Refusals()
        self._upkeep = Upkeep(registry, self.refusals)
        self.durations = Durations()
        self.retries = Retries(registry.answers)
        self.stopping = False
        self._tenants: dict[str, Tenant] = {}
        self._background: set[asyncio.Future[None]] = set()

    # ---- beginning and end ----

    def start(self) -> None:
        """Go on with what a stop has interrupted."""
        self._in_background(self.sessions.run())
        self._in_background(self._upkeep.sweep_again())
        self._in_background(self._upkeep.tell_again())
        self.deployments.start()

    @property
    def ready(self) -> bool:
        """Whether it takes requests: it is not stopping, and has memory for them."""
        return not self.stopping and self.host.pressure.level < _NO_MORE_READY

    def stop(self) -> None:
        """Take nothing new. What runs goes on."""
        self.stopping = True

    async def drain(self) -> None:
        """Close every guest; for after the doors are closed."""
        self.stop()
        await self.sessions.drain()
        await self.bags.idle()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._upkeep.tell()
        await self.deployments.close()
        self.bodies.close()

    def _in_background(self, work: Awaitable[None]) -> None:
        task = in_background(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _check_running(self) -> None:
        if self.stopping:
            raise Unavailable("the service is stopping", retry_after_s=_STOPPED_RETRY_S)

    # ---- who may ----

    def who(
        self, token: str | None, scope: Scope, peer: str = "", or_scope: Scope | None = None
    ) -> Principal:
        """Return whose token it is.

        Args:
            or_scope: another scope that will do.
            peer: address of the client, for the audit log.

        Raises:
            Unknown, Denied: nobody's; it is not for this.
        """
        principal = self.whose(token, peer)
        if scope not in principal.scopes and or_scope not in principal.scopes:
            nor = "" if or_scope is None else f", nor {or_scope.value!r}"
            denied = Denied(f"the token has not the scope {scope.value!r}{nor}")
            self.refusals.note(Refusal(denied.code, principal.tenant, principal.token_id, peer))
            raise denied
        return principal

    def whose(self, token: str | None, peer: str = "") -> Principal:
        """Return whose token it is, whatever it is for.

        Raises:
            Unknown: nobody's.
        """
        try:
            return self.registry.tokens.who(token or "")
        except Unknown as problem:
            once = self.registry.tokens.known_once(token or "")
            self.refusals.note(Refusal(problem.code, "", once, peer))
            raise

    def tenant(self, name: str) -> Tenant:
        """Return the tenant as the host knows it, made at its first request."""
        tenant = self._tenants.get(name)
        if tenant is None:
            quotas = self.settings.quotas(self.registry.tenants.find(name).quotas)
            tenant = self._tenants[name] = self.host.tenant(name)
            tenant.set_quotas(
                quotas
            )  # the host may know it: of before it was removed and came again
        return tenant

    def _terms(self, name: str) -> Terms:
        """Return what a tenant may have of the loop; of one that was removed, and of nobody, what anybody has."""
        if name not in self.registry.tenants:
            return Terms()
        tenant = self.tenant(name)
        return Terms(tenant.weight, tenant.quotas.cpus)

    async def put_tenant(self, who: Principal, name: str, quotas: Quotas) -> bool:
        """Add a tenant, or have these quotas hold in place of those it had, from now on; tell whether it is new."""

        def put() -> bool:
            try:
                self.registry.tenants.add(name, quotas)
            except Conflict:
                self.registry.tenants.update(name, quotas)
                return False
            return True

        try:
            return await self.change(who, "tenant.put", name, put)
        finally:  # also when nobody waits for the answer any more
            known = self._tenants.get(name)
            if known is not None:
                with contextlib.suppress(Missing):  # removed meanwhile
                    known.set_quotas(self.settings.quotas(self.registry.tenants.find(name).quotas))

    async def remove_tenant(self, who: Principal, name: str) -> None:
        """Remove a tenant with all that is its own. Its sessions end; a call that is under way ends by itself.

        Raises:
            Conflict: it is the operator, or the tenant whose token asks for it.
            Missing: there is none.
        """

        def remove() -> None:
            if name == who.tenant:  # nobody would be left to undo it
                raise Conflict("the tenant whose token asks for it is not removed")
            self.registry.remove_tenant(name)

        try:
            await self.change(who, "tenant.remove", name, remove)
        finally:  # also when nobody waits for the answer any more
            if name not in self.registry.tenants:
                self._in_background(self._forget(name))

    async def remove_plugin(self, who: Principal, plugin: str) -> None:
        """Remove a plugin with all versions and aliases. Its sessions end, calls end by themselves."""
        tenant = who.tenant
        try:
            await self.change(
                who, "plugin.remove", plugin, lambda: self.registry.plugins.remove(tenant, plugin)
            )
        finally:
            if not self.registry.plugins.has(tenant, plugin):
                self._in_background(self._forget(tenant, plugin))

    async def _forget(self, tenant: str, plugin: str | None = None) -> None:
        """Let go of what was removed."""
        begins = f"{tenant}/" if plugin is None else origin_of(tenant, plugin)
        if plugin is None:
            self._tenants.pop(tenant, None)
        self.versions.drop_all(tenant, plugin)
        await self.sessions.close_all(tenant, lambda guest: guest.plugin.name.startswith(begins))
        await self._upkeep.sweep()

    async def change(self, who: Principal, action: str, subject: str, work: Callable[[], _T]) -> _T:
        """Have the registry changed by `work`, and the audit log say so, or that it was refused."""
        return await in_thread(lambda: self.registry.audit.change(who, action, subject, work))

    # ---- plugins ----

    async def receive(self, who: Principal, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        """Keep a module, and return its digest and size. It stays if a version names it within the hour.

        Raises:
            BadPlugin: no module begins so.
            TooLarge: more bytes than are taken.
            TooMany: as many modules of the tenant wait to be compiled as may; nothing is taken.
        """
        self._check_running()
        self.deployments.check_room(who.tenant)
        return await receive(self.registry.blobs, self.settings.upload_limit, chunks)

    async def deploy(
        self, who: Principal, plugin: str, module: tuple[str, int], settings: VersionSettings
    ) -> Version:
        """Make a module the plugin's next version, and compile it in the background.

        Args:
            module: what `receive` returned.

        Raises:
            TooMany: the tenant has as many versions as it may, or as many that wait to be compiled.
        """
        self.deployments.check_room(who.tenant)
        digest, size = module
        version = await self.change(
            who,
            "version.add",
            plugin,
            lambda: self.registry.plugins.add_version(who.tenant, plugin, digest, size, settings),
        )
        self.deployments.begin(version)
        return version

    async def remove(self, who: Principal, plugin: str, number: int) -> None:
        """Remove a version that no alias names."""
        version = self.registry.plugins.version(who.tenant, plugin, number)
        await self.change(
            who,
            "version.remove",
            f"{plugin}/{number}",
            lambda: self.registry.plugins.remove_version(who.tenant, plugin, number),
        )
        self.versions.drop(version)

    async def loaded(self, version: Version) -> Loaded:
        """Return a version that is ready, loading it if this process has not yet."""
        return self.versions.get(version) or await self.deployments.load(version)

    # ---- invoking ----

    async def call(self, what: Invocation, arguments: object) -> list[object]:
        """Call a function with numbers, in JSON."""
        return await self.call_with(
            what, lambda type_: from_json(what.function, type_, arguments), to_json
        )

    async def call_with(
        self,
        what: Invocation,
        arguments: Callable[[FuncType], Sequence[int | float | bytes]],
        results: Callable[[FuncType, object], _T],
    ) -> _T:
        """Call a function with numbers.

        Args:
            arguments: returns what `Guest.call` takes, or raises Invalid.
            results: makes the answer of what it returns.
        """
        if what.session is not None:
            async with self._guest_of(what) as guest:
                type_ = signature(guest.plugin, what.function)
                returned = await guest.call_async(what.function, *arguments(type_))
                return results(type_, returned)
        with self._answering(what):
            loaded, tenant = await self._wanted(what)
            async with self._place(what):
                type_ = signature(loaded.plugin, what.function)
                values = list(arguments(type_))
                return results(type_, await loaded.call(tenant, what.function, values))

    def call_at_once(
        self,
        who: Principal,
        plugin: str,
        ref: str,
        function: str,
        arguments: Callable[[FuncType], Sequence[int | float | bytes]],
        results: Callable[[FuncType, object], _T],
    ) -> _T | None:
        """Call a function of a fresh guest with numbers, before anything else runs.

        Returns:
            What `results` makes; None: nothing was done, and `call_with` does it, since the version is not
            loaded, or the call takes long.

        Raises:
            Problem: it is refused, or has failed.
        """
        self._check_running()
        loaded = self.versions.get(self.registry.plugins.resolve(who.tenant, plugin, ref))
        if loaded is None or loaded.wasi is not None:
            return None
        problem = self.admission.at_once(who.tenant)
        if problem is not None:
            try:
                raise problem
            finally:
                del problem  # its traceback has this frame: a cycle for each refusal
        try:
            type_ = signature(loaded.plugin, function)
            values = arguments(type_)
            returned = loaded.call_at_once(self.tenant(who.tenant), function, values)
        except (SandhostError, TypeError, OverflowError) as error:
            raise problem_of(error) from error
        if returned is LONG:
            self.admission.was_long()
            return None
        return results(type_, returned)

    def check_bytes(self, what: Invocation) -> None:
        """Raise what a call with bytes would raise whatever these are, as far as it is known now."""
        if what.session is None:
            version = self.registry.plugins.resolve(what.who.tenant, what.plugin, what.ref)
            loaded = self.versions.get(version)
            if loaded is not None:
                check_bytes_call(loaded.plugin, what.function)

    async def call_bytes(self, what: Invocation, given: bytes) -> bytes:
        """Call a function that takes and returns bytes.

        The guest exports `alloc(i32) -> i32`, and the function is `(i32, i32) -> i64`: address and
        length in, address << 32 | length out.
        """

        async def read(memory: GuestMemory, address: int, length: int) -> bytes:
            return memory.read(address, length)

        return await self.call_buffer(what, given, read)

    async def call_buffer(
        self,
        what: Invocation,
        given: bytes | memoryview,
        take: Callable[[GuestMemory, int, int], Awaitable[_T]],
    ) -> _T:
        """Call a function that takes and returns bytes, and return what `take` does with the result.

        Args:
            take: takes the result out of the guest's memory, by address and length.
        """
        async with self._guest_of(what) as guest:
            check_bytes_call(guest.plugin, what.function)
            at = await guest.call_async("alloc", len(given)) & 0xFFFFFFFF
            guest.memory.write(at, given)
            packed = await guest.call_async(what.function, at, len(given))
            length = packed & 0xFFFFFFFF
            if length > self.settings.body_limit:
                raise GuestFailed(f"the plugin returned {length:,} bytes, more than are taken")
            return await take(guest.memory, packed >> 32 & 0xFFFFFFFF, length)

    async def run(
        self,
        what: Invocation,
        argv: list[str],
        streams: tuple[Pipe, Pipe, Pipe],
        begun: Callable[[], object],
    ) -> int:
        """Run a command of WASI between streams; return its exit status.

        Args:
            streams: standard input, output and error; the latter two are closed at its end.
            begun: called when it has been let in, and its guest is there.
        """
        stdin, stdout, stderr = streams
        try:
            with self._answering(what):
                loaded, tenant = await self._wanted(what)
                if not loaded.is_command:
                    raise Invalid("the plugin is no command: it has no _start, or uses no WASI")
                argv = [what.plugin, *loaded.grants.argv, *argv]
                wasi = Wasi(argv, dict(loaded.grants.env), stdin, stdout, stderr)
                async with (
                    self._place(what),
                    loaded.spawn(tenant, wasi) as guest,
                ):
                    begun()
                    try:
                        await guest.call_async("_start")
                    except GuestExit as error:
                        return error.status
                    return 0
        finally:
            await stdout.aclose()
            await stderr.aclose()

    @contextlib.asynccontextmanager
    async def _guest_of(self, what: Invocation) -> AsyncIterator[Guest]:
        """Have the session's guest, or a fresh one, within the block."""
        with self._answering(what):
            if what.session is None:
                loaded, tenant = await self._wanted(what)
                async with (
                    self._place(what),
                    loaded.spawn(tenant) as guest,
                ):
                    yield guest
                return
            async with self.sessions.use(what.session, what.who.tenant) as guest:
                if not guest.plugin.name.startswith(origin_of(what.who.tenant, what.plugin)):
                    raise Missing("there is no such session")
                async with self._place(what):
                    yield guest

    async def _wanted(self, what: Invocation) -> tuple[Loaded, Tenant]:
        version = self.registry.plugins.resolve(what.who.tenant, what.plugin, what.ref)
        return await self.loaded(version), self.tenant(what.who.tenant)

    def _place(self, what: Invocation) -> AbstractAsyncContextManager[None]:
        if what.let_in:
            return contextlib.nullcontext()
        return self.admission.enter(what.who.tenant, what.left_s())

    def _answering(self, what: Invocation) -> Answering:
        self._check_running()
        return Answering(what)

    # ---- sessions ----

    async def open_session(self, what: Invocation) -> str:
        """Start a guest that is kept between calls; return what to call it."""
        with self._answering(what):
            loaded, tenant = await self._wanted(what)
            async with self._place(what):
                return await self.sessions.open(tenant.name, lambda: loaded.spawn(tenant))

    async def close_session(self, who: Principal, session: str) -> None:
        """End it."""
        await self.sessions.close(session, who.tenant)
