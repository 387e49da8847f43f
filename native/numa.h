/* Which NUMA nodes there are, and on which of them a CPU lies. */
#ifndef SANDHOST_NUMA_H
#define SANDHOST_NUMA_H

#include <stdint.h>

enum { SHI_NUMA_MAX_NODES = 64, SHI_NUMA_MAX_CPUS = 4096 };

typedef struct {
  uint16_t node;  /* an index into shi_numa.ids, not the kernel's number */
  uint16_t order; /* the CPU's place among those of its node */
} shi_numa_cpu;

/* Invariant: 1 <= count, cpus[i].node < count, and node n has cpu_count[n] CPUs in the table. */
typedef struct {
  uint32_t count;
  uint32_t ids[SHI_NUMA_MAX_NODES]; /* the kernel's numbers, ascending */
  uint32_t cpu_count[SHI_NUMA_MAX_NODES];
  shi_numa_cpu cpus[SHI_NUMA_MAX_CPUS];
} shi_numa;

/* Reads `directory` (NULL: the system's own). What cannot be read or understood makes one node of all CPUs: without
 * knowledge of nodes every place is as good as another. */
void shi_numa_read(shi_numa *numa, const char *directory);
/* Where the caller runs now. */
shi_numa_cpu shi_numa_here(const shi_numa *numa);

#endif
