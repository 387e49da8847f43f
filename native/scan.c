/* Handles that a guest keeps in its own memory: every aligned word there that is a live handle of its own is a root.
 *
 * Only pages that the guest wrote are read: nobody gave it a handle on the others. A word is a candidate if its upper
 * half has a kind and its lower half is the index of a cell. Both are tested in one comparison of 32-bit lanes, four or
 * eight at once, and candidates are checked against the table under the lock, a slice at a time:
 *
 *   word (little-endian)   [ index     | kind, generation ]
 *   turned over            [ index^MIN | ~upper           ]     so that one signed "less than" serves both lanes
 *   less than              [ count^MIN | ~0x00ffffff      ]     index < count        kind is 1 to 127
 *
 * A scan counts only if no call was in the guest from its first slice to its last. Of a call that stands still (it waits on a
 * fiber, or looks up at a tick) the stack is scanned too, where every word may be a handle as well.
 */
#include <stdlib.h>

#include "bridge.h"
#include "heap.h"

enum { SLICE_BYTES = 128 << 10, FOUND = 512, RUNS = 16 };
enum { READ_PER_WORK = 4 }; /* a byte read in order takes about a quarter of the time of one read by marking */

typedef int32_t lanes __attribute__((vector_size(32)));
typedef struct {
  lanes v;
} __attribute__((packed, aligned(8))) loadable;

enum { BLOCK = 64 };

/* It reads what the guest may be writing (then it counts for nothing), and whole stacks, between frames too. */
#define READS_ANYTHING __attribute__((no_sanitize("address", "thread", "undefined")))

READS_ANYTHING static void keep(uint64_t word, uint32_t count, uint64_t *found, uint32_t *found_count) {
  if ((uint32_t)word < count && (int32_t)(word >> 32) > 0x00ffffff) found[(*found_count)++] = word;
}

READS_ANYTHING
uint64_t shi_scan_words(const uint8_t *bytes, uint64_t length, uint32_t count, uint64_t *found, uint32_t room,
                        uint32_t *found_count) {
  const int32_t turn_index = INT32_MIN, below = (int32_t)(count ^ 0x80000000u), upper = ~0x00ffffff;
  const lanes turn = {turn_index, -1, turn_index, -1, turn_index, -1, turn_index, -1};
  const lanes less = {below, upper, below, upper, below, upper, below, upper};
  const lanes swap = {1, 0, 3, 2, 5, 4, 7, 6};
  uint64_t at = 0;
  *found_count = 0;
  for (; at + BLOCK <= length; at += BLOCK) {
    lanes a = (((const loadable *)(bytes + at))->v ^ turn) < less;
    lanes b = (((const loadable *)(bytes + at + 32))->v ^ turn) < less;
    lanes any = (a & __builtin_shuffle(a, swap)) | (b & __builtin_shuffle(b, swap));
    union {
      lanes v;
      uint64_t words[4];
    } hit = {.v = any};
    if (__builtin_expect((hit.words[0] | hit.words[1] | hit.words[2] | hit.words[3]) == 0, 1)) continue;
    if (*found_count + BLOCK / 8 > room) return at;
    for (int k = 0; k < BLOCK / 8; k++) keep(((const uint64_t *)(bytes + at))[k], count, found, found_count);
  }
  for (; at + 8 <= length; at += 8) {
    if (*found_count == room) return at;
    keep(*(const uint64_t *)(bytes + at), count, found, found_count);
  }
  return length;
}

/* ---- a slice ---------------------------------------------------------------------------------------------------------- */

static void shade_own(shi_heap *heap, const shi_holder *holder, const uint64_t *found, uint32_t count) {
  for (uint32_t k = 0; k < count; k++) {
    uint32_t index = shi_index_of(found[k]);
    if (index >= heap->count) continue;
    const shi_hot *cell = &heap->hot[index];
    if (cell->tag == shi_tag_of(found[k]) && cell->owner == holder->index) shi_shade(heap, index);
  }
}

/* [from, to) of a piece, without the lock: until the end, or until `found` is full. Returns where it stopped. */
static uint64_t read_pages(shi_heap *heap, const uint8_t *base, uint64_t from, uint64_t to, uint32_t count,
                           uint64_t *found, uint32_t *found_count) {
  uint64_t page = shi_os_page(), start = (uint64_t)(uintptr_t)base;
  uint64_t at = start + from, end = start + to;
  *found_count = 0;
  while (at < end) {
    shi_os_run runs[RUNS];
    uint64_t next, whole_end = (end + page - 1) / page * page;
    int run_count = shi_os_pages(&heap->pagemap, at / page * page, whole_end, SHI_OS_PRIVATE, 0, runs, RUNS, &next);
    if (run_count < 0) { /* it cannot be asked: read all */
      runs[0] = (shi_os_run){.start = at / page * page, .end = next = whole_end};
      run_count = 1;
    }
    for (int k = 0; k < run_count; k++) {
      if (runs[k].categories & SHI_OS_ZERO_PAGE) continue;
      uint64_t run_from = runs[k].start > at ? runs[k].start : at, run_to = runs[k].end < end ? runs[k].end : end;
      uint32_t more;
      uint64_t read = shi_scan_words((const uint8_t *)(uintptr_t)run_from, run_to - run_from, count,
                                     found + *found_count, FOUND - *found_count, &more);
      *found_count += more;
      if (run_from + read < run_to) return run_from + read - start;
    }
    at = next < end ? next : end;
  }
  return to;
}

static void begin_again(shi_holder *holder, uint32_t calls) {
  holder->scan_calls = calls;
  holder->scan_piece = 0;
  holder->scan_at = 0;
}

static bool piece(const shi_holder *holder, uint32_t k, const uint8_t **base, uint64_t *bytes) {
  bool stack = holder->stack_bytes > 0;
  if (!stack || k > 0) return holder->pieces && holder->pieces(holder->context, k - stack, base, bytes);
  *base = holder->stack;
  *bytes = holder->stack_bytes;
  return true;
}

static uint64_t finish(shi_heap *heap, shi_holder *holder) {
  uint64_t *globals = holder->globals;
  shade_own(heap, holder, globals, holder->global_count);
  if (!shi_holder_land_some(holder)) return 8; /* we come here again */
  holder->scanned_in = heap->cycle;
  begin_again(holder, 0);
  return 8;
}

uint64_t shi_scan_slice(shi_heap *heap, shi_holder *holder) {
  uint64_t found[FOUND], cycle = heap->cycle, bytes = 0;
  uint32_t found_count, calls = atomic_load(&holder->calls), count = heap->count;
  const uint8_t *base;
  if (holder->scan_calls != calls + 1) begin_again(holder, calls + 1); /* 0: none has begun */
  if (!piece(holder, holder->scan_piece, &base, &bytes)) return finish(heap, holder);
  uint64_t from = holder->scan_at, to = bytes - from < SLICE_BYTES ? bytes : from + SLICE_BYTES;
  heap->scanning = holder;
  shi_heap_unlock(heap);
  uint64_t stopped = read_pages(heap, base, from, to, count, found, &found_count);
  pthread_mutex_lock(&heap->mutex);
  heap->scanning = NULL;
  if (heap->phase != SHI_HEAP_MARKING || heap->cycle != cycle || holder->closed) return 1;
  shade_own(heap, holder, found, found_count);
  if (atomic_load(&holder->calls) == calls) {
    holder->scan_at = stopped;
    if (stopped == bytes) {
      holder->scan_piece++;
      holder->scan_at = 0;
    }
  }
  uint64_t work = (stopped - from) / READ_PER_WORK + 8;
  heap->roots_bytes += work;
  return work;
}
