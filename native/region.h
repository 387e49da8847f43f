/* The region allocator: linear memories in slots of big reservations.
 *
 *   pool      one per host: reservations (arenas), free slots, budgets, statistics
 *   region    one slot while a guest's linear memory lives in it
 *   image     the first bytes of a memory, sealed in a memfd, mapped copy-on-write into slots
 *   account   a counter of committed bytes with a limit and a parent: guest -> tenant -> host
 *
 * This header is all that the wasmtime bridge knows of memory. Nothing in here knows wasmtime or Python.
 * Functions that return int give 0 or a negative errno; `shi_last_operation()` then names the OS call that failed.
 */
#ifndef SANDHOST_REGION_H
#define SANDHOST_REGION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "account.h"
#include "events.h"
#include "sandhost.h"

/* ---- images --------------------------------------------------------------------------------------------------- */

typedef struct shi_image shi_image;

/* Seals `length` > 0 bytes into a new memfd (its size is rounded up to whole OS pages of zeros) and maps it once,
 * read-only. `runs` may leave holes: only the given pieces are written. The caller owns one reference. */
typedef struct {
  uint64_t offset;
  const void *bytes;
  uint64_t length;
} shi_image_run;
int shi_image_create(uint64_t length, const shi_image_run *runs, size_t run_count, shi_image **out);

/* Puts an image together, in ascending order, of parts of `base` (at the same offset) and of the file `fd`; the rest
 * reads as zeros. All in whole OS pages. Nothing is read or copied. Takes `fd`, also when it fails; -1: no file. The
 * file must not change as long as the image lives. */
enum { SHI_IMAGE_PIECES_MOST = 256 }; /* each takes one of the process's 65,530 mappings, in each slot. Arbitrary */
int shi_image_compose(uint64_t length, const shi_image *base, const sh_image_part *parts, size_t part_count, int fd,
                      shi_image **out);
shi_image *shi_image_retain(shi_image *image);
void shi_image_release(shi_image *image); /* closes the memfd with the last reference */
uint64_t shi_image_length(const shi_image *image);
const void *shi_image_bytes(const shi_image *image); /* the read-only mapping */

/* ---- the pool ------------------------------------------------------------------------------------------------- */

typedef struct shi_pool shi_pool;

typedef struct {
  uint64_t slot_capacity;     /* most bytes a region can grow to; a multiple of the OS page */
  uint64_t slot_guard;        /* bytes after the capacity that never become accessible */
  uint32_t max_regions;       /* over all nodes */
  uint32_t arena_slots;       /* slots reserved at once (an arena is one mmap) */
  enum sh_policy policy;      /* what release does by default */
  uint64_t resident_per_slot; /* warm: most bytes a free slot keeps resident */
  uint64_t resident_total;    /* warm: most bytes all free slots keep resident */
  uint64_t decay_ns;          /* warm: idle slots give their pages back after this */
  uint64_t queue_bytes;       /* deferred decommit: most bytes waiting ... */
  uint64_t queue_ns;          /* ... and for at most this long */
  bool numa_bind;             /* BIND instead of PREFERRED */
  const char *sysfs_node;     /* NULL: "/sys/devices/system/node" */
  shi_events *events;         /* outlives the pool; NULL: nobody listens */
} shi_pool_options;

int shi_pool_create(const shi_pool_options *options, shi_pool **out);
/* Precondition: no live region. Stops the maintenance thread, unmaps all. */
void shi_pool_destroy(shi_pool *pool);
/* Gives resident pages of free slots that idle for at least `idle_ns` back to the OS, and empties the decommit queue.
 * Returns the bytes given back. */
uint64_t shi_pool_trim(shi_pool *pool, uint64_t idle_ns);
void shi_pool_stats(shi_pool *pool, sh_pool_stats *out);
/* Of up to `room` nodes; returns how many there are. Takes a walk over the page tables of all regions. */
uint32_t shi_pool_node_stats(shi_pool *pool, sh_node_stats *out, uint32_t room);
/* A slot as others see it; slots.c. */
typedef struct {
  const _Atomic uint64_t *word; /* what it shows, and ... */
  uint64_t shown;               /* ... what it showed when it was read */
  enum sh_slot_state state;
  uint32_t node;            /* the kernel's number */
  uint32_t owner;           /* live: the request's */
  uint64_t committed_bytes; /* live: accessible; else what it still maps for the next guest */
  uint64_t resident_bytes;  /* private pages; live: UINT64_MAX unless measured */
} shi_slot_seen;
/* Lists slots that were used at least once, from *from (0 at first) on, which it advances; returns how many, 0 at the end.
 * Touches none of them and waits for nobody: each row is true by itself, if a moment old. `measure`: ask the kernel for
 * what is resident, with no more than 256 system calls a slot (then it is a lower bound), and for about 64 Ki pages a
 * call of this. */
uint32_t shi_pool_slots(shi_pool *pool, uint64_t *from, shi_slot_seen *seen, uint32_t room, bool measure);
/* The child of a fork: no slot may be touched again; slots with live views are mapped to zeros so that a stale
 * memoryview reads zeros instead of faulting. From then on acquire, grow and release give -ECHILD, and destroy does
 * nothing. To be called for each pool before the child creates one of its own. Async-signal-safe. */
void shi_pool_after_fork_in_child(shi_pool *pool);

/* ---- regions -------------------------------------------------------------------------------------------------- */

/* Invariant while live: size <= committed <= capacity, committed is a multiple of the OS page,
 * [base, base + committed) is readable and writable, [base + committed, base + capacity + guard) always faults. */
typedef struct shi_region {
  uint8_t *base;
  _Atomic uint64_t size; /* bytes the guest may address */
  uint64_t committed;
  uint64_t maximum;  /* bytes: growth beyond is refused */
  bool untouched;    /* set by the bridge before release: neither guest nor host has had its bytes, so none changed */
  shi_account *account; /* charged with `committed` */
} shi_region;

typedef struct {
  shi_account *account; /* the guest's; outlives the region. The host's, at its root, outlives the pool */
  shi_image *image;     /* NULL: all zeros. length <= initial rounded up to the OS page */
  uint64_t affinity;    /* the tenant: a slot last used with the same image and affinity is taken first */
  uint64_t initial;     /* bytes */
  uint64_t maximum;     /* bytes; <= slot_capacity */
  shi_whose whose;      /* for events */
  bool learns;          /* forks of this image are alike: learn which pages they dirty first */
  uint32_t owner;       /* whose it is, for who lists slots; below 2^24, and not interpreted here */
} shi_region_request;

/* -ENOSPC: no slot is free. -EDQUOT: an account is full (*full names it, if asked). Else an OS error. */
int shi_region_acquire(shi_pool *pool, const shi_region_request *request, shi_region **out, shi_account **full);
/* Only the thread that runs the guest grows. New bytes are zero. Same errors; -ENOSPC past `maximum`. */
int shi_region_grow(shi_region *region, uint64_t size, shi_account **full);
/* The guest is about to be called for the first time: if the slot is cold, populates what forks of its image dirty. */
void shi_region_expect_call(shi_region *region);
/* A view pins: release with pins is refused with -EBUSY and changes nothing. False: the region is released. */
bool shi_region_pin(shi_region *region);
void shi_region_unpin(shi_region *region);
bool shi_region_pinned(const shi_region *region);
uint32_t shi_region_node(shi_region *region); /* the kernel's number of the NUMA node that it lies on */
/* An image of what the region holds, up to its last page that is not zeros; *out == NULL: it holds nothing else. Shares
 * files with the region's own image. Precondition: nobody writes to the region meanwhile. capture.c */
int shi_region_capture(shi_region *region, shi_image **out);
/* Ends the region, resets the slot by what was dirtied, refunds the account. `policy` < 0: the pool's.
 * Adds to *reclaim (several regions of one guest add up). Never fails otherwise: a slot that cannot be
 * reset is quarantined and counted. Any thread may release. A second release is -EINVAL as long as nobody has acquired
 * the slot again. */
int shi_region_release(shi_pool *pool, shi_region *region, int policy, sh_reclaim *reclaim);

/* ---- what went wrong ------------------------------------------------------------------------------------------- */

const char *shi_last_operation(void); /* thread-local, static storage: "mmap", "mprotect", ... */

#endif
