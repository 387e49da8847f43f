"""Constant expressions: where they end, and their value where the module alone determines it."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ModuleError
from .binary import Reader

__all__ = ["Constant", "Constants"]

# Ours: far above any compiler's output, it keeps hostile expressions from costing seconds.
_MAX_OPERATORS = 1_000_000

_END = 0x0B
_GLOBAL_GET = 0x23
_I32_CONST, _I64_CONST, _F32_CONST, _F64_CONST = 0x41, 0x42, 0x43, 0x44
_REF_NULL, _REF_FUNC = 0xD0, 0xD2
_GC_PREFIX, _SIMD_PREFIX = 0xFB, 0xFD
_V128_CONST = 0x0C
# Extended constant expressions: opcode -> (bits, operation)
_ARITHMETIC = {
    0x6A: (32, "+"),
    0x6B: (32, "-"),
    0x6C: (32, "*"),
    0x7C: (64, "+"),
    0x7D: (64, "-"),
    0x7E: (64, "*"),
}


class Constant(NamedTuple):
    """A known integer, as the unsigned number that its bits spell."""

    bits: int
    value: int


class Constants:
    """Reads the constant expressions of one module in their order.

    `globals` holds what each global before this point is known to be: None for an imported or
    mutable one, for one that is no integer, and for one that is computed from such. `functions`
    gathers the indices of all functions that are referred to.
    """

    def __init__(self) -> None:
        self.globals: list[Constant | None] = []
        self.functions: set[int] = set()
        self._operators_left = _MAX_OPERATORS

    def read(self, reader: Reader) -> Constant | None:
        """Step over an expression and return its value.

        None means that the module alone does not determine it, which includes every expression
        that wasmtime's validator will refuse (an empty stack, types that do not match).
        """
        start = reader.pos
        stack: list[Constant | None] = []
        while (opcode := reader.byte()) != _END:
            self._operators_left -= 1
            if self._operators_left < 0:
                raise reader.fail(
                    f"the module has more than {_MAX_OPERATORS} constant operators", start
                )
            if opcode in _ARITHMETIC:
                right = stack.pop() if stack else None
                left = stack.pop() if stack else None
                stack.append(_compute(opcode, left, right))
            else:
                stack.append(self._operand(reader, opcode))
        return stack[0] if len(stack) == 1 else None

    def _operand(self, reader: Reader, opcode: int) -> Constant | None:
        if opcode == _I32_CONST:
            return Constant(32, reader.signed(32) & 0xFFFF_FFFF)
        if opcode == _I64_CONST:
            return Constant(64, reader.signed(64) & 0xFFFF_FFFF_FFFF_FFFF)
        if opcode == _GLOBAL_GET:
            index = reader.u32()
            return self.globals[index] if index < len(self.globals) else None
        if opcode == _F32_CONST:
            reader.skip(4)
        elif opcode == _F64_CONST:
            reader.skip(8)
        elif opcode == _REF_NULL:
            reader.signed(33)
        elif opcode == _REF_FUNC:
            self.functions.add(reader.u32())
        else:
            _skip_prefixed(reader, opcode)
        return None


def _skip_prefixed(reader: Reader, opcode: int) -> None:
    at = reader.pos - 1
    if opcode == _SIMD_PREFIX and reader.u32() == _V128_CONST:
        reader.skip(16)
        return
    if opcode == _GC_PREFIX:
        raise ModuleError(
            "a constant expression builds objects of the GC proposal, which sandhost does not load",
            at,
        )
    raise reader.fail(f"operator {opcode:#04x} has no place in a constant expression", at)


def _compute(opcode: int, left: Constant | None, right: Constant | None) -> Constant | None:
    bits, operation = _ARITHMETIC[opcode]
    if left is None or right is None or left.bits != bits or right.bits != bits:
        return None
    if operation == "+":
        value = left.value + right.value
    elif operation == "-":
        value = left.value - right.value
    else:
        value = left.value * right.value
    return Constant(bits, value & ((1 << bits) - 1))
