/* The operating system as the region allocator sees it: each primitive's contract, once.
 *
 * os_linux.c is the only file that calls mmap, madvise, mprotect, memfd_create, mbind, openat2, or reads /proc and /sys.
 * Functions that return int give 0 (or a count) or a negative errno, and then `shi_last_operation()` names the call.
 * `sh_fault_inject` (sandhost.h) makes any of them fail. Addresses and lengths are whole OS pages; a length of 0 is a
 * no-op.
 */
#ifndef SANDHOST_OS_H
#define SANDHOST_OS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "sandhost.h"

uint64_t shi_os_page(void);
uint64_t shi_os_now_ns(void); /* monotonic */
uint32_t shi_os_cpu(void);    /* the CPU that runs the caller, at this moment */
uint32_t shi_os_cpu_count(void);

/* Records `operation` as the one that failed and returns -error: for failures outside this file. */
int shi_os_failure(const char *operation, int error);

/* os_faults.c: whether this call shall fail, errno is then set; whether it shall sooner or later. Either costs a load. */
bool shi_os_injected(enum sh_os_call call);
bool shi_os_armed(enum sh_os_call call);

/* ---- address space ---------------------------------------------------------------------------------------------- */

/* Everything mapped here is private to this process image: a forked child does not inherit it (MADV_DONTFORK), and it
 * never grows by huge pages behind our back (MADV_NOHUGEPAGE where the system would use them unasked), so that one
 * touched OS page is one resident OS page. */

/* Address space without memory behind it: any access faults, nothing counts against overcommit. */
int shi_os_reserve(uint64_t bytes, uint8_t **out);
void shi_os_unreserve(uint8_t *base, uint64_t bytes);
/* Replaces what is mapped by fresh anonymous zeros, accessible or not. On failure the range may be a hole. */
int shi_os_map_zeros(uint8_t *at, uint64_t bytes, bool accessible);
/* Replaces what is mapped by `bytes` of the file, readable, writable, copy-on-write. On failure the range may be a
 * hole. */
int shi_os_map_image(uint8_t *at, uint64_t bytes, int fd, uint64_t offset);
/* Makes a range readable and writable, or inaccessible; its contents stay. Fails when the kernel's map count or the
 * commit limit is reached. */
int shi_os_protect(uint8_t *at, uint64_t bytes, bool accessible);
/* Prefers (or, with `bind`, insists on) memory of one NUMA node for pages touched later. */
int shi_os_set_node(uint8_t *at, uint64_t bytes, uint32_t node, bool bind);
/* In the child of a fork, where a range was left out: readable zeros. Async-signal-safe. */
void shi_os_map_zeros_in_child(uint8_t *at, uint64_t bytes);

/* ---- pages ------------------------------------------------------------------------------------------------------ */

/* Private pages are gone from RSS when this returns; the next access reads the image or zeros (MADV_DONTNEED). Takes
 * only the lock of one VMA when the range lies within one. Locked memory (mlockall) too, from Linux 5.18. */
int shi_os_give_back(uint8_t *at, uint64_t bytes);
/* The same for `count` <= SHI_OS_BATCH ranges, in one system call where the kernel can (process_madvise on oneself,
 * Linux 6.14). On failure some ranges may be done; it is safe to do any again. */
enum { SHI_OS_BATCH = 64 };
int shi_os_give_back_batch(const struct iovec *ranges, size_t count);
/* Makes pages the process's own, as a write to each would: all at once. Linux 5.14. */
int shi_os_populate(uint8_t *at, uint64_t bytes);
/* The kernel takes the pages when it wants them; until then they may still hold their bytes (MADV_FREE). Only for
 * anonymous memory. */
int shi_os_give_back_lazily(uint8_t *at, uint64_t bytes);

/* Pages that are alike. Layout as struct page_region of <linux/fs.h>. */
typedef struct {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
} shi_os_run;
#define SHI_OS_FILE (UINT64_C(1) << 2)
#define SHI_OS_SWAPPED (UINT64_C(1) << 4)
#define SHI_OS_ZERO_PAGE (UINT64_C(1) << 5)

/* One descriptor for each processor, up to 16: threads that ask at the same time through one write to one word of the
 * kernel, where it counts who uses the file. */
enum { SHI_OS_PAGEMAPS = 16 };
typedef struct {
  int fds[SHI_OS_PAGEMAPS];
  uint32_t count;
  bool can_scan; /* false: Linux before 6.7, the pages' entries are read one by one */
} shi_os_pagemap;

int shi_os_pagemap_open(shi_os_pagemap *out);
void shi_os_pagemap_close(shi_os_pagemap *pagemap);
/* On which NUMA nodes these pages lie (move_pages(2), which is asked and moves nothing); a negative errno in the place of
 * one that is not there. */
int shi_os_nodes_of(void **pages, size_t count, int *nodes);
enum shi_os_pages {
  SHI_OS_PRIVATE,       /* not those of a mapped file */
  SHI_OS_PRIVATE_FILES, /* those too, told apart */
  SHI_OS_ANONYMOUS      /* the range maps no file: the kernel need not look at each page, and takes half the time */
};
/* Finds pages in [start, end) that are present or swapped. Returns the number of runs, in address order, no more than
 * `capacity`; *next is where to go on: the search is over when *next == end. `few`, if not 0: stop after so many pages,
 * where the kernel can. Runs of the zero page are told apart; without PAGEMAP_SCAN they are not. */
int shi_os_pages(const shi_os_pagemap *pagemap, uint64_t start, uint64_t end, enum shi_os_pages wanted, uint64_t few,
                 shi_os_run *runs, size_t capacity, uint64_t *next);

/* ---- images ----------------------------------------------------------------------------------------------------- */

/* An anonymous file of `bytes` zeros, closed on exec. */
int shi_os_file_create(uint64_t bytes, int *fd);
int shi_os_file_write(int fd, uint64_t offset, const void *bytes, uint64_t length);
/* Forbids any later change of size or contents. Nobody may have mapped the file to write. */
int shi_os_file_seal(int fd);
/* A view for reading: zeros, over which files are mapped, shared. */
int shi_os_view(uint64_t bytes, uint8_t **out);
int shi_os_map_in_view(uint8_t *at, uint64_t bytes, int fd, uint64_t offset);
void shi_os_unview(const uint8_t *at, uint64_t bytes);
void shi_os_file_close(int fd);

/* ---- the rest --------------------------------------------------------------------------------------------------- */

/* Opens what `path` names below the directory `fd`, wherever symbolic links lead on the way; whatever leaves it, and
 * absolute paths and links, are -EXDEV. -ENOSYS or -EPERM: this system has no openat2. */
int shi_os_open_beneath(int fd, const char *path, int flags, uint32_t mode);
/* A file of the kernel's that prints anew at each read from its beginning: kept open, and read with one call. Closed by
 * shi_os_file_close. */
int shi_os_text_open(const char *path, int *fd);
int shi_os_text_reread(int fd, char *text, size_t capacity); /* as shi_os_read_text */
/* Reads a small text file whole, ends it with NUL, cuts it at `capacity` - 1. Returns its length. */
int shi_os_read_text(const char *path, char *text, size_t capacity);

/* ---- threads: os_threads.c -------------------------------------------------------------------------------------- */

/* Starts a thread that gets no signals: they belong to the application's own threads. */
int shi_os_thread_start(pthread_t *out, const char *name, void *(*run)(void *), void *argument);
/* The calling thread gives way, from now on, to threads of this and of other processes that did not; in the background
 * it runs only while none of them wants its processor, unless there is one only, or the system refuses that. */
void shi_os_thread_give_way(bool background);
/* The thread goes before all of the machine's that have no real-time priority, or a lower one: sched(7)'s SCHED_FIFO. */
int shi_os_thread_go_before(pthread_t thread, uint32_t priority);

#endif
