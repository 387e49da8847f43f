"""Measure how fast guests are spawned, called, unloaded and their memory reclaimed: `sandhost bench`.

command                       options, files, exit status
report, picture, compare      what a run says: tables, a drawing, what changed since another run
sweep                         the run: every case, all contenders in turn, several repetitions
contenders, peers, checks     one cycle of ours, of theirs; held against the kernel's counts
workload, latency, machine,   what is run, histograms, where it ran,
  kernel, results               the kernel's counts, the numbers that are kept
"""
