/* Counters: more threads than copies, and the sums are exact. */
#include <pthread.h>

#include "check.h"
#include "counters.h"

enum { THREADS = 4 * SHI_COPIES, ROUNDS = UNDER_TSAN ? 5000 : 50000 };
enum { BEGUN, ENDED, BYTES };

static shi_counters counters;
static pthread_barrier_t start;
static _Atomic uint32_t at_work;

static void *count(void *argument) {
  uint64_t bytes = (uint64_t)(uintptr_t)argument;
  pthread_barrier_wait(&start);
  for (int k = 0; k < ROUNDS; k++) {
    shi_count(&counters, BEGUN, 1);
    shi_count(&counters, BYTES, bytes);
    shi_count(&counters, ENDED, 1);
  }
  atomic_fetch_sub(&at_work, 1);
  return NULL;
}

static void *uncount(void *argument) {
  shi_uncount(&counters, BYTES, (uint64_t)(uintptr_t)argument);
  return NULL;
}

static void no_sum_is_lost(void) {
  pthread_t threads[THREADS];
  uint64_t bytes = 0;
  atomic_store(&at_work, THREADS);
  pthread_barrier_init(&start, NULL, THREADS);
  for (uintptr_t k = 0; k < THREADS; k++) {
    CHECK_EQ(pthread_create(&threads[k], NULL, count, (void *)(k + 1)), 0);
    bytes += (k + 1) * ROUNDS;
  }
  while (atomic_load(&at_work) > 0) {
    uint64_t ended = shi_counted(&counters, ENDED);
    CHECK(shi_counted(&counters, BEGUN) >= ended);
  }
  for (int k = 0; k < THREADS; k++) {
    pthread_join(threads[k], NULL);
  }
  pthread_barrier_destroy(&start);
  CHECK_EQ(shi_counted(&counters, BEGUN), (uint64_t)THREADS * ROUNDS);
  CHECK_EQ(shi_counted(&counters, ENDED), (uint64_t)THREADS * ROUNDS);
  CHECK_EQ(shi_counted(&counters, BYTES), bytes);

  /* What one thread has counted another takes away. */
  CHECK_EQ(pthread_create(&threads[0], NULL, uncount, (void *)(uintptr_t)bytes), 0);
  pthread_join(threads[0], NULL);
  CHECK_EQ(shi_counted(&counters, BYTES), 0);
}

int main(void) { RUN(no_sum_is_lost); }
