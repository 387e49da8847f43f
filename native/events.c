/* The rings of events.h: many writers that never wait, one reader that none of them waits for. */
#include "events.h"

#include <string.h>

enum { WORD = offsetof(shi_record, kind) }; /* what comes before it is the ring's */
static const uint64_t ring_bytes = SHI_COPIES * (sizeof(shi_event_ring) + SHI_EVENTS_ROOM * sizeof(shi_record));
_Static_assert(SHI_COPIES * sizeof(shi_event_ring) % 64 == 0, "records begin on a cache line");

shi_events shi_no_events;

static uint64_t whole_pages(uint64_t bytes) { return (bytes + shi_os_page() - 1) & ~(shi_os_page() - 1); }

void shi_events_init(shi_events *events) { pthread_mutex_init(&events->reader, NULL); }

void shi_events_destroy(shi_events *events) {
  shi_event_ring *rings = atomic_load(&events->rings);
  if (rings) shi_os_unreserve((uint8_t *)rings, whole_pages(ring_bytes));
  pthread_mutex_destroy(&events->reader);
}

/* Zeros are empty rings: what no thread writes to is never resident. */
static int make_rings(shi_events *events) {
  uint8_t *memory;
  int error = shi_os_reserve(whole_pages(ring_bytes), &memory);
  if (error) return error;
  error = shi_os_protect(memory, whole_pages(ring_bytes), true);
  if (error) {
    shi_os_unreserve(memory, whole_pages(ring_bytes));
    return error;
  }
  shi_event_ring *rings = (shi_event_ring *)(void *)memory;
  shi_record *records = (shi_record *)(void *)(rings + SHI_COPIES);
  for (uint32_t k = 0; k < SHI_COPIES; k++) rings[k].records = records + (size_t)k * SHI_EVENTS_ROOM;
  atomic_store_explicit(&events->rings, rings, memory_order_release);
  return 0;
}

int shi_events_listen(shi_events *events, uint32_t kinds) {
  pthread_mutex_lock(&events->reader);
  int error = kinds && !atomic_load(&events->rings) ? make_rings(events) : 0;
  if (!error) atomic_store_explicit(&events->kinds, kinds, memory_order_release);
  pthread_mutex_unlock(&events->reader);
  return error;
}

/* ---- writing ---------------------------------------------------------------------------------------------------------- */

static uint32_t free_in_lap_of(uint64_t position) { return (uint32_t)(position / SHI_EVENTS_ROOM) * 2; }

/* The next free record, now the caller's to write. NULL: the ring is full. */
static shi_record *take(shi_event_ring *ring, uint32_t *turn) {
  uint64_t position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
  for (;;) {
    shi_record *record = &ring->records[position % SHI_EVENTS_ROOM];
    *turn = free_in_lap_of(position);
    int32_t ahead = (int32_t)(atomic_load_explicit(&record->turn, memory_order_acquire) - *turn);
    if (ahead < 0) return NULL; /* of the lap before, and not read yet */
    if (ahead > 0)              /* another thread was faster */
      position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    else if (atomic_compare_exchange_weak_explicit(&ring->tail, &position, position + 1, memory_order_relaxed,
                                                   memory_order_relaxed))
      return record;
  }
}

void shi_event_put(shi_events *events, const sh_event *event) {
  shi_event_ring *rings = atomic_load_explicit(&events->rings, memory_order_acquire);
  if (!rings) return; /* seen to be wanted before the rings were: as if it had been a moment earlier */
  shi_event_ring *ring = &rings[shi_copy()];
  uint32_t turn;
  shi_record *record = take(ring, &turn);
  if (!record) {
    atomic_fetch_add_explicit(&ring->lost[event->kind], 1, memory_order_relaxed);
    return;
  }
  memcpy((uint8_t *)record + WORD, (const uint8_t *)event + WORD, sizeof *event - WORD);
  if (!record->ns) record->ns = shi_os_now_ns();
  atomic_store_explicit(&record->turn, turn + 1, memory_order_release);
}

/* ---- reading ---------------------------------------------------------------------------------------------------------- */

static const uint64_t NOTHING = UINT64_MAX;

static uint64_t time_of_next(const shi_event_ring *ring) {
  const shi_record *record = &ring->records[ring->head % SHI_EVENTS_ROOM];
  bool written = atomic_load_explicit(&record->turn, memory_order_acquire) == free_in_lap_of(ring->head) + 1;
  return written ? record->ns : NOTHING;
}

static bool let_through(sh_event_log *log, const shi_record *record) {
  if (!log || !(log->kinds >> record->kind & 1)) return false;
  if (record->ns / 1000000000 != log->second) {
    log->second = record->ns / 1000000000;
    memset(log->seen, 0, sizeof log->seen);
  }
  if (log->seen[record->kind]++ < log->most) return true;
  log->suppressed[record->kind]++;
  return false;
}

/* True: it is in *out. What nobody wants is not worth a copy: a log leaves out nearly all of a flood. */
static bool take_next(shi_event_ring *ring, sh_event *out, uint32_t kinds, sh_event_log *log) {
  shi_record *record = &ring->records[ring->head % SHI_EVENTS_ROOM];
  bool logged = let_through(log, record), wanted = logged || kinds >> record->kind & 1;
  if (wanted) {
    out->logged = logged;
    memcpy((uint8_t *)out + WORD, (const uint8_t *)record + WORD, sizeof *out - WORD);
  }
  ring->head++;
  atomic_store_explicit(&record->turn, free_in_lap_of(ring->head - 1) + 2, memory_order_release);
  return wanted;
}

static uint32_t oldest_of(const uint64_t *times) {
  uint32_t oldest = 0;
  for (uint32_t k = 1; k < SHI_COPIES; k++)
    if (times[k] < times[oldest]) oldest = k;
  return oldest;
}

uint32_t shi_events_read(shi_events *events, sh_event *out, uint32_t room, uint32_t kinds, sh_event_log *log) {
  uint64_t times[SHI_COPIES];
  uint32_t count = 0, left = SHI_COPIES * SHI_EVENTS_ROOM; /* not what comes meanwhile for ever */
  pthread_mutex_lock(&events->reader);
  shi_event_ring *rings = atomic_load_explicit(&events->rings, memory_order_acquire);
  for (uint32_t k = 0; rings && k < SHI_COPIES; k++) times[k] = time_of_next(&rings[k]);
  while (rings && count < room && left--) {
    uint32_t k = oldest_of(times);
    if (times[k] == NOTHING) break;
    count += take_next(&rings[k], &out[count], kinds, log);
    times[k] = time_of_next(&rings[k]);
  }
  pthread_mutex_unlock(&events->reader);
  return count;
}

void shi_events_lost(shi_events *events, uint64_t *by_kind) {
  const shi_event_ring *rings = atomic_load_explicit(&events->rings, memory_order_acquire);
  memset(by_kind, 0, SH_EVENT_KINDS * sizeof *by_kind);
  for (uint32_t k = 0; rings && k < SHI_COPIES; k++)
    for (uint32_t kind = 0; kind < SH_EVENT_KINDS; kind++)
      by_kind[kind] += atomic_load_explicit(&rings[k].lost[kind], memory_order_relaxed);
}
