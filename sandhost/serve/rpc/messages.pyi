from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Value(_message.Message):
    __slots__ = ("i32", "i64", "f32", "f64", "v128")
    I32_FIELD_NUMBER: _ClassVar[int]
    I64_FIELD_NUMBER: _ClassVar[int]
    F32_FIELD_NUMBER: _ClassVar[int]
    F64_FIELD_NUMBER: _ClassVar[int]
    V128_FIELD_NUMBER: _ClassVar[int]
    i32: int
    i64: int
    f32: float
    f64: float
    v128: bytes
    def __init__(self, i32: _Optional[int] = ..., i64: _Optional[int] = ..., f32: _Optional[float] = ..., f64: _Optional[float] = ..., v128: _Optional[bytes] = ...) -> None: ...

class CallRequest(_message.Message):
    __slots__ = ("plugin", "ref", "function", "session", "idempotency_key", "arguments")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    ref: str
    function: str
    session: str
    idempotency_key: str
    arguments: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, plugin: _Optional[str] = ..., ref: _Optional[str] = ..., function: _Optional[str] = ..., session: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class CallReply(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, results: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class CallBytesRequest(_message.Message):
    __slots__ = ("plugin", "ref", "function", "session", "idempotency_key", "input")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    ref: str
    function: str
    session: str
    idempotency_key: str
    input: bytes
    def __init__(self, plugin: _Optional[str] = ..., ref: _Optional[str] = ..., function: _Optional[str] = ..., session: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., input: _Optional[bytes] = ...) -> None: ...

class CallBytesReply(_message.Message):
    __slots__ = ("output",)
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    output: bytes
    def __init__(self, output: _Optional[bytes] = ...) -> None: ...

class CallManyRequest(_message.Message):
    __slots__ = ("id", "timeout_s", "call", "call_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    CALL_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    timeout_s: float
    call: CallRequest
    call_bytes: CallBytesRequest
    def __init__(self, id: _Optional[int] = ..., timeout_s: _Optional[float] = ..., call: _Optional[_Union[CallRequest, _Mapping]] = ..., call_bytes: _Optional[_Union[CallBytesRequest, _Mapping]] = ...) -> None: ...

class CallManyReply(_message.Message):
    __slots__ = ("id", "call", "call_bytes", "problem")
    ID_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    CALL_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    id: int
    call: CallReply
    call_bytes: CallBytesReply
    problem: Problem
    def __init__(self, id: _Optional[int] = ..., call: _Optional[_Union[CallReply, _Mapping]] = ..., call_bytes: _Optional[_Union[CallBytesReply, _Mapping]] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("reason", "status", "detail", "facts", "retry_after_s")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    reason: str
    status: int
    detail: str
    facts: _containers.ScalarMap[str, str]
    retry_after_s: float
    def __init__(self, reason: _Optional[str] = ..., status: _Optional[int] = ..., detail: _Optional[str] = ..., facts: _Optional[_Mapping[str, str]] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("start", "stdin")
    START_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    start: RunStart
    stdin: bytes
    def __init__(self, start: _Optional[_Union[RunStart, _Mapping]] = ..., stdin: _Optional[bytes] = ...) -> None: ...

class RunStart(_message.Message):
    __slots__ = ("plugin", "ref", "argv")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    ref: str
    argv: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, plugin: _Optional[str] = ..., ref: _Optional[str] = ..., argv: _Optional[_Iterable[str]] = ...) -> None: ...

class RunReply(_message.Message):
    __slots__ = ("stdout", "stderr", "exit_status")
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    stdout: bytes
    stderr: bytes
    exit_status: int
    def __init__(self, stdout: _Optional[bytes] = ..., stderr: _Optional[bytes] = ..., exit_status: _Optional[int] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("plugin", "ref")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    ref: str
    def __init__(self, plugin: _Optional[str] = ..., ref: _Optional[str] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class CloseSessionReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("settings", "piece")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    settings: UploadSettings
    piece: bytes
    def __init__(self, settings: _Optional[_Union[UploadSettings, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class UploadSettings(_message.Message):
    __slots__ = ("plugin", "bytes", "idempotency_key", "memory_bytes", "deadline_s", "fuel", "table_elements", "warm", "argv", "env")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    FUEL_FIELD_NUMBER: _ClassVar[int]
    TABLE_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    bytes: int
    idempotency_key: str
    memory_bytes: int
    deadline_s: float
    fuel: int
    table_elements: int
    warm: str
    argv: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.ScalarMap[str, str]
    def __init__(self, plugin: _Optional[str] = ..., bytes: _Optional[int] = ..., idempotency_key: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., deadline_s: _Optional[float] = ..., fuel: _Optional[int] = ..., table_elements: _Optional[int] = ..., warm: _Optional[str] = ..., argv: _Optional[_Iterable[str]] = ..., env: _Optional[_Mapping[str, str]] = ...) -> None: ...

class VersionRequest(_message.Message):
    __slots__ = ("plugin", "version")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    version: int
    def __init__(self, plugin: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("plugin", "version", "state", "error", "digest", "bytes", "functions")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Version.State]
        COMPILING: _ClassVar[Version.State]
        READY: _ClassVar[Version.State]
        FAILED: _ClassVar[Version.State]
    STATE_UNSPECIFIED: Version.State
    COMPILING: Version.State
    READY: Version.State
    FAILED: Version.State
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    version: int
    state: Version.State
    error: str
    digest: str
    bytes: int
    functions: _containers.RepeatedCompositeFieldContainer[Function]
    def __init__(self, plugin: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[Version.State, str]] = ..., error: _Optional[str] = ..., digest: _Optional[str] = ..., bytes: _Optional[int] = ..., functions: _Optional[_Iterable[_Union[Function, _Mapping]]] = ...) -> None: ...

class Function(_message.Message):
    __slots__ = ("name", "params", "results")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    params: _containers.RepeatedScalarFieldContainer[str]
    results: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., params: _Optional[_Iterable[str]] = ..., results: _Optional[_Iterable[str]] = ...) -> None: ...

class RemoveVersionReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPluginsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PluginRequest(_message.Message):
    __slots__ = ("plugin",)
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    def __init__(self, plugin: _Optional[str] = ...) -> None: ...

class Plugin(_message.Message):
    __slots__ = ("plugin", "latest", "versions", "aliases")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    latest: int
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    aliases: _containers.RepeatedCompositeFieldContainer[Alias]
    def __init__(self, plugin: _Optional[str] = ..., latest: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ..., aliases: _Optional[_Iterable[_Union[Alias, _Mapping]]] = ...) -> None: ...

class Alias(_message.Message):
    __slots__ = ("alias", "version", "previous")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    alias: str
    version: int
    previous: int
    def __init__(self, alias: _Optional[str] = ..., version: _Optional[int] = ..., previous: _Optional[int] = ...) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("plugin", "alias", "version")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    alias: str
    version: int
    def __init__(self, plugin: _Optional[str] = ..., alias: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class AliasRequest(_message.Message):
    __slots__ = ("plugin", "alias")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    alias: str
    def __init__(self, plugin: _Optional[str] = ..., alias: _Optional[str] = ...) -> None: ...

class RemoveAliasReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
