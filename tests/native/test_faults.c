/* Every error path: each call to the OS fails once, at each place where it is made. Nothing may leak, no guest may see
 * another's bytes, and the pool goes on working. */
#include <errno.h>
#include <string.h>

#include "fixture.h"

static pool_fixture f;

static void open_default(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
}

/* ---- creating --------------------------------------------------------------------------------------------------- */

static void a_pool_without_its_thread_is_not_created(void) {
  int files = open_files();
  shi_pool_options options = default_options();
  shi_pool *pool;
  sh_fault_inject(SH_OS_THREAD, 0, 1, EAGAIN);
  CHECK_EQ(shi_pool_create(&options, &pool), -EAGAIN);
  CHECK(strcmp(shi_last_operation(), "pthread_create") == 0);
  CHECK_EQ(open_files(), files);
}

static void bad_options_are_refused(void) {
  shi_pool_options good = default_options();
  shi_pool *pool;
  shi_pool_options bad = good;
  bad.max_regions = 0;
  CHECK_EQ(shi_pool_create(&bad, &pool), -EINVAL);
  bad = good;
  bad.arena_slots = 0;
  CHECK_EQ(shi_pool_create(&bad, &pool), -EINVAL);
  bad = good;
  bad.slot_capacity = OS_PAGE + 1;
  CHECK_EQ(shi_pool_create(&bad, &pool), -EINVAL);
  bad = good;
  bad.slot_guard = UINT64_MAX - 10;
  CHECK_EQ(shi_pool_create(&bad, &pool), -EOVERFLOW);
  bad = good;
  bad.policy = 3;
  CHECK_EQ(shi_pool_create(&bad, &pool), -EINVAL);
}

static void an_image_that_fails_half_way_leaves_nothing(void) {
  static const struct {
    enum sh_os_call call;
    uint32_t skip;
    const char *operation;
  } cases[] = {
      {SH_OS_MEMFD, 0, "memfd_create"},      {SH_OS_WRITE, 0, "ftruncate"}, {SH_OS_WRITE, 1, "pwrite"},
      {SH_OS_SEAL, 0, "fcntl(F_ADD_SEALS)"}, {SH_OS_MMAP, 0, "mmap"},
  };
  int files = open_files();
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    shi_image_run run = {.bytes = "abc", .length = 3};
    shi_image *image;
    sh_fault_inject(cases[i].call, cases[i].skip, 1, ENFILE);
    CHECK_EQ(shi_image_create(100, &run, 1, &image), -ENFILE);
    CHECK(strcmp(shi_last_operation(), cases[i].operation) == 0);
    CHECK_EQ(open_files(), files);
  }
}

/* ---- arenas ----------------------------------------------------------------------------------------------------- */

static void an_arena_is_halved_until_it_fits(void) {
  open_default();
  sh_fault_inject(SH_OS_MMAP, 0, 2, ENOMEM);
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  CHECK_EQ(shi_slot_of(region)->arena->layout.slots, 4);
  release(&f, region, -1);
  fixture_close(&f);
}

static void without_address_space_acquire_fails_cleanly(void) {
  open_default();
  shi_region_request request = {.account = &f.guest, .initial = 64 * KIB, .maximum = 64 * KIB};
  shi_region *region;
  sh_fault_inject(SH_OS_MMAP, 0, UINT32_MAX, ENOMEM);
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), -ENOMEM);
  CHECK(strcmp(shi_last_operation(), "mmap") == 0);
  no_faults();
  sh_fault_inject(SH_OS_MADVISE, 0, UINT32_MAX, ENOMEM); /* a reservation that a child would inherit is no good */
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), -ENOMEM);
  no_faults();
  CHECK_EQ(f.host.used, 0);
  CHECK_EQ(stats(&f).reserved_bytes, 0);
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
  release(&f, region, -1);
  fixture_close(&f);
}

/* ---- acquire and grow ------------------------------------------------------------------------------------------- */

/* Fails the `skip`-th call of its kind while a slot of one image is remapped for another, until no call is left. */
static void fail_each_call_of_a_remapping(enum sh_os_call call) {
  for (uint32_t skip = 0;; skip++) {
    shi_pool_options options = default_options();
    options.max_regions = options.arena_slots = 1;
    fixture_open(&f, &options);
    shi_image *large = make_image(200 * KIB, 1);
    shi_image *small = make_image(10 * KIB, 2);
    shi_region *region = acquire(&f, large, 1, MIB);
    memset(region->base, 9, MIB);
    release(&f, region, SH_POLICY_LAZY);
    shi_region_request request = {.account = &f.guest, .image = small, .initial = 300 * KIB, .maximum = MIB};
    sh_fault_inject(call, skip, 1, ENOMEM);
    int error = shi_region_acquire(f.pool, &request, &region, NULL);
    sh_fault_inject(call, 0, 0, 0);
    if (error != 0) {
      CHECK(error == -ENOMEM || error == -ENOSPC); /* -ENOSPC: the only slot was quarantined */
      CHECK_EQ(f.guest.used, 0);
      CHECK_EQ(stats(&f).regions_live, 0);
      CHECK_EQ(stats(&f).slots_quarantined, error == -ENOSPC);
      CHECK(shi_pool_check(f.pool));
      if (error == -ENOMEM) {
        CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
      }
    }
    bool over = error == 0;
    if (error != -ENOSPC) {
      CHECK(reads_as(region, 10 * KIB, 2));
      CHECK(!is_readable(region->base + 300 * KIB));
      release(&f, region, -1);
    }
    shi_image_release(large);
    shi_image_release(small);
    fixture_close(&f);
    if (over) {
      CHECK(skip > 0);
      return;
    }
  }
}

static void a_remapping_that_fails_anywhere_harms_no_one(void) {
  fail_each_call_of_a_remapping(SH_OS_MMAP);
  fail_each_call_of_a_remapping(SH_OS_MPROTECT);
  fail_each_call_of_a_remapping(SH_OS_MADVISE);
}

static void a_slot_that_can_not_be_made_cold_is_quarantined(void) {
  open_default();
  shi_image *image = make_image(10 * KIB, 2);
  shi_region_request request = {.account = &f.guest, .image = image, .initial = MIB, .maximum = MIB};
  shi_region *region;
  release(&f, acquire(&f, NULL, 1, 0), -1); /* so that the arena is there */
  sh_fault_inject(SH_OS_MMAP, 0, 2, ENOMEM);
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), -ENOMEM);
  CHECK_EQ(stats(&f).slots_quarantined, 1);
  CHECK_EQ(f.host.used, 0);
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
  CHECK(reads_as(region, 10 * KIB, 2));
  release(&f, region, -1);
  shi_image_release(image);
  fixture_close(&f);
}

static void growth_that_fails_changes_nothing(void) {
  open_default();
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  sh_fault_inject(SH_OS_MPROTECT, 0, 1, ENOMEM);
  CHECK_EQ(shi_region_grow(region, 128 * KIB, NULL), -ENOMEM);
  CHECK(strcmp(shi_last_operation(), "mprotect") == 0);
  CHECK_EQ(region->size, 64 * KIB);
  CHECK_EQ(region->committed, 64 * KIB);
  CHECK_EQ(f.host.used, 64 * KIB);
  CHECK(!is_readable(region->base + 64 * KIB));
  CHECK_EQ(shi_region_grow(region, 128 * KIB, NULL), 0);
  release(&f, region, -1);
  fixture_close(&f);
}

/* ---- reset ------------------------------------------------------------------------------------------------------ */

static void when_the_scan_fails_all_is_given_back(void) {
  for (int policy = SH_POLICY_IMMEDIATE; policy <= SH_POLICY_LAZY; policy++) {
    for (uint32_t skip = 0; skip < 3; skip++) { /* scattered pages take several scans */
      open_default();
      shi_image *image = make_image(10 * KIB, 2);
      shi_region *region = acquire(&f, image, 1, 8 * MIB);
      for (uint64_t at = 0; at < 8 * MIB; at += 2 * OS_PAGE) {
        region->base[at] = 0xee;
      }
      sh_fault_inject(SH_OS_PAGEMAP_SCAN, skip, 1, EINVAL);
      sh_reclaim reclaim = release(&f, region, policy);
      CHECK_EQ(reclaim.quarantined, 0);
      CHECK_EQ(stats(&f).reset_failures, 1);
      CHECK_EQ(resident_bytes(region->base, 8 * MIB), 0);
      CHECK_EQ(stats(&f).warm_bytes + stats(&f).slots_warm + stats(&f).queued_bytes, 0);
      CHECK(acquire(&f, image, 1, 8 * MIB) == region && reads_as(region, 10 * KIB, 2));
      release(&f, region, -1);
      shi_image_release(image);
      fixture_close(&f);
    }
  }
}

static void when_reading_pagemap_fails_all_is_given_back(void) {
  sh_fault_inject(SH_OS_PAGEMAP_SCAN, 0, 1, ENOTTY);
  open_default();
  shi_region *region = acquire(&f, NULL, 1, 4 * MIB);
  memset(region->base, 1, 4 * MIB);
  sh_fault_inject(SH_OS_PAGEMAP_READ, 1, 1, EIO);
  release(&f, region, SH_POLICY_WARM);
  CHECK_EQ(stats(&f).reset_failures, 1);
  CHECK_EQ(resident_bytes(region->base, 4 * MIB), 0);
  fixture_close(&f);
}

static void a_slot_that_can_not_be_reset_is_never_used_again(void) {
  for (int policy = SH_POLICY_IMMEDIATE; policy <= SH_POLICY_WARM; policy++) {
    shi_pool_options options = default_options();
    options.max_regions = options.arena_slots = 2;
    options.queue_bytes = 0;
    fixture_open(&f, &options);
    shi_region *region = acquire(&f, NULL, 1, MIB);
    memset(region->base, 1, MIB);
    sh_fault_inject(SH_OS_MADVISE, 0, 1, ENOMEM);
    sh_reclaim reclaim = release(&f, region, policy);
    CHECK_EQ(reclaim.quarantined, 1);
    CHECK_EQ(reclaim.returned_bytes, 0);
    CHECK_EQ(stats(&f).slots_quarantined, 1);
    CHECK_EQ(stats(&f).reset_failures, 1);
    CHECK_EQ(stats(&f).warm_bytes, 0);
    CHECK(!is_readable(region->base));
    CHECK_EQ(f.guest.used, 0);
    CHECK_EQ(f.tenant.used, 0);
    CHECK_EQ(f.host.used, MIB); /* the memory is not back, so the host still pays */
    shi_region *other = acquire(&f, NULL, 1, MIB);
    CHECK(other != region);
    shi_region_request request = {.account = &f.guest, .initial = 1, .maximum = 1};
    shi_region *none;
    CHECK_EQ(shi_region_acquire(f.pool, &request, &none, NULL), -ENOSPC);
    release(&f, other, SH_POLICY_IMMEDIATE);
    fixture_close(&f);
  }
}

static void quarantine_holds_even_when_nothing_can_be_protected(void) {
  open_default();
  shi_region *region = acquire(&f, NULL, 1, MIB);
  memset(region->base, 1, MIB);
  sh_fault_inject(SH_OS_MADVISE, 0, 1, ENOMEM);
  sh_fault_inject(SH_OS_MPROTECT, 0, 1, ENOMEM);
  CHECK_EQ(release(&f, region, SH_POLICY_IMMEDIATE).quarantined, 1);
  for (int i = 0; i < 20; i++) {
    shi_region *other = acquire(&f, NULL, 1, MIB);
    CHECK(other != region);
    release(&f, other, i % 3);
  }
  fixture_close(&f);
}

static void a_queued_slot_that_can_not_be_flushed_is_quarantined(void) {
  open_default();
  shi_region *region = acquire(&f, NULL, 1, 4 * MIB);
  memset(region->base, 1, 4 * MIB);
  CHECK(release(&f, region, SH_POLICY_WARM).deferred_bytes > 0);
  sh_fault_inject(SH_OS_MADVISE, 0, 2, ENOMEM); /* the batch, and the slot by itself */
  CHECK_EQ(shi_pool_trim(f.pool, UINT64_MAX), 0);
  CHECK_EQ(stats(&f).slots_quarantined, 1);
  CHECK_EQ(stats(&f).slots_queued, 0);
  CHECK_EQ(f.host.used, 4 * MIB);
  CHECK(acquire(&f, NULL, 1, 4 * MIB) != region);
  release(&f, &f.pool->arenas->slots[1].region, -1);
  fixture_close(&f);
}

static void when_madv_free_fails_all_is_given_back(void) {
  open_default();
  shi_region *region = acquire(&f, NULL, 1, MIB);
  memset(region->base, 1, MIB);
  sh_fault_inject(SH_OS_MADVISE, 0, 1, EINVAL);
  sh_reclaim reclaim = release(&f, region, SH_POLICY_LAZY);
  CHECK_EQ(reclaim.deferred_bytes, 0);
  CHECK_EQ(resident_bytes(region->base, MIB), 0);
  CHECK_EQ(stats(&f).reset_failures, 1);
  fixture_close(&f);
}

static void a_stale_slot_that_can_not_be_reset_is_not_handed_out(void) {
  shi_pool_options options = default_options();
  options.resident_per_slot = 0;
  fixture_open(&f, &options);
  shi_region *region = acquire(&f, NULL, 1, MIB);
  memset(region->base, 1, MIB);
  release(&f, region, SH_POLICY_LAZY);
  sh_fault_inject(SH_OS_MADVISE, 0, 1, ENOMEM);
  shi_region *other = acquire(&f, NULL, 1, MIB);
  CHECK(other != region && reads_as(other, 0, 0));
  CHECK_EQ(stats(&f).slots_quarantined, 1);
  release(&f, other, -1);
  fixture_close(&f);
}

static void decay_that_fails_keeps_the_slot_as_it_was(void) {
  open_default();
  for (int policy = SH_POLICY_WARM; policy <= SH_POLICY_LAZY; policy++) {
    shi_region *region = acquire(&f, NULL, 1, MIB);
    memset(region->base, 1, 64 * KIB);
    release(&f, region, policy);
    sh_fault_inject(SH_OS_MADVISE, 0, 2, ENOMEM);
    CHECK_EQ(shi_pool_trim(f.pool, 0), 0);
    CHECK(acquire(&f, NULL, 1, MIB) == region && reads_as(region, 0, 0));
    release(&f, region, SH_POLICY_IMMEDIATE);
  }
  CHECK_EQ(stats(&f).slots_quarantined, 0);
  fixture_close(&f);
}

int main(void) {
  RUN(a_pool_without_its_thread_is_not_created);
  RUN(bad_options_are_refused);
  RUN(an_image_that_fails_half_way_leaves_nothing);
  RUN(an_arena_is_halved_until_it_fits);
  RUN(without_address_space_acquire_fails_cleanly);
  RUN(a_remapping_that_fails_anywhere_harms_no_one);
  RUN(a_slot_that_can_not_be_made_cold_is_quarantined);
  RUN(growth_that_fails_changes_nothing);
  RUN(when_the_scan_fails_all_is_given_back);
  RUN(when_reading_pagemap_fails_all_is_given_back);
  RUN(a_slot_that_can_not_be_reset_is_never_used_again);
  RUN(quarantine_holds_even_when_nothing_can_be_protected);
  RUN(a_queued_slot_that_can_not_be_flushed_is_quarantined);
  RUN(when_madv_free_fails_all_is_given_back);
  RUN(a_stale_slot_that_can_not_be_reset_is_not_handed_out);
  RUN(decay_that_fails_keeps_the_slot_as_it_was);
}
