/* Where slots lie in an arena: pure arithmetic, no side effects.
 *
 *   0          pre_guard                                                      arena_bytes
 *   |  guard   | capacity | guard | capacity | guard |  ...  | capacity | guard |
 *              ^ slot 0           ^ slot 1                   ^ slot `slots - 1`
 *              |<- slot_span ---->|
 *
 * A fault just below slot 0 lands in the pre-guard, just past any slot in that slot's guard.
 */
#ifndef SANDHOST_LAYOUT_H
#define SANDHOST_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

/* Invariant: arena_bytes == pre_guard + slots * slot_span, slot_span == slot_capacity + slot_guard,
 * all five are multiples of os_page, and arena_bytes <= PTRDIFF_MAX. */
typedef struct {
  uint64_t os_page;
  uint64_t slot_capacity;
  uint64_t slot_guard;
  uint64_t slot_span;
  uint64_t pre_guard;
  uint64_t arena_bytes;
  uint32_t slots;
} shi_layout;

/* -EINVAL: no slot, no capacity, a capacity that is no multiple of the OS page, or an OS page that is no power of two.
 * -EOVERFLOW: the arena would not fit into an address space. The guard is rounded up to whole OS pages. */
int shi_layout_compute(uint64_t os_page, uint64_t slot_capacity, uint64_t slot_guard, uint32_t slots, shi_layout *out);
bool shi_layout_check(const shi_layout *layout);

/* Precondition: index < slots. */
uint64_t shi_layout_slot_offset(const shi_layout *layout, uint32_t index);

/* Rounds `bytes` up to whole OS pages; false when the result does not fit into 64 bits. */
bool shi_round_up(uint64_t bytes, uint64_t os_page, uint64_t *out);

#endif
