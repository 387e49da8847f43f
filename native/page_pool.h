/* Buffers of one size for requests and results, in memory of their own (sandhost.h: sh_pages).
 *
 *   ring: [ 3 | 0 | 2 ]      the free ones, oldest first
 *   base:  | buffer 0 | buffer 1, leased | buffer 2 | buffer 3 |      one mapping, whole OS pages each
 *
 * A buffer is in exactly one place: the ring; a lease; or the hands of the one thread that moves it between them. Who
 * has it is said by one word:
 *
 *   63                24 23              1      0
 *   | generation        | pins            | leased |
 *
 * A lease is the generation and the index. Putting a buffer back ends its generation before anything else is done with
 * it, so that a lease is good for one put, and for no pin after it. 2^40 generations of one buffer are twelve days at a
 * million a second; a lease that is kept for all of them is taken for the one that then is.
 *
 * What a user may have written is what was pinned: [0, extent). It is written over on the way back, before the ring
 * gives it to anybody.
 */
#ifndef SANDHOST_PAGE_POOL_H
#define SANDHOST_PAGE_POOL_H

#include <pthread.h>

#include "bridge.h"
#include "mpmc.h"
#include "os.h"

enum { SHI_LEASE_INDEX_BITS = 24 };
_Static_assert(SH_LEASE_INDEX == (1 << SHI_LEASE_INDEX_BITS) - 1, "as sandhost.h says");

/* Invariant: leased or pins == 0; extent <= buffer_bytes, 0 unless leased; resident <= buffer_bytes, in whole OS pages.
 * Not leased: [0, buffer_bytes) reads as zeros; of a pool that poisons, as poison if `poisoned`, else as zeros. */
typedef struct {
  _Atomic uint64_t state;
  _Atomic uint64_t extent;   /* how far this user's pins have reached */
  _Atomic uint64_t resident; /* [0, resident) was written to since the pages were last given back */
  bool poisoned;             /* this and `next` belong to who has the buffer */
  uint32_t next;
} shi_page_buffer;

enum shi_pages_counter { SHI_PAGES_TAKEN, SHI_PAGES_WAITED, SHI_PAGES_REFUSED, SHI_PAGES_TRIMMED_BYTES };

/* Invariant: count == in the ring + leased + in the hands of threads; at rest none is in anybody's hands.
 * Locks: upkeep -> the list of all pools; upkeep -> sleep. Neither is taken by take, put and pin, but to wake the thread. */
struct sh_pages {
  shi_mpmc ring;
  shi_page_buffer *buffers;
  uint8_t *base; /* under upkeep, and for who has a buffer; NULL: closed */
  uint64_t buffer_bytes;
  uint32_t count;
  bool poison;
  _Atomic bool forked; /* this is the child of a fork: all of it is the parent's */
  _Atomic bool closed;
  _Atomic uint32_t peak;
  shi_counters counters;
  pthread_mutex_t upkeep; /* trim and close, which take buffers out of the ring for a moment */

  /* The thread that trims what idles. */
  uint64_t idle_ns;
  pthread_t thread;
  pthread_mutex_t sleep;
  pthread_cond_t wake;
  bool stop;            /* under `sleep` */
  _Atomic bool resting; /* the thread waits until a buffer moves */

  struct sh_pages *next; /* all pools, for forks */
};

/* A lease on a free buffer. 0: none is free, or being trimmed. */
uint64_t shi_pages_take(sh_pages *pages);
/* Ends the lease. SH_BUSY changes nothing: it is pinned. SH_CLOSED: there is no such lease, any more. */
int shi_pages_put(sh_pages *pages, uint64_t lease);
/* The buffer's bytes, of which `end` may be used until they are unpinned. NULL: there is no such lease. */
uint8_t *shi_pages_pin(sh_pages *pages, uint64_t lease, uint64_t end);
void shi_pages_unpin(sh_pages *pages, uint64_t lease);
/* How much a put of it would write over, as of now; 0 if there is no such lease. */
uint64_t shi_pages_extent(const sh_pages *pages, uint64_t lease);
/* Whether the invariants hold. Only at rest. */
bool shi_pages_check(sh_pages *pages);

#endif
