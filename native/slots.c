/* The list of slots, for who looks on: what each shows (pool.h), and what the kernel says of its pages.
 *
 * Nothing here touches a slot's fields or its bytes, and nobody waits for it. Slots and arenas are never moved or freed
 * while the pool lives, and the kernel may be asked about any address; so the worst that a reading can be is a moment
 * old.
 */
#include "pool.h"

enum { RUNS = 256, CALLS_A_SLOT = 256 };

/* The kernel keeps the process from changing its mappings while it walks, so it is not asked to walk far at once: some
 * 0.3 ms, when every page is there. */
static const uint64_t walk_bytes = 64ull << 20;
static const uint64_t pages_at_once = 64 << 10;

/* Private pages in [start, end), the zero page and swapped ones not among them. Adds the pages to *work. */
static uint64_t measured(shi_pool *pool, uint64_t start, uint64_t end, uint64_t *work) {
  shi_os_run runs[RUNS];
  uint64_t bytes = 0;
  for (int call = 0; call < CALLS_A_SLOT && start < end; call++) {
    uint64_t to = end - start < walk_bytes ? end : start + walk_bytes, next = to;
    int count = shi_os_pages(&pool->pagemap, start, to, SHI_OS_PRIVATE, 0, runs, RUNS, &next);
    if (count < 0 || next <= start) {
      break; /* it does not say: then this is what is known */
    }
    for (int i = 0; i < count; i++) {
      *work += (runs[i].end - runs[i].start) / pool->os_page;
      if (!(runs[i].categories & (SHI_OS_ZERO_PAGE | SHI_OS_SWAPPED))) {
        bytes += runs[i].end - runs[i].start;
      }
    }
    start = next;
  }
  return bytes;
}

static shi_slot_seen see(shi_pool *pool, const shi_arena *arena, uint32_t index) {
  const _Atomic uint64_t *word = &arena->slots[index].shown;
  uint64_t shown = atomic_load_explicit(word, memory_order_relaxed), low = shown & SHI_SHOWN_MOST;
  shi_slot_seen seen = {.word = word,
                        .shown = shown,
                        .state = (enum sh_slot_state)(shown >> 56),
                        .node = pool->numa.ids[arena->node],
                        .committed_bytes = (shown >> 32 & SHI_SHOWN_MOST) << SHI_SHOWN_SHIFT};
  bool live = seen.state == SH_SLOT_LIVE;
  seen.owner = live ? (uint32_t)low : 0;
  seen.resident_bytes = live ? UINT64_MAX : low << SHI_SHOWN_SHIFT;
  return seen;
}

/* Arenas are numbered from the oldest on, which is the last of the list: new ones do not change where to go on. */
static shi_arena *arena_of(shi_pool *pool, uint64_t number) {
  shi_arena *first = atomic_load_explicit(&pool->arenas, memory_order_acquire);
  uint64_t count = 0;
  for (const shi_arena *at = first; at != NULL; at = at->next) {
    count++;
  }
  for (; number + 1 < count; count--) {
    first = first->next;
  }
  return number < count ? first : NULL;
}

uint32_t shi_pool_slots(shi_pool *pool, uint64_t *from, shi_slot_seen *seen, uint32_t room, bool measure) {
  if (atomic_load_explicit(&pool->forked, memory_order_relaxed)) {
    return 0;
  }
  uint32_t count = 0;
  uint64_t work = 0;
  shi_arena *arena;
  while (count < room && work < pages_at_once && (arena = arena_of(pool, *from >> 32)) != NULL) {
    uint32_t index = (uint32_t)*from;
    if (index >= atomic_load_explicit(&arena->opened, memory_order_relaxed)) {
      *from = ((*from >> 32) + 1) << 32;
      continue;
    }
    shi_slot_seen one = see(pool, arena, index);
    if (measure && one.committed_bytes > 0 && one.state != SH_SLOT_QUARANTINED) {
      uint64_t base = (uint64_t)(uintptr_t)arena->base + shi_layout_slot_offset(&arena->layout, index);
      one.resident_bytes = measured(pool, base, base + one.committed_bytes, &work);
    }
    seen[count++] = one;
    ++*from;
  }
  return count;
}
