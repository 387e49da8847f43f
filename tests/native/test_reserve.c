/* Many slots of full size: terabytes of address space, and the kernel's limit on mappings. */
#include <errno.h>
#include <string.h>

#include "fixture.h"

static pool_fixture f;

static shi_pool_options full_size(uint32_t regions, uint32_t arena_slots) {
  shi_pool_options options = default_options();
  options.slot_capacity = UINT64_C(4) << 30;
  options.slot_guard = 32 * MIB;
  options.max_regions = regions;
  options.arena_slots = arena_slots;
  options.resident_total = UINT64_MAX;
  return options;
}

static void twenty_thousand_slots_of_4_gib_can_live_at_once(void) {
  enum { REGIONS = 20000 };
  static shi_region *regions[REGIONS];
  shi_pool_options options = full_size(REGIONS, 4000);
  fixture_open(&f, &options);
  for (int i = 0; i < REGIONS; i++) {
    regions[i] = acquire(&f, NULL, (uint64_t)i % 100, 64 * KIB);
    regions[i]->base[0] = 1;
  }
  CHECK(stats(&f).reserved_bytes > (uint64_t)REGIONS * options.slot_capacity);
  CHECK_EQ(stats(&f).regions_live, REGIONS);
  shi_region_request request = {.account = &f.guest, .initial = 1, .maximum = 1};
  shi_region *none;
  CHECK_EQ(shi_region_acquire(f.pool, &request, &none, NULL), -ENOSPC);
  for (int i = 0; i < REGIONS; i++) {
    release(&f, regions[i], SH_POLICY_WARM);
  }
  CHECK(shi_pool_check(f.pool));
  CHECK_EQ(shi_pool_trim(f.pool, 0), (uint64_t)REGIONS * OS_PAGE);
  fixture_close(&f);
}

static uint64_t most_mappings(void) {
  char text[64];
  return shi_os_read_text("/proc/sys/vm/max_map_count", text, sizeof text) > 0 ? strtoull(text, NULL, 10) : UINT64_MAX;
}

static void at_the_limit_of_mappings_acquire_fails_and_nothing_is_lost(void) {
  enum { REGIONS = 24000 }; /* three mappings each */
  static shi_region *regions[REGIONS];
  shi_pool_options options = full_size(REGIONS, 4000);
  fixture_open(&f, &options);
  shi_image *image = make_image(OS_PAGE, 7);
  shi_region_request request = {.account = &f.guest, .image = image, .initial = 64 * KIB, .maximum = MIB};
  int live = 0;
  int error = 0;
  while (live < REGIONS && (error = shi_region_acquire(f.pool, &request, &regions[live], NULL)) == 0) {
    CHECK(reads_as(regions[live], OS_PAGE, 7));
    live++;
  }
  CHECK_EQ(error, -ENOMEM);
  CHECK(live > 15000);
  uint64_t lost = stats(&f).slots_quarantined;
  CHECK_EQ(f.host.used, (uint64_t)live * 64 * KIB);
  for (int i = 0; i < live; i++) {
    release(&f, regions[i], SH_POLICY_IMMEDIATE);
  }
  CHECK(lost <= 1);
  CHECK(shi_pool_check(f.pool));
  CHECK_EQ(shi_region_acquire(f.pool, &request, &regions[0], NULL), 0);
  release(&f, regions[0], -1);
  shi_image_release(image);
  fixture_close(&f);
}

int main(void) {
  if (UNDER_TSAN) { /* which has no room for terabytes */
    printf("ok no_terabytes_under_the_thread_sanitizer\n");
    return 0;
  }
  RUN(twenty_thousand_slots_of_4_gib_can_live_at_once);
  if (most_mappings() <= 66000) {
    RUN(at_the_limit_of_mappings_acquire_fails_and_nothing_is_lost);
  }
}
