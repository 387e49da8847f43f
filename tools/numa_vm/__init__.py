"""`./run numa`: sandhost in a virtual machine with two NUMA nodes."""
