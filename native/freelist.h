/* Free slots, found by what they last held. See freelist.c. */
#ifndef SANDHOST_FREELIST_H
#define SANDHOST_FREELIST_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct shi_slot;

/* A circular list; the head is a ring like its members. Empty: next == prev == the head itself. */
typedef struct shi_ring {
  struct shi_ring *next;
  struct shi_ring *prev;
} shi_ring;

/* A slot's place in a table: in the ring of its key, newest first. Only the newest stands in the bucket's chain, so
 * that a chain is as long as there are keys in it, not slots. */
typedef struct shi_bin {
  shi_ring ring;
  struct shi_bin *chain_next;
  struct shi_bin **chain_at; /* what points here; NULL: another of the same key stands in the chain */
  uint64_t image_id;
  uint64_t affinity;
} shi_bin;

typedef struct {
  shi_bin **buckets;
  uint64_t mask; /* the number of buckets, a power of two, less one */
} shi_bins;

/* One part of the free slots of a node.
 *
 * Invariant, under the lock: every mapped slot is in `by_key`, in `by_image`, and in `warm` or `idle`; mapped is the
 * number of these, unmapped the number in `cold`; `warm` holds exactly those with something to give back (resident
 * pages, or stale ones); `warm` and `idle` begin with the slot that came last. */
typedef struct {
  _Alignas(64) pthread_mutex_t lock;
  shi_bins by_key;   /* image and affinity */
  shi_bins by_image; /* image */
  shi_ring warm;
  shi_ring idle;
  shi_ring cold;
  _Atomic uint32_t mapped; /* read without the lock to pass by an empty shard */
  _Atomic uint32_t unmapped;
} shi_shard;

/* `slots` is how many the shard should hold with ease. -ENOMEM. */
int shi_shard_init(shi_shard *shard, uint32_t slots);
void shi_shard_destroy(shi_shard *shard);
bool shi_shard_check(shi_shard *shard);

enum shi_end { SHI_NEWEST, SHI_OLDEST };
/* Adds a mapped slot by its image, affinity and residency; false, and nothing is done, when its image is retired.
 * SHI_OLDEST: the slot has been idle for long and should be the last of its kind to be taken. */
bool shi_shard_put(shi_shard *shard, struct shi_slot *slot, enum shi_end end);
void shi_shard_put_cold(shi_shard *shard, struct shi_slot *slot);

/* All of these take one slot off the lists, or give NULL. */
struct shi_slot *shi_shard_take_same(shi_shard *shard, uint64_t image_id, uint64_t affinity);
struct shi_slot *shi_shard_take_cold(shi_shard *shard);
/* Same image if there is one, else one that loses no resident pages, else any; the least recently used of each. */
struct shi_slot *shi_shard_take_other(shi_shard *shard, uint64_t image_id);
struct shi_slot *shi_shard_take_image(shi_shard *shard, uint64_t image_id);
/* The warm slot released longest ago, if that was at `before_ns` or earlier. Else *oldest_ns becomes the lesser of
 * itself and the time of release of the oldest. */
struct shi_slot *shi_shard_take_warm(shi_shard *shard, uint64_t before_ns, uint64_t *oldest_ns);
/* Adds the slots that hold clean pages, and the bytes of these. */
void shi_shard_count_warm(shi_shard *shard, uint64_t *slots, uint64_t *bytes);

#endif
