/* An image of what a live region holds.
 *
 *   region   | image: clean | private | clean | zeros | private |   zeros ...
 *   image    | base's pages |  copy   | base  |       |  copy   |
 *
 * The kernel says which pages are private; only those are copied, and all others stay the base's. Where they are more
 * than half of the base, sharing pays no longer: then the image stands alone, without pages of zeros.
 *
 * Each run of copied pages is a mapping in every slot that maps the image, of which a process has 65,530, and cuts one
 * of the base in two. So runs that lie near each other are joined, with the pages between them, until they are few.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "pool.h"

enum { FOUND_AT_ONCE = 256 };
/* The distance at which runs are joined doubles until they are few enough. An image that stands alone is joined further,
 * zeros copied with it: each mapping costs every cold fork an mmap, and its close a flush. Arbitrary. */
enum { NEAR_BYTES = 64 << 10, FAR_BYTES = 2 << 20, RUNS_MOST = 8, RUNS_WANTED_ALONE = 2 };

/* Runs of whole OS pages, ascending: offsets in the region. */
typedef struct {
  shi_image_run *items;
  size_t count, capacity;
} run_list;

static int add_run(run_list *list, uint64_t offset, uint64_t length) {
  if (list->count > 0) {
    shi_image_run *last = &list->items[list->count - 1];
    if (last->offset + last->length == offset) {
      last->length += length;
      return 0;
    }
  }
  if (list->count == list->capacity) {
    size_t capacity = list->capacity == 0 ? 64 : 2 * list->capacity;
    shi_image_run *items = realloc(list->items, capacity * sizeof *items);
    if (items == NULL) {
      return shi_os_failure("realloc", ENOMEM);
    }
    list->items = items;
    list->capacity = capacity;
  }
  list->items[list->count++] = (shi_image_run){.offset = offset, .length = length};
  return 0;
}

static bool is_zero(const uint8_t *page, uint64_t bytes) {
  const uint64_t *words = (const void *)page;
  uint64_t any = 0;
  for (uint64_t i = 0; i < bytes / sizeof *words && any == 0; i += 8) {
    any = words[i] | words[i + 1] | words[i + 2] | words[i + 3] | words[i + 4] | words[i + 5] | words[i + 6] |
          words[i + 7];
  }
  return any == 0;
}

static int add_nonzero(run_list *list, const uint8_t *bytes, uint64_t from, uint64_t to, uint64_t page) {
  int error = 0;
  for (uint64_t at = from; at < to && error == 0; at += page) {
    if (!is_zero(bytes + at, page)) {
      error = add_run(list, at, page);
    }
  }
  return error;
}

/* ---- what is private -------------------------------------------------------------------------------------------- */

static int find_private(shi_pool *pool, const shi_slot *slot, run_list *list) {
  uint64_t base = (uint64_t)(uintptr_t)slot->region.base;
  uint64_t at = base, end = base + slot->region.committed;
  while (at < end) {
    shi_os_run found[FOUND_AT_ONCE];
    uint64_t from = at;
    int count = shi_os_pages(&pool->pagemap, from, end, SHI_OS_PRIVATE, 0, found, FOUND_AT_ONCE, &at);
    if (count < 0 || at == from) {
      return count < 0 ? count : shi_os_failure("private pages", EIO);
    }
    for (int i = 0; i < count; i++) {
      int error = add_run(list, found[i].start - base, found[i].end - found[i].start);
      if (error != 0) {
        return error;
      }
    }
  }
  return 0;
}

/* Leaves out the pages of zeros beyond the base, where zeros are what is there anyway. */
static int without_zeros(const shi_slot *slot, const run_list *private, run_list *out) {
  uint64_t page = slot->arena->pool->os_page, border = slot->image_bytes;
  int error = 0;
  for (size_t i = 0; i < private->count && error == 0; i++) {
    uint64_t from = private->items[i].offset, to = from + private->items[i].length;
    uint64_t split = to < border ? to : from > border ? from : border;
    if (from < split) {
      error = add_run(out, from, split - from);
    }
    if (error == 0) {
      error = add_nonzero(out, slot->region.base, split, to, page);
    }
  }
  return error;
}

/* All pages that are not zeros: the private ones, and the base's where nothing private lies over them. */
static int all_nonzero(const shi_slot *slot, const run_list *private, run_list *out) {
  uint64_t page = slot->arena->pool->os_page, border = slot->image_bytes, at = 0;
  const uint8_t *base = border > 0 ? shi_image_bytes(slot->image) : NULL;
  int error = 0;
  for (size_t i = 0; i <= private->count && error == 0; i++) {
    uint64_t from = i < private->count ? private->items[i].offset : border;
    error = add_nonzero(out, base, at, from < border ? from : border, page);
    if (i < private->count && error == 0) {
      at = from + private->items[i].length;
      error = add_nonzero(out, slot->region.base, from, at, page);
    }
  }
  return error;
}

/* ---- making the image ------------------------------------------------------------------------------------------- */

static void join(run_list *list, uint64_t near) {
  size_t kept = 0;
  for (size_t i = 1; i < list->count; i++) {
    shi_image_run *last = &list->items[kept], run = list->items[i];
    if (run.offset - (last->offset + last->length) <= near) {
      last->length = run.offset + run.length - last->offset;
    } else {
      list->items[++kept] = run;
    }
  }
  list->count = list->count == 0 ? 0 : kept + 1;
}

static uint64_t join_until_few(run_list *list, size_t wanted) {
  for (uint64_t near = NEAR_BYTES; list->count > RUNS_MOST || (list->count > wanted && near <= FAR_BYTES); near *= 2) {
    join(list, near);
  }
  uint64_t bytes = 0;
  for (size_t i = 0; i < list->count; i++) {
    bytes += list->items[i].length;
  }
  return bytes;
}

static int make(const shi_slot *slot, const shi_image *base, run_list *list, shi_image **out) {
  for (size_t i = 0; i < list->count; i++) {
    list->items[i].bytes = slot->region.base + list->items[i].offset;
  }
  uint64_t end = shi_image_mapped_bytes(base);
  if (list->count > 0) {
    const shi_image_run *last = &list->items[list->count - 1];
    end = last->offset + last->length > end ? last->offset + last->length : end;
  }
  *out = NULL;
  return end == 0 ? 0 : shi_image_overlay(end, base, list->items, list->count, out);
}

int shi_region_capture(shi_region *region, shi_image **out) {
  shi_slot *slot = shi_slot_of(region);
  shi_pool *pool = slot->arena->pool;
  run_list private = {0}, kept = {0};
  if (find_private(pool, slot, &private) != 0) { /* then every page may be */
    private.count = 0;
    int unknown = region->committed == 0 ? 0 : add_run(&private, 0, region->committed);
    if (unknown != 0) {
      return unknown;
    }
  }
  int error = without_zeros(slot, &private, &kept);
  if (error == 0 && kept.count == 0 && slot->image != NULL) {
    *out = shi_image_retain(slot->image);
  } else if (error == 0) {
    bool shares = slot->image != NULL && join_until_few(&kept, RUNS_MOST) <= slot->image_bytes / 2 &&
                  shi_image_pieces(slot->image) + 2 * RUNS_MOST < SHI_IMAGE_PIECES_MOST / 4;
    if (!shares) {
      kept.count = 0;
      error = all_nonzero(slot, &private, &kept);
      (void)join_until_few(&kept, RUNS_WANTED_ALONE);
    }
    if (error == 0) {
      error = make(slot, shares ? slot->image : NULL, &kept, out);
    }
  }
  free(private.items);
  free(kept.items);
  return error;
}
