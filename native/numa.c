/* Reads the node directory of sysfs: "online" lists the nodes, "node<N>/cpulist" the CPUs of each. */
#include "numa.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os.h"

/* Takes the next number of a list such as "0-2,5"; *at keeps the place, *until the end of a span that is under way. */
static bool next_in_list(const char **at, uint64_t *value, uint64_t *until) {
  if (*value < *until) {
    ++*value;
    return true;
  }
  while (**at == ',') {
    ++*at;
  }
  if (**at < '0' || **at > '9') {
    return false;
  }
  char *rest;
  *value = *until = strtoull(*at, &rest, 10);
  if (*rest == '-') {
    *until = strtoull(rest + 1, &rest, 10);
  }
  *at = rest;
  return true;
}

static void one_node(shi_numa *numa) {
  memset(numa, 0, sizeof *numa);
  numa->count = 1;
  numa->cpu_count[0] = shi_os_cpu_count();
  for (uint32_t cpu = 0; cpu < SHI_NUMA_MAX_CPUS; cpu++) {
    numa->cpus[cpu].order = (uint16_t)cpu;
  }
}

static bool add_node(shi_numa *numa, const char *directory, uint64_t id) {
  char path[512];
  char text[4096];
  int length = snprintf(path, sizeof path, "%s/node%llu/cpulist", directory, (unsigned long long)id);
  if (length < 0 || (size_t)length >= sizeof path || numa->count == SHI_NUMA_MAX_NODES || id > UINT32_MAX ||
      shi_os_read_text(path, text, sizeof text) < 0) {
    return false;
  }
  uint32_t node = numa->count++;
  numa->ids[node] = (uint32_t)id;
  const char *at = text;
  uint64_t cpu = 0;
  uint64_t until = 0;
  while (next_in_list(&at, &cpu, &until) && cpu < SHI_NUMA_MAX_CPUS) {
    numa->cpus[cpu] = (shi_numa_cpu){.node = (uint16_t)node, .order = (uint16_t)numa->cpu_count[node]++};
  }
  return true;
}

void shi_numa_read(shi_numa *numa, const char *directory) {
  if (directory == NULL) {
    directory = "/sys/devices/system/node";
  }
  char path[512];
  char text[4096];
  int length = snprintf(path, sizeof path, "%s/online", directory);
  memset(numa, 0, sizeof *numa);
  if (length < 0 || (size_t)length >= sizeof path || shi_os_read_text(path, text, sizeof text) < 0) {
    one_node(numa);
    return;
  }
  const char *at = text;
  uint64_t id = 0;
  uint64_t until = 0;
  while (next_in_list(&at, &id, &until)) {
    if (!add_node(numa, directory, id)) {
      one_node(numa);
      return;
    }
  }
  if (numa->count == 0) {
    one_node(numa);
  }
}

shi_numa_cpu shi_numa_here(const shi_numa *numa) {
  uint32_t cpu = shi_os_cpu();
  return cpu < SHI_NUMA_MAX_CPUS ? numa->cpus[cpu] : (shi_numa_cpu){0};
}
