/* A region's life: acquire, grow, pin, release.
 *
 * On the steady path (a slot that last held the same image for the same tenant, and no growth) acquire makes no system
 * call and release makes one, the scan for dirty pages, or two where there are many. All mapping is here; all
 * forgetting is in reset.c.
 */
#include "region.h"

#include <errno.h>

#include "image.h"
#include "pool.h"

/* ---- acquire ---------------------------------------------------------------------------------------------------- */

static int check_request(const shi_pool *pool, const shi_region_request *request, uint64_t *committed) {
  if (request->initial > request->maximum || request->maximum > pool->options.slot_capacity ||
      !shi_round_up(request->initial, pool->os_page, committed) ||
      shi_image_mapped_bytes(request->image) > *committed) {
    return shi_os_failure("region request", EINVAL);
  }
  return 0;
}

/* Charges all levels. When the host is full, what waits for decommit is counted against it too: give that back first.
 */
static int charge(shi_pool *pool, shi_account *account, uint64_t bytes, shi_account **full) {
  shi_account *stopped_by = shi_account_charge(account, bytes);
  if (stopped_by != NULL && stopped_by->level == SHI_ACCOUNT_HOST &&
      atomic_load_explicit(&pool->queue.slots, memory_order_relaxed) > 0) {
    (void)shi_maintain_flush(pool);
    stopped_by = shi_account_charge(account, bytes);
  }
  if (stopped_by == NULL) {
    return 0;
  }
  if (full != NULL) {
    *full = stopped_by;
  }
  return shi_os_failure("account", EDQUOT);
}

/* Maps `image` in place of the slot's own. Anonymous pages of a free slot are zeros, so that only what the old image
 * covers and the new one does not needs new ones. On failure the slot is fit only to be turned cold. */
static int map_image(shi_slot *slot, shi_image *image) {
  uint64_t before = slot->image_bytes;
  uint64_t bytes = shi_image_mapped_bytes(image);
  if (slot->accessible < bytes) {
    slot->accessible = bytes; /* what a failure has to clean up */
  }
  int error = image == NULL ? 0 : shi_image_map(image, slot->region.base);
  if (error == 0 && bytes < before) {
    error = shi_os_map_zeros(slot->region.base + bytes, before - bytes, true);
  }
  if (error != 0) {
    return error;
  }
  /* Only what lies beyond the image: a policy on a memfd's mapping would be the file's, and so that of all its slots. Its
   * copied pages come from the node of the thread that touches them first. */
  if (bytes < before) {
    shi_slot_set_node(slot, bytes, before - bytes);
  }
  shi_image_unref(slot->image);
  slot->image = image == NULL ? NULL : shi_image_ref(image);
  slot->image_bytes = bytes;
  return 0;
}

/* Makes exactly [0, committed) accessible. */
static int set_extent(shi_slot *slot, uint64_t committed) {
  uint8_t *base = slot->region.base;
  uint64_t before = slot->accessible;
  int error;
  if (before < committed) {
    slot->accessible = committed;
    error = shi_os_protect(base + before, committed - before, true);
  } else {
    error =
        shi_os_give_back(base + committed, before - committed); /* else they stay resident where none can use them */
    if (error == 0) {
      error = shi_os_protect(base + committed, before - committed, false);
    }
    if (error == 0) {
      slot->accessible = committed;
    }
  }
  return error;
}

/* What an untouched slot still holds when it is released. */
static uint64_t kept_in(const shi_slot *slot, const shi_image *image, uint64_t committed) {
  if (slot->stale) {
    return SHI_KEPT_UNKNOWN;
  }
  bool as_it_is = slot->image == image && slot->accessible == committed;
  return slot->resident == 0 || as_it_is ? slot->resident : SHI_KEPT_UNKNOWN;
}

/* Makes a free slot what the request asks for. -EAGAIN: it was not fit to be used, take another. On any failure the
 * slot is off the caller's hands. */
static int prepare(shi_pool *pool, shi_slot *slot, shi_image *image, uint64_t committed) {
  slot->kept = kept_in(slot, image, committed);
  if (slot->stale && shi_reset_stale(pool, slot) != 0) {
    shi_pool_quarantine(pool, slot);
    return -EAGAIN;
  }
  int error = slot->image == image ? 0 : map_image(slot, image);
  if (error == 0) {
    error = set_extent(slot, committed);
  }
  if (error != 0) {
    shi_pool_put_cold(pool, slot);
    return error;
  }
  shi_slot_forget_resident(pool, slot);
  return 0;
}

static int take_prepared(shi_pool *pool, const shi_region_request *request, uint64_t committed, shi_slot **slot) {
  uint64_t image_id = shi_image_id(request->image);
  int error;
  do {
    error = shi_pool_take(pool, image_id, request->affinity, slot);
    if (error != 0) { /* slots may be waiting in the queue, or be in the hands of upkeep */
      error = shi_maintain_take(pool, image_id, request->affinity, slot);
    }
    if (error == 0) {
      error = prepare(pool, *slot, request->image, committed);
    }
  } while (error == -EAGAIN);
  return error;
}

int shi_region_acquire(shi_pool *pool, const shi_region_request *request, shi_region **out, shi_account **full) {
  if (atomic_load_explicit(&pool->forked, memory_order_relaxed)) {
    return shi_os_failure("fork", ECHILD);
  }
  uint64_t committed;
  int error = check_request(pool, request, &committed);
  if (error == 0) {
    error = charge(pool, request->account, committed, full);
  }
  if (error != 0) {
    return error;
  }
  shi_slot *slot;
  error = take_prepared(pool, request, committed, &slot);
  if (error != 0) {
    shi_account_refund(request->account, committed);
    return error;
  }
  slot->affinity = request->affinity;
  slot->whose = request->whose;
  slot->initial = committed;
  slot->region.committed = committed;
  slot->region.maximum = request->maximum;
  slot->region.untouched = false;
  slot->learns = request->learns && request->image != NULL;
  slot->region.account = request->account;
  atomic_store_explicit(&slot->region.size, request->initial, memory_order_release);
  slot->state = SHI_SLOT_LIVE;
  slot->owner = request->owner;
  shi_slot_show(slot, SH_SLOT_LIVE, slot->owner);
  atomic_store(&slot->pins, 0);
  SHI_CHECK(shi_slot_check(slot));
  (void)shi_account_charge(&pool->live, 1); /* it has no limit */
  shi_count(&pool->counters, SHI_POOL_COMMITTED_BYTES, committed);
  *out = &slot->region;
  return 0;
}

/* ---- while live ------------------------------------------------------------------------------------------------- */

int shi_region_grow(shi_region *region, uint64_t size, shi_account **full) {
  shi_slot *slot = shi_slot_of(region);
  shi_pool *pool = slot->arena->pool;
  if (atomic_load_explicit(&pool->forked, memory_order_relaxed)) {
    return shi_os_failure("fork", ECHILD);
  }
  if (size < atomic_load_explicit(&region->size, memory_order_relaxed)) {
    return shi_os_failure("region growth", EINVAL);
  }
  uint64_t committed;
  if (size > region->maximum || !shi_round_up(size, pool->os_page, &committed)) {
    return shi_os_failure("region growth", ENOSPC);
  }
  uint64_t more = committed - region->committed;
  if (more > 0) {
    int error = charge(pool, region->account, more, full);
    if (error != 0) {
      return error;
    }
    error = shi_os_protect(region->base + region->committed, more, true);
    if (error != 0) {
      shi_account_refund(region->account, more);
      return error;
    }
    region->committed = slot->accessible = committed;
    shi_slot_show(slot, SH_SLOT_LIVE, slot->owner);
    shi_count(&pool->counters, SHI_POOL_COMMITTED_BYTES, more);
  }
  atomic_store_explicit(&region->size, size, memory_order_release);
  SHI_CHECK(shi_slot_check(slot));
  return 0;
}

bool shi_region_pin(shi_region *region) {
  _Atomic int32_t *pins = &shi_slot_of(region)->pins;
  int32_t before = atomic_load(pins);
  do {
    if (before == SHI_PINS_CLOSED) {
      return false;
    }
  } while (!atomic_compare_exchange_weak(pins, &before, before + 1));
  return true;
}

void shi_region_unpin(shi_region *region) { atomic_fetch_sub(&shi_slot_of(region)->pins, 1); }

uint32_t shi_region_node(shi_region *region) {
  const shi_arena *arena = shi_slot_of(region)->arena;
  return arena->pool->numa.ids[arena->node];
}

bool shi_region_pinned(const shi_region *region) {
  return atomic_load(&((const shi_slot *)(const void *)region)->pins) > 0;
}

static bool is_cold(const shi_slot *slot) { return slot->learns && slot->kept == 0; }

void shi_region_expect_call(shi_region *region) {
  const shi_slot *slot = shi_slot_of(region);
  if (is_cold(slot)) {
    shi_habit_follow(slot);
  }
}

/* ---- release ---------------------------------------------------------------------------------------------------- */

/* The slot still holds a guest's bytes: the host goes on paying for them, the guest and its tenant do not. */
static void leave_debt(shi_slot *slot, shi_account *account, uint64_t committed) {
  slot->owed_to = shi_account_refund_below_host(account, committed);
  slot->owed_bytes = committed;
}

int shi_region_release(shi_pool *pool, shi_region *region, int policy, sh_reclaim *reclaim) {
  if (atomic_load_explicit(&pool->forked, memory_order_relaxed)) {
    return shi_os_failure("fork", ECHILD);
  }
  if (policy > SH_POLICY_LAZY) {
    return shi_os_failure("reclaim policy", EINVAL);
  }
  shi_slot *slot = shi_slot_of(region);
  int32_t pins = 0;
  if (!atomic_compare_exchange_strong(&slot->pins, &pins, SHI_PINS_CLOSED)) {
    return pins > 0 ? shi_os_failure("pinned by a view", EBUSY) : shi_os_failure("released before", EINVAL);
  }
  uint64_t started_ns = shi_os_now_ns();
  enum sh_policy chosen = policy < 0 ? pool->options.policy : (enum sh_policy)policy;
  shi_account *account = region->account;
  uint64_t committed = region->committed;
  slot->state = SHI_SLOT_TAKEN;
  atomic_store_explicit(&region->size, 0, memory_order_relaxed);
  region->account = NULL;
  shi_pool_move_near(pool, slot);
  if (is_cold(slot) && !region->untouched) {
    shi_habit_learn(pool, slot);
  }
  const sh_reclaim before = *reclaim;
  enum shi_reset_result result = shi_reset(pool, slot, chosen, reclaim);
  uint64_t ended_ns = shi_os_now_ns();
  shi_event_reset(pool->events, ended_ns, slot->whose, reclaim->returned_bytes - before.returned_bytes,
                  reclaim->kept_bytes - before.kept_bytes, reclaim->deferred_bytes - before.deferred_bytes,
                  ended_ns - started_ns, chosen);
  slot->freed_ns = ended_ns;
  shi_account_refund(&pool->live, 1);
  shi_uncount(&pool->counters, SHI_POOL_COMMITTED_BYTES, committed);
  switch (result) {
  case SHI_RESET_DONE:
    shi_account_refund(account, committed);
    shi_pool_put(pool, slot, SHI_NEWEST);
    break;
  case SHI_RESET_QUEUE:
    leave_debt(slot, account, committed);
    shi_maintain_defer(pool, slot);
    break;
  case SHI_RESET_FAILED:
    leave_debt(slot, account, committed);
    shi_pool_quarantine(pool, slot);
    reclaim->quarantined++;
    break;
  }
  reclaim->policy = chosen;
  reclaim->ns += ended_ns - started_ns;
  return 0;
}
