"""When the handle heap is collected, how hard, and at whose cost.

    collector            the control loop: host.gc
    cycle                one cycle from begin to end, and what came of it
    triggers, guards     what may start a cycle; budget and settings that come back
    trace                what a cycle was: one line, one event
    protocol             what is asked of a heap
    pacer, adaptive      state between cycles; a percent that follows the load
    goals, effort        the arithmetic: heap goal and trigger; workers, assists, cons/mark
    limiter              how much of the time collecting may take

The first two know a heap, not a host. The rest is numbers in, numbers out: no clock, no thread.
"""
