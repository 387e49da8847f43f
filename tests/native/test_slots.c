/* The list of slots: what each is, whose, and what the kernel says of its pages; beside threads that come and go. */
#include <errno.h>
#include <string.h>

#include "fixture.h"

static pool_fixture f;

static shi_region *acquire_for(uint32_t owner, uint64_t initial) {
  shi_region_request request = {.account = &f.guest, .initial = initial, .maximum = 4 * MIB, .owner = owner};
  shi_region *region;
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
  return region;
}

/* All of them, in steps of `step`. */
static uint32_t list(shi_slot_seen *seen, uint32_t most, uint32_t step, bool measure) {
  uint64_t from = 0;
  uint32_t total = 0, count;
  while ((count = shi_pool_slots(f.pool, &from, seen + total, step < most - total ? step : most - total, measure)) >
         0) {
    total += count;
  }
  return total;
}

static shi_slot_seen only_one(bool measure) {
  shi_slot_seen seen[4];
  CHECK_EQ(list(seen, 4, 4, measure), 1);
  return seen[0];
}

static void each_state_is_shown(void) {
  shi_pool_options options = default_options();
  options.max_regions = 1;
  options.arena_slots = 1;
  fixture_open(&f, &options);
  shi_slot_seen none[1];
  CHECK_EQ(list(none, 1, 1, true), 0);

  shi_region *region = acquire_for(7, 600 * KIB);
  memset(region->base, 0xee, 80 * KIB);
  shi_slot_seen seen = only_one(false);
  CHECK_EQ(seen.state, SH_SLOT_LIVE);
  CHECK_EQ(seen.owner, 7);
  CHECK_EQ(seen.committed_bytes, 600 * KIB);
  CHECK_EQ(seen.resident_bytes, UINT64_MAX);
  CHECK_EQ(only_one(true).resident_bytes, 80 * KIB);
  CHECK_EQ(shi_region_grow(region, 700 * KIB, NULL), 0);
  CHECK_EQ(only_one(false).committed_bytes, 700 * KIB);
  CHECK_EQ(only_one(false).owner, 7);

  release(&f, region, SH_POLICY_WARM); /* keeps 80 KiB */
  seen = only_one(false);
  CHECK_EQ(seen.state, SH_SLOT_WARM);
  CHECK_EQ(seen.owner, 0);
  CHECK_EQ(seen.resident_bytes, 80 * KIB);
  CHECK_EQ(only_one(true).resident_bytes, 80 * KIB);

  region = acquire_for(1 << 22, 600 * KIB);
  CHECK_EQ(only_one(false).owner, 1 << 22);
  memset(region->base, 0xee, 600 * KIB); /* 256 KiB stay, 344 are queued */
  release(&f, region, SH_POLICY_WARM);
  seen = only_one(false);
  CHECK_EQ(seen.state, SH_SLOT_QUEUED);
  CHECK_EQ(seen.resident_bytes, 344 * KIB);
  CHECK_EQ(only_one(true).resident_bytes, 600 * KIB);

  shi_pool_trim(f.pool, 0);
  seen = only_one(true);
  CHECK_EQ(seen.state, SH_SLOT_COLD);
  CHECK_EQ(seen.resident_bytes, 0);

  region = acquire_for(2, 64 * KIB);
  memset(region->base, 0xee, 64 * KIB);
  release(&f, region, SH_POLICY_LAZY);
  CHECK_EQ(only_one(false).state, SH_SLOT_STALE);

  region = acquire_for(3, 64 * KIB);
  memset(region->base, 0xee, 64 * KIB);
  sh_fault_inject(SH_OS_MADVISE, 0, 100, EIO);
  release(&f, region, SH_POLICY_IMMEDIATE);
  no_faults();
  CHECK_EQ(only_one(true).state, SH_SLOT_QUARANTINED);
  fixture_close(&f);
}

static void arenas_are_listed_to_the_end_in_any_step(void) {
  shi_pool_options options = default_options();
  options.arena_slots = 4;
  fixture_open(&f, &options);
  shi_region *regions[11];
  for (uint32_t i = 0; i < 11; i++) {
    regions[i] = acquire_for(i, (i + 1) * 64 * KIB);
  }
  for (uint32_t step = 1; step < 13; step++) {
    shi_slot_seen seen[20];
    uint64_t owners = 0;
    CHECK_EQ(list(seen, 20, step, false), 11);
    for (uint32_t i = 0; i < 11; i++) {
      owners |= UINT64_C(1) << seen[i].owner;
      CHECK_EQ(seen[i].committed_bytes, (seen[i].owner + 1) * 64 * KIB);
    }
    CHECK_EQ(owners, (1 << 11) - 1);
  }
  for (uint32_t i = 0; i < 11; i++) {
    release(&f, regions[i], -1);
  }
  fixture_close(&f);
}

/* In more pieces than one call of the kernel answers; and in so many that only a part is looked at. */
static void pages_in_many_pieces_are_counted_up_to_a_bound(void) {
  enum { MOST = 256 * 256 };
  shi_pool_options options = default_options();
  options.slot_capacity = 1024 * MIB;
  options.max_regions = 1;
  options.arena_slots = 1;
  fixture_open(&f, &options);
  shi_region_request request = {.account = &f.guest, .initial = 1024 * MIB, .maximum = 1024 * MIB};
  shi_region *region;
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
  uint64_t pieces = 0;
  for (; pieces < 1000; pieces++) {
    region->base[2 * pieces * OS_PAGE] = 1;
  }
  CHECK_EQ(only_one(true).resident_bytes, 1000 * OS_PAGE);
  for (; pieces < MOST + 1000; pieces++) {
    region->base[2 * pieces * OS_PAGE] = 1;
  }
  uint64_t found = only_one(true).resident_bytes / OS_PAGE;
  CHECK(found <= MOST);
  CHECK(found > MOST / 2);
  volatile uint8_t zero = region->base[OS_PAGE]; /* the zero page is nobody's memory */
  CHECK_EQ(zero, 0);
  sh_fault_inject(SH_OS_PAGEMAP_SCAN, 0, 1000, EIO);
  CHECK_EQ(only_one(true).resident_bytes, 0);
  no_faults();
  release(&f, region, SH_POLICY_IMMEDIATE);
  fixture_close(&f);
}

/* ---- while others come and go ------------------------------------------------------------------------------------ */

enum { THREADS = 3, ROUNDS = UNDER_TSAN ? 1000 : 5000 };
static _Atomic int running;

/* Owner k has k times 64 KiB, and doubles that: whoever sees one must not see another's figure beside it. */
static void *churn(void *argument) {
  uint32_t owner = (uint32_t)(uintptr_t)argument;
  uint64_t seed = owner, bytes = owner * 64 * KIB;
  for (int i = 0; i < ROUNDS; i++) {
    shi_region *region = acquire_for(owner, bytes);
    memset(region->base, 0xee, random_next(&seed) % bytes);
    if (random_next(&seed) % 2 == 0) {
      CHECK_EQ(shi_region_grow(region, 2 * bytes, NULL), 0);
    }
    sh_reclaim reclaim = {0};
    CHECK_EQ(shi_region_release(f.pool, region, (int)(random_next(&seed) % 4) - 1, &reclaim), 0);
  }
  atomic_fetch_sub(&running, 1);
  return NULL;
}

static void no_reading_is_torn(void) {
  shi_pool_options options = default_options();
  options.slot_capacity = 4 * MIB;
  options.max_regions = 2 * THREADS;
  options.arena_slots = 2;
  options.resident_per_slot = 64 * KIB;
  options.queue_ns = 200000;
  fixture_open(&f, &options);
  pthread_t threads[THREADS];
  atomic_store(&running, THREADS);
  for (uintptr_t i = 0; i < THREADS; i++) {
    pthread_create(&threads[i], NULL, churn, (void *)(i + 1));
  }
  for (bool measure = false; atomic_load(&running) > 0; measure = !measure) {
    shi_slot_seen seen[2 * THREADS];
    uint32_t count = list(seen, 2 * THREADS, 2, measure);
    CHECK(count <= 2 * THREADS);
    for (uint32_t i = 0; i < count; i++) {
      uint64_t owned = seen[i].owner * 64 * KIB;
      CHECK(seen[i].state <= SH_SLOT_QUEUED);
      if (seen[i].state == SH_SLOT_LIVE) {
        CHECK(seen[i].owner >= 1 && seen[i].owner <= THREADS);
        CHECK(seen[i].committed_bytes == owned || seen[i].committed_bytes == 2 * owned);
      }
      CHECK((seen[i].state == SH_SLOT_LIVE && !measure) || seen[i].resident_bytes <= 4 * MIB);
    }
  }
  for (int i = 0; i < THREADS; i++) {
    pthread_join(threads[i], NULL);
  }
  fixture_close(&f);
}

int main(void) {
  RUN(each_state_is_shown);
  RUN(arenas_are_listed_to_the_end_in_any_step);
  RUN(pages_in_many_pieces_are_counted_up_to_a_bound);
  RUN(no_reading_is_torn);
  return 0;
}
