#include "page_pool.h"

#include <stdlib.h>
#include <string.h>

#include "pool.h"

enum { LEASED = 1, PIN = 2, POISON = 0xDB };
#define GENERATIONS (UINT64_C(1) << (64 - SHI_LEASE_INDEX_BITS))
#define PINS_MOST ((UINT64_C(1) << SHI_LEASE_INDEX_BITS) - PIN)
enum { COUNT_MOST = 1 << 20 };
static const uint64_t bytes_most = UINT64_C(1) << 44;

static uint64_t generation_of(uint64_t state_or_lease) { return state_or_lease >> SHI_LEASE_INDEX_BITS; }
static uint64_t free_state(uint64_t generation) { return generation << SHI_LEASE_INDEX_BITS; }
static uint64_t pins_of(uint64_t state) { return state & PINS_MOST; }
static uint64_t index_of(uint64_t lease) { return lease & ((UINT64_C(1) << SHI_LEASE_INDEX_BITS) - 1); }

static uint8_t *bytes_of(const sh_pages *pages, uint64_t index) { return pages->base + index * pages->buffer_bytes; }

/* ---- forks ------------------------------------------------------------------------------------------------------ */

static struct {
  pthread_mutex_t lock;
  sh_pages *first;
} all = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void before_fork(void) { pthread_mutex_lock(&all.lock); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&all.lock); }
/* The pages were left out, so that no view faults zeros come in their place; and nothing moves any more, since a thread
 * that does not exist here may have been in the middle of it. */
static void after_fork_in_child(void) {
  for (sh_pages *pages = all.first; pages; pages = pages->next) {
    atomic_store(&pages->forked, true);
    shi_os_map_zeros_in_child(pages->base, pages->count * pages->buffer_bytes);
  }
  all.first = NULL;
  pthread_mutex_unlock(&all.lock);
}
static void register_fork_handlers(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

static void enter_list(sh_pages *pages) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, register_fork_handlers);
  pthread_mutex_lock(&all.lock);
  pages->next = all.first;
  all.first = pages;
  pthread_mutex_unlock(&all.lock);
}

static void leave_list(const sh_pages *pages) {
  pthread_mutex_lock(&all.lock);
  sh_pages **at = &all.first;
  while (*at != pages) at = &(*at)->next;
  *at = pages->next;
  pthread_mutex_unlock(&all.lock);
}

static bool is_forked(const sh_pages *pages) { return atomic_load_explicit(&pages->forked, memory_order_relaxed); }

/* ---- take, put, pin --------------------------------------------------------------------------------------------- */

/* A buffer has moved: what idles is to be looked at again, later. */
static void moved(sh_pages *pages) {
  if (!atomic_load(&pages->resting) || !atomic_exchange(&pages->resting, false)) return;
  pthread_mutex_lock(&pages->sleep);
  pthread_cond_signal(&pages->wake);
  pthread_mutex_unlock(&pages->sleep);
}

/* From two counts that are read one after the other: `put` last, so that it never says too much. */
static uint32_t in_use(sh_pages *pages) {
  uint64_t taken = atomic_load(&pages->ring.taken) + pages->count;
  uint64_t put = atomic_load(&pages->ring.put);
  return taken > put ? (uint32_t)(taken - put) : 0;
}

static void note_peak(sh_pages *pages) {
  uint32_t now = in_use(pages), peak = atomic_load_explicit(&pages->peak, memory_order_relaxed);
  while (now > peak && !atomic_compare_exchange_weak(&pages->peak, &peak, now)) continue;
}

/* With the buffer in hand. */
static void written_to(shi_page_buffer *buffer, uint64_t bytes) {
  uint64_t page = shi_os_page(), whole = (bytes + page - 1) / page * page;
  if (whole > atomic_load_explicit(&buffer->resident, memory_order_relaxed))
    atomic_store_explicit(&buffer->resident, whole, memory_order_relaxed);
}

uint64_t shi_pages_take(sh_pages *pages) {
  uint32_t index;
  if (is_forked(pages) || !shi_mpmc_take(&pages->ring, &index)) return 0;
  shi_page_buffer *buffer = &pages->buffers[index];
  if (pages->poison && !buffer->poisoned) {
    memset(bytes_of(pages, index), POISON, pages->buffer_bytes);
    written_to(buffer, pages->buffer_bytes);
    buffer->poisoned = true;
  }
  uint64_t state = atomic_fetch_or(&buffer->state, LEASED);
  SHI_CHECK(state == free_state(generation_of(state)));
  note_peak(pages);
  shi_count(&pages->counters, SHI_PAGES_TAKEN, 1);
  moved(pages);
  return generation_of(state) << SHI_LEASE_INDEX_BITS | index;
}

/* The buffer of a lease as it may be now; NULL: this pool never gave such a lease. */
static shi_page_buffer *buffer_of(const sh_pages *pages, uint64_t lease) {
  return index_of(lease) < pages->count ? &pages->buffers[index_of(lease)] : NULL;
}

static bool is_held(uint64_t state, uint64_t lease) {
  return (state & LEASED) && generation_of(state) == generation_of(lease);
}

int shi_pages_put(sh_pages *pages, uint64_t lease) {
  if (is_forked(pages)) return SH_FORKED;
  shi_page_buffer *buffer = buffer_of(pages, lease);
  if (!buffer) return SH_CLOSED;
  uint64_t generation = generation_of(lease), next = generation + 1 == GENERATIONS ? 1 : generation + 1;
  uint64_t state = free_state(generation) | LEASED;
  if (!atomic_compare_exchange_strong(&buffer->state, &state, free_state(next)))
    return is_held(state, lease) ? SH_BUSY : SH_CLOSED;
  /* From here on the lease is nobody's, and the buffer ours, until it is in the ring. */
  uint64_t extent = atomic_load_explicit(&buffer->extent, memory_order_relaxed);
  memset(bytes_of(pages, index_of(lease)), pages->poison ? POISON : 0, extent);
  written_to(buffer, extent);
  atomic_store_explicit(&buffer->extent, 0, memory_order_relaxed);
  shi_mpmc_put(&pages->ring, (uint32_t)index_of(lease));
  moved(pages);
  return SH_OK;
}

uint8_t *shi_pages_pin(sh_pages *pages, uint64_t lease, uint64_t end) {
  shi_page_buffer *buffer = buffer_of(pages, lease);
  if (is_forked(pages) || !buffer || end > pages->buffer_bytes) return NULL;
  uint64_t state = atomic_load(&buffer->state);
  do {
    if (!is_held(state, lease) || pins_of(state) == PINS_MOST) return NULL;
  } while (!atomic_compare_exchange_weak(&buffer->state, &state, state + PIN));
  uint64_t extent = atomic_load_explicit(&buffer->extent, memory_order_relaxed);
  while (end > extent && !atomic_compare_exchange_weak_explicit(&buffer->extent, &extent, end, memory_order_relaxed,
                                                                memory_order_relaxed))
    continue;
  return bytes_of(pages, index_of(lease));
}

void shi_pages_unpin(sh_pages *pages, uint64_t lease) {
  if (is_forked(pages)) return;
  uint64_t before = atomic_fetch_sub(&pages->buffers[index_of(lease)].state, PIN);
  SHI_CHECK(is_held(before, lease) && pins_of(before) > 0);
  (void)before;
}

uint64_t shi_pages_extent(const sh_pages *pages, uint64_t lease) {
  const shi_page_buffer *buffer = buffer_of(pages, lease);
  return buffer ? atomic_load_explicit(&buffer->extent, memory_order_relaxed) : 0;
}

uint8_t *sh_pages_base(const sh_pages *pages) { return pages->base; }

/* ---- giving pages back ------------------------------------------------------------------------------------------ */

uint64_t sh_pages_trim(sh_pages *pages) {
  if (is_forked(pages)) return 0;
  uint64_t bytes = 0;
  uint32_t index;
  pthread_mutex_lock(&pages->upkeep);
  for (uint32_t k = 0; k < pages->count && shi_mpmc_take(&pages->ring, &index); k++) {
    shi_page_buffer *buffer = &pages->buffers[index];
    uint64_t resident = atomic_load_explicit(&buffer->resident, memory_order_relaxed);
    if (shi_os_give_back(bytes_of(pages, index), resident) == 0) { /* else they stay, as clean as they are */
      bytes += resident;
      atomic_store_explicit(&buffer->resident, 0, memory_order_relaxed);
      buffer->poisoned = buffer->poisoned && resident == 0;
    }
    shi_mpmc_put(&pages->ring, index);
  }
  pthread_mutex_unlock(&pages->upkeep);
  shi_count(&pages->counters, SHI_PAGES_TRIMMED_BYTES, bytes);
  return bytes;
}

static uint64_t moves(sh_pages *pages) { return atomic_load(&pages->ring.taken) + atomic_load(&pages->ring.put); }

static void sleep_for(sh_pages *pages, uint64_t ns) {
  uint64_t now_ns = shi_os_now_ns(), until_ns = ns > INT64_MAX - now_ns ? INT64_MAX : now_ns + ns;
  struct timespec at = {.tv_sec = (time_t)(until_ns / UINT64_C(1000000000)),
                        .tv_nsec = (long)(until_ns % UINT64_C(1000000000))};
  while (!pages->stop && pthread_cond_timedwait(&pages->wake, &pages->sleep, &at) == 0) continue;
}

/* Trims when no buffer has moved for idle_ns, then rests until one does. */
static void *run(void *argument) {
  sh_pages *pages = argument;
  pthread_mutex_lock(&pages->sleep);
  while (!pages->stop) {
    uint64_t before = moves(pages);
    sleep_for(pages, pages->idle_ns);
    if (pages->stop || moves(pages) != before) continue;
    pthread_mutex_unlock(&pages->sleep);
    (void)sh_pages_trim(pages);
    pthread_mutex_lock(&pages->sleep);
    before = moves(pages);
    /* First said, then looked at, and who moves a buffer does it the other way round: one of the two sees the other. */
    atomic_store(&pages->resting, true);
    while (!pages->stop && moves(pages) == before && atomic_load(&pages->resting))
      pthread_cond_wait(&pages->wake, &pages->sleep);
    atomic_store(&pages->resting, false);
  }
  pthread_mutex_unlock(&pages->sleep);
  return NULL;
}

static void stop_thread(sh_pages *pages) {
  pthread_mutex_lock(&pages->sleep);
  pages->stop = true;
  pthread_cond_signal(&pages->wake);
  pthread_mutex_unlock(&pages->sleep);
  pthread_join(pages->thread, NULL);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static void init_locks(sh_pages *pages) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&pages->wake, &attributes);
  pthread_condattr_destroy(&attributes);
  pthread_mutex_init(&pages->sleep, NULL);
  pthread_mutex_init(&pages->upkeep, NULL);
}

static void free_struct(sh_pages *pages) {
  pthread_cond_destroy(&pages->wake);
  pthread_mutex_destroy(&pages->sleep);
  pthread_mutex_destroy(&pages->upkeep);
  shi_mpmc_destroy(&pages->ring);
  free(pages->buffers);
  free(pages);
}

static int map_and_start(sh_pages *pages) {
  uint64_t bytes = pages->count * pages->buffer_bytes;
  int error = shi_os_reserve(bytes, &pages->base);
  if (error != 0) return error;
  error = shi_os_protect(pages->base, bytes, true);
  if (error == 0) error = shi_os_thread_start(&pages->thread, "sandhost-pages", run, pages);
  if (error != 0) shi_os_unreserve(pages->base, bytes);
  return error;
}

sh_pages *sh_pages_new(uint64_t buffer_bytes, uint32_t count, int poison, uint64_t idle_ns) {
  uint64_t page = shi_os_page();
  if (buffer_bytes == 0 || count == 0 || count > COUNT_MOST || buffer_bytes > bytes_most / count - page) {
    shi_fail(SH_ARGUMENT, "a pool has 1 to %d buffers of at least a byte, together no more than 16 TiB", COUNT_MOST);
    return NULL;
  }
  sh_pages *pages = calloc(1, sizeof *pages);
  shi_page_buffer *buffers = calloc(count, sizeof *buffers);
  if (!pages || !buffers || shi_mpmc_init(&pages->ring, count) != 0) {
    free(pages);
    free(buffers);
    shi_fail_no_memory();
    return NULL;
  }
  pages->buffers = buffers;
  pages->buffer_bytes = (buffer_bytes + page - 1) / page * page;
  pages->count = count;
  pages->poison = poison;
  pages->idle_ns = idle_ns;
  for (uint32_t k = 0; k < count; k++) {
    buffers[k].state = free_state(1);
    shi_mpmc_put(&pages->ring, k);
  }
  init_locks(pages);
  int error = map_and_start(pages);
  if (error != 0) {
    shi_fail_native(error);
    free_struct(pages);
    return NULL;
  }
  enter_list(pages);
  return pages;
}

/* With upkeep held. Takes every buffer out of the ring: then nobody has one, and nobody can get one. Else puts them back
 * in their order. */
static bool drain(sh_pages *pages) {
  uint32_t index, count = 0, first = 0, last = 0;
  for (; shi_mpmc_take(&pages->ring, &index); count++) {
    if (count == 0)
      first = index;
    else
      pages->buffers[last].next = index;
    last = index;
  }
  if (count == pages->count) return true;
  for (; count > 0; count--) {
    index = first;
    first = pages->buffers[index].next;
    shi_mpmc_put(&pages->ring, index);
  }
  return false;
}

int sh_pages_close(sh_pages *pages) {
  if (is_forked(pages)) return SH_FORKED;
  pthread_mutex_lock(&pages->upkeep);
  uint8_t *base = pages->base;
  bool drained = base && drain(pages);
  if (drained) {
    leave_list(pages);
    pages->base = NULL;
    atomic_store(&pages->closed, true);
    shi_os_unreserve(base, pages->count * pages->buffer_bytes);
  }
  pthread_mutex_unlock(&pages->upkeep);
  if (!base) return SH_OK;
  if (!drained) return SH_BUSY;
  stop_thread(pages);
  return SH_OK;
}

void sh_pages_free(sh_pages *pages) {
  if (sh_pages_close(pages) == SH_OK) free_struct(pages);
}

/* ---- figures ---------------------------------------------------------------------------------------------------- */

void sh_pages_count(sh_pages *pages, int waited) {
  shi_count(&pages->counters, waited ? SHI_PAGES_WAITED : SHI_PAGES_REFUSED, 1);
}

void sh_pages_get_stats(sh_pages *pages, sh_pages_stats *out) {
  bool closed = atomic_load(&pages->closed); /* then its buffers are out of the ring, and nobody's */
  *out = (sh_pages_stats){
      .buffers = closed ? 0 : pages->count,
      .in_use = closed ? 0 : in_use(pages),
      .peak = atomic_load(&pages->peak),
      .acquired = shi_counted(&pages->counters, SHI_PAGES_TAKEN),
      .waits = shi_counted(&pages->counters, SHI_PAGES_WAITED),
      .refused = shi_counted(&pages->counters, SHI_PAGES_REFUSED),
      .trimmed_bytes = shi_counted(&pages->counters, SHI_PAGES_TRIMMED_BYTES),
  };
  for (uint32_t k = 0; !closed && k < pages->count; k++) {
    uint64_t written = atomic_load_explicit(&pages->buffers[k].resident, memory_order_relaxed);
    uint64_t pinned = atomic_load_explicit(&pages->buffers[k].extent, memory_order_relaxed);
    out->resident_bytes += written > pinned ? written : pinned;
  }
}

bool shi_pages_check(sh_pages *pages) {
  uint32_t leased = 0;
  bool ok = true;
  for (uint32_t k = 0; k < pages->count; k++) {
    uint64_t state = atomic_load(&pages->buffers[k].state), extent = atomic_load(&pages->buffers[k].extent);
    leased += state & LEASED;
    ok = ok && generation_of(state) > 0 && ((state & LEASED) || (pins_of(state) == 0 && extent == 0)) &&
         extent <= pages->buffer_bytes && atomic_load(&pages->buffers[k].resident) <= pages->buffer_bytes;
  }
  return ok && leased == in_use(pages);
}
