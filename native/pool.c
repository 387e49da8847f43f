/* The pool: arenas, and who gets which slot.
 *
 * Slots are looked for near the caller first, and among equals by what they cost:
 *
 *   1. same   the image and the affinity of the request, in any shard of the node: nothing to map
 *   2. cold   holds nothing: one mapping, no other guest's warm memory lost
 *   3. other  another tenant's (nothing to map either) or another image's (mapped over)
 *   4. a new arena, then 1-3 on the other nodes
 *
 * An arena is added only when no slot of the node is free, so address space, page tables and VMAs follow the number of
 * guests that were live at once, not the number of tenants ever seen.
 */
#include "pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

/* All pools of the process, so that a retired image can be taken out of their free slots. */
static struct {
  pthread_mutex_t lock;
  shi_pool *first;
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- one slot --------------------------------------------------------------------------------------------------- */

bool shi_slot_check(const shi_slot *slot) {
  bool live = slot->state == SHI_SLOT_LIVE;
  return slot->image_bytes <= slot->accessible && slot->accessible <= slot->arena->layout.slot_capacity &&
         slot->resident <= slot->accessible && slot->image_bytes == shi_image_mapped_bytes(slot->image) &&
         (!live || (slot->accessible == slot->region.committed && slot->resident == 0 && !slot->stale &&
                    slot->region.size <= slot->region.committed)) &&
         live == (atomic_load(&slot->pins) != SHI_PINS_CLOSED);
}

void shi_slot_forget_resident(shi_pool *pool, shi_slot *slot) {
  if (slot->resident > 0) {
    shi_account_refund(&pool->warm_bytes, slot->resident);
    shi_uncount(&pool->counters, SHI_POOL_WARM, 1);
    slot->resident = 0;
  }
}

void shi_slot_set_node(shi_slot *slot, uint64_t from, uint64_t bytes) {
  shi_arena *arena = slot->arena;
  shi_pool *pool = arena->pool;
  if (arena->node_set &&
      shi_os_set_node(slot->region.base + from, bytes, pool->numa.ids[arena->node], pool->options.numa_bind) != 0) {
    shi_count(&pool->counters, SHI_POOL_NUMA_REFUSED, 1);
  }
}

static shi_shard *shard_of(shi_pool *pool, const shi_slot *slot) {
  return &pool->nodes[slot->arena->node].shards[slot->shard];
}

void shi_pool_move_near(shi_pool *pool, shi_slot *slot) {
  shi_numa_cpu here = shi_numa_here(&pool->numa);
  if (here.node == slot->arena->node) {
    slot->shard = (uint16_t)(here.order % pool->nodes[here.node].shard_count);
  }
}

void shi_pool_put(shi_pool *pool, shi_slot *slot, enum shi_end end) {
  SHI_CHECK(shi_slot_check(slot));
  bool warmed = shi_slot_holds_pages(slot);
  shi_slot_show(slot,
                slot->stale ? SH_SLOT_STALE
                : warmed    ? SH_SLOT_WARM
                            : SH_SLOT_COLD,
                shi_shown_units(slot->resident));
  if (!shi_shard_put(shard_of(pool, slot), slot, end)) {
    shi_pool_put_cold(pool, slot);
  } else if (warmed) {
    shi_maintain_warmed(pool);
  }
}

void shi_pool_put_cold(shi_pool *pool, shi_slot *slot) {
  if (shi_os_map_zeros(slot->region.base, slot->accessible, false) != 0) {
    shi_pool_quarantine(pool, slot);
    return;
  }
  shi_slot_set_node(slot, 0, slot->accessible);
  shi_slot_forget_resident(pool, slot);
  shi_image_unref(slot->image);
  slot->image = NULL;
  slot->image_bytes = 0;
  slot->accessible = 0;
  slot->stale = false;
  SHI_CHECK(shi_slot_check(slot));
  shi_slot_show(slot, SH_SLOT_COLD, 0);
  shi_shard_put_cold(shard_of(pool, slot), slot);
}

void shi_pool_quarantine(shi_pool *pool, shi_slot *slot) {
  shi_slot_forget_resident(pool, slot);
  /* If even this fails the pages stay readable, but no one is ever given the address again. */
  (void)shi_os_protect(slot->region.base, slot->accessible, false);
  slot->state = SHI_SLOT_QUARANTINED;
  shi_slot_show(slot, SH_SLOT_QUARANTINED, 0);
  shi_count(&pool->counters, SHI_POOL_QUARANTINED, 1);
  shi_event_quarantine(pool->events, slot->whose, slot->accessible);
}

/* ---- arenas ----------------------------------------------------------------------------------------------------- */

static shi_slot *open_slot(shi_node *node) {
  shi_arena *arena = atomic_load_explicit(&node->opening, memory_order_acquire);
  if (arena == NULL) {
    return NULL;
  }
  uint32_t index = atomic_load_explicit(&arena->opened, memory_order_relaxed);
  do {
    if (index == arena->layout.slots) {
      return NULL;
    }
  } while (!atomic_compare_exchange_weak_explicit(&arena->opened, &index, index + 1, memory_order_relaxed,
                                                  memory_order_relaxed));
  shi_slot *slot = &arena->slots[index]; /* zeroed with the arena */
  slot->arena = arena;
  slot->region.base = arena->base + shi_layout_slot_offset(&arena->layout, index);
  slot->state = SHI_SLOT_TAKEN;
  atomic_store(&slot->pins, SHI_PINS_CLOSED);
  return slot;
}

/* Reserves up to `slots` slots: as many as there is address space for, by halves. */
static int reserve_arena(const shi_pool *pool, uint32_t slots, shi_layout *layout, uint8_t **base) {
  int error = -ENOSPC;
  for (; slots > 0; slots /= 2) {
    error = shi_layout_compute(pool->os_page, pool->options.slot_capacity, pool->options.slot_guard, slots, layout);
    if (error == 0) {
      error = shi_os_reserve(layout->arena_bytes, base);
    }
    if (error == 0) {
      SHI_CHECK(shi_layout_check(layout));
      return 0;
    }
  }
  return error;
}

static int make_arena(shi_pool *pool, uint32_t node, uint32_t slots, shi_arena **out) {
  shi_layout layout;
  uint8_t *base;
  int error = reserve_arena(pool, slots, &layout, &base);
  if (error != 0) {
    return error;
  }
  shi_arena *arena = calloc(1, sizeof *arena + layout.slots * sizeof(shi_slot));
  if (arena == NULL) {
    shi_os_unreserve(base, layout.arena_bytes);
    return shi_os_failure("calloc", ENOMEM);
  }
  arena->pool = pool;
  arena->base = base;
  arena->layout = layout;
  arena->node = node;
  /* A node that the kernel does not have, or may not give us, costs distance and never correctness: go on with memory
   * from wherever it is first touched, and count it. */
  arena->node_set = shi_os_set_node(base, layout.arena_bytes, pool->numa.ids[node], pool->options.numa_bind) == 0;
  if (!arena->node_set) {
    shi_count(&pool->counters, SHI_POOL_NUMA_REFUSED, 1);
  }
  *out = arena;
  return 0;
}

/* With arena_lock held. */
static int add_arena(shi_pool *pool, uint32_t node) {
  uint32_t left = pool->options.max_regions - pool->slots;
  if (left == 0) {
    return shi_os_failure("regions", ENOSPC);
  }
  shi_arena *arena = NULL;
  int error = make_arena(pool, node, left < pool->options.arena_slots ? left : pool->options.arena_slots, &arena);
  if (error != 0) {
    return error;
  }
  pool->slots += arena->layout.slots;
  shi_count(&pool->counters, SHI_POOL_RESERVED_BYTES, arena->layout.arena_bytes);
  arena->next = atomic_load(&pool->arenas);
  atomic_store_explicit(&pool->arenas, arena, memory_order_release);
  atomic_store_explicit(&pool->nodes[node].opening, arena, memory_order_release);
  return 0;
}

/* Opens a slot of an arena that is added if need be: another thread may have added one, or emptied ours. */
static int open_slot_of_new_arena(shi_pool *pool, uint32_t node, shi_slot **out) {
  int error = 0;
  pthread_mutex_lock(&pool->arena_lock);
  while ((*out = open_slot(&pool->nodes[node])) == NULL && error == 0) {
    error = add_arena(pool, node);
  }
  pthread_mutex_unlock(&pool->arena_lock);
  return *out != NULL ? 0 : error;
}

/* ---- taking a slot ---------------------------------------------------------------------------------------------- */

/* Tries steps 1 to 3 on one node, in each the shard `near` first. */
static shi_slot *take_on_node(shi_pool *pool, shi_node *node, uint32_t near, uint64_t image_id, uint64_t affinity) {
  uint32_t shards = node->shard_count;
  shi_slot *slot = NULL;
  for (uint32_t i = 0; slot == NULL && i < shards; i++) {
    slot = shi_shard_take_same(&node->shards[(near + i) % shards], image_id, affinity);
  }
  if (slot != NULL) {
    shi_count(&pool->counters, SHI_POOL_SAME, 1);
    return slot;
  }
  for (uint32_t i = 0; slot == NULL && i < shards; i++) {
    slot = shi_shard_take_cold(&node->shards[(near + i) % shards]);
  }
  if (slot == NULL) {
    slot = open_slot(node);
  }
  if (slot != NULL) {
    shi_count(&pool->counters, SHI_POOL_COLD, 1);
    return slot;
  }
  for (uint32_t i = 0; slot == NULL && i < shards; i++) {
    slot = shi_shard_take_other(&node->shards[(near + i) % shards], image_id);
  }
  if (slot != NULL) {
    shi_count(&pool->counters, SHI_POOL_OTHER, 1);
  }
  return slot;
}

int shi_pool_take(shi_pool *pool, uint64_t image_id, uint64_t affinity, shi_slot **out) {
  shi_numa_cpu here = shi_numa_here(&pool->numa);
  *out = take_on_node(pool, &pool->nodes[here.node], here.order, image_id, affinity);
  if (*out != NULL) {
    return 0;
  }
  int error = open_slot_of_new_arena(pool, here.node, out);
  if (error == 0) {
    shi_count(&pool->counters, SHI_POOL_COLD, 1);
    return 0;
  }
  for (uint32_t i = 1; *out == NULL && i < pool->numa.count; i++) {
    *out = take_on_node(pool, &pool->nodes[(here.node + i) % pool->numa.count], here.order, image_id, affinity);
  }
  return *out != NULL ? 0 : error;
}

/* ---- retired images --------------------------------------------------------------------------------------------- */

static void forget_image(shi_pool *pool, uint64_t image_id) {
  pthread_mutex_lock(&pool->upkeep);
  for (uint32_t n = 0; n < pool->numa.count; n++) {
    for (uint32_t s = 0; s < pool->nodes[n].shard_count; s++) {
      shi_slot *slot;
      while ((slot = shi_shard_take_image(&pool->nodes[n].shards[s], image_id)) != NULL) {
        shi_pool_put_cold(pool, slot);
      }
    }
  }
  pthread_mutex_unlock(&pool->upkeep);
}

void shi_pools_forget_image(const shi_image *image) {
  pthread_mutex_lock(&registry.lock);
  for (shi_pool *pool = registry.first; pool != NULL; pool = pool->registry_next) {
    forget_image(pool, shi_image_id(image));
  }
  pthread_mutex_unlock(&registry.lock);
}

static void enter_registry(shi_pool *pool) {
  pthread_mutex_lock(&registry.lock);
  pool->registry_next = registry.first;
  registry.first = pool;
  pthread_mutex_unlock(&registry.lock);
}

static void leave_registry(const shi_pool *pool) {
  pthread_mutex_lock(&registry.lock);
  shi_pool **at = &registry.first;
  while (*at != pool) {
    at = &(*at)->registry_next;
  }
  *at = pool->registry_next;
  pthread_mutex_unlock(&registry.lock);
}

/* ---- create and destroy ----------------------------------------------------------------------------------------- */

static void destroy_nodes(shi_pool *pool) {
  for (uint32_t n = 0; n < pool->numa.count; n++) {
    for (uint32_t s = 0; s < pool->nodes[n].shard_count; s++) {
      shi_shard_destroy(&pool->nodes[n].shards[s]);
    }
    free(pool->nodes[n].shards);
  }
}

static int create_nodes(shi_pool *pool) {
  for (uint32_t n = 0; n < pool->numa.count; n++) {
    shi_node *node = &pool->nodes[n];
    uint32_t cpus = pool->numa.cpu_count[n];
    uint32_t shards = cpus < 1 ? 1 : cpus < SHI_MAX_SHARDS ? cpus : SHI_MAX_SHARDS;
    node->shards = aligned_alloc(_Alignof(shi_shard), shards * sizeof *node->shards);
    if (node->shards == NULL) {
      destroy_nodes(pool);
      return shi_os_failure("aligned_alloc", ENOMEM);
    }
    for (; node->shard_count < shards; node->shard_count++) {
      int error = shi_shard_init(&node->shards[node->shard_count], pool->options.max_regions / shards + 1);
      if (error != 0) {
        destroy_nodes(pool);
        return error;
      }
    }
  }
  return 0;
}

static int check_options(const shi_pool_options *options, uint64_t os_page) {
  shi_layout one_slot;
  if (options->max_regions == 0 || options->arena_slots == 0 || options->policy < SH_POLICY_IMMEDIATE ||
      options->policy > SH_POLICY_LAZY) {
    return shi_os_failure("pool options", EINVAL);
  }
  int error = shi_layout_compute(os_page, options->slot_capacity, options->slot_guard, 1, &one_slot);
  return error == 0 ? 0 : shi_os_failure("pool layout", -error);
}

int shi_pool_create(const shi_pool_options *options, shi_pool **out) {
  int error = check_options(options, shi_os_page());
  if (error != 0) {
    return error;
  }
  shi_pool *pool = calloc(1, sizeof *pool);
  if (pool == NULL) {
    return shi_os_failure("calloc", ENOMEM);
  }
  pool->options = *options;
  pool->os_page = shi_os_page();
  pool->events = options->events != NULL ? options->events : &shi_no_events;
  pthread_mutex_init(&pool->arena_lock, NULL);
  pthread_mutex_init(&pool->upkeep, NULL);
  shi_credits_init(&pool->live_credits);
  shi_credits_init(&pool->warm_credits);
  pool->live = (shi_account){.limit = UINT64_MAX, .credits = &pool->live_credits};
  pool->warm_bytes = (shi_account){.limit = options->resident_total, .credits = &pool->warm_credits};
  shi_numa_read(&pool->numa, options->sysfs_node);
  pool->options.sysfs_node = NULL; /* the caller's string: read once, not kept */
  error = create_nodes(pool);
  if (error != 0) {
    goto free_pool;
  }
  error = shi_os_pagemap_open(&pool->pagemap);
  if (error != 0) {
    goto free_nodes;
  }
  error = shi_maintain_start(pool);
  if (error != 0) {
    goto close_pagemap;
  }
  enter_registry(pool);
  *out = pool;
  return 0;

close_pagemap:
  shi_os_pagemap_close(&pool->pagemap);
free_nodes:
  destroy_nodes(pool);
free_pool:
  free(pool);
  return error;
}

static void destroy_arena(shi_arena *arena) {
  uint32_t opened = atomic_load(&arena->opened);
  for (uint32_t i = 0; i < opened; i++) {
    shi_slot *slot = &arena->slots[i];
    shi_image_unref(slot->image);
    if (slot->owed_to != NULL) { /* quarantined: only now is its memory gone */
      shi_account_refund(slot->owed_to, slot->owed_bytes);
    }
  }
  shi_os_unreserve(arena->base, arena->layout.arena_bytes);
  free(arena);
}

void shi_pool_destroy(shi_pool *pool) {
  if (atomic_load(&pool->forked)) {
    return; /* our addresses may be somebody else's by now, our thread and locks are the parent's */
  }
  SHI_CHECK(shi_account_used(&pool->live) == 0);
  leave_registry(pool);
  shi_maintain_stop(pool);
  for (shi_arena *arena = pool->arenas; arena != NULL;) {
    shi_arena *next = arena->next;
    destroy_arena(arena);
    arena = next;
  }
  shi_os_pagemap_close(&pool->pagemap);
  destroy_nodes(pool);
  pthread_mutex_destroy(&pool->arena_lock);
  pthread_mutex_destroy(&pool->upkeep);
  shi_credits_destroy(&pool->live_credits);
  shi_credits_destroy(&pool->warm_credits);
  free(pool);
}

/* ---- the rest of the contract ----------------------------------------------------------------------------------- */

void shi_pool_after_fork_in_child(shi_pool *pool) {
  /* Every pool in the registry is the parent's, and its lock may be held by a thread that does not exist here. */
  registry.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  registry.first = NULL;
  if (atomic_exchange(&pool->forked, true)) {
    return;
  }
  for (shi_arena *arena = pool->arenas; arena != NULL; arena = arena->next) {
    uint32_t opened = atomic_load(&arena->opened);
    for (uint32_t i = 0; i < opened; i++) {
      if (atomic_load(&arena->slots[i].pins) > 0) {
        shi_os_map_zeros_in_child(arena->slots[i].region.base, arena->slots[i].region.committed);
      }
    }
  }
}

uint64_t shi_pool_trim(shi_pool *pool, uint64_t idle_ns) {
  if (atomic_load(&pool->forked)) {
    return 0;
  }
  uint64_t oldest_ns;
  uint64_t bytes = shi_maintain_flush(pool);
  uint64_t now_ns = shi_os_now_ns(); /* after the flush: what it freed counts as free from then on */
  return bytes + (idle_ns > now_ns ? 0 : shi_maintain_decay(pool, now_ns - idle_ns, &oldest_ns));
}

void shi_pool_stats(shi_pool *pool, sh_pool_stats *out) {
  const shi_counters *counters = &pool->counters;
  *out = (sh_pool_stats){
      .regions_live = shi_account_used(&pool->live),
      .regions_peak = shi_account_peak(&pool->live),
      .regions_max = pool->options.max_regions,
      .slots_warm = shi_counted(counters, SHI_POOL_WARM),
      .slots_queued = atomic_load(&pool->queue.slots),
      .slots_quarantined = shi_counted(counters, SHI_POOL_QUARANTINED),
      .reserved_bytes = shi_counted(counters, SHI_POOL_RESERVED_BYTES),
      .committed_bytes = shi_counted(counters, SHI_POOL_COMMITTED_BYTES),
      .warm_bytes = shi_account_used(&pool->warm_bytes),
      .queued_bytes = atomic_load(&pool->queue.bytes),
      .acquired_same = shi_counted(counters, SHI_POOL_SAME),
      .acquired_cold = shi_counted(counters, SHI_POOL_COLD),
      .acquired_other = shi_counted(counters, SHI_POOL_OTHER),
      .returned_bytes = shi_counted(counters, SHI_POOL_RETURNED_BYTES),
      .restored_bytes = shi_counted(counters, SHI_POOL_RESTORED_BYTES),
      .reset_failures = shi_counted(counters, SHI_POOL_RESET_FAILURES),
      .nodes = pool->numa.count,
      .numa_refused = shi_counted(counters, SHI_POOL_NUMA_REFUSED),
  };
  shi_image_totals(&out->images, &out->image_bytes);
}

bool shi_pool_check(shi_pool *pool) {
  uint64_t opened = 0;
  uint64_t free_slots = 0;
  bool ok = true;
  for (shi_arena *arena = pool->arenas; arena != NULL; arena = arena->next) {
    ok = ok && shi_layout_check(&arena->layout);
    opened += arena->opened;
    for (uint32_t i = 0; i < arena->opened; i++) {
      ok = ok && shi_slot_check(&arena->slots[i]);
    }
  }
  for (uint32_t n = 0; n < pool->numa.count; n++) {
    for (uint32_t s = 0; s < pool->nodes[n].shard_count; s++) {
      shi_shard *shard = &pool->nodes[n].shards[s];
      ok = ok && shi_shard_check(shard);
      free_slots += shard->mapped + shard->unmapped;
    }
  }
  return ok && opened == shi_account_used(&pool->live) + atomic_load(&pool->queue.slots) +
                             shi_counted(&pool->counters, SHI_POOL_QUARANTINED) + free_slots;
}
