"""Python's own collector, for a process whose requests leave it nothing.

What a request, a connection or an upload makes goes with its last reference: none leaves a cycle, and tests hold
that. What is left to the collector are cycles of libraries that nobody knows of; but it stops the loop to look for
them, and goes through all that lives.

    loaded at the start   85,000 objects, never garbage      set aside: 40 to 70 ms of each full collection
    while it serves       plugins, connections, sessions     looked at when 2,000 more live than before, not 700:
                                                             connections that come and go hold so many

A full collection comes after 11 × 11 looks of that kind, if a quarter of all has been added since the last: so
cycles, should there be any, hold some 250,000 objects at the most.
"""

from __future__ import annotations

import gc

import anyio

from .._log import get_logger

__all__ = ["spare_what_is_loaded"]

_MORE = 2000
"""By measurement, see benchmarks/overload.py: 80 looks, 29 ms in six seconds of attack with 700, 22 and 13 ms with
2,000; with 5,000 they are fewer, and longer, and as much together."""


def spare_what_is_loaded() -> None:
    """Keep the collector from going through what there is now. Called on the loop, before it serves."""
    get_logger("sandhost.serve")
    anyio.get_cancelled_exc_class()  # both import much when they are first used, which a request would wait for
    gc.collect()
    gc.freeze()
    gc.set_threshold(_MORE, 10, 10)
