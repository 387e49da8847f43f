/* wasmtime's memory creator: pure C, called in the middle of an instantiation; and the creator of stacks for fibers.
 *
 * The creator is told nothing of the store it works for, so the spawn leaves its guest in a thread-local. Memories are
 * asked for in index order; before them, a module with exceptions makes wasmtime ask for a GC heap of its own. Each
 * request is held against the plan of the next memory, and what fits no plan is the GC heap or is refused.
 */
#include <errno.h>

#include "fiber.h"
#include "snapshot.h"

static _Thread_local shi_guest *spawning;

void shi_creator_expect(shi_guest *guest) { spawning = guest; }

static uint8_t *get_memory(void *env, size_t *size, size_t *capacity) {
  shi_region *region = env;
  *size = atomic_load_explicit(&region->size, memory_order_relaxed);
  *capacity = region->maximum;
  return region->base;
}

/* Remembers why a growth failed: wasm only sees -1, and a guest that then traps has run out of memory. */
static void remember_refusal(shi_guest *guest, uint64_t wanted, const shi_account *full, uint64_t limit, int error) {
  guest->refused = true;
  guest->refused_errno = full || error == -ENOSPC ? 0 : -error;
  guest->refused_wanted = wanted;
  guest->refused_limit = full ? full->limit : limit;
  guest->refused_level = full ? (uint32_t)full->level : SH_LEVEL_GUEST;
  shi_count(&guest->plugin->host->counters, SHI_HOST_MEMORY_REFUSALS, 1);
  shi_event_refused(&guest->plugin->host->events, guest->whose,
                    guest->refused_errno ? SH_REFUSED_OS : SH_REFUSED_MEMORY, guest->refused_level, wanted,
                    guest->refused_limit);
}

static shi_guest *guest_of(shi_region *region) {
  return (shi_guest *)((char *)region->account - offsetof(shi_guest, account));
}

static uint64_t tenant_of(const shi_guest *guest) {
  const shi_account *tenant = guest->account.parent;
  return tenant->level == SHI_ACCOUNT_TENANT ? ((const sh_tenant *)tenant)->id : 0;
}

static wasmtime_error_t *grow_memory(void *env, size_t size) {
  shi_region *region = env;
  shi_guest *guest = guest_of(region);
  shi_account *full = NULL;
  uint64_t before = region->committed;
  int error = shi_region_grow(region, size, &full);
  if (error) {
    remember_refusal(guest, size, full, region->maximum, error);
    return wt.wasmtime_error_new("sandhost: memory limit");
  }
  for (uint32_t k = 0; k < guest->region_count; k++)
    if (guest->regions[k] == region) atomic_store_explicit(&guest->sizes[k], size, memory_order_release);
  shi_event_commit(&guest->plugin->host->events, guest->whose, region->committed - before, size);
  return NULL;
}

/* wasmtime says `maximum` in bytes, clipped or SIZE_MAX; plans are clipped to the slot. */
static bool matches(const shi_memory_plan *plan, size_t minimum, size_t maximum) {
  return plan->minimum == minimum && (maximum >= plan->maximum);
}

static wasmtime_error_t *new_memory(void *env, const wasm_memorytype_t *type, size_t minimum, size_t maximum,
                                    size_t reserved, size_t guard, wasmtime_linear_memory_t *out) {
  (void)env;
  (void)type;
  shi_guest *guest = spawning;
  if (!guest) return wt.wasmtime_error_new("sandhost: memory requested outside a spawn");
  if (reserved > shi_memory_reservation || guard > shi_memory_guard)
    return wt.wasmtime_error_new("sandhost: wasmtime asks for more address space than a slot has");

  const sh_plugin *plugin = guest->plugin;
  const shi_memory_plan *plan =
      guest->region_count < plugin->memory_count ? &plugin->memories[guest->region_count] : NULL;
  bool gc_heap = !plan || !matches(plan, minimum, maximum);
  if (!gc_heap && guest->snapshot) { /* what wasmtime asks for is a lower bound: it takes the size that it is given */
    plan = &guest->snapshot->memories[guest->region_count];
    minimum = plan->minimum;
  }
  if (gc_heap && (guest->gc_heap || minimum != 0))
    return wt.wasmtime_error_new("sandhost: a memory that the plugin does not declare");
  if (gc_heap && guest->region_count) /* the GC heap comes first: it was taken for a memory that starts empty */
    return wt.wasmtime_error_new("a module that uses exceptions and whose memory starts empty is not supported");

  shi_region_request request = {
      .account = &guest->account,
      .image = gc_heap ? NULL : plan->image,
      .affinity = tenant_of(guest),
      .owner = guest->index,
      .initial = minimum,
      .whose = guest->whose,
      .learns = !gc_heap && guest->snapshot,
      .maximum = gc_heap ? (maximum < shi_memory_reservation ? maximum : shi_memory_reservation) : plan->maximum,
  };
  shi_account *full = NULL;
  shi_region *region;
  int error = shi_region_acquire(plugin->host->pool, &request, &region, &full);
  if (error) {
    if (full) {
      remember_refusal(guest, minimum, full, 0, error);
      guest->stop = SH_OUT_OF_MEMORY;
    } else if (error == -ENOSPC) {
      guest->stop = SH_REGION_FULL;
    } else {
      guest->stop = SH_NATIVE;
      guest->refused_wanted = (uint64_t)-error;
    }
    return wt.wasmtime_error_new("sandhost: no region");
  }
  if (gc_heap) {
    guest->gc_heap = region;
  } else {
    if (!guest->region_count) atomic_store_explicit(&guest->node, shi_region_node(region), memory_order_relaxed);
    atomic_store_explicit(&guest->sizes[guest->region_count], minimum, memory_order_release);
    guest->regions[guest->region_count++] = region;
  }
  *out = (wasmtime_linear_memory_t){.env = region, .get_memory = get_memory, .grow_memory = grow_memory};
  return NULL;
}

/* ---- stacks -------------------------------------------------------------------------------------------------------- */

static uint8_t *get_stack(void *env, size_t *length) {
  const shi_region *stack = ((shi_guest *)env)->fiber->stack;
  *length = stack->committed;
  return stack->base + stack->committed;
}

/* The stack stays the guest's to its end (shi_fiber_give_back). */
static void leave_stack(void *env) { ((shi_guest *)env)->fiber->stack_taken = false; }

/* All of it may become resident, so all of it counts, for the tenant and the host. */
static int acquire_stack(shi_guest *guest) {
  sh_host *host = guest->plugin->host;
  shi_pool *pool = shi_host_stacks(host);
  if (!pool) return -shi_error()->os_errno;
  shi_account *full = NULL;
  shi_region_request request = {.account = guest->account.parent,
                                .affinity = tenant_of(guest),
                                .whose = guest->whose,
                                .initial = host->stack_bytes,
                                .maximum = host->stack_bytes};
  int error = shi_region_acquire(pool, &request, &guest->fiber->stack, &full);
  if (full) remember_refusal(guest, host->stack_bytes, full, 0, error);
  return error;
}

static wasmtime_error_t *new_stack(void *env, size_t size, bool zeroed, wasmtime_stack_memory_t *out) {
  (void)env, (void)zeroed; /* a region is */
  shi_guest *guest = spawning;
  if (!guest || guest->fiber->stack_taken || size > guest->plugin->host->stack_bytes)
    return wt.wasmtime_error_new("sandhost: a stack that no call asked for");
  int error = guest->fiber->stack ? 0 : acquire_stack(guest);
  if (error) {
    guest->stop = error == -EDQUOT ? SH_OUT_OF_MEMORY : error == -ENOSPC ? SH_REGION_FULL : SH_NATIVE;
    if (error != -EDQUOT) guest->refused_wanted = (uint64_t)-error;
    return wt.wasmtime_error_new("sandhost: no stack");
  }
  guest->fiber->stack_taken = true;
  *out = (wasmtime_stack_memory_t){.env = guest, .get_stack_memory = get_stack, .finalizer = leave_stack};
  return NULL;
}

wasmtime_stack_creator_t shi_stack_creator = {.new_stack = new_stack};
wasmtime_memory_creator_t shi_creator = {.new_memory = new_memory};
