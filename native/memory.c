/* A guest's bytes as Python reaches them. */
#include "guest.h"

/* To be let go. */
static shi_guest *hold(uint64_t id, uint32_t memory_index) {
  if (atomic_load(&shi_forked)) {
    shi_fail(SH_FORKED, "this process was forked from the one that has the guests; it has none");
    return NULL;
  }
  shi_guest *guest = shi_guest_hold(id);
  if (!guest) {
    shi_fail(SH_CLOSED, "the guest has ended");
    return NULL;
  }
  uint32_t count = guest->region_count;
  atomic_store_explicit(&guest->touched, true, memory_order_relaxed); /* who asks may write */
  if (memory_index < count) return guest;
  shi_guest_let_go(guest);
  shi_fail(SH_ARGUMENT, "the guest has %u memories, there is no memory %u", count, memory_index);
  return NULL;
}

int sh_memory_get(uint64_t id, uint32_t memory_index, sh_memory *out) {
  shi_guest *guest = hold(id, memory_index);
  if (!guest) return shi_error()->status;
  out->base = guest->regions[memory_index]->base;
  out->size = atomic_load_explicit(&guest->sizes[memory_index], memory_order_acquire);
  out->capacity = guest->regions[memory_index]->maximum;
  shi_guest_let_go(guest);
  return SH_OK;
}

const uint64_t *sh_memory_size(uint64_t id, uint32_t memory_index) {
  shi_guest *guest = hold(id, memory_index);
  if (!guest) return NULL;
  const uint64_t *size = (const uint64_t *)&guest->sizes[memory_index];
  shi_guest_let_go(guest);
  return size;
}

int sh_memory_pin(uint64_t id, uint32_t memory_index) {
  shi_guest *guest = hold(id, memory_index);
  if (!guest) return shi_error()->status;
  bool pinned = shi_region_pin(guest->regions[memory_index]);
  shi_guest_let_go(guest);
  return pinned ? SH_OK : shi_fail(SH_CLOSED, "the guest has ended");
}

void sh_memory_unpin(uint64_t id, uint32_t memory_index) {
  if (!atomic_load(&shi_forked)) shi_guest_unpin(id, memory_index);
}
