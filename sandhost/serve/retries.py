"""Requests that come again with their idempotency key: done once, and answered each time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from .records import Answer, Principal
from .registry.answers import Answers
from .threads import in_thread

__all__ = ["Retries"]


class Retries:
    """Of one event loop."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._working: dict[tuple[str, str], asyncio.Future[None]] = {}
        """By tenant and idempotency key: answers on their way."""

    async def once(
        self, who: Principal, key: str, request: bytes, work: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """Do the work, unless it was done before under the tenant's key: then return what came of it.

        A second request that comes while the first is at work waits for it. What fails is not kept.

        Args:
            request: what tells it from another request with the same key.

        Raises:
            Invalid: the key cannot be one.
            Conflict: the key belongs to another request.
        """
        at = (who.tenant, key)
        while (before := self._working.get(at)) is not None:
            await asyncio.wait([before])
        mine = self._working[at] = asyncio.get_running_loop().create_future()
        try:
            digest, answer = await in_thread(lambda: self._recall(*at, request))
            if answer is None:
                answer = done = await work()
                await in_thread(lambda: self._answers.remember(who.tenant, key, digest, done))
            return answer
        finally:
            del self._working[at]
            mine.set_result(None)

    def _recall(self, tenant: str, key: str, request: bytes) -> tuple[str, Answer | None]:
        """Return the request's digest, and its answer if there is one; blocks."""
        digest = hashlib.sha256(request).hexdigest()
        return digest, self._answers.recall(tenant, key, digest)
