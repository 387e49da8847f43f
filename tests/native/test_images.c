/* Images: sealed contents, and how long their memory lives. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fixture.h"
#include "image.h"
#include "os.h"

static uint64_t images(void) {
  uint64_t count;
  uint64_t bytes;
  shi_image_totals(&count, &bytes);
  return count;
}

static void an_image_holds_its_runs_and_zeros_between(void) {
  uint8_t ones[10];
  memset(ones, 1, sizeof ones);
  shi_image_run runs[] = {{.offset = 5, .bytes = ones, .length = 10}, {.offset = 9990, .bytes = ones, .length = 10}};
  shi_image *image;
  CHECK_EQ(shi_image_create(10000, runs, 2, &image), 0);
  const uint8_t *bytes = shi_image_bytes(image);
  CHECK_EQ(shi_image_length(image), 10000);
  CHECK_EQ(shi_image_mapped_bytes(image), 3 * OS_PAGE);
  CHECK(is_all(bytes, 5, 0) && is_all(bytes + 5, 10, 1) && is_all(bytes + 15, 9975, 0));
  CHECK(is_all(bytes + 9990, 10, 1) && is_all(bytes + 10000, 3 * OS_PAGE - 10000, 0));
  shi_image_release(image);
  CHECK_EQ(images(), 0);
}

static void runs_outside_of_an_image_are_refused(void) {
  uint8_t byte = 1;
  shi_image *image;
  shi_image_run beyond = {.offset = 10, .bytes = &byte, .length = 1};
  shi_image_run wraps = {.offset = UINT64_MAX, .bytes = &byte, .length = 2};
  CHECK_EQ(shi_image_create(10, &beyond, 1, &image), -EINVAL);
  CHECK_EQ(shi_image_create(10, &wraps, 1, &image), -EINVAL);
  CHECK_EQ(shi_image_create(0, NULL, 0, &image), -EINVAL);
  CHECK_EQ(shi_image_create(UINT64_MAX, NULL, 0, &image), -EINVAL);
  CHECK_EQ(images(), 0);
}

/* A pipe holds the page, as the kernel does while it moves one. */
static void nobody_alters_a_sealed_file_and_who_holds_its_pages_does_not_matter(void) {
  int fd;
  int held[2];
  off_t from = 0;
  CHECK_EQ(shi_os_file_create(OS_PAGE, &fd), 0);
  CHECK_EQ(shi_os_file_write(fd, 0, "first", 5), 0);
  CHECK_EQ(pipe(held), 0);
  CHECK_EQ(splice(fd, &from, held[1], NULL, OS_PAGE, 0), OS_PAGE);
  CHECK_EQ(shi_os_file_seal(fd), 0);
  CHECK_EQ(shi_os_file_write(fd, 0, "later", 5), -EPERM);
  CHECK(ftruncate(fd, 0) != 0 && errno == EPERM);
  CHECK(ftruncate(fd, 2 * OS_PAGE) != 0 && errno == EPERM);
  CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, OS_PAGE) != 0 && errno == EPERM);
  CHECK(mmap(NULL, OS_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
  void *readable = mmap(NULL, OS_PAGE, PROT_READ, MAP_SHARED, fd, 0);
  CHECK(readable != MAP_FAILED && memcmp(readable, "first", 5) == 0);
  CHECK(mprotect(readable, OS_PAGE, PROT_READ | PROT_WRITE) != 0 && errno == EACCES);
  CHECK_EQ(munmap(readable, OS_PAGE), 0);
  CHECK_EQ(close(held[0]) + close(held[1]), 0);
  shi_os_file_close(fd);
}

static void a_guest_that_writes_to_its_image_changes_only_its_own(void) {
  shi_pool_options options = default_options();
  pool_fixture f;
  fixture_open(&f, &options);
  shi_image *image = make_image(5000, 7);
  shi_region *a = acquire(&f, image, 1, 64 * KIB);
  shi_region *b = acquire(&f, image, 1, 64 * KIB);
  memset(a->base, 9, 64 * KIB);
  CHECK(reads_as(b, 5000, 7));
  CHECK(is_all(shi_image_bytes(image), 5000, 7));
  release(&f, a, -1);
  release(&f, b, -1);
  shi_image_release(image);
  fixture_close(&f);
}

static void free_slots_do_not_keep_an_image_alive(void) {
  shi_pool_options options = default_options();
  pool_fixture f;
  fixture_open(&f, &options);
  shi_image *image = make_image(5000, 7);
  shi_region *a = acquire(&f, image, 1, 64 * KIB);
  shi_region *b = acquire(&f, image, 2, 64 * KIB);
  release(&f, a, -1);
  release(&f, b, -1);
  CHECK_EQ(images(), 1);
  shi_image_release(image);
  CHECK_EQ(images(), 0);
  CHECK(shi_pool_check(f.pool));
  shi_region *c = acquire(&f, NULL, 1, 64 * KIB);
  CHECK_EQ(stats(&f).acquired_cold, 3);
  CHECK(reads_as(c, 0, 0));
  release(&f, c, -1);
  fixture_close(&f);
}

static void a_live_or_queued_slot_keeps_its_image_until_it_ends(void) {
  shi_pool_options options = default_options();
  pool_fixture f;
  fixture_open(&f, &options);
  shi_image *image = make_image(5000, 7);
  shi_region *queued = acquire(&f, image, 1, 4 * MIB);
  memset(queued->base, 1, 4 * MIB);
  shi_region *live = acquire(&f, image, 1, 64 * KIB);
  CHECK(release(&f, queued, SH_POLICY_WARM).deferred_bytes > 0);
  shi_image_release(image);
  CHECK_EQ(images(), 1);
  CHECK(reads_as(live, 5000, 7));
  shi_pool_trim(f.pool, 0);
  CHECK_EQ(images(), 1);
  memset(live->base, 3, 64 * KIB);
  CHECK_EQ(release(&f, live, SH_POLICY_WARM).returned_bytes, 64 * KIB);
  CHECK_EQ(images(), 0);
  CHECK_EQ(stats(&f).warm_bytes, 0);
  fixture_close(&f);
}

static void a_new_image_never_matches_a_slot_of_an_old_one(void) {
  shi_pool_options options = default_options();
  pool_fixture f;
  fixture_open(&f, &options);
  for (uint8_t fill = 1; fill < 50; fill++) {
    shi_image *image = make_image(5000, fill); /* often at the address of the last one */
    shi_region *region = acquire(&f, image, 1, 64 * KIB);
    CHECK(reads_as(region, 5000, fill));
    release(&f, region, fill % 3);
    shi_image_release(image);
  }
  CHECK_EQ(stats(&f).acquired_same, 0);
  fixture_close(&f);
}

int main(void) {
  RUN(an_image_holds_its_runs_and_zeros_between);
  RUN(runs_outside_of_an_image_are_refused);
  RUN(nobody_alters_a_sealed_file_and_who_holds_its_pages_does_not_matter);
  RUN(a_guest_that_writes_to_its_image_changes_only_its_own);
  RUN(free_slots_do_not_keep_an_image_alive);
  RUN(a_live_or_queued_slot_keeps_its_image_until_it_ends);
  RUN(a_new_image_never_matches_a_slot_of_an_old_one);
}
