/* Events: what happened to guests, regions and handles, for whoever listens; and the same as USDT probes (probes.h).
 *
 *   threads 1, 17 ... ─► ring 1  [r][r][r][ ][ ] ...  ─┐
 *   threads 2, 18 ... ─► ring 2  [r][ ][ ][ ][ ] ...  ─┼─► one reader, which takes the oldest of all first
 *   ...                                               ─┘
 *
 * Nobody listens: an event costs one relaxed load. Else its thread takes the next free record of its copy's ring
 * (counters.h) with one compare-and-swap, and never waits: a ring that is full refuses the new event and counts it. What
 * was read and what was lost is all there was.
 *
 * `turn` says whose a record is. In its lap around the ring it is 2 * lap while free and 2 * lap + 1 once written, so
 * zeros are an empty ring. Who wrote it releases it to the reader by that word, and the reader to the next lap's writer.
 */
#ifndef SANDHOST_EVENTS_H
#define SANDHOST_EVENTS_H

#include <pthread.h>
#include <stdalign.h>
#include <stdbool.h>

#include "counters.h"
#include "os.h"
#include "probes.h"
#include "sandhost.h"

enum { SHI_EVENTS_ROOM = 8192 }; /* of one ring, a power of two: 512 KiB. Arbitrary */

typedef struct {
  alignas(64) _Atomic uint32_t turn;
  uint16_t kind, detail; /* from here on as in sh_event */
  uint64_t ns, guest;
  uint32_t plugin, tenant;
  uint64_t values[4];
} shi_record;
_Static_assert(sizeof(shi_record) == 64, "a record is one cache line");
_Static_assert(sizeof(shi_record) == sizeof(sh_event) && offsetof(shi_record, kind) == offsetof(sh_event, kind) &&
                   offsetof(shi_record, values) == offsetof(sh_event, values),
               "all but the first word is copied as it is");

/* Invariant: head <= tail <= head + SHI_EVENTS_ROOM, when nothing moves; both count records since the beginning. */
typedef struct {
  shi_record *records;
  uint8_t apart[SHI_APART];
  _Atomic uint64_t tail; /* the next to be written */
  _Atomic uint64_t lost[SH_EVENT_KINDS];
  uint8_t apart_too[SHI_APART];
  uint64_t head; /* the next to be read; the reader's */
} shi_event_ring;

typedef struct {
  uint8_t apart[SHI_APART];
  _Atomic uint32_t kinds; /* a bit for each that is listened to */
  _Atomic(shi_event_ring *) rings; /* SHI_COPIES; NULL: nobody ever listened */
  uint8_t apart_too[SHI_APART];
  pthread_mutex_t reader; /* one at a time; no writer takes it */
} shi_events;

extern shi_events shi_no_events; /* of what belongs to no host: nobody listens */

void shi_events_init(shi_events *events);
void shi_events_destroy(shi_events *events);
/* Listens to those kinds and no others. What came before stays to be read. 0 or -errno. */
int shi_events_listen(shi_events *events, uint32_t kinds);
/* As sh_events_read; the oldest first as far as they are written. */
uint32_t shi_events_read(shi_events *events, sh_event *out, uint32_t room, uint32_t kinds, sh_event_log *log);
void shi_events_lost(shi_events *events, uint64_t *by_kind);

static inline bool shi_event_wanted(const shi_events *events, enum sh_event_kind kind) {
  return __builtin_expect(atomic_load_explicit(&events->kinds, memory_order_relaxed) >> kind & 1, 0);
}
void shi_event_put(shi_events *events, const sh_event *event);

/* ---- what each kind says, to both ------------------------------------------------------------------------------------ */

/* Whose it is: 0 where there is none. */
typedef struct {
  uint64_t guest;
  uint32_t plugin, tenant;
} shi_whose;

/* `at` 0: now. */
#define SHI_EVENT(events, KIND, at, of, ...)                                                                           \
  do {                                                                                                                 \
    if (shi_event_wanted(events, KIND))                                                                                \
      shi_event_put(events, &(sh_event){.kind = (KIND),                                                                \
                                        .ns = (at),                                                                    \
                                        .guest = (of).guest,                                                           \
                                        .plugin = (of).plugin,                                                         \
                                        .tenant = (of).tenant,                                                         \
                                        __VA_ARGS__});                                                                 \
  } while (0)

static inline void shi_event_spawn(shi_events *events, uint64_t at_ns, shi_whose of, const char *name, uint64_t bytes,
                                   uint64_t ns, bool forked) {
  SHI_PROBE(spawn, of.guest, of.plugin, of.tenant, name, bytes, ns);
  SHI_EVENT(events, SH_EVENT_SPAWN, at_ns, of, .detail = forked, .values = {bytes, ns});
}

static inline void shi_event_close(shi_events *events, uint64_t at_ns, shi_whose of, const sh_reclaim *reclaim,
                                   uint64_t ns) {
  SHI_PROBE(close, of.guest, of.plugin, ns, reclaim->returned_bytes, reclaim->kept_bytes, reclaim->deferred_bytes);
  SHI_EVENT(events, SH_EVENT_CLOSE, at_ns, of, .detail = (uint16_t)reclaim->policy,
            .values = {reclaim->returned_bytes, reclaim->kept_bytes, reclaim->deferred_bytes, ns});
}

static inline void shi_event_commit(shi_events *events, shi_whose of, uint64_t bytes, uint64_t size) {
  SHI_PROBE(commit, of.guest, of.plugin, bytes, size);
  SHI_EVENT(events, SH_EVENT_COMMIT, 0, of, .values = {bytes, size});
}

static inline void shi_event_decommit(shi_events *events, shi_whose of, uint64_t bytes) {
  SHI_PROBE(decommit, of.guest, of.plugin, bytes);
  SHI_EVENT(events, SH_EVENT_DECOMMIT, 0, of, .values = {bytes});
}

static inline void shi_event_reset(shi_events *events, uint64_t at_ns, shi_whose of, uint64_t returned, uint64_t kept,
                                   uint64_t deferred, uint64_t ns, enum sh_policy policy) {
  SHI_PROBE(reset, of.guest, of.plugin, ns, returned, kept, deferred);
  SHI_EVENT(events, SH_EVENT_RESET, at_ns, of, .detail = (uint16_t)policy, .values = {returned, kept, deferred, ns});
}

static inline void shi_event_quarantine(shi_events *events, shi_whose of, uint64_t bytes) {
  SHI_PROBE(quarantine, of.guest, of.plugin, bytes);
  SHI_EVENT(events, SH_EVENT_QUARANTINE, 0, of, .values = {bytes});
}

static inline void shi_event_refused(shi_events *events, shi_whose of, enum sh_refusal what, uint32_t level,
                                     uint64_t wanted, uint64_t limit) {
  SHI_PROBE(refused, of.guest, of.plugin, what, level, wanted, limit);
  SHI_EVENT(events, SH_EVENT_REFUSED, 0, of, .detail = (uint16_t)what, .values = {wanted, limit, level});
}

static inline void shi_event_trap(shi_events *events, shi_whose of, int32_t code) {
  SHI_PROBE(trap, of.guest, of.plugin, code);
  SHI_EVENT(events, SH_EVENT_TRAP, 0, of, .values = {(uint64_t)(int64_t)code});
}

static inline void shi_event_deadline(shi_events *events, shi_whose of, uint64_t limit_ns) {
  SHI_PROBE(deadline, of.guest, of.plugin, limit_ns);
  SHI_EVENT(events, SH_EVENT_DEADLINE, 0, of, .values = {limit_ns});
}

static inline void shi_event_cancel(shi_events *events, shi_whose of) {
  SHI_PROBE(cancel, of.guest, of.plugin);
  SHI_EVENT(events, SH_EVENT_CANCEL, 0, of, .detail = 0);
}

static inline void shi_event_handle_alloc(shi_events *events, shi_whose of, uint64_t handle, uint64_t bytes,
                                          uint32_t label) {
  SHI_PROBE(handle_alloc, of.guest, of.plugin, handle, bytes, label);
  SHI_EVENT(events, SH_EVENT_HANDLE_ALLOC, 0, of, .values = {handle, bytes, label});
}

static inline void shi_event_handle_free(shi_events *events, shi_whose of, uint64_t handle, uint64_t bytes) {
  SHI_PROBE(handle_free, of.guest, of.plugin, handle, bytes);
  SHI_EVENT(events, SH_EVENT_HANDLE_FREE, 0, of, .values = {handle, bytes});
}

static inline void shi_event_cycle_begin(shi_events *events, uint64_t cycle, uint64_t bytes, uint64_t handles) {
  SHI_PROBE(cycle_begin, cycle, bytes, handles);
  SHI_EVENT(events, SH_EVENT_CYCLE_BEGIN, 0, (shi_whose){0}, .values = {cycle, bytes, handles});
}

static inline void shi_event_mark_done(shi_events *events, uint64_t cycle, uint64_t bytes, uint64_t handles,
                                       uint64_t ns) {
  SHI_PROBE(mark_done, cycle, bytes, handles, ns);
  SHI_EVENT(events, SH_EVENT_MARK_DONE, 0, (shi_whose){0}, .values = {cycle, bytes, handles, ns});
}

static inline void shi_event_cycle_end(shi_events *events, uint64_t cycle, uint64_t bytes, uint64_t handles) {
  SHI_PROBE(cycle_end, cycle, bytes, handles);
  SHI_EVENT(events, SH_EVENT_CYCLE_END, 0, (shi_whose){0}, .values = {cycle, bytes, handles});
}

#endif
