"""Guests that import functions of the host: env.f, and env.g."""

from __future__ import annotations


def importing(params: str, results: str, *, memory: str = "") -> bytes:
    """A guest whose `go` passes everything on to env.f."""
    count = len(params.split())
    gets = " ".join(f"(local.get {k})" for k in range(count))
    sign = f"(param {params}) (result {results})"
    return f"""(module (import "env" "f" (func $f {sign})) {memory}
        (func (export "go") {sign} (call $f {gets})))""".encode()


STARTS = b"""(module (import "env" "f" (func $f)) (import "env" "g" (func $g))
    (memory (export "memory") 1)
    (func (export "go") (call $f)) (func $s (call $f) (call $g)) (start $s))"""
