/* What the kernel says of this process and of its cgroup, read from files that stay open: a figure costs one system
 * call. Which files these are Python finds out (govern/machine.py); here is no path but /proc/self/statm's.
 */
#ifndef SANDHOST_MACHINE_H
#define SANDHOST_MACHINE_H

#include <stdatomic.h>
#include <stdint.h>

#define SHI_UNKNOWN UINT64_MAX

/* Invariant: a descriptor is -1, and its figure SHI_UNKNOWN, or open until shi_machine_close. */
typedef struct {
  int rss;               /* /proc/self/statm */
  _Atomic int cgroup;    /* memory.current, or version 1's memory.usage_in_bytes */
  _Atomic int stall;     /* memory.pressure, or /proc/pressure/memory */
  _Atomic uint64_t stall_us, stall_read_ns; /* the kernel takes two microseconds to print it: read ten times a second */
} shi_machine;

void shi_machine_open(shi_machine *machine);
void shi_machine_close(shi_machine *machine);
/* Opens the files of the cgroup; NULL: there is none. Once for a machine; a second time changes nothing. */
void shi_machine_watch(shi_machine *machine, const char *cgroup, const char *stall);

uint64_t shi_machine_rss_bytes(const shi_machine *machine);
uint64_t shi_machine_cgroup_bytes(const shi_machine *machine);
/* Since the start: how long some task waited for memory. Up to 100 ms old. */
uint64_t shi_machine_stall_us(shi_machine *machine, uint64_t now_ns);

#endif
