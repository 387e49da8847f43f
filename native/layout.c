/* Arena arithmetic. */
#include "layout.h"

#include <errno.h>
#include <stddef.h>

static bool is_power_of_two(uint64_t value) { return value != 0 && (value & (value - 1)) == 0; }

bool shi_round_up(uint64_t bytes, uint64_t os_page, uint64_t *out) {
  if (__builtin_add_overflow(bytes, os_page - 1, out)) {
    return false;
  }
  *out &= ~(os_page - 1);
  return true;
}

int shi_layout_compute(uint64_t os_page, uint64_t slot_capacity, uint64_t slot_guard, uint32_t slots, shi_layout *out) {
  if (!is_power_of_two(os_page) || slots == 0 || slot_capacity == 0 || slot_capacity % os_page != 0) {
    return -EINVAL;
  }
  shi_layout layout = {.os_page = os_page, .slot_capacity = slot_capacity, .slots = slots};
  uint64_t all_slots;
  if (!shi_round_up(slot_guard, os_page, &layout.slot_guard) ||
      __builtin_add_overflow(slot_capacity, layout.slot_guard, &layout.slot_span) ||
      __builtin_mul_overflow(layout.slot_span, (uint64_t)slots, &all_slots) ||
      __builtin_add_overflow(all_slots, layout.slot_guard, &layout.arena_bytes) || layout.arena_bytes > PTRDIFF_MAX) {
    return -EOVERFLOW;
  }
  layout.pre_guard = layout.slot_guard;
  *out = layout;
  return 0;
}

bool shi_layout_check(const shi_layout *layout) {
  if (!is_power_of_two(layout->os_page) || layout->slots == 0 || layout->slot_capacity == 0) {
    return false;
  }
  uint64_t every_term =
      layout->slot_capacity | layout->slot_guard | layout->slot_span | layout->pre_guard | layout->arena_bytes;
  uint64_t all_slots;
  uint64_t total;
  return every_term % layout->os_page == 0 && layout->pre_guard == layout->slot_guard &&
         layout->slot_span == layout->slot_capacity + layout->slot_guard &&
         !__builtin_mul_overflow(layout->slot_span, (uint64_t)layout->slots, &all_slots) &&
         !__builtin_add_overflow(all_slots, layout->pre_guard, &total) && total == layout->arena_bytes &&
         total <= PTRDIFF_MAX;
}

uint64_t shi_layout_slot_offset(const shi_layout *layout, uint32_t index) {
  return layout->pre_guard + index * layout->slot_span;
}
