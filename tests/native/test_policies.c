/* What each policy does with the memory of a guest that ends, as the kernel sees it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "fixture.h"

static pool_fixture f;

static void dirty(shi_region *region, uint64_t from, uint64_t to) {
  for (uint64_t at = from; at < to; at += OS_PAGE) {
    region->base[at] = 0xee;
  }
}

static void wait_until_idle(uint64_t (*busy)(void)) {
  for (int i = 0; i < 2000 && busy() > 0; i++) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  CHECK_EQ(busy(), 0);
}

static uint64_t queued(void) { return stats(&f).slots_queued; }
static uint64_t warm(void) { return stats(&f).slots_warm; }

/* ---- immediate -------------------------------------------------------------------------------------------------- */

static void immediate_gives_back_exactly_what_was_written(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_image *image = make_image(100 * KIB, 7);
  shi_region *region = acquire(&f, image, 1, MIB);
  CHECK(reads_as(region, 100 * KIB, 7)); /* reading makes file pages and zero pages present, not private */
  dirty(region, 96 * KIB, 112 * KIB);    /* across the border of the image */
  dirty(region, 512 * KIB, 516 * KIB);
  sh_reclaim reclaim = release(&f, region, SH_POLICY_IMMEDIATE);
  CHECK_EQ(reclaim.returned_bytes, 20 * KIB);
  CHECK_EQ(reclaim.kept_bytes + reclaim.deferred_bytes + reclaim.quarantined, 0);
  CHECK_EQ(reclaim.policy, SH_POLICY_IMMEDIATE);
  CHECK(reclaim.ns > 0);
  CHECK_EQ(resident_bytes(region->base, 100 * KIB), 0);
  CHECK_EQ(resident_bytes(region->base + 104 * KIB, 8 * KIB), 0);
  CHECK_EQ(stats(&f).returned_bytes, 20 * KIB);
  shi_image_release(image);
  fixture_close(&f);
}

/* Counted in calls that would fail. */
static void immediate_asks_the_kernel_only_for_what_is_resident(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_image *image = make_image(64 * KIB, 7);
  static const struct {
    bool image, zeros;
  } touched[] = {{false, false}, {false, true}, {true, false}, {true, true}};
  for (int i = 0; i < 4; i++) {
    shi_region *region = acquire(&f, image, 1, MIB);
    uint32_t calls = (touched[i].image ? 1U : 0U) + (touched[i].zeros ? 1U : 0U);
    if (touched[i].image) CHECK_EQ(region->base[60 * KIB], 7); /* clean, but resident */
    if (touched[i].zeros) dirty(region, 512 * KIB, 516 * KIB);
    sh_fault_inject(SH_OS_MADVISE, calls, 1, ENOMEM);
    sh_reclaim reclaim = release(&f, region, SH_POLICY_IMMEDIATE);
    sh_fault_inject(0, 0, 0, 0);
    CHECK_EQ(reclaim.quarantined, 0);
    CHECK_EQ(reclaim.returned_bytes, touched[i].zeros ? 4 * KIB : 0);
    CHECK_EQ(resident_bytes(region->base, MIB), 0);
  }
  shi_image_release(image);
  fixture_close(&f);
}

static void immediate_lowers_the_resident_size_of_the_process(void) {
  enum { REGIONS = 8 };
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_region *regions[REGIONS];
  uint64_t returned = 0;
  for (int i = 0; i < REGIONS; i++) {
    regions[i] = acquire(&f, NULL, 1, 8 * MIB);
    dirty(regions[i], 0, 8 * MIB);
  }
  uint64_t before = process_resident_bytes();
  for (int i = 0; i < REGIONS; i++) {
    returned += release(&f, regions[i], SH_POLICY_IMMEDIATE).returned_bytes;
    CHECK_EQ(resident_bytes(regions[i]->base, 8 * MIB), 0);
  }
  uint64_t after = process_resident_bytes();
  CHECK_EQ(returned, REGIONS * 8 * MIB);
  CHECK(before - after > returned - 2 * MIB); /* the kernel's own count lags by some pages per CPU */
  fixture_close(&f);
}

/* ---- warm ------------------------------------------------------------------------------------------------------- */

static void warm_keeps_what_fits_the_budget_and_gives_back_the_rest(void) {
  shi_pool_options options = default_options();
  options.queue_bytes = 0;
  fixture_open(&f, &options);
  shi_region *region = acquire(&f, NULL, 1, 2 * MIB);
  dirty(region, 0, 64 * KIB);
  dirty(region, MIB, MIB + 512 * KIB);
  sh_reclaim reclaim = release(&f, region, SH_POLICY_WARM);
  CHECK_EQ(reclaim.kept_bytes, 256 * KIB);
  CHECK_EQ(reclaim.returned_bytes, 320 * KIB);
  CHECK_EQ(reclaim.deferred_bytes, 0);
  CHECK_EQ(resident_bytes(region->base, 2 * MIB), 256 * KIB);
  CHECK_EQ(stats(&f).warm_bytes, 256 * KIB);
  CHECK_EQ(stats(&f).slots_warm, 1);
  CHECK_EQ(stats(&f).restored_bytes, 256 * KIB);
  region = acquire(&f, NULL, 1, 2 * MIB);
  CHECK_EQ(stats(&f).warm_bytes + stats(&f).slots_warm, 0);
  CHECK(reads_as(region, 0, 0));
  release(&f, region, SH_POLICY_WARM);
  fixture_close(&f);
}

static void warm_keeps_nothing_when_far_more_was_written(void) {
  shi_pool_options options = default_options();
  options.queue_bytes = 0;
  fixture_open(&f, &options);
  shi_region *region = acquire(&f, NULL, 1, 4 * MIB);
  dirty(region, 0, 4 * MIB);
  sh_reclaim reclaim = release(&f, region, SH_POLICY_WARM);
  CHECK_EQ(reclaim.kept_bytes, 0);
  CHECK_EQ(reclaim.returned_bytes, 4 * MIB);
  fixture_close(&f);
}

static void warm_slots_share_the_budget_of_the_pool(void) {
  shi_pool_options options = default_options();
  options.resident_total = 300 * KIB;
  options.queue_bytes = 0;
  fixture_open(&f, &options);
  shi_region *a = acquire(&f, NULL, 1, MIB);
  shi_region *b = acquire(&f, NULL, 1, MIB);
  shi_region *c = acquire(&f, NULL, 1, MIB);
  dirty(a, 0, 200 * KIB);
  dirty(b, 0, 200 * KIB);
  dirty(c, 0, 200 * KIB);
  CHECK_EQ(release(&f, a, -1).kept_bytes, 200 * KIB);
  CHECK_EQ(release(&f, b, -1).kept_bytes, 100 * KIB);
  CHECK_EQ(release(&f, c, -1).kept_bytes, 0);
  CHECK_EQ(stats(&f).warm_bytes, 300 * KIB);
  CHECK_EQ(shi_pool_trim(f.pool, 0), 300 * KIB);
  CHECK_EQ(stats(&f).warm_bytes, 0);
  fixture_close(&f);
}

static void grown_pages_are_never_kept(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  CHECK_EQ(shi_region_grow(region, 128 * KIB, NULL), 0);
  dirty(region, 32 * KIB, 128 * KIB);
  sh_reclaim reclaim = release(&f, region, SH_POLICY_WARM);
  CHECK_EQ(reclaim.kept_bytes, 32 * KIB);
  CHECK_EQ(reclaim.returned_bytes, 64 * KIB);
  fixture_close(&f);
}

static void scattered_pages_beyond_one_scan_are_all_found(void) {
  shi_pool_options options = default_options();
  options.resident_per_slot = 16 * MIB;
  fixture_open(&f, &options);
  shi_region *region = acquire(&f, NULL, 1, 8 * MIB);
  for (uint64_t at = 0; at < 8 * MIB; at += 2 * OS_PAGE) { /* 1024 runs of one page */
    region->base[at + 1] = 0xee;
  }
  CHECK_EQ(release(&f, region, SH_POLICY_WARM).kept_bytes, 4 * MIB);
  region = acquire(&f, NULL, 1, 8 * MIB);
  CHECK(reads_as(region, 0, 0));
  for (uint64_t at = 0; at < 8 * MIB; at += 2 * OS_PAGE) {
    region->base[at + 1] = 0xee;
  }
  CHECK_EQ(release(&f, region, SH_POLICY_IMMEDIATE).returned_bytes, 4 * MIB);
  fixture_close(&f);
}

static void without_pagemap_scan_the_entries_are_read(void) {
  sh_fault_inject(SH_OS_PAGEMAP_SCAN, 0, 1, ENOTTY); /* an older kernel: the probe fails */
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  CHECK(!f.pool->pagemap.can_scan);
  shi_image *image = make_image(100 * KIB, 7);
  for (int policy = SH_POLICY_IMMEDIATE; policy <= SH_POLICY_LAZY; policy++) {
    shi_region *region = acquire(&f, image, 1, 12 * MIB);
    CHECK(reads_as(region, 100 * KIB, 7));
    dirty(region, 96 * KIB, 112 * KIB);
    release(&f, region, policy);
  }
  shi_region *region = acquire(&f, image, 1, 12 * MIB);
  CHECK(reads_as(region, 100 * KIB, 7));
  release(&f, region, -1);
  shi_image_release(image);
  fixture_close(&f);
}

/* Puts the kernel's zero page where a guest's page was, as the merging of equal pages does; false: not allowed to. */
static bool put_zero_page(uint8_t *at) {
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_range range = {.start = (uintptr_t)at, .len = OS_PAGE};
  struct uffdio_register watch = {.range = range, .mode = UFFDIO_REGISTER_MODE_MISSING};
  struct uffdio_zeropage zero = {.range = range};
  bool done = fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &watch) == 0 &&
              madvise(at, OS_PAGE, MADV_DONTNEED) == 0 && ioctl(fd, UFFDIO_ZEROPAGE, &zero) == 0;
  if (fd >= 0) {
    ioctl(fd, UFFDIO_UNREGISTER, &range);
    close(fd);
  }
  return done;
}

static void a_zero_page_within_the_image_is_restored(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_image *image = make_image(64 * KIB, 7);
  for (int policy = SH_POLICY_IMMEDIATE; policy <= SH_POLICY_LAZY; policy++) {
    shi_region *region = acquire(&f, image, 1, 128 * KIB);
    if (put_zero_page(region->base + 32 * KIB)) {
      CHECK(is_all(region->base + 32 * KIB, OS_PAGE, 0));
    }
    release(&f, region, policy);
    CHECK(acquire(&f, image, 1, 128 * KIB) == region && reads_as(region, 64 * KIB, 7));
    release(&f, region, SH_POLICY_IMMEDIATE);
  }
  shi_image_release(image);
  fixture_close(&f);
}

static void zero_pages_beyond_the_image_are_not_counted(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_image *image = make_image(64 * KIB, 7);
  shi_region *region = acquire(&f, image, 1, 8 * MIB);
  CHECK(reads_as(region, 64 * KIB, 7));
  dirty(region, 0, OS_PAGE);
  for (uint64_t at = 128 * KIB; at < 8 * MIB; at += 2 * OS_PAGE) { /* zero pages and private ones by turns */
    region->base[at] = 0xee;
  }
  CHECK_EQ(release(&f, region, SH_POLICY_IMMEDIATE).returned_bytes, OS_PAGE + (8 * MIB - 128 * KIB) / 2);
  shi_image_release(image);
  fixture_close(&f);
}

/* ---- the queue and decay ---------------------------------------------------------------------------------------- */

static void a_queued_slot_is_not_free_until_it_is_flushed(void) {
  shi_pool_options options = default_options();
  options.max_regions = options.arena_slots = 2;
  fixture_open(&f, &options);
  shi_region *a = acquire(&f, NULL, 1, 4 * MIB);
  dirty(a, 0, MIB);
  sh_reclaim reclaim = release(&f, a, SH_POLICY_WARM);
  CHECK_EQ(reclaim.kept_bytes, 256 * KIB);
  CHECK_EQ(reclaim.deferred_bytes, 768 * KIB);
  CHECK_EQ(stats(&f).slots_queued, 1);
  CHECK_EQ(stats(&f).queued_bytes, 768 * KIB);
  CHECK_EQ(f.host.used, 4 * MIB);
  shi_region *b = acquire(&f, NULL, 1, 4 * MIB);
  CHECK(b != a);
  shi_region *c = acquire(&f, NULL, 1, 4 * MIB); /* none is free: the queue is flushed for it */
  CHECK(c == a && reads_as(c, 0, 0));
  CHECK_EQ(stats(&f).returned_bytes, 768 * KIB);
  CHECK_EQ(f.host.used, 8 * MIB);
  release(&f, b, -1);
  release(&f, c, -1);
  fixture_close(&f);
}

static void a_full_queue_sends_the_rest_back_at_once(void) {
  shi_pool_options options = default_options();
  options.queue_bytes = MIB;
  fixture_open(&f, &options);
  shi_region *a = acquire(&f, NULL, 1, 4 * MIB);
  shi_region *b = acquire(&f, NULL, 1, 4 * MIB);
  dirty(a, 0, MIB);
  dirty(b, 0, MIB);
  CHECK_EQ(release(&f, a, SH_POLICY_WARM).deferred_bytes, 768 * KIB);
  sh_reclaim reclaim = release(&f, b, SH_POLICY_WARM);
  CHECK_EQ(reclaim.deferred_bytes, 0);
  CHECK_EQ(reclaim.returned_bytes, 768 * KIB);
  CHECK_EQ(shi_pool_trim(f.pool, UINT64_MAX), 768 * KIB);
  CHECK_EQ(stats(&f).slots_queued, 0);
  fixture_close(&f);
}

static void the_thread_empties_the_queue_in_time_and_in_batches(void) {
  enum { REGIONS = 40 };
  shi_pool_options options = default_options();
  options.queue_ns = UINT64_C(5000000);
  fixture_open(&f, &options);
  shi_region *regions[REGIONS];
  for (int i = 0; i < REGIONS; i++) {
    regions[i] = acquire(&f, NULL, 1, MIB);
    dirty(regions[i], 0, MIB);
  }
  for (int i = 0; i < REGIONS; i++) {
    CHECK_EQ(release(&f, regions[i], SH_POLICY_WARM).deferred_bytes, 768 * KIB);
  }
  wait_until_idle(queued);
  CHECK_EQ(stats(&f).returned_bytes, REGIONS * 768 * KIB);
  CHECK_EQ(f.host.used, 0);
  for (int i = 0; i < REGIONS; i++) {
    regions[i] = acquire(&f, NULL, 1, MIB);
    CHECK(reads_as(regions[i], 0, 0));
  }
  for (int i = 0; i < REGIONS; i++) {
    release(&f, regions[i], SH_POLICY_IMMEDIATE);
  }
  fixture_close(&f);
}

static void a_single_queued_slot_does_not_wait_for_others(void) {
  shi_pool_options options = default_options();
  options.queue_ns = UINT64_C(5000000);
  fixture_open(&f, &options);
  for (int round = 0; round < 3; round++) { /* also when the thread has gone to sleep again */
    shi_region *region = acquire(&f, NULL, 1, MIB);
    dirty(region, 0, MIB);
    CHECK_EQ(release(&f, region, SH_POLICY_WARM).deferred_bytes, 768 * KIB);
    wait_until_idle(queued);
    CHECK_EQ(resident_bytes(region->base + 256 * KIB, 768 * KIB), 0);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
  }
  fixture_close(&f);
}

static void idle_warm_slots_decay(void) {
  shi_pool_options options = default_options();
  options.decay_ns = UINT64_C(20000000);
  fixture_open(&f, &options);
  for (int round = 0; round < 3; round++) { /* the thread comes back after it had nothing to do */
    shi_region *region = acquire(&f, NULL, 1, MIB);
    dirty(region, 0, 64 * KIB);
    CHECK_EQ(release(&f, region, SH_POLICY_WARM).kept_bytes, 64 * KIB);
    wait_until_idle(warm);
    CHECK_EQ(resident_bytes(region->base, MIB), 0);
    CHECK_EQ(stats(&f).warm_bytes, 0);
  }
  CHECK_EQ(stats(&f).acquired_same, 2); /* without pages it is still the tenant's slot */
  fixture_close(&f);
}

static void trim_spares_slots_that_were_used_lately(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_region *region = acquire(&f, NULL, 1, MIB);
  dirty(region, 0, 64 * KIB);
  release(&f, region, SH_POLICY_WARM);
  CHECK_EQ(shi_pool_trim(f.pool, UINT64_C(3600000000000)), 0);
  CHECK_EQ(stats(&f).slots_warm, 1);
  CHECK_EQ(shi_pool_trim(f.pool, 0), 64 * KIB);
  CHECK_EQ(shi_pool_trim(f.pool, 0), 0);
  CHECK_EQ(resident_bytes(region->base, MIB), 0);
  fixture_close(&f);
}

/* ---- lazy ------------------------------------------------------------------------------------------------------- */

static void lazy_is_never_counted_as_returned(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_image *image = make_image(64 * KIB, 7);
  shi_region *region = acquire(&f, image, 1, MIB);
  dirty(region, 0, 512 * KIB);
  sh_reclaim reclaim = release(&f, region, SH_POLICY_LAZY);
  CHECK_EQ(reclaim.returned_bytes, 64 * KIB); /* MADV_FREE does not take the image's part */
  CHECK_EQ(reclaim.deferred_bytes, 448 * KIB);
  CHECK_EQ(reclaim.kept_bytes, 0);
  CHECK_EQ(stats(&f).warm_bytes, 0);
  region = acquire(&f, image, 1, MIB);
  CHECK(reads_as(region, 64 * KIB, 7));
  dirty(region, 0, 512 * KIB);
  release(&f, region, SH_POLICY_LAZY);
  CHECK_EQ(shi_pool_trim(f.pool, 0), 448 * KIB);
  CHECK_EQ(resident_bytes(region->base, MIB), 0);
  shi_image_release(image);
  fixture_close(&f);
}

int main(void) {
  RUN(immediate_gives_back_exactly_what_was_written);
  RUN(immediate_asks_the_kernel_only_for_what_is_resident);
  RUN(immediate_lowers_the_resident_size_of_the_process);
  RUN(warm_keeps_what_fits_the_budget_and_gives_back_the_rest);
  RUN(warm_keeps_nothing_when_far_more_was_written);
  RUN(warm_slots_share_the_budget_of_the_pool);
  RUN(grown_pages_are_never_kept);
  RUN(scattered_pages_beyond_one_scan_are_all_found);
  RUN(without_pagemap_scan_the_entries_are_read);
  RUN(a_zero_page_within_the_image_is_restored);
  RUN(zero_pages_beyond_the_image_are_not_counted);
  RUN(a_queued_slot_is_not_free_until_it_is_flushed);
  RUN(a_full_queue_sends_the_rest_back_at_once);
  RUN(the_thread_empties_the_queue_in_time_and_in_batches);
  RUN(a_single_queued_slot_does_not_wait_for_others);
  RUN(idle_warm_slots_decay);
  RUN(trim_spares_slots_that_were_used_lately);
  RUN(lazy_is_never_counted_as_returned);
}
