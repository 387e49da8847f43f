"""When the handle heap is collected, how hard, and at whose cost.

    collector          the control loop: host.gc                 \\
    triggers           what may start a cycle                     } know a heap (protocol.py), not a host
    trace              one line, one event a cycle               /
    pacer              state between cycles                      \\
    goals, effort      the arithmetic: heap goal and trigger;     } numbers in, numbers out: no clock,
                       workers, assists, cons/mark               /  no heap, no thread
    limiter, adaptive  how much time collecting may take; a percent that follows the load
"""
