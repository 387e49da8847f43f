/* Captures: an image of what a region holds, whatever was written where, and nothing left when one fails. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"
#include "image.h"

enum { REGION = 2 * MIB };

static pool_fixture f;

static void open_large(void) {
  shi_pool_options options = default_options();
  options.slot_capacity = 4 * MIB;
  fixture_open(&f, &options);
}

/* A slot that waits for decommit keeps its image until then. */
static void settle(void) { shi_pool_trim(f.pool, UINT64_MAX); }

static uint64_t image_total(bool bytes) {
  uint64_t count, total;
  shi_image_totals(&count, &total);
  return bytes ? total : count;
}

static void release_image(shi_image *image) {
  if (image != NULL) {
    shi_image_release(image);
  }
}

/* A region that starts from the image holds what the other one does. */
static void check_equal(const shi_region *region, shi_image *image) {
  shi_region *twin = acquire(&f, image, 7, region->committed);
  CHECK(memcmp(twin->base, region->base, region->committed) == 0);
  memset(twin->base, 0xee, twin->committed);
  release(&f, twin, -1);
  twin = acquire(&f, image, 7, region->committed); /* the same slot, reset */
  CHECK(memcmp(twin->base, region->base, region->committed) == 0);
  release(&f, twin, -1);
}

static void what_was_written_where_does_not_matter(void) {
  uint64_t random = 42;
  for (int round = 0; round < 60; round++) {
    open_large();
    shi_image *base = round % 3 == 0 ? NULL : make_image(1 + random_next(&random) % MIB, 5);
    for (int depth = 0; depth < 4; depth++) {
      shi_region *region = acquire(&f, base, 1, REGION);
      uint64_t writes = random_next(&random) % 60;
      for (uint64_t k = 0; k < writes; k++) {
        uint64_t at = random_next(&random) % REGION;
        uint64_t length = random_next(&random) % (k % 9 == 0 ? 200 * KIB : 100);
        length = length < REGION - at ? length : REGION - at;
        memset(region->base + at, (int)(random_next(&random) % 3), length); /* often zeros */
      }
      shi_image *image;
      CHECK_EQ(shi_region_capture(region, &image), 0);
      check_equal(region, image);
      release(&f, region, -1);
      release_image(base);
      base = image;
    }
    release_image(base);
    settle();
    CHECK_EQ(image_total(false), 0);
    fixture_close(&f);
  }
}

static void an_empty_region_has_no_image_and_an_untouched_one_shares_its_own(void) {
  open_large();
  shi_region *region = acquire(&f, NULL, 1, REGION);
  shi_image *image = (shi_image *)1;
  CHECK_EQ(shi_region_capture(region, &image), 0);
  CHECK(image == NULL);
  region->base[0] = 1;
  region->base[0] = 0;
  CHECK_EQ(shi_region_capture(region, &image), 0);
  CHECK(image == NULL);
  release(&f, region, -1);

  shi_image *base = make_image(5000, 3);
  region = acquire(&f, base, 1, REGION);
  CHECK_EQ(shi_region_capture(region, &image), 0);
  CHECK(image == base);
  release(&f, region, -1);
  shi_image_release(image);
  settle();
  CHECK_EQ(image_total(false), 1);
  shi_image_release(base);
  fixture_close(&f);
}

static void few_pages_are_shared_and_many_stand_alone(void) {
  open_large();
  shi_image *base = make_image(MIB, 3);
  shi_region *region = acquire(&f, base, 1, REGION);
  region->base[500 * KIB] = 9;
  shi_image *little, *much;
  CHECK_EQ(shi_region_capture(region, &little), 0);
  CHECK_EQ(image_total(true), MIB + OS_PAGE);
  memset(region->base, 8, 600 * KIB);
  CHECK_EQ(shi_region_capture(region, &much), 0);
  shi_image_release(base);
  CHECK_EQ(shi_image_pieces(much), 1);
  check_equal(region, much);
  release(&f, region, -1);
  settle();
  shi_image_release(little); /* and with it the files of the base */
  CHECK_EQ(image_total(true), MIB);
  shi_image_release(much);
  CHECK_EQ(image_total(true), 0);
  fixture_close(&f);
}

static void pieces_stay_few(void) {
  open_large();
  shi_image *base = make_image(2 * MIB, 3);
  for (int depth = 0; depth < 40; depth++) {
    shi_region *region = acquire(&f, base, 1, REGION);
    for (int k = 0; k < 30; k++) {
      region->base[(uint64_t)((k * 17 + depth) % 512) * OS_PAGE] = 1;
    }
    shi_image *image;
    CHECK_EQ(shi_region_capture(region, &image), 0);
    CHECK(shi_image_pieces(image) < 100);
    check_equal(region, image);
    release(&f, region, -1);
    shi_image_release(base);
    base = image;
  }
  shi_image_release(base);
  fixture_close(&f);
}

static int composed(uint64_t length, const shi_image *base, sh_image_part part) {
  shi_image *image;
  int error = shi_image_compose(length, base, &part, 1, -1, &image);
  if (error == 0) {
    shi_image_release(image);
  }
  return error;
}

static void parts_that_do_not_fit_are_refused(void) {
  shi_image *base = make_image(MIB, 3);
  sh_image_part whole = {.length = MIB, .from_module = true}, bad;
  CHECK_EQ(composed(MIB, base, whole), 0);
  bad = whole, bad.length = 0;
  CHECK_EQ(composed(MIB, base, bad), -EINVAL);
  bad = whole, bad.length = MIB + OS_PAGE;
  CHECK_EQ(composed(MIB, base, bad), -EINVAL);
  bad = whole, bad.offset = 1;
  CHECK_EQ(composed(MIB, base, bad), -EINVAL);
  bad = whole, bad.offset = UINT64_MAX - OS_PAGE + 1;
  CHECK_EQ(composed(MIB, base, bad), -EINVAL);
  bad = whole, bad.from_module = false; /* no file */
  CHECK_EQ(composed(MIB, base, bad), -EINVAL);
  CHECK_EQ(composed(0, base, whole), -EINVAL);
  CHECK_EQ(composed(UINT64_MAX, base, whole), -EINVAL);
  sh_image_part twice[] = {whole, whole};
  shi_image *image;
  CHECK_EQ(shi_image_compose(MIB, base, twice, 2, -1, &image), -EINVAL);
  CHECK_EQ(shi_image_compose(MIB, base, twice, SHI_IMAGE_PIECES_MOST + 1, -1, &image), -EINVAL);
  shi_image_release(base);
  CHECK_EQ(image_total(false), 0);
}

static void whatever_fails_leaves_nothing(void) {
  static const enum sh_os_call calls[] = {SH_OS_MMAP, SH_OS_MEMFD, SH_OS_WRITE, SH_OS_SEAL, SH_OS_PAGEMAP_SCAN};
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    for (uint32_t skip = 0; skip < 12; skip++) {
      open_large();
      shi_image *base = make_image(MIB, 3);
      shi_region *region = acquire(&f, base, 1, REGION);
      for (int k = 0; k < 6; k++) {
        region->base[k * 300 * KIB] = 1;
      }
      int files = open_files();
      sh_fault_inject(calls[i], skip, 1, ENOMEM);
      shi_image *image = NULL;
      int error = shi_region_capture(region, &image);
      no_faults();
      if (error == 0) {
        check_equal(region, image);
        release_image(image);
      }
      settle();
      CHECK_EQ(open_files(), files);
      CHECK_EQ(image_total(false), 1);
      release(&f, region, -1);
      shi_image_release(base);
      fixture_close(&f);
    }
  }
}

static void a_slot_whose_pieces_cannot_be_mapped_is_not_handed_out(void) {
  for (uint32_t skip = 0; skip < 14; skip++) {
    open_large();
    shi_image *base = make_image(MIB, 3), *image;
    shi_region *region = acquire(&f, base, 1, REGION);
    for (int k = 0; k < 6; k++) {
      region->base[k * 300 * KIB] = 1;
    }
    CHECK_EQ(shi_region_capture(region, &image), 0);
    shi_region_request request = {
        .account = &f.guest, .image = image, .affinity = 1, .initial = REGION, .maximum = REGION};
    shi_region *twin = NULL;
    sh_fault_inject(SH_OS_MMAP, skip, 1, ENOMEM);
    int error = shi_region_acquire(f.pool, &request, &twin, NULL);
    no_faults();
    CHECK(error == 0 || error == -ENOMEM);
    if (error == 0) {
      release(&f, twin, -1);
    }
    check_equal(region, image);
    release(&f, region, -1);
    shi_image_release(base);
    shi_image_release(image);
    fixture_close(&f);
  }
}

/* ---- habits ----------------------------------------------------------------------------------------------------- */

static shi_region *fork_of(shi_image *image) {
  shi_region_request request = {
      .account = &f.guest, .image = image, .affinity = 1, .initial = REGION, .maximum = REGION, .learns = true};
  shi_region *region;
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
  return region;
}

/* Pages 100 to 139, and one that only this fork dirties. */
static void behave(shi_region *region, int own_page) {
  for (int k = 100; k < 140; k++) {
    region->base[k * OS_PAGE] = 9;
  }
  region->base[own_page * OS_PAGE] = 9;
}

static uint64_t private_bytes(const shi_region *region) {
  return shi_reset_private_bytes(f.pool, shi_slot_of((shi_region *)(uintptr_t)region));
}

static void what_all_cold_forks_dirty_is_populated_before_the_first_call(void) {
  open_large();
  shi_image *image = make_image(MIB, 3);
  for (int k = 0; k < 2; k++) {
    shi_region *region = fork_of(image);
    shi_region_expect_call(region);
    CHECK_EQ(private_bytes(region), 0);
    behave(region, 200 + k);
    release(&f, region, SH_POLICY_IMMEDIATE);
  }
  shi_region *region = fork_of(image);
  CHECK_EQ(private_bytes(region), 0);
  shi_region_expect_call(region);
  CHECK_EQ(private_bytes(region), 40 * OS_PAGE);
  CHECK(reads_as(region, MIB, 3));
  CHECK_EQ(release(&f, region, SH_POLICY_IMMEDIATE).returned_bytes, 40 * OS_PAGE);

  region = fork_of(image); /* without the kernel's help */
  sh_fault_inject(SH_OS_MADVISE, 0, 1, EINVAL);
  shi_region_expect_call(region);
  no_faults();
  CHECK_EQ(private_bytes(region), 0);
  CHECK(reads_as(region, MIB, 3));
  release(&f, region, SH_POLICY_WARM);
  shi_image_release(image);
  fixture_close(&f);
}

static void forks_that_are_not_alike_teach_nothing(void) {
  open_large();
  shi_image *image = make_image(MIB, 3);
  for (int k = 0; k < 3; k++) {
    shi_region *region = fork_of(image);
    shi_region_expect_call(region);
    CHECK_EQ(private_bytes(region), 0);
    memset(region->base + k * 200 * KIB, 7, 200 * KIB);
    release(&f, region, SH_POLICY_IMMEDIATE);
  }
  shi_image_release(image);
  fixture_close(&f);
}

static void *fork_and_behave(void *image) {
  for (int k = 0; k < 200; k++) {
    shi_account guest = {.parent = &f.tenant, .limit = UINT64_MAX, .level = SHI_ACCOUNT_GUEST};
    shi_region_request request = {
        .account = &guest, .image = image, .affinity = 1, .initial = REGION, .maximum = REGION, .learns = true};
    shi_region *region;
    CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
    shi_region_expect_call(region);
    CHECK(region->base[5 * OS_PAGE] == 3);
    behave(region, 5);
    sh_reclaim reclaim = {0};
    CHECK_EQ(shi_region_release(f.pool, region, k % 3, &reclaim), 0);
  }
  return NULL;
}

static void threads_learn_together(void) {
  for (int round = 0; round < 5; round++) {
    open_large();
    shi_image *image = make_image(MIB, 3);
    pthread_t threads[4];
    for (int k = 0; k < 4; k++) {
      CHECK_EQ(pthread_create(&threads[k], NULL, fork_and_behave, image), 0);
    }
    for (int k = 0; k < 4; k++) {
      CHECK_EQ(pthread_join(threads[k], NULL), 0);
    }
    shi_image_release(image);
    fixture_close(&f);
  }
}

int main(void) {
  RUN(what_was_written_where_does_not_matter);
  RUN(an_empty_region_has_no_image_and_an_untouched_one_shares_its_own);
  RUN(few_pages_are_shared_and_many_stand_alone);
  RUN(pieces_stay_few);
  RUN(parts_that_do_not_fit_are_refused);
  RUN(whatever_fails_leaves_nothing);
  RUN(a_slot_whose_pieces_cannot_be_mapped_is_not_handed_out);
  RUN(what_all_cold_forks_dirty_is_populated_before_the_first_call);
  RUN(forks_that_are_not_alike_teach_nothing);
  RUN(threads_learn_together);
}
