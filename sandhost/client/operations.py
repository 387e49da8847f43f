"""The methods that both faces have: `asks`, as methods that return, or as methods that are awaited."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from .asks import calling, deploying, operating
from .asks.ask import Steps

__all__ = ["AsyncFace", "Face", "Operations", "SessionOperations"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Face:
    """Makes the requests of an operation while the caller waits."""

    __slots__ = ()

    @abstractmethod
    def _do(self, steps: Steps[_T]) -> _T: ...


class AsyncFace:
    """Makes the requests of an operation while others run."""

    __slots__ = ()

    @abstractmethod
    async def _do(self, steps: Steps[_T]) -> _T: ...


class _Operation(Generic[_P, _T]):
    """A function of `asks`, as a method."""

    def __init__(self, build: Callable[_P, Steps[_T]]) -> None:
        self._build = build

    @overload
    def __get__(self, face: None, owner: type) -> Callable[_P, Steps[_T]]: ...
    @overload
    def __get__(self, face: Face, owner: type) -> Callable[_P, _T]: ...
    @overload
    def __get__(self, face: AsyncFace, owner: type) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
    def __get__(self, face: Face | AsyncFace | None, owner: type) -> Callable[_P, Any]:
        build = self._build
        if face is None:
            return build

        @functools.wraps(build)
        def method(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            return face._do(build(*args, **kwargs))

        return method


class _SessionOperation(Generic[_P, _T]):
    """A function of `asks` that takes plugin and session first, as a method of a session."""

    def __init__(self, build: Callable[Concatenate[str, str, _P], Steps[_T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, face: None, owner: type) -> _SessionOperation[_P, _T]: ...
    @overload
    def __get__(self, face: Face, owner: type) -> Callable[_P, _T]: ...
    @overload
    def __get__(self, face: AsyncFace, owner: type) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
    def __get__(self, face: Any, owner: type) -> Any:
        if face is None:
            return self

        def method(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            return face._do(self._build(face.plugin, face.id, *args, **kwargs))

        method.__doc__ = self.__doc__
        return method


class Operations:
    """What a client can ask for in one go."""

    __slots__ = ()

    plugins = _Operation(deploying.plugins)
    plugin = _Operation(deploying.plugin)
    upload = _Operation(deploying.upload)
    version = _Operation(deploying.version)
    remove_version = _Operation(deploying.remove_version)
    set_alias = _Operation(deploying.set_alias)
    roll_back = _Operation(deploying.roll_back)
    remove_alias = _Operation(deploying.remove_alias)

    call = _Operation(calling.call)
    call_bytes = _Operation(calling.call_bytes)

    tenants = _Operation(operating.tenants)
    tenant = _Operation(operating.tenant)
    put_tenant = _Operation(operating.put_tenant)
    tokens = _Operation(operating.tokens)
    add_token = _Operation(operating.add_token)
    revoke_token = _Operation(operating.revoke_token)
    audit = _Operation(operating.audit)

    health = _Operation(operating.health)


class SessionOperations:
    """What a session can be asked for."""

    __slots__ = ()

    call = _SessionOperation(calling.session_call)
    call_bytes = _SessionOperation(calling.session_call_bytes)
