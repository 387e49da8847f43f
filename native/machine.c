/* Figures of the kernel's: see machine.h. */
#include "machine.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "os.h"

enum { TEXT = 256 };
static const uint64_t stall_every_ns = 100000000;

static int open_or_none(const char *path) {
  int fd;
  return path != NULL && shi_os_text_open(path, &fd) == 0 ? fd : -1;
}

void shi_machine_open(shi_machine *machine) {
  *machine = (shi_machine){.rss = open_or_none("/proc/self/statm"), .cgroup = -1, .stall = -1};
}

static void close_if_open(int fd) {
  if (fd >= 0) {
    shi_os_file_close(fd);
  }
}

void shi_machine_close(shi_machine *machine) {
  close_if_open(machine->rss);
  close_if_open(atomic_load(&machine->cgroup));
  close_if_open(atomic_load(&machine->stall));
}

static void watch(_Atomic int *fd, const char *path) {
  int none = -1, opened = open_or_none(path);
  if (opened >= 0 && !atomic_compare_exchange_strong(fd, &none, opened)) {
    shi_os_file_close(opened);
  }
}

void shi_machine_watch(shi_machine *machine, const char *cgroup, const char *stall) {
  watch(&machine->cgroup, cgroup);
  watch(&machine->stall, stall);
}

/* The number after `label`, if not NULL, and then after `skip` spaces. */
static uint64_t number_in(int fd, const char *label, int skip) {
  char text[TEXT];
  if (fd < 0 || shi_os_text_reread(fd, text, sizeof text) <= 0) {
    return SHI_UNKNOWN;
  }
  const char *at = label != NULL ? strstr(text, label) : text;
  at = at != NULL && label != NULL ? at + strlen(label) : at;
  for (; at != NULL && skip > 0; skip--) {
    at = strchr(at, ' ');
    at = at != NULL ? at + 1 : NULL;
  }
  if (at == NULL || *at < '0' || *at > '9') {
    return SHI_UNKNOWN;
  }
  return strtoull(at, NULL, 10);
}

uint64_t shi_machine_rss_bytes(const shi_machine *machine) {
  uint64_t pages = number_in(machine->rss, NULL, 1), page = shi_os_page();
  return pages > UINT64_MAX / page ? SHI_UNKNOWN : pages * page;
}

uint64_t shi_machine_cgroup_bytes(const shi_machine *machine) {
  return number_in(atomic_load_explicit(&machine->cgroup, memory_order_relaxed), NULL, 0);
}

uint64_t shi_machine_stall_us(shi_machine *machine, uint64_t now_ns) {
  int fd = atomic_load_explicit(&machine->stall, memory_order_relaxed);
  if (fd < 0) {
    return SHI_UNKNOWN;
  }
  uint64_t read_ns = atomic_load_explicit(&machine->stall_read_ns, memory_order_acquire);
  if (read_ns != 0 && now_ns - read_ns < stall_every_ns) {
    return atomic_load_explicit(&machine->stall_us, memory_order_relaxed);
  }
  uint64_t stall_us = number_in(fd, "total=", 0); /* of the first line, "some" */
  atomic_store_explicit(&machine->stall_us, stall_us, memory_order_relaxed);
  atomic_store_explicit(&machine->stall_read_ns, now_ns, memory_order_release);
  return stall_us;
}
