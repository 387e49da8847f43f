/* Promise 1: no byte written by one guest is ever read by another, whatever the history.
 *
 * Random histories of sizes, growth, images, tenants, policies, faults of the OS, trims and retired images. A guest
 * looks at all of its memory when it begins and when it has grown, and then fills parts of it with bytes that no image
 * has. */
#include <errno.h>
#include <string.h>

#include "fixture.h"

enum { LIVE = 6, IMAGES = 3, STEPS = 3000, MARK = 0xee };

typedef struct {
  shi_image *image;
  uint64_t length;
  uint8_t fill;
} known_image;

typedef struct {
  shi_region *region;
  known_image image; /* as it was then; image NULL: none */
} guest_record;

static pool_fixture f;
static uint64_t seed;

static uint64_t below(uint64_t bound) { return bound == 0 ? 0 : random_next(&seed) % bound; }

/* Small and large ones alike. */
static uint64_t some_size(uint64_t most) {
  uint64_t size = most >> below(20);
  return below(4) == 0 ? size : below(size + 1);
}

static void new_image(known_image *image) {
  image->length = 1 + some_size(300 * KIB);
  image->fill = (uint8_t)(1 + below(100));
  image->image = make_image(image->length, image->fill);
}

static void scribble(shi_region *region) {
  for (uint64_t spans = below(6); spans > 0 && region->committed > 0; spans--) {
    uint64_t from = below(region->committed);
    uint64_t bytes = some_size(region->committed - from);
    if (below(2) == 0) {
      memset(region->base + from, MARK, bytes);
    } else {
      for (uint64_t at = from; at < from + bytes; at += 2 * OS_PAGE) {
        region->base[at] = MARK;
      }
    }
  }
}

static void inject_something(void) {
  static const enum sh_os_call calls[] = {SH_OS_MMAP, SH_OS_MPROTECT, SH_OS_MADVISE, SH_OS_PAGEMAP_SCAN,
                                          SH_OS_PAGEMAP_READ};
  sh_fault_inject((int)calls[below(5)], (uint32_t)below(5), 1 + (uint32_t)below(2), ENOMEM);
}

static void begin(guest_record *guest, const known_image *images, uint64_t capacity) {
  static const known_image none;
  guest->image = below(3) == 0 ? none : images[below(IMAGES)];
  uint64_t initial = some_size(2 * MIB);
  if (initial < guest->image.length) {
    initial = guest->image.length;
  }
  shi_region_request request = {
      .account = &f.guest, .image = guest->image.image, .affinity = below(3), .initial = initial, .maximum = capacity};
  if (shi_region_acquire(f.pool, &request, &guest->region, NULL) != 0) {
    guest->region = NULL;
    return;
  }
  CHECK(reads_as(guest->region, guest->image.length, guest->image.fill));
  CHECK(!is_readable(guest->region->base + guest->region->committed));
  CHECK(!is_readable(guest->region->base + capacity));
  scribble(guest->region);
}

static void grow(guest_record *guest) {
  shi_region *region = guest->region;
  uint64_t before = region->committed;
  if (shi_region_grow(region, region->size + some_size(MIB), NULL) == 0) {
    CHECK(is_all(region->base + before, region->committed - before, 0));
    CHECK(!is_readable(region->base + region->committed));
    scribble(region);
  }
}

static void one_history(const shi_pool_options *options, bool with_faults, bool with_scan) {
  known_image images[IMAGES];
  guest_record guests[LIVE] = {0};
  if (!with_scan) {
    sh_fault_inject(SH_OS_PAGEMAP_SCAN, 0, 1, ENOTTY);
  }
  fixture_open(&f, options);
  for (int i = 0; i < IMAGES; i++) {
    new_image(&images[i]);
  }
  for (int step = 0; step < STEPS; step++) {
    guest_record *guest = &guests[below(LIVE)];
    if (with_faults && below(8) == 0) {
      inject_something();
    }
    switch (below(12)) {
    case 0:
      no_faults(); /* an image has no second try here */
      int i = (int)below(IMAGES);
      shi_image_release(images[i].image);
      new_image(&images[i]);
      break;
    case 1:
      shi_pool_trim(f.pool, below(2) == 0 ? 0 : UINT64_MAX);
      break;
    default:
      if (guest->region == NULL) {
        begin(guest, images, options->slot_capacity);
      } else if (below(3) == 0) {
        grow(guest);
      } else {
        release(&f, guest->region, (int)below(4) - 1); /* -1: as the pool does */
        guest->region = NULL;
      }
    }
  }
  no_faults();
  for (int i = 0; i < LIVE; i++) {
    if (guests[i].region != NULL) {
      release(&f, guests[i].region, -1);
    }
  }
  for (int i = 0; i < IMAGES; i++) {
    shi_image_release(images[i].image);
  }
  fixture_close(&f);
}

/* Budgets that make each path common: nothing fits, some fits, all fits; the queue waits, or its thread is at work. */
static void histories(enum sh_policy policy, bool with_faults, bool with_scan) {
  static const uint64_t resident[] = {0, 64 * KIB, 4 * MIB};
  for (uint64_t round = 0; round < 6; round++) {
    seed = 1 + round * 77 + (uint64_t)policy * 1000 + with_faults;
    shi_pool_options options = default_options();
    options.policy = policy;
    options.max_regions = with_faults ? 2000 : 8; /* quarantined slots are never replaced */
    options.arena_slots = 4;
    options.resident_per_slot = resident[round % 3];
    options.resident_total = 1 + resident[round % 3] * 2;
    options.queue_bytes = round % 2 == 0 ? 8 * MIB : UINT64_MAX;
    options.queue_ns = round % 2 == 0 ? UINT64_C(60000000000) : 100000;
    options.decay_ns = round % 2 == 0 ? UINT64_MAX : 1000000;
    one_history(&options, with_faults, with_scan);
  }
}

static void guests_are_isolated_with_immediate(void) { histories(SH_POLICY_IMMEDIATE, false, true); }
static void guests_are_isolated_with_warm(void) { histories(SH_POLICY_WARM, false, true); }
static void guests_are_isolated_with_lazy(void) { histories(SH_POLICY_LAZY, false, true); }
static void guests_are_isolated_without_pagemap_scan(void) { histories(SH_POLICY_WARM, false, false); }
static void guests_are_isolated_when_the_os_fails(void) {
  histories(SH_POLICY_WARM, true, true);
  histories(SH_POLICY_LAZY, true, false);
}

int main(void) {
  RUN(guests_are_isolated_with_immediate);
  RUN(guests_are_isolated_with_warm);
  RUN(guests_are_isolated_with_lazy);
  RUN(guests_are_isolated_without_pagemap_scan);
  RUN(guests_are_isolated_when_the_os_fails);
}
