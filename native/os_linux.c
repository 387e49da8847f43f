/* The Linux side of os.h. */
#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "region.h"

/* ---- failures --------------------------------------------------------------------------------------------------- */

static _Thread_local const char *last_operation = "";

const char *shi_last_operation(void) { return last_operation; }

int shi_os_failure(const char *operation, int error) {
  last_operation = operation;
  return -error;
}

static int failure(const char *operation) { return shi_os_failure(operation, errno); }

/* ---- the machine ------------------------------------------------------------------------------------------------ */

uint64_t shi_os_page(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

uint64_t shi_os_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint32_t shi_os_cpu(void) {
  int cpu = sched_getcpu();
  return cpu < 0 ? 0 : (uint32_t)cpu;
}

uint32_t shi_os_cpu_count(void) {
  long count = sysconf(_SC_NPROCESSORS_ONLN);
  return count < 1 ? 1 : (uint32_t)count;
}

int shi_os_text_open(const char *path, int *fd) {
  *fd = open(path, O_RDONLY | O_CLOEXEC);
  return *fd < 0 ? failure("open") : 0;
}

int shi_os_text_reread(int fd, char *text, size_t capacity) {
  ssize_t length = pread(fd, text, capacity - 1, 0);
  int result = length < 0 ? failure("read") : (int)length;
  text[length < 0 ? 0 : length] = '\0';
  return result;
}

int shi_os_read_text(const char *path, char *text, size_t capacity) {
  int fd;
  int error = shi_os_text_open(path, &fd);
  if (error != 0) {
    return error;
  }
  int length = shi_os_text_reread(fd, text, capacity);
  close(fd);
  return length;
}

/* ---- address space ---------------------------------------------------------------------------------------------- */

static bool huge_pages_come_unasked;

static void read_huge_page_mode(void) {
  char mode[64];
  huge_pages_come_unasked = shi_os_read_text("/sys/kernel/mm/transparent_hugepage/enabled", mode, sizeof mode) > 0 &&
                            strstr(mode, "[always]") != NULL;
}

static int advise(uint8_t *at, uint64_t bytes, int advice, const char *operation) {
  if (shi_os_injected(SH_OS_MADVISE) || madvise(at, bytes, advice) != 0) {
    return failure(operation);
  }
  return 0;
}

/* What a new mapping needs before it is used; see "address space" in os.h. */
static int keep_private(uint8_t *at, uint64_t bytes) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, read_huge_page_mode);
  int error = advise(at, bytes, MADV_DONTFORK, "madvise(MADV_DONTFORK)");
  if (error == 0 && huge_pages_come_unasked) {
    error = advise(at, bytes, MADV_NOHUGEPAGE, "madvise(MADV_NOHUGEPAGE)");
  }
  return error;
}

int shi_os_reserve(uint64_t bytes, uint8_t **out) {
  void *base = MAP_FAILED;
  if (!shi_os_injected(SH_OS_MMAP)) {
    base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (base == MAP_FAILED) {
    return failure("mmap");
  }
  int error = keep_private(base, bytes);
  if (error != 0) {
    munmap(base, bytes);
    return error;
  }
  *out = base;
  return 0;
}

void shi_os_unreserve(uint8_t *base, uint64_t bytes) { munmap(base, bytes); }

static int map_fixed(uint8_t *at, uint64_t bytes, int protection, int flags, int fd, uint64_t offset) {
  if (bytes == 0) {
    return 0;
  }
  if (shi_os_injected(SH_OS_MMAP) ||
      mmap(at, bytes, protection, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | flags, fd, (off_t)offset) == MAP_FAILED) {
    return failure("mmap");
  }
  return keep_private(at, bytes);
}

int shi_os_map_zeros(uint8_t *at, uint64_t bytes, bool accessible) {
  return map_fixed(at, bytes, accessible ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_ANONYMOUS, -1, 0);
}

int shi_os_map_image(uint8_t *at, uint64_t bytes, int fd, uint64_t offset) {
  return map_fixed(at, bytes, PROT_READ | PROT_WRITE, 0, fd, offset);
}

void shi_os_map_zeros_in_child(uint8_t *at, uint64_t bytes) {
  if (bytes > 0) {
    mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | MAP_ANONYMOUS, -1, 0);
  }
}

int shi_os_protect(uint8_t *at, uint64_t bytes, bool accessible) {
  if (bytes == 0) {
    return 0;
  }
  if (shi_os_injected(SH_OS_MPROTECT) || mprotect(at, bytes, accessible ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) {
    return failure("mprotect");
  }
  return 0;
}

int shi_os_set_node(uint8_t *at, uint64_t bytes, uint32_t node, bool bind) {
  enum { MPOL_PREFERRED = 1, MPOL_BIND = 2, MAX_NODES = 1024, WORD_BITS = 8 * sizeof(unsigned long) };
  if (bytes == 0) {
    return 0;
  }
  if (node >= MAX_NODES) {
    return shi_os_failure("mbind", EINVAL);
  }
  unsigned long mask[MAX_NODES / WORD_BITS] = {0};
  mask[node / WORD_BITS] = 1UL << (node % WORD_BITS);
  /* The kernel reads one bit less than it is told: hence the + 1. */
  if (shi_os_injected(SH_OS_MBIND) ||
      syscall(SYS_mbind, at, bytes, bind ? MPOL_BIND : MPOL_PREFERRED, mask, (unsigned long)MAX_NODES + 1, 0) != 0) {
    return failure("mbind");
  }
  return 0;
}

/* ---- pages ------------------------------------------------------------------------------------------------------ */

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24 /* Linux 5.18 */
#endif

int shi_os_give_back(uint8_t *at, uint64_t bytes) {
  if (bytes == 0) {
    return 0;
  }
  int error = advise(at, bytes, MADV_DONTNEED, "madvise(MADV_DONTNEED)");
  /* In a process that has called mlockall, every slot would be lost at its first reset. */
  return error == -EINVAL ? advise(at, bytes, MADV_DONTNEED_LOCKED, "madvise(MADV_DONTNEED_LOCKED)") : error;
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

int shi_os_populate(uint8_t *at, uint64_t bytes) {
  return bytes == 0 ? 0 : advise(at, bytes, MADV_POPULATE_WRITE, "madvise(MADV_POPULATE_WRITE)");
}

int shi_os_give_back_lazily(uint8_t *at, uint64_t bytes) {
  return bytes == 0 ? 0 : advise(at, bytes, MADV_FREE, "madvise(MADV_FREE)");
}

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
enum { PIDFD_OF_SELF = -10000 }; /* PIDFD_SELF of <linux/pidfd.h>, Linux 6.14 */

/* All ranges at once, or false: not available, or not all of it was done. */
static bool advise_batch(const struct iovec *ranges, size_t count) {
  static _Atomic bool unavailable;
  /* An armed fault means the tests count calls: then each range is a call of its own. */
  if (shi_os_armed(SH_OS_MADVISE) || atomic_load_explicit(&unavailable, memory_order_relaxed)) {
    return false;
  }
  size_t bytes = 0;
  for (size_t i = 0; i < count; i++) {
    bytes += ranges[i].iov_len;
  }
  long done = syscall(SYS_process_madvise, PIDFD_OF_SELF, ranges, count, MADV_DONTNEED, 0);
  if (done < 0 && (errno == ENOSYS || errno == EBADF || errno == EPERM || errno == EINVAL)) {
    atomic_store_explicit(&unavailable, true, memory_order_relaxed);
  }
  return done >= 0 && (size_t)done == bytes;
}

int shi_os_give_back_batch(const struct iovec *ranges, size_t count) {
  if (count > 1 && advise_batch(ranges, count)) {
    return 0;
  }
  int result = 0;
  for (size_t i = 0; i < count; i++) {
    int error = shi_os_give_back(ranges[i].iov_base, ranges[i].iov_len);
    result = result == 0 ? error : result;
  }
  return result;
}

/* From <linux/fs.h> of Linux 6.7; declared here because the headers of the build machine may be older. */
struct pm_scan_arg {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};
#define PAGEMAP_SCAN_REQUEST _IOWR('f', 16, struct pm_scan_arg)
#define CATEGORY_PRESENT (UINT64_C(1) << 3)
_Static_assert(sizeof(struct pm_scan_arg) == 96 && sizeof(shi_os_run) == 24, "the kernel's layouts");

static int scan(int fd, uint64_t start, uint64_t end, enum shi_os_pages wanted, uint64_t few, shi_os_run *runs,
                size_t capacity, uint64_t *next) {
  struct pm_scan_arg request = {
      .size = sizeof request,
      .start = start,
      .end = end,
      .vec = (uint64_t)(uintptr_t)runs,
      .vec_len = capacity,
      .max_pages = few,
      .category_inverted = wanted == SHI_OS_PRIVATE ? SHI_OS_FILE : 0,
      .category_mask = wanted == SHI_OS_PRIVATE ? SHI_OS_FILE : 0,
      .category_anyof_mask = CATEGORY_PRESENT | SHI_OS_SWAPPED,
      .return_mask = (wanted == SHI_OS_ANONYMOUS ? 0 : SHI_OS_FILE) | SHI_OS_SWAPPED | SHI_OS_ZERO_PAGE,
  };
  int count = -1;
  if (!shi_os_injected(SH_OS_PAGEMAP_SCAN)) {
    count = ioctl(fd, PAGEMAP_SCAN_REQUEST, &request);
  }
  if (count < 0) {
    return failure("ioctl(PAGEMAP_SCAN)");
  }
  *next = request.walk_end;
  return count;
}

/* Entries of /proc/self/pagemap: bit 63 present, bit 62 swapped, bit 61 a file's page or shared memory. */
static int read_entries(int fd, uint64_t start, uint64_t end, enum shi_os_pages wanted, shi_os_run *runs,
                        size_t capacity, uint64_t *next) {
  enum { ENTRIES = 512 };
  uint64_t entries[ENTRIES];
  uint64_t os_page = shi_os_page();
  uint64_t at = start;
  size_t count = 0;
  while (at < end) {
    uint64_t left = (end - at) / os_page;
    size_t bytes = (left < ENTRIES ? left : ENTRIES) * sizeof *entries;
    ssize_t length = -1;
    if (!shi_os_injected(SH_OS_PAGEMAP_READ)) {
      length = pread(fd, entries, bytes, (off_t)(at / os_page * sizeof *entries));
    }
    if (length != (ssize_t)bytes) {
      return length < 0 ? failure("pread(pagemap)") : shi_os_failure("pread(pagemap)", EIO);
    }
    for (size_t i = 0; i < bytes / sizeof *entries; i++, at += os_page) {
      bool present = entries[i] >> 63;
      bool swapped = entries[i] >> 62 & 1;
      bool file = entries[i] >> 61 & 1;
      if ((!present && !swapped) || (file && wanted == SHI_OS_PRIVATE)) {
        continue;
      }
      uint64_t categories = (swapped ? SHI_OS_SWAPPED : 0) | (file ? SHI_OS_FILE : 0);
      if (count > 0 && runs[count - 1].end == at && runs[count - 1].categories == categories) {
        runs[count - 1].end += os_page;
      } else if (count < capacity) {
        runs[count++] = (shi_os_run){.start = at, .end = at + os_page, .categories = categories};
      } else {
        *next = at;
        return (int)count;
      }
    }
  }
  *next = end;
  return (int)count;
}

int shi_os_pages(const shi_os_pagemap *pagemap, uint64_t start, uint64_t end, enum shi_os_pages wanted, uint64_t few,
                 shi_os_run *runs, size_t capacity, uint64_t *next) {
  if (start == end) {
    *next = end;
    return 0;
  }
  int fd = pagemap->fds[shi_os_cpu() % pagemap->count];
  return pagemap->can_scan ? scan(fd, start, end, wanted, few, runs, capacity, next)
                           : read_entries(fd, start, end, wanted, runs, capacity, next);
}

int shi_os_pagemap_open(shi_os_pagemap *out) {
  uint32_t wanted = shi_os_cpu_count();
  *out = (shi_os_pagemap){0};
  while (out->count < SHI_OS_PAGEMAPS && out->count < wanted) {
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0 && out->count == 0) {
      return failure("open(pagemap)");
    }
    if (fd < 0) {
      break; /* fewer will do */
    }
    out->fds[out->count++] = fd;
  }
  shi_os_run run;
  uint64_t next;
  uint64_t probe = (uint64_t)(uintptr_t)&run & ~(shi_os_page() - 1);
  out->can_scan = scan(out->fds[0], probe, probe + shi_os_page(), SHI_OS_PRIVATE, 0, &run, 1, &next) >= 0;
  return 0;
}

void shi_os_pagemap_close(shi_os_pagemap *pagemap) {
  for (uint32_t k = 0; k < pagemap->count; k++) {
    close(pagemap->fds[k]);
  }
}

int shi_os_nodes_of(void **pages, size_t count, int *nodes) {
  if (shi_os_injected(SH_OS_MOVE_PAGES) ||
      syscall(SYS_move_pages, 0, (unsigned long)count, pages, NULL, nodes, 0) < 0) {
    return failure("move_pages");
  }
  return 0;
}

/* ---- images ----------------------------------------------------------------------------------------------------- */

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

int shi_os_file_create(uint64_t bytes, int *out) {
  int fd = -1;
  if (!shi_os_injected(SH_OS_MEMFD)) {
    fd = memfd_create("sandhost-image", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) { /* Linux before 6.3 */
      fd = memfd_create("sandhost-image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    }
  }
  if (fd < 0) {
    return failure("memfd_create");
  }
  if (shi_os_injected(SH_OS_WRITE) || ftruncate(fd, (off_t)bytes) != 0) {
    int error = failure("ftruncate");
    close(fd);
    return error;
  }
  *out = fd;
  return 0;
}

int shi_os_file_write(int fd, uint64_t offset, const void *bytes, uint64_t length) {
  const uint8_t *from = bytes;
  while (length > 0) {
    ssize_t written = shi_os_injected(SH_OS_WRITE) ? -1 : pwrite(fd, from, length, (off_t)offset);
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return written < 0 ? failure("pwrite") : shi_os_failure("pwrite", ENOSPC);
    }
    from += written;
    offset += (uint64_t)written;
    length -= (uint64_t)written;
  }
  return 0;
}

static int add_seals(int fd, int against_writes) {
  return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | against_writes);
}

/* F_SEAL_WRITE would forbid as much, since nobody has mapped the file to write. But to make sure of that it looks at every
 * page, and waits for whoever holds one: the kernel itself does while it moves pages, and if it is not done with that
 * after 150 ms, as may be where much runs, the answer is EBUSY. */
int shi_os_file_seal(int fd) {
  int done = -1;
  if (!shi_os_injected(SH_OS_SEAL)) {
    done = add_seals(fd, F_SEAL_FUTURE_WRITE);
    if (done != 0 && errno == EINVAL) { /* Linux before 5.1 */
      done = add_seals(fd, F_SEAL_WRITE);
    }
  }
  return done != 0 ? failure("fcntl(F_ADD_SEALS)") : 0;
}

int shi_os_view(uint64_t bytes, uint8_t **out) {
  void *at = shi_os_injected(SH_OS_MMAP)
                 ? MAP_FAILED
                 : mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) {
    return failure("mmap");
  }
  *out = at;
  return 0;
}

int shi_os_map_in_view(uint8_t *at, uint64_t bytes, int fd, uint64_t offset) {
  if (shi_os_injected(SH_OS_MMAP) ||
      mmap(at, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED) {
    return failure("mmap");
  }
  return 0;
}

void shi_os_unview(const uint8_t *at, uint64_t bytes) { munmap((void *)(uintptr_t)at, bytes); }

void shi_os_file_close(int fd) { close(fd); }

/* ---- files of guests -------------------------------------------------------------------------------------------- */

/* <linux/openat2.h>, which is younger than the systems that wheels are built on. */
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
struct how_to_open {
  uint64_t flags, mode, resolve;
};
enum { NO_MAGIC_LINKS = 0x02, BENEATH = 0x08 };

int shi_os_open_beneath(int fd, const char *path, int flags, uint32_t mode) {
  struct how_to_open how = {
      .flags = (uint64_t)(unsigned)flags, .mode = flags & O_CREAT ? mode : 0, .resolve = BENEATH | NO_MAGIC_LINKS};
  enum { TRIES = 64 }; /* EAGAIN: something was renamed meanwhile, so that ".." could not be told from an escape */
  long opened = -1;
  for (int tries = 0; tries < TRIES; tries++) {
    opened = shi_os_injected(SH_OS_OPEN_BENEATH) ? -1 : syscall(SYS_openat2, fd, path, &how, sizeof how);
    if (opened >= 0 || (errno != EAGAIN && errno != EINTR)) {
      break;
    }
  }
  return opened < 0 ? failure("openat2") : (int)opened;
}
