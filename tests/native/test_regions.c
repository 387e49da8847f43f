/* A region's life: sizes, growth, guards, pins, and which slot is taken. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

#include "fixture.h"

static pool_fixture f;

static void open_default(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
}

static int try_acquire(uint64_t initial, uint64_t maximum, shi_image *image, shi_region **region) {
  shi_region_request request = {.account = &f.guest, .image = image, .initial = initial, .maximum = maximum};
  return shi_region_acquire(f.pool, &request, region, NULL);
}

/* ---- sizes and growth ------------------------------------------------------------------------------------------- */

static void a_memory_of_zero_bytes_has_nothing_and_can_grow(void) {
  open_default();
  shi_region *region;
  CHECK_EQ(try_acquire(0, 64 * KIB, NULL, &region), 0);
  CHECK_EQ(region->committed, 0);
  CHECK(!is_readable(region->base));
  CHECK_EQ(f.host.used, 0);
  CHECK_EQ(shi_region_grow(region, 1, NULL), 0);
  CHECK_EQ(region->size, 1);
  CHECK_EQ(region->committed, OS_PAGE);
  CHECK(reads_as(region, 0, 0) && !is_readable(region->base + OS_PAGE));
  release(&f, region, -1);
  CHECK_EQ(try_acquire(0, 0, NULL, &region), 0);
  CHECK(!is_readable(region->base));
  CHECK_EQ(shi_region_grow(region, 0, NULL), 0);
  CHECK_EQ(shi_region_grow(region, 1, NULL), -ENOSPC);
  release(&f, region, -1);
  fixture_close(&f);
}

static void a_memory_of_one_byte_takes_one_os_page(void) {
  open_default();
  shi_region *region;
  CHECK_EQ(try_acquire(1, 3, NULL, &region), 0);
  CHECK_EQ(region->size, 1);
  CHECK_EQ(f.guest.used, OS_PAGE);
  CHECK_EQ(shi_region_grow(region, 3, NULL), 0);
  CHECK_EQ(f.guest.used, OS_PAGE);
  CHECK_EQ(shi_region_grow(region, 4, NULL), -ENOSPC);
  CHECK_EQ(shi_region_grow(region, 2, NULL), -EINVAL);
  CHECK_EQ(region->size, 3);
  release(&f, region, -1);
  fixture_close(&f);
}

static void a_memory_can_fill_its_slot_and_not_one_byte_more(void) {
  open_default();
  uint64_t capacity = f.pool->options.slot_capacity;
  shi_region *region;
  CHECK_EQ(try_acquire(capacity - 1, capacity, NULL, &region), 0);
  CHECK_EQ(region->committed, capacity);
  CHECK_EQ(shi_region_grow(region, capacity, NULL), 0);
  CHECK_EQ(shi_region_grow(region, capacity + 1, NULL), -ENOSPC);
  CHECK_EQ(shi_region_grow(region, UINT64_MAX, NULL), -ENOSPC);
  region->base[capacity - 1] = 1;
  CHECK(!is_readable(region->base + capacity));
  release(&f, region, -1);
  CHECK_EQ(try_acquire(0, capacity + 1, NULL, &region), -EINVAL);
  CHECK_EQ(try_acquire(UINT64_MAX, UINT64_MAX, NULL, &region), -EINVAL);
  CHECK_EQ(try_acquire(2, 1, NULL, &region), -EINVAL);
  fixture_close(&f);
}

static void an_image_longer_than_the_memory_is_refused(void) {
  open_default();
  shi_image *image = make_image(OS_PAGE + 1, 1);
  shi_region *region;
  CHECK_EQ(try_acquire(OS_PAGE, MIB, image, &region), -EINVAL);
  CHECK_EQ(try_acquire(OS_PAGE + 1, MIB, image, &region), 0);
  CHECK(reads_as(region, OS_PAGE + 1, 1));
  release(&f, region, -1);
  shi_image_release(image);
  fixture_close(&f);
}

static void what_a_guest_grew_is_gone_for_the_next(void) {
  shi_pool_options options = default_options();
  options.queue_bytes = 0; /* the slot is free at once */
  fixture_open(&f, &options);
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  uint8_t *base = region->base;
  CHECK_EQ(shi_region_grow(region, MIB, NULL), 0);
  memset(base, 5, MIB);
  release(&f, region, -1);
  region = acquire(&f, NULL, 1, 64 * KIB);
  CHECK(region->base == base);
  CHECK(reads_as(region, 0, 0));
  CHECK(is_readable(base + 64 * KIB - 1) && !is_readable(base + 64 * KIB));
  CHECK_EQ(resident_bytes(base + 64 * KIB, MIB - 64 * KIB), 0);
  CHECK_EQ(shi_region_grow(region, MIB, NULL), 0);
  CHECK(reads_as(region, 0, 0));
  release(&f, region, -1);
  fixture_close(&f);
}

/* ---- guards ----------------------------------------------------------------------------------------------------- */

static sigjmp_buf fault_point;
static void *volatile fault_address;

static void on_fault(int signal, siginfo_t *info, void *context) {
  (void)signal;
  (void)context;
  fault_address = info->si_addr;
  siglongjmp(fault_point, 1);
}

__attribute__((no_sanitize("address", "thread", "undefined"))) static bool faults(uint8_t *at) {
  if (sigsetjmp(fault_point, 1) != 0) {
    return fault_address == at;
  }
  *(volatile uint8_t *)at = 1;
  return false;
}

static void accesses_outside_of_a_memory_fault(void) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  struct sigaction before;
  sigaction(SIGSEGV, &action, &before);
  open_default();
  uint64_t capacity = f.pool->options.slot_capacity;
  uint64_t guard = f.pool->options.slot_guard;
  shi_image *image = make_image(100, 1);
  for (int i = 0; i < 3; i++) { /* the first slot has the pre-guard before it, the others their neighbours' guards */
    shi_region *region = acquire(&f, image, 1, 64 * KIB);
    CHECK(!faults(region->base) && !faults(region->base + 64 * KIB - 1));
    CHECK(faults(region->base - 1));
    CHECK(faults(region->base - guard));
    CHECK(faults(region->base + 64 * KIB));
    CHECK(faults(region->base + capacity - 1));
    CHECK(faults(region->base + capacity));
    CHECK(faults(region->base + capacity + guard - 1));
  }
  for (shi_arena *arena = f.pool->arenas; arena != NULL; arena = arena->next) {
    for (uint32_t i = 0; i < arena->opened; i++) {
      release(&f, &arena->slots[i].region, -1);
    }
  }
  shi_image_release(image);
  fixture_close(&f);
  sigaction(SIGSEGV, &before, NULL);
}

/* ---- pins and double release ------------------------------------------------------------------------------------ */

static void a_pinned_region_is_not_released(void) {
  open_default();
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  region->base[0] = 42;
  shi_region_pin(region);
  shi_region_pin(region);
  sh_reclaim reclaim = {0};
  CHECK_EQ(shi_region_release(f.pool, region, -1, &reclaim), -EBUSY);
  shi_region_unpin(region);
  CHECK(shi_region_pinned(region));
  CHECK_EQ(shi_region_release(f.pool, region, -1, &reclaim), -EBUSY);
  CHECK_EQ(region->base[0], 42);
  CHECK_EQ(reclaim.kept_bytes + reclaim.returned_bytes, 0);
  CHECK_EQ(stats(&f).regions_live, 1);
  shi_region_unpin(region);
  CHECK(!shi_region_pinned(region));
  release(&f, region, -1);
  fixture_close(&f);
}

static void a_released_region_is_not_pinned(void) {
  open_default();
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  release(&f, region, -1);
  CHECK(!shi_region_pin(region));
  CHECK(!shi_region_pinned(region));
  CHECK(acquire(&f, NULL, 1, 64 * KIB) == region);
  CHECK(shi_region_pin(region));
  shi_region_unpin(region);
  release(&f, region, -1);
  fixture_close(&f);
}

static void a_second_release_changes_nothing(void) {
  open_default();
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  sh_reclaim reclaim = {0};
  CHECK_EQ(shi_region_release(f.pool, region, SH_POLICY_LAZY + 1, &reclaim), -EINVAL);
  release(&f, region, -1);
  CHECK_EQ(shi_region_release(f.pool, region, -1, &reclaim), -EINVAL);
  CHECK_EQ(stats(&f).regions_live, 0);
  CHECK_EQ(f.host.used, 0);
  fixture_close(&f);
}

/* ---- which slot ------------------------------------------------------------------------------------------------- */

static void the_slot_of_the_same_image_and_tenant_is_taken_first(void) {
  open_default();
  shi_image *image = make_image(100, 1);
  shi_region *a = acquire(&f, image, 1, 64 * KIB);
  shi_region *b = acquire(&f, image, 2, 64 * KIB);
  shi_region *c = acquire(&f, NULL, 1, 64 * KIB);
  release(&f, a, -1);
  release(&f, b, -1);
  release(&f, c, -1);
  CHECK(acquire(&f, NULL, 1, 64 * KIB) == c);
  CHECK(acquire(&f, image, 2, 64 * KIB) == b);
  CHECK(acquire(&f, image, 1, 64 * KIB) == a);
  CHECK_EQ(stats(&f).acquired_same, 3);
  shi_region *d = acquire(&f, image, 1, 64 * KIB);
  CHECK_EQ(stats(&f).acquired_cold, 4);
  release(&f, a, -1);
  release(&f, b, -1);
  release(&f, c, -1);
  release(&f, d, -1);
  CHECK(acquire(&f, image, 1, 64 * KIB) == d); /* of equals the last one released */
  release(&f, d, -1);
  shi_image_release(image);
  fixture_close(&f);
}

static void without_cold_slots_the_same_image_then_the_least_recently_used_is_taken(void) {
  shi_pool_options options = default_options();
  options.max_regions = options.arena_slots = 3;
  fixture_open(&f, &options);
  shi_image *image = make_image(100, 1);
  shi_image *other = make_image(100, 2);
  shi_region *a = acquire(&f, NULL, 1, 64 * KIB);
  shi_region *b = acquire(&f, image, 1, 64 * KIB);
  shi_region *c = acquire(&f, NULL, 2, 64 * KIB);
  shi_region *none;
  CHECK_EQ(try_acquire(0, 0, NULL, &none), -ENOSPC);
  release(&f, a, -1);
  release(&f, b, -1);
  release(&f, c, -1);
  shi_region *region = acquire(&f, image, 9, 64 * KIB);
  CHECK(region == b && reads_as(region, 100, 1));
  region = acquire(&f, other, 9, 64 * KIB);
  CHECK(region == a && reads_as(region, 100, 2));
  CHECK_EQ(stats(&f).acquired_other, 2);
  release(&f, a, -1);
  release(&f, b, -1);
  shi_image_release(image);
  shi_image_release(other);
  fixture_close(&f);
}

static void *release_it(void *region) {
  release(&f, region, -1);
  return NULL;
}

static void a_slot_released_by_another_thread_is_found(void) {
  open_default();
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  pthread_t thread;
  pthread_create(&thread, NULL, release_it, region);
  pthread_join(thread, NULL);
  CHECK(acquire(&f, NULL, 1, 64 * KIB) == region);
  release(&f, region, -1);
  fixture_close(&f);
}

static void the_steady_path_changes_no_mapping(void) {
  open_default();
  shi_image *image = make_image(100 * KIB, 1);
  shi_region *first = acquire(&f, image, 1, MIB);
  const uint8_t *slot = first->base;
  release(&f, first, -1);
  int mappings = count_mappings(slot, 16 * MIB);
  CHECK(mappings > 1);
  sh_fault_inject(SH_OS_MMAP, 0, UINT32_MAX, ENOMEM); /* any call would fail */
  sh_fault_inject(SH_OS_MPROTECT, 0, UINT32_MAX, ENOMEM);
  sh_fault_inject(SH_OS_MADVISE, 0, UINT32_MAX, ENOMEM);
  for (int i = 0; i < 100; i++) {
    shi_region *region = acquire(&f, image, 1, MIB);
    memset(region->base + 90 * KIB, 9, 20 * KIB);
    CHECK_EQ(release(&f, region, SH_POLICY_WARM).returned_bytes, 0);
  }
  no_faults();
  CHECK_EQ(count_mappings(slot, 16 * MIB), mappings);
  CHECK_EQ(stats(&f).acquired_same, 100);
  shi_image_release(image);
  fixture_close(&f);
}

int main(void) {
  RUN(a_memory_of_zero_bytes_has_nothing_and_can_grow);
  RUN(a_memory_of_one_byte_takes_one_os_page);
  RUN(a_memory_can_fill_its_slot_and_not_one_byte_more);
  RUN(an_image_longer_than_the_memory_is_refused);
  RUN(what_a_guest_grew_is_gone_for_the_next);
  RUN(accesses_outside_of_a_memory_fault);
  RUN(a_pinned_region_is_not_released);
  RUN(a_released_region_is_not_pinned);
  RUN(a_second_release_changes_nothing);
  RUN(the_slot_of_the_same_image_and_tenant_is_taken_first);
  RUN(without_cold_slots_the_same_image_then_the_least_recently_used_is_taken);
  RUN(a_slot_released_by_another_thread_is_found);
  RUN(the_steady_path_changes_no_mapping);
}
