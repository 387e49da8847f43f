/* Arena arithmetic: a table of cases and random ones, held against the invariant. */
#include <errno.h>

#include "fixture.h"

static void an_arena_is_the_pre_guard_and_its_slots(void) {
  shi_layout layout;
  CHECK_EQ(shi_layout_compute(4096, 64 * KIB, 4096, 3, &layout), 0);
  CHECK(shi_layout_check(&layout));
  CHECK_EQ(layout.slot_span, 68 * KIB);
  CHECK_EQ(layout.arena_bytes, 4 * KIB + 3 * 68 * KIB);
  CHECK_EQ(shi_layout_slot_offset(&layout, 0), 4 * KIB);
  CHECK_EQ(shi_layout_slot_offset(&layout, 2), 4 * KIB + 2 * 68 * KIB);
}

static void a_guard_is_rounded_up_to_os_pages(void) {
  shi_layout layout;
  CHECK_EQ(shi_layout_compute(4096, 4096, 1, 1, &layout), 0);
  CHECK_EQ(layout.slot_guard, 4096);
}

static void bad_numbers_are_refused(void) {
  shi_layout layout;
  CHECK_EQ(shi_layout_compute(4096, 0, 0, 1, &layout), -EINVAL);
  CHECK_EQ(shi_layout_compute(4096, 4095, 0, 1, &layout), -EINVAL);
  CHECK_EQ(shi_layout_compute(4096, 4096, 0, 0, &layout), -EINVAL);
  CHECK_EQ(shi_layout_compute(4095, 4096, 0, 1, &layout), -EINVAL);
  CHECK_EQ(shi_layout_compute(0, 4096, 0, 1, &layout), -EINVAL);
}

static void overflows_are_refused(void) {
  const uint64_t most = UINT64_MAX & ~UINT64_C(4095);
  shi_layout layout;
  CHECK_EQ(shi_layout_compute(4096, 4096, UINT64_MAX, 1, &layout), -EOVERFLOW);
  CHECK_EQ(shi_layout_compute(4096, most, 4096, 1, &layout), -EOVERFLOW);
  CHECK_EQ(shi_layout_compute(4096, most, 0, 1, &layout), -EOVERFLOW);
  CHECK_EQ(shi_layout_compute(4096, UINT64_C(1) << 40, 0, UINT32_MAX, &layout), -EOVERFLOW);
  CHECK_EQ(shi_layout_compute(4096, UINT64_C(1) << 62, UINT64_C(1) << 62, 1, &layout), -EOVERFLOW);
}

static void every_layout_that_is_given_holds_the_invariant(void) {
  uint64_t seed = 1;
  uint64_t given = 0;
  for (int i = 0; i < 200000; i++) {
    uint64_t os_page = UINT64_C(4096) << random_next(&seed) % 5;
    uint64_t capacity = (random_next(&seed) >> random_next(&seed) % 64) & ~(os_page - 1);
    uint64_t guard = random_next(&seed) >> random_next(&seed) % 64;
    uint32_t slots = (uint32_t)(random_next(&seed) >> (32 + random_next(&seed) % 32));
    shi_layout layout;
    if (shi_layout_compute(os_page, capacity, guard, slots, &layout) != 0) {
      continue;
    }
    given++;
    CHECK(shi_layout_check(&layout));
    uint64_t last = shi_layout_slot_offset(&layout, slots - 1);
    CHECK(last + layout.slot_capacity + layout.slot_guard == layout.arena_bytes);
    CHECK(layout.slot_guard >= guard && layout.slot_guard - guard < os_page);
  }
  CHECK(given > 10000);
}

static void rounding_up_notices_overflow(void) {
  uint64_t out;
  CHECK(shi_round_up(0, 4096, &out) && out == 0);
  CHECK(shi_round_up(1, 4096, &out) && out == 4096);
  CHECK(shi_round_up(4096, 4096, &out) && out == 4096);
  CHECK(shi_round_up(UINT64_MAX - 4095, 4096, &out) && out == UINT64_MAX - 4095);
  CHECK(!shi_round_up(UINT64_MAX - 4094, 4096, &out));
}

int main(void) {
  RUN(an_arena_is_the_pre_guard_and_its_slots);
  RUN(a_guard_is_rounded_up_to_os_pages);
  RUN(bad_numbers_are_refused);
  RUN(overflows_are_refused);
  RUN(every_layout_that_is_given_holds_the_invariant);
  RUN(rounding_up_notices_overflow);
}
