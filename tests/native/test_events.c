/* The rings of events: nothing torn, nothing lost without being counted, however many write. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "events.h"
#include "fixture.h"

enum { THREADS = 24, ROUNDS = UNDER_TSAN ? 20000 : 60000 }; /* more threads than rings, some laps */
static const uint32_t all_kinds = (1u << SH_EVENT_KINDS) - 1;

static shi_events events;
static pthread_barrier_t start;
static _Atomic uint32_t at_work;

/* Each field follows from `seed`, so that a record with fields of two writers is none that was written. */
static sh_event made_of(uint64_t seed) {
  uint64_t state = seed;
  sh_event event = {.kind = (uint16_t)(seed % SH_EVENT_KINDS), .detail = (uint16_t)seed, .guest = seed};
  event.plugin = (uint32_t)random_next(&state);
  event.tenant = (uint32_t)random_next(&state);
  for (int k = 0; k < 4; k++) {
    event.values[k] = random_next(&state);
  }
  return event;
}

static bool is_whole(const sh_event *event) {
  sh_event wanted = made_of(event->guest);
  wanted.ns = event->ns;
  wanted.unused = event->unused;
  return event->ns != 0 && memcmp(event, &wanted, sizeof wanted) == 0;
}

static uint64_t lost(void) {
  uint64_t by_kind[SH_EVENT_KINDS];
  uint64_t sum = 0;
  shi_events_lost(&events, by_kind);
  for (int k = 0; k < SH_EVENT_KINDS; k++) {
    sum += by_kind[k];
  }
  return sum;
}

static void *write_many(void *argument) {
  uint64_t thread = (uint64_t)(uintptr_t)argument;
  pthread_barrier_wait(&start);
  for (uint64_t k = 0; k < ROUNDS; k++) {
    sh_event event = made_of(thread << 32 | (k + 1));
    shi_event_put(&events, &event);
  }
  atomic_fetch_sub(&at_work, 1);
  return NULL;
}

/* What is read of one thread comes in its order, whole, and once. */
static uint64_t read_all(uint64_t *last) {
  static sh_event batch[1000];
  uint64_t sum = 0;
  uint32_t count;
  do {
    count = shi_events_read(&events, batch, 1000);
    for (uint32_t k = 0; k < count; k++) {
      CHECK(is_whole(&batch[k]));
      uint64_t thread = batch[k].guest >> 32;
      CHECK(thread < THREADS && batch[k].guest > last[thread]);
      last[thread] = batch[k].guest;
    }
    sum += count;
  } while (count > 0);
  return sum;
}

static void what_was_written_is_read_whole_or_counted_as_lost(void) {
  pthread_t threads[THREADS];
  uint64_t last[THREADS] = {0};
  uint64_t count = 0;
  shi_events_init(&events);
  CHECK_EQ(shi_events_listen(&events, all_kinds), 0);
  atomic_store(&at_work, THREADS);
  pthread_barrier_init(&start, NULL, THREADS);
  for (uintptr_t k = 0; k < THREADS; k++) {
    CHECK_EQ(pthread_create(&threads[k], NULL, write_many, (void *)k), 0);
  }
  while (atomic_load(&at_work) > 0) {
    count += read_all(last);
    CHECK(count + lost() <= (uint64_t)THREADS * ROUNDS);
  }
  for (int k = 0; k < THREADS; k++) {
    pthread_join(threads[k], NULL);
  }
  pthread_barrier_destroy(&start);
  count += read_all(last);
  CHECK(count > 0);
  CHECK_EQ(count + lost(), (uint64_t)THREADS * ROUNDS);
  shi_events_destroy(&events);
}

/* ---- one thread -------------------------------------------------------------------------------------------------- */

static void fresh(uint32_t kinds) {
  events = (shi_events){0};
  shi_events_init(&events);
  CHECK_EQ(shi_events_listen(&events, kinds), 0);
}

static void put(uint64_t seed) {
  sh_event event = made_of(seed);
  shi_event_put(&events, &event);
}

static void a_full_ring_refuses_and_counts_by_kind(void) {
  fresh(all_kinds);
  static sh_event read[SHI_EVENTS_ROOM + 1];
  uint64_t by_kind[SH_EVENT_KINDS];
  for (int lap = 0; lap < 3; lap++) {
    uint64_t first = (uint64_t)lap * 2 * SHI_EVENTS_ROOM;
    for (uint64_t k = 1; k <= SHI_EVENTS_ROOM; k++) {
      put(first + k);
    }
    put(SH_EVENT_TRAP); /* its kind is what the seed leaves by division */
    put(SH_EVENT_TRAP);
    put(SH_EVENT_CANCEL);
    CHECK_EQ(shi_events_read(&events, read, SHI_EVENTS_ROOM + 1), SHI_EVENTS_ROOM);
    for (uint64_t k = 1; k <= SHI_EVENTS_ROOM; k++) {
      CHECK_EQ(read[k - 1].guest, first + k);
      CHECK(is_whole(&read[k - 1]));
    }
    shi_events_lost(&events, by_kind);
    CHECK_EQ(by_kind[SH_EVENT_TRAP], 2 * (lap + 1));
    CHECK_EQ(by_kind[SH_EVENT_CANCEL], lap + 1);
    CHECK_EQ(lost(), 3 * (lap + 1));
  }
  CHECK_EQ(shi_events_read(&events, read, 1), 0);
  shi_events_destroy(&events);
}

static void only_what_is_listened_to_is_written(void) {
  fresh(1u << SH_EVENT_TRAP);
  const shi_whose who = {7, 8, 9};
  sh_event read[4];
  shi_event_trap(&events, who, 3);
  shi_event_cancel(&events, who);
  CHECK_EQ(shi_events_listen(&events, 0), 0);
  shi_event_trap(&events, who, 4);
  CHECK_EQ(shi_events_read(&events, read, 4), 1); /* what came before stays */
  CHECK(read[0].kind == SH_EVENT_TRAP && read[0].guest == 7 && read[0].plugin == 8 && read[0].tenant == 9);
  CHECK_EQ(read[0].values[0], 3);
  CHECK_EQ(lost(), 0);
  shi_event_trap(&shi_no_events, who, 5); /* of no host: nobody can listen */
  shi_events_destroy(&events);
}

static void *put_one_more(void *argument) {
  put((uint64_t)(uintptr_t)argument);
  return NULL;
}

static void the_rings_of_threads_are_read_in_the_order_of_time(void) {
  fresh(all_kinds);
  sh_event read[65];
  for (uintptr_t k = 1; k <= 64; k++) {
    pthread_t thread; /* each in the next ring */
    CHECK_EQ(pthread_create(&thread, NULL, put_one_more, (void *)k), 0);
    pthread_join(thread, NULL);
  }
  CHECK_EQ(shi_events_read(&events, read, 3), 3);
  CHECK_EQ(shi_events_read(&events, read + 3, 62), 61);
  for (uint64_t k = 0; k < 64; k++) {
    CHECK_EQ(read[k].guest, k + 1);
    CHECK(k == 0 || read[k].ns >= read[k - 1].ns);
  }
  shi_events_destroy(&events);
}

static void without_memory_nobody_listens(void) {
  static const int calls[] = {SH_OS_MMAP, SH_OS_MPROTECT};
  int mappings = count_mappings(NULL, UINT64_MAX);
  for (size_t k = 0; k < sizeof calls / sizeof *calls; k++) {
    events = (shi_events){0};
    shi_events_init(&events);
    sh_fault_inject(calls[k], 0, 1, ENOMEM);
    CHECK_EQ(shi_events_listen(&events, all_kinds), -ENOMEM);
    no_faults();
    shi_event_cancel(&events, (shi_whose){0});
    put(1); /* seen to be wanted, and no ring yet */
    CHECK_EQ(lost(), 0);
    CHECK_EQ(shi_events_listen(&events, all_kinds), 0); /* asked again, it works */
    shi_event_cancel(&events, (shi_whose){0});
    sh_event read;
    CHECK_EQ(shi_events_read(&events, &read, 1), 1);
    shi_events_destroy(&events);
    CHECK_EQ(count_mappings(NULL, UINT64_MAX), mappings);
  }
}

/* ---- regions ------------------------------------------------------------------------------------------------------ */

static void a_pool_tells_of_resets_decommits_and_quarantine(void) {
  pool_fixture f;
  fresh(all_kinds);
  shi_pool_options options = default_options();
  options.events = &events;
  fixture_open(&f, &options);
  shi_region_request request = {
      .account = &f.guest, .affinity = 1, .initial = 4 * MIB, .maximum = 16 * MIB, .whose = {11, 12, 13}};
  shi_region *region;
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
  memset(region->base, 1, MIB); /* more than stays: the rest is queued */
  sh_reclaim reclaim = {.returned_bytes = 5, .kept_bytes = 5, .deferred_bytes = 5}; /* of other regions of its guest */
  CHECK_EQ(shi_region_release(f.pool, region, -1, &reclaim), 0);
  sh_event read[8];
  CHECK_EQ(shi_events_read(&events, read, 8), 1);
  CHECK(read[0].kind == SH_EVENT_RESET && read[0].guest == 11 && read[0].plugin == 12 && read[0].tenant == 13);
  CHECK_EQ(read[0].values[0] + 5, reclaim.returned_bytes);
  CHECK_EQ(read[0].values[1], 256 * KIB);
  CHECK_EQ(read[0].values[2], MIB - 256 * KIB);
  CHECK_EQ(read[0].values[3], reclaim.ns);
  shi_pool_trim(f.pool, 0); /* the queue, then what was kept */
  CHECK_EQ(shi_events_read(&events, read, 8), 2);
  CHECK(read[0].kind == SH_EVENT_DECOMMIT && read[0].guest == 11 && read[0].values[0] == MIB - 256 * KIB);
  CHECK(read[1].kind == SH_EVENT_DECOMMIT && read[1].guest == 11 && read[1].values[0] == 256 * KIB);

  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
  memset(region->base, 1, OS_PAGE);
  sh_fault_inject(SH_OS_MADVISE, 0, 1, ENOMEM);
  CHECK_EQ(shi_region_release(f.pool, region, SH_POLICY_IMMEDIATE, &reclaim), 0);
  CHECK_EQ(shi_events_read(&events, read, 8), 2);
  CHECK(read[0].kind == SH_EVENT_RESET && read[0].detail == SH_POLICY_IMMEDIATE && read[0].values[0] == 0);
  CHECK(read[1].kind == SH_EVENT_QUARANTINE && read[1].guest == 11 && read[1].values[0] == 4 * MIB);
  fixture_close(&f);
  shi_events_destroy(&events);
}

int main(void) {
  RUN(what_was_written_is_read_whole_or_counted_as_lost);
  RUN(a_full_ring_refuses_and_counts_by_kind);
  RUN(only_what_is_listened_to_is_written);
  RUN(the_rings_of_threads_are_read_in_the_order_of_time);
  RUN(without_memory_nobody_listens);
  RUN(a_pool_tells_of_resets_decommits_and_quarantine);
}
