/* A guest's bytes as Python reaches them. */
#include "guest.h"

static shi_guest *find(uint64_t id, uint32_t memory_index) {
  if (atomic_load(&shi_forked)) {
    shi_fail(SH_FORKED, "this process was forked from the one that has the guests; it has none");
    return NULL;
  }
  shi_guest *guest = shi_guest_find(id);
  if (!guest) {
    shi_fail(SH_CLOSED, "the guest has ended");
    return NULL;
  }
  if (memory_index < guest->region_count) return guest;
  shi_fail(SH_ARGUMENT, "the guest has %u memories, there is no memory %u", guest->region_count, memory_index);
  return NULL;
}

int sh_memory_get(uint64_t id, uint32_t memory_index, sh_memory *out) {
  shi_guest *guest = find(id, memory_index);
  if (!guest) return shi_error()->status;
  out->base = guest->regions[memory_index]->base;
  out->size = atomic_load_explicit(&guest->sizes[memory_index], memory_order_acquire);
  out->capacity = guest->regions[memory_index]->maximum;
  return SH_OK;
}

const uint64_t *sh_memory_size(uint64_t id, uint32_t memory_index) {
  shi_guest *guest = find(id, memory_index);
  return guest ? (const uint64_t *)&guest->sizes[memory_index] : NULL;
}

/* The pin is taken first and the guest looked at after: close looks at the pins after it has said that it closes. */
int sh_memory_pin(uint64_t id, uint32_t memory_index) {
  shi_guest *guest = find(id, memory_index);
  if (!guest) return shi_error()->status;
  shi_region *region = guest->regions[memory_index];
  shi_region_pin(region);
  if (shi_guest_find(id)) return SH_OK;
  shi_region_unpin(region);
  return shi_fail(SH_CLOSED, "the guest has ended");
}

void sh_memory_unpin(uint64_t id, uint32_t memory_index) {
  if (atomic_load(&shi_forked)) return;
  shi_guest *guest = shi_guest_find(id);
  if (guest && memory_index < guest->region_count) shi_region_unpin(guest->regions[memory_index]);
}

int sh_output(uint64_t id, int stream, const uint8_t **bytes, uint64_t *length, uint64_t *dropped) {
  shi_guest *guest = find(id, 0);
  if (!guest) return shi_error()->status;
  const shi_stream *output = &guest->streams[stream == 2];
  *bytes = output->bytes;
  *length = output->length;
  *dropped = output->dropped;
  return SH_OK;
}
