/* fork(): the child has no guests, the parent is untouched. */
#include <errno.h>
#include <string.h>
#include <sys/wait.h>

#include "fixture.h"

static pool_fixture f;

/* Runs `in_child` in a forked child and checks that all of its checks held. */
static void in_child(void (*body)(shi_region *), shi_region *region) {
  fflush(stdout);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    body(region);
    _exit(0);
  }
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void inherits_nothing(shi_region *region) {
  CHECK(!is_readable(region->base));
  CHECK(!is_readable(region->base + region->committed - 1));
}

static void a_child_does_not_inherit_the_memory_of_guests(void) {
  shi_pool_options options = default_options();
  options.max_regions = options.arena_slots = 1;
  fixture_open(&f, &options);
  shi_image *image = make_image(10 * KIB, 7);
  shi_region *region = acquire(&f, image, 1, 64 * KIB);
  memset(region->base, 9, 64 * KIB);
  CHECK_EQ(shi_region_grow(region, 128 * KIB, NULL), 0);
  in_child(inherits_nothing, region);
  release(&f, region, -1);
  shi_image *smaller = make_image(OS_PAGE, 8); /* remapped: new mappings must be left out as well */
  region = acquire(&f, smaller, 1, 64 * KIB);
  in_child(inherits_nothing, region);
  release(&f, region, -1);
  shi_image_release(image);
  shi_image_release(smaller);
  fixture_close(&f);
}

static void reads_zeros(shi_region *region) {
  shi_pool_after_fork_in_child(f.pool);
  shi_pool_after_fork_in_child(f.pool);
  CHECK(is_all(region->base, 64 * KIB, 0));
  region->base[0] = 1; /* a writable view must not crash the child either */
}

static void a_stale_view_reads_zeros_in_the_child(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_image *image = make_image(10 * KIB, 7);
  shi_region *region = acquire(&f, image, 1, 64 * KIB);
  memset(region->base, 9, 64 * KIB);
  shi_region_pin(region);
  in_child(reads_zeros, region);
  CHECK(is_all(region->base, 64 * KIB, 9));
  shi_region_unpin(region);
  release(&f, region, -1);
  shi_image_release(image);
  fixture_close(&f);
}

static shi_image *shared_image;

static void is_refused(shi_region *region) {
  shi_pool_after_fork_in_child(f.pool);
  shi_region_request request = {.account = &f.guest, .initial = 1, .maximum = 1};
  shi_region *none;
  sh_reclaim reclaim = {0};
  CHECK_EQ(shi_region_acquire(f.pool, &request, &none, NULL), -ECHILD);
  CHECK_EQ(shi_region_grow(region, 128 * KIB, NULL), -ECHILD);
  CHECK_EQ(shi_region_release(f.pool, region, -1, &reclaim), -ECHILD);
  CHECK_EQ(shi_pool_trim(f.pool, 0), 0);
  CHECK_EQ(stats(&f).regions_live, 1);
  shi_image_release(shared_image);
  shi_pool_destroy(f.pool);
}

static void a_child_is_told_that_it_has_no_guests(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shared_image = make_image(10 * KIB, 7);
  shi_region *region = acquire(&f, shared_image, 1, 64 * KIB);
  in_child(is_refused, region);
  CHECK(reads_as(region, 10 * KIB, 7));
  release(&f, region, -1);
  shi_image_release(shared_image);
  fixture_close(&f);
}

static void makes_its_own(shi_region *region) {
  (void)region;
  shi_pool_after_fork_in_child(f.pool);
  pool_fixture mine;
  shi_pool_options options = default_options();
  fixture_open(&mine, &options);
  shi_image *image = make_image(100, 3);
  shi_region *own = acquire(&mine, image, 1, 64 * KIB);
  CHECK(reads_as(own, 100, 3));
  memset(own->base, 9, 64 * KIB);
  release(&mine, own, SH_POLICY_WARM);
  shi_image_release(image); /* sweeps the child's pool, and not the parent's */
  CHECK_EQ(stats(&mine).warm_bytes, 0);
  shi_pool_destroy(mine.pool);
}

static void a_child_can_have_a_pool_of_its_own(void) {
  shi_pool_options options = default_options();
  fixture_open(&f, &options);
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  in_child(makes_its_own, region);
  release(&f, region, -1);
  fixture_close(&f);
}

int main(void) {
  RUN(a_child_does_not_inherit_the_memory_of_guests);
  RUN(a_stale_view_reads_zeros_in_the_child);
  RUN(a_child_is_told_that_it_has_no_guests);
  if (!UNDER_TSAN) { /* ThreadSanitizer starts no thread in a child */
    RUN(a_child_can_have_a_pool_of_its_own);
  }
}
