/* Threads that share a pool: churn under every policy, hand-over between threads, upkeep and retiring images meanwhile.
 */
#include <string.h>

#include "fixture.h"

enum { THREADS = 4, ROUNDS = UNDER_TSAN ? 1500 : 6000 };

static pool_fixture f;
static _Atomic bool stop;
static pthread_barrier_t start;

static shi_region *begin(shi_account *account, shi_image *image, uint64_t affinity, uint64_t initial) {
  shi_region_request request = {
      .account = account, .image = image, .affinity = affinity, .initial = initial, .maximum = 4 * MIB};
  shi_region *region;
  CHECK_EQ(shi_region_acquire(f.pool, &request, &region, NULL), 0);
  return region;
}

static void live_and_die(shi_account *account, shi_image *image, uint64_t length, uint8_t fill, uint64_t *seed) {
  uint64_t initial = length + random_next(seed) % (600 * KIB);
  shi_region *region = begin(account, image, random_next(seed) % 3, initial);
  CHECK(reads_as(region, length, fill));
  uint64_t from = random_next(seed) % (initial + 1);
  memset(region->base + from, 0xee, (initial - from) / (1 + random_next(seed) % 40));
  if (random_next(seed) % 4 == 0) {
    CHECK_EQ(shi_region_grow(region, initial + 100 * KIB, NULL), 0);
    region->base[initial + 90 * KIB] = 0xee;
  }
  sh_reclaim reclaim = {0};
  CHECK_EQ(shi_region_release(f.pool, region, (int)(random_next(seed) % 4) - 1, &reclaim), 0);
}

static void *churn(void *argument) {
  uint64_t seed = (uint64_t)(uintptr_t)argument;
  shi_account guest = {.parent = &f.tenant, .limit = UINT64_MAX, .level = SHI_ACCOUNT_GUEST};
  uint8_t fill = (uint8_t)seed;
  shi_image *image = make_image(20 * KIB, fill);
  pthread_barrier_wait(&start);
  for (int i = 0; i < ROUNDS; i++) {
    bool with_image = random_next(&seed) % 2 == 0;
    live_and_die(&guest, with_image ? image : NULL, with_image ? 20 * KIB : 0, fill, &seed);
    if (random_next(&seed) % 200 == 0) {
      shi_image_release(image);
      image = make_image(20 * KIB, ++fill);
    }
  }
  shi_image_release(image);
  CHECK_EQ(guest.used, 0);
  return NULL;
}

static void *keep_up(void *argument) {
  (void)argument;
  pthread_barrier_wait(&start);
  while (!atomic_load(&stop)) {
    shi_pool_trim(f.pool, 100000);
    CHECK(stats(&f).regions_live <= THREADS);
  }
  return NULL;
}

static void threads_that_churn_stay_isolated_and_lose_nothing(void) {
  shi_pool_options options = default_options();
  options.slot_capacity = 4 * MIB;
  options.max_regions = THREADS + 1; /* tight: threads run out of slots that others hold in the queue */
  options.arena_slots = 2;
  options.resident_per_slot = 32 * KIB;
  options.resident_total = 64 * KIB;
  options.queue_ns = 200000;
  options.decay_ns = 1000000;
  fixture_open(&f, &options);
  pthread_t threads[THREADS];
  pthread_t upkeep;
  atomic_store(&stop, false);
  pthread_barrier_init(&start, NULL, THREADS + 1);
  for (uintptr_t i = 0; i < THREADS; i++) {
    pthread_create(&threads[i], NULL, churn, (void *)(i + 1));
  }
  pthread_create(&upkeep, NULL, keep_up, NULL);
  for (int i = 0; i < THREADS; i++) {
    pthread_join(threads[i], NULL);
  }
  atomic_store(&stop, true);
  pthread_join(upkeep, NULL);
  pthread_barrier_destroy(&start);
  CHECK_EQ(stats(&f).slots_quarantined, 0);
  fixture_close(&f);
}

/* ---- one acquires, another releases ----------------------------------------------------------------------------- */

static struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  shi_region *region;
  bool over;
} hand = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void *release_what_comes(void *argument) {
  (void)argument;
  pthread_mutex_lock(&hand.lock);
  while (!hand.over || hand.region != NULL) {
    if (hand.region == NULL) {
      pthread_cond_wait(&hand.changed, &hand.lock);
      continue;
    }
    release(&f, hand.region, SH_POLICY_WARM);
    hand.region = NULL;
    pthread_cond_signal(&hand.changed);
  }
  pthread_mutex_unlock(&hand.lock);
  return NULL;
}

static void regions_may_be_released_by_another_thread(void) {
  shi_pool_options options = default_options();
  options.slot_capacity = 4 * MIB;
  fixture_open(&f, &options);
  pthread_t thread;
  pthread_create(&thread, NULL, release_what_comes, NULL);
  for (int i = 0; i < 500; i++) {
    shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
    CHECK(reads_as(region, 0, 0));
    memset(region->base, 0xee, 64 * KIB);
    pthread_mutex_lock(&hand.lock);
    while (hand.region != NULL) {
      pthread_cond_wait(&hand.changed, &hand.lock);
    }
    hand.region = region;
    pthread_cond_signal(&hand.changed);
    pthread_mutex_unlock(&hand.lock);
  }
  pthread_mutex_lock(&hand.lock);
  hand.over = true;
  pthread_cond_signal(&hand.changed);
  pthread_mutex_unlock(&hand.lock);
  pthread_join(thread, NULL);
  fixture_close(&f);
}

int main(void) {
  RUN(threads_that_churn_stay_isolated_and_lose_nothing);
  RUN(regions_may_be_released_by_another_thread);
}
