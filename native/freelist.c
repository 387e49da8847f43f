/* The free slots of one shard, found in constant time by what they last held.
 *
 *   by_key    bucket ─► [A/acme] ─► [B/zeta] ─► ...      a chain of keys
 *                          │ring       │ring
 *                       slot 7       slot 2              newest first: its cache lines are the warmest
 *                       slot 3
 *   by_image  bucket ─► [A] ─► ...                       the same slots, whoever had them
 *   warm / idle                                          the same slots again, by time of release
 *   cold                                                 slots that map nothing: in no table
 *
 * A slot is taken out of the middle of all of them by its own links. Keys hold image ids, never addresses: an address
 * can come back as another image.
 */
#include "freelist.h"

#include <errno.h>
#include <stdlib.h>

#include "image.h"
#include "os.h"
#include "pool.h"

/* ---- rings ------------------------------------------------------------------------------------------------------ */

static void ring_init(shi_ring *ring) { ring->next = ring->prev = ring; }

static bool ring_empty(const shi_ring *ring) { return ring->next == ring; }

static void ring_insert_after(shi_ring *place, shi_ring *member) {
  member->next = place->next;
  member->prev = place;
  place->next->prev = member;
  place->next = member;
}

static void ring_remove(shi_ring *member) {
  member->prev->next = member->next;
  member->next->prev = member->prev;
}

/* ---- tables ----------------------------------------------------------------------------------------------------- */

#define SLOT_OF(pointer, member) ((shi_slot *)(void *)((uint8_t *)(pointer) - offsetof(shi_slot, member)))
#define BIN_OF(pointer) ((shi_bin *)(void *)(pointer)) /* the ring is a bin's first member */
_Static_assert(offsetof(shi_bin, ring) == 0, "BIN_OF");

static uint64_t mix(uint64_t key) { /* the finalizer of MurmurHash3 */
  key = (key ^ key >> 33) * UINT64_C(0xff51afd7ed558ccd);
  key = (key ^ key >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
  return key ^ key >> 33;
}

static shi_bin **bucket_of(const shi_bins *bins, uint64_t image_id, uint64_t affinity) {
  return &bins->buckets[mix(image_id ^ mix(affinity)) & bins->mask];
}

static shi_bin *bins_find(const shi_bins *bins, uint64_t image_id, uint64_t affinity) {
  shi_bin *bin = *bucket_of(bins, image_id, affinity);
  while (bin != NULL && (bin->image_id != image_id || bin->affinity != affinity)) {
    bin = bin->chain_next;
  }
  return bin;
}

static void chain_insert(shi_bin **at, shi_bin *bin, shi_bin *next) {
  bin->chain_at = at;
  bin->chain_next = next;
  *at = bin;
  if (next != NULL) {
    next->chain_at = &bin->chain_next;
  }
}

static void chain_remove(shi_bin *bin) {
  *bin->chain_at = bin->chain_next;
  if (bin->chain_next != NULL) {
    bin->chain_next->chain_at = bin->chain_at;
  }
  bin->chain_at = NULL;
}

/* `bin` takes the place of the newest of its key. */
static void chain_replace(shi_bin *newest, shi_bin *bin) {
  chain_insert(newest->chain_at, bin, newest->chain_next);
  newest->chain_at = NULL;
}

static void bins_put(shi_bins *bins, shi_bin *bin, uint64_t image_id, uint64_t affinity, enum shi_end end) {
  bin->image_id = image_id;
  bin->affinity = affinity;
  bin->chain_at = NULL;
  shi_bin *newest = bins_find(bins, image_id, affinity);
  if (newest == NULL) {
    shi_bin **bucket = bucket_of(bins, image_id, affinity);
    ring_init(&bin->ring);
    chain_insert(bucket, bin, *bucket);
    return;
  }
  ring_insert_after(newest->ring.prev, &bin->ring); /* between the oldest and the newest: it can be either */
  if (end == SHI_NEWEST) {
    chain_replace(newest, bin);
  }
}

static void bins_remove(shi_bin *bin) {
  if (bin->chain_at != NULL) {
    if (ring_empty(&bin->ring)) {
      chain_remove(bin);
      return;
    }
    chain_replace(bin, BIN_OF(bin->ring.next));
  }
  ring_remove(&bin->ring);
}

static bool bins_init(shi_bins *bins, uint32_t slots) {
  uint64_t count = 16;
  while (count < slots && count < 65536) {
    count *= 2;
  }
  bins->mask = count - 1;
  bins->buckets = calloc(count, sizeof *bins->buckets);
  return bins->buckets != NULL;
}

/* ---- shards ----------------------------------------------------------------------------------------------------- */

int shi_shard_init(shi_shard *shard, uint32_t slots) {
  if (!bins_init(&shard->by_key, slots) || !bins_init(&shard->by_image, slots)) {
    free(shard->by_key.buckets);
    return shi_os_failure("calloc", ENOMEM);
  }
  pthread_mutex_init(&shard->lock, NULL);
  ring_init(&shard->warm);
  ring_init(&shard->idle);
  ring_init(&shard->cold);
  atomic_init(&shard->mapped, 0);
  atomic_init(&shard->unmapped, 0);
  return 0;
}

void shi_shard_destroy(shi_shard *shard) {
  pthread_mutex_destroy(&shard->lock);
  free(shard->by_key.buckets);
  free(shard->by_image.buckets);
}

static void count(_Atomic uint32_t *counter, uint32_t by) {
  atomic_fetch_add_explicit(counter, by, memory_order_relaxed);
}

static bool none(const _Atomic uint32_t *counter) { return atomic_load_explicit(counter, memory_order_relaxed) == 0; }

bool shi_shard_put(shi_shard *shard, shi_slot *slot, enum shi_end end) {
  pthread_mutex_lock(&shard->lock);
  /* Asked under the lock: whoever retires an image does so before he takes the lock to look for its slots, so either
   * we see it here or he finds the slot there. */
  bool wanted = !shi_image_retired(slot->image);
  if (wanted) {
    uint64_t image_id = shi_image_id(slot->image);
    shi_ring *by_age = shi_slot_holds_pages(slot) ? &shard->warm : &shard->idle;
    bins_put(&shard->by_key, &slot->by_key, image_id, slot->affinity, end);
    bins_put(&shard->by_image, &slot->by_image, image_id, 0, end);
    ring_insert_after(end == SHI_NEWEST ? by_age : by_age->prev, &slot->by_age);
    slot->state = SHI_SLOT_FREE;
    count(&shard->mapped, 1);
  }
  pthread_mutex_unlock(&shard->lock);
  return wanted;
}

void shi_shard_put_cold(shi_shard *shard, shi_slot *slot) {
  pthread_mutex_lock(&shard->lock);
  ring_insert_after(&shard->cold, &slot->by_age);
  slot->state = SHI_SLOT_FREE;
  count(&shard->unmapped, 1);
  pthread_mutex_unlock(&shard->lock);
}

/* With the lock held. */
static shi_slot *take(shi_shard *shard, shi_slot *slot) {
  bins_remove(&slot->by_key);
  bins_remove(&slot->by_image);
  ring_remove(&slot->by_age);
  slot->state = SHI_SLOT_TAKEN;
  count(&shard->mapped, UINT32_MAX);
  return slot;
}

shi_slot *shi_shard_take_same(shi_shard *shard, uint64_t image_id, uint64_t affinity) {
  if (none(&shard->mapped)) {
    return NULL;
  }
  pthread_mutex_lock(&shard->lock);
  shi_bin *bin = bins_find(&shard->by_key, image_id, affinity);
  shi_slot *slot = bin == NULL ? NULL : take(shard, SLOT_OF(bin, by_key));
  pthread_mutex_unlock(&shard->lock);
  return slot;
}

shi_slot *shi_shard_take_cold(shi_shard *shard) {
  if (none(&shard->unmapped)) {
    return NULL;
  }
  shi_slot *slot = NULL;
  pthread_mutex_lock(&shard->lock);
  if (!ring_empty(&shard->cold)) {
    slot = SLOT_OF(shard->cold.next, by_age);
    ring_remove(&slot->by_age);
    slot->state = SHI_SLOT_TAKEN;
    count(&shard->unmapped, UINT32_MAX);
  }
  pthread_mutex_unlock(&shard->lock);
  return slot;
}

shi_slot *shi_shard_take_other(shi_shard *shard, uint64_t image_id) {
  if (none(&shard->mapped)) {
    return NULL;
  }
  shi_slot *slot = NULL;
  pthread_mutex_lock(&shard->lock);
  shi_bin *newest = bins_find(&shard->by_image, image_id, 0);
  if (newest != NULL) {
    slot = SLOT_OF(BIN_OF(newest->ring.prev), by_image);
  } else if (!ring_empty(&shard->idle)) {
    slot = SLOT_OF(shard->idle.prev, by_age);
  } else if (!ring_empty(&shard->warm)) {
    slot = SLOT_OF(shard->warm.prev, by_age);
  }
  if (slot != NULL) {
    take(shard, slot);
  }
  pthread_mutex_unlock(&shard->lock);
  return slot;
}

shi_slot *shi_shard_take_image(shi_shard *shard, uint64_t image_id) {
  pthread_mutex_lock(&shard->lock);
  shi_bin *bin = bins_find(&shard->by_image, image_id, 0);
  shi_slot *slot = bin == NULL ? NULL : take(shard, SLOT_OF(bin, by_image));
  pthread_mutex_unlock(&shard->lock);
  return slot;
}

shi_slot *shi_shard_take_warm(shi_shard *shard, uint64_t before_ns, uint64_t *oldest_ns) {
  shi_slot *slot = NULL;
  pthread_mutex_lock(&shard->lock);
  if (!ring_empty(&shard->warm)) {
    shi_slot *oldest = SLOT_OF(shard->warm.prev, by_age);
    if (oldest->freed_ns <= before_ns) {
      slot = take(shard, oldest);
    } else if (oldest->freed_ns < *oldest_ns) {
      *oldest_ns = oldest->freed_ns;
    }
  }
  pthread_mutex_unlock(&shard->lock);
  return slot;
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

void shi_shard_count_warm(shi_shard *shard, uint64_t *slots, uint64_t *bytes) {
  pthread_mutex_lock(&shard->lock);
  for (const shi_ring *at = shard->warm.next; at != &shard->warm; at = at->next) {
    const shi_slot *slot = SLOT_OF(at, by_age);
    *slots += slot->resident > 0;
    *bytes += slot->resident;
  }
  pthread_mutex_unlock(&shard->lock);
}

static uint32_t count_by_age(const shi_ring *head, bool holds_pages, bool *ok) {
  uint32_t members = 0;
  for (const shi_ring *at = head->next; at != head; at = at->next, members++) {
    const shi_slot *slot = SLOT_OF(at, by_age);
    *ok = *ok && slot->state == SHI_SLOT_FREE && shi_slot_holds_pages(slot) == holds_pages;
  }
  return members;
}

static uint32_t count_in_bins(const shi_bins *bins, bool *ok) {
  uint32_t members = 0;
  for (uint64_t i = 0; i <= bins->mask; i++) {
    shi_bin **at = &bins->buckets[i];
    for (shi_bin *newest = *at; newest != NULL; at = &newest->chain_next, newest = *at) {
      *ok = *ok && newest->chain_at == at;
      shi_bin *bin = newest;
      do {
        *ok = *ok && bin->image_id == newest->image_id && bin->affinity == newest->affinity &&
              (bin == newest || bin->chain_at == NULL);
        members++;
        bin = BIN_OF(bin->ring.next);
      } while (bin != newest);
    }
  }
  return members;
}

bool shi_shard_check(shi_shard *shard) {
  bool ok = true;
  pthread_mutex_lock(&shard->lock);
  uint32_t mapped = atomic_load(&shard->mapped);
  uint32_t unmapped = atomic_load(&shard->unmapped);
  ok = count_by_age(&shard->warm, true, &ok) + count_by_age(&shard->idle, false, &ok) == mapped && ok;
  ok = count_by_age(&shard->cold, false, &ok) == unmapped && ok;
  ok = count_in_bins(&shard->by_key, &ok) == mapped && ok;
  ok = count_in_bins(&shard->by_image, &ok) == mapped && ok;
  pthread_mutex_unlock(&shard->lock);
  return ok;
}
