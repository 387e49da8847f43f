/* What the files of the region allocator share: slots, arenas, the pool, and which file does what.
 *
 *   region.c  acquire, grow, release         reset.c     dirty pages back to the image or to the OS
 *   pool.c    arenas, who gets which slot    maintain.c  deferred decommit and decay, in a thread
 *   freelist  free slots by what they held   image.c     what memories start with, in pieces of files
 *   capture.c an image of a live region      habit.c     which pages forks dirty first
 *   nodes.c   figures of each NUMA node      slots.c     the list of slots, for who looks on
 *   account, counters, numa, layout, os
 *
 * Locks, in the order in which they may be taken together:
 *   registry (all pools) -> pool.upkeep -> pool.queue.lock -> a shard's lock;  pool.upkeep -> pool.arena_lock.
 * None is held over a system call on the way of acquire and release, except while an arena is added.
 */
#ifndef SANDHOST_POOL_H
#define SANDHOST_POOL_H

#include <assert.h>

#include "account.h"
#include "counters.h"
#include "freelist.h"
#include "layout.h"
#include "numa.h"
#include "os.h"
#include "region.h"

#ifdef SANDHOST_DEBUG
#define SHI_CHECK(condition) assert(condition)
#else
#define SHI_CHECK(condition) ((void)0)
#endif

/* ---- slots ------------------------------------------------------------------------------------------------------ */

enum shi_slot_state {
  SHI_SLOT_FREE,       /* on a shard's lists */
  SHI_SLOT_TAKEN,      /* off the lists: being prepared, reset, or given back; one thread owns it */
  SHI_SLOT_LIVE,       /* a guest's */
  SHI_SLOT_QUEUED,     /* waits for decommit, still holds the guest's bytes */
  SHI_SLOT_QUARANTINED /* could not be reset: never used again */
};

#define SHI_KEPT_UNKNOWN UINT64_MAX
enum { SHI_PINS_CLOSED = -1 }; /* the value of `pins` while a slot is not live */

/* What a slot maps, from its base:
 *
 *   0              image_bytes           accessible                  capacity          capacity + guard
 *   | image, CoW   | anonymous, RW       | PROT_NONE                                    |
 *
 * Invariant: image_bytes <= accessible <= capacity, resident <= accessible, image_bytes == the image's mapped bytes.
 * Live: accessible == region.committed. Free and not stale: [0, accessible) reads as the image, then zeros. */
typedef struct shi_slot {
  shi_region region; /* first: the bridge's pointer is the slot's */
  struct shi_arena *arena;
  _Atomic int32_t pins;
  enum shi_slot_state state;
  bool stale;       /* MADV_FREE: still holds a guest's bytes, reset before anyone gets it */
  uint16_t shard;   /* of its node: where it was last free */
  uint32_t owner;   /* live: the request's */
  shi_image *image; /* mapped at 0; a reference; NULL: none */
  uint64_t image_bytes;
  uint64_t accessible;
  uint64_t initial;  /* committed when acquired: what lies beyond was grown */
  bool learns;       /* live: see shi_region_request */
  uint64_t kept;     /* live: what was resident when it was acquired; SHI_KEPT_UNKNOWN: it was remapped since */
  uint64_t resident; /* bytes of clean private pages kept in a free slot, counted in the pool's warm_bytes */
  uint64_t affinity;
  shi_whose whose;    /* who has it, or had it last */
  uint64_t freed_ns;  /* when it was released, or left the queue */
  uint64_t rest_from; /* queued: what to give back */
  uint64_t rest_to;
  uint64_t rest_bytes;  /* private bytes in there */
  shi_account *owed_to; /* the host's account, still charged with owed_bytes: queued or quarantined */
  uint64_t owed_bytes;
  struct shi_slot *queue_next;
  shi_bin by_key;
  shi_bin by_image;
  shi_ring by_age;
  _Atomic uint64_t shown;   /* what others may read of all this: see shi_slot_show */
  uint8_t apart[SHI_APART]; /* from the next slot, which is another thread's */
} shi_slot;
_Static_assert(offsetof(shi_slot, region) == 0, "a region is cast to its slot");

static inline shi_slot *shi_slot_of(shi_region *region) { return (shi_slot *)(void *)region; }

static inline bool shi_slot_holds_pages(const shi_slot *slot) { return slot->resident > 0 || slot->stale; }

/* A slot belongs to one thread at a time, and only that one may read its fields. What it shows to all others is one word,
 * so that nobody sees half of a change. In units of 4 KiB, more than fits is shown as the most that does:
 *
 *   63            56 55             32 31         24 23                        0
 *   | enum          | accessible      | 0           | live: the request's owner |
 *   | sh_slot_state |                 |             | warm, queued: private     |
 *
 * Zero: opened, and not yet used. Whoever has the slot writes it before he lets go of it; slots.c reads it. */
enum { SHI_SHOWN_SHIFT = 12, SHI_SHOWN_MOST = (1 << 24) - 1 };
static inline uint64_t shi_shown_units(uint64_t bytes) {
  return bytes >> SHI_SHOWN_SHIFT < SHI_SHOWN_MOST ? bytes >> SHI_SHOWN_SHIFT : SHI_SHOWN_MOST;
}
static inline void shi_slot_show(shi_slot *slot, enum sh_slot_state state, uint64_t low) {
  atomic_store_explicit(&slot->shown, (uint64_t)state << 56 | shi_shown_units(slot->accessible) << 32 | low,
                        memory_order_relaxed);
}

/* Slots are made on first use and never moved, so a pointer to one stays good until the pool is destroyed. */
typedef struct shi_arena {
  struct shi_pool *pool;
  struct shi_arena *next; /* all arenas of the pool */
  uint8_t *base;
  shi_layout layout;
  uint32_t node;           /* an index into pool.nodes */
  bool node_set;           /* the kernel took the node policy */
  _Atomic uint32_t opened; /* slots [0, opened) have been handed out at least once */
  uint8_t apart[SHI_APART];
  shi_slot slots[];
} shi_arena;

/* ---- the pool --------------------------------------------------------------------------------------------------- */

enum { SHI_MAX_SHARDS = 16 };

typedef struct {
  shi_shard *shards;
  uint32_t shard_count;
  _Atomic(shi_arena *) opening; /* the arena with slots never used; NULL: none was added yet */
} shi_node;

/* Slots that wait for decommit, oldest first. Invariant: `bytes` == the sum of the rest_bytes of the slots in here, in a
 * batch under way, and on their way in; `slots` counts those in here and in a batch. */
typedef struct {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  pthread_t thread;
  bool stop;
  shi_slot *head;
  shi_slot **tail;
  uint32_t count;
  _Atomic uint64_t slots;
  _Atomic uint64_t bytes;
  uint64_t wake_ns;           /* the thread sleeps until then; UINT64_MAX: until it is woken */
  _Atomic bool decay_planned; /* the thread knows that warm slots exist and will come back for them */
} shi_queue;

/* Each is true by itself, together they are a picture in motion. */
enum shi_pool_counter {
  SHI_POOL_WARM,
  SHI_POOL_QUARANTINED,
  SHI_POOL_RESERVED_BYTES,
  SHI_POOL_COMMITTED_BYTES,
  SHI_POOL_SAME,
  SHI_POOL_COLD,
  SHI_POOL_OTHER,
  SHI_POOL_RETURNED_BYTES,
  SHI_POOL_RESTORED_BYTES,
  SHI_POOL_RESET_FAILURES,
  SHI_POOL_NUMA_REFUSED,
  SHI_POOL_COUNTERS
};
_Static_assert((int)SHI_POOL_COUNTERS <= (int)SHI_COUNTERS, "shi_counters has room");

/* Invariant at rest: slots opened == live + queued + quarantined + the sum over the shards' mapped and unmapped. */
struct shi_pool {
  shi_pool_options options;
  uint64_t os_page;
  shi_events *events;
  shi_os_pagemap pagemap;
  shi_numa numa;
  shi_node nodes[SHI_NUMA_MAX_NODES];
  _Atomic(shi_arena *) arenas;
  pthread_mutex_t arena_lock; /* adding arenas */
  uint32_t slots;             /* in all arenas; under arena_lock */
  pthread_mutex_t upkeep;     /* held by whoever takes slots off lists or queue to put them back */
  shi_queue queue;
  shi_counters counters;
  shi_account live;       /* slots that are a guest's */
  shi_account warm_bytes; /* resident in free slots; its limit is options.resident_total */
  shi_credits live_credits;
  shi_credits warm_credits;
  _Atomic bool forked;            /* this is the child of a fork: nothing here may be touched */
  struct shi_pool *registry_next; /* under the registry's lock */
};

/* pool.c: a slot is in exactly one place: a shard, the queue, quarantine, or the hands of one thread. */

/* Takes a slot off the lists, near the caller first, and adds an arena if none is left. -ENOSPC: none is free. */
int shi_pool_take(shi_pool *pool, uint64_t image_id, uint64_t affinity, shi_slot **out);
/* Hands a reset slot to the next guest; turns it cold if its image is retired. */
void shi_pool_put(shi_pool *pool, shi_slot *slot, enum shi_end end);
/* Unmaps what the slot holds, then frees or, if that fails, quarantines it. */
void shi_pool_put_cold(shi_pool *pool, shi_slot *slot);
void shi_pool_quarantine(shi_pool *pool, shi_slot *slot);
/* Turns all free slots of a retired image cold, in all pools. */
void shi_pools_forget_image(const shi_image *image);
/* The free slots of the shard near the caller, if the slot's node is the caller's; else those it last was in. */
void shi_pool_move_near(shi_pool *pool, shi_slot *slot);
/* Uncounts the clean pages that the slot keeps: it is going to be used, or they are gone. */
void shi_slot_forget_resident(shi_pool *pool, shi_slot *slot);
/* Gives a new anonymous mapping within the slot the node policy that its arena has. */
void shi_slot_set_node(shi_slot *slot, uint64_t from, uint64_t bytes);
bool shi_slot_check(const shi_slot *slot);
bool shi_pool_check(shi_pool *pool); /* only at rest */

/* reset.c */

enum shi_reset_result {
  SHI_RESET_DONE,   /* as new: free it */
  SHI_RESET_QUEUE,  /* rest_* say what is left to give back, and the queue has room reserved for it */
  SHI_RESET_FAILED, /* may hold the guest's bytes: quarantine it */
};
/* Resets a slot whose guest has ended. Adds to *reclaim. */
enum shi_reset_result shi_reset(shi_pool *pool, shi_slot *slot, enum sh_policy policy, sh_reclaim *reclaim);
/* Resets a slot that MADV_FREE left stale, for its next guest. 0 or -errno; then it is still stale. */
int shi_reset_stale(shi_pool *pool, shi_slot *slot);
/* Private bytes in the slot, as the kernel counts them; 0 when it cannot say. */
uint64_t shi_reset_private_bytes(shi_pool *pool, const shi_slot *slot);

/* maintain.c */

int shi_maintain_start(shi_pool *pool);
/* Ends the thread and flushes the queue. */
void shi_maintain_stop(shi_pool *pool);
/* Room in the queue for `bytes`; false: its budget is full, give back now. */
bool shi_maintain_reserve(shi_pool *pool, uint64_t bytes);
/* Hands the slot to the queue, which has reserved room for its rest_bytes. The caller may not touch it again. */
void shi_maintain_defer(shi_pool *pool, shi_slot *slot);
/* A slot with something to decay became free. */
void shi_maintain_warmed(shi_pool *pool);
/* Gives back all that is queued, waiting for a batch under way. Returns the bytes given back. */
uint64_t shi_maintain_flush(shi_pool *pool);
/* As shi_pool_take, after a flush, and while no slot is in the hands of upkeep. */
int shi_maintain_take(shi_pool *pool, uint64_t image_id, uint64_t affinity, shi_slot **out);
/* Gives back what slots hold that were released at `before_ns` or earlier. Returns the bytes; *oldest_ns becomes the
 * time of release of the oldest that stay, UINT64_MAX if none does. */
uint64_t shi_maintain_decay(shi_pool *pool, uint64_t before_ns, uint64_t *oldest_ns);

#endif
