/* Token buckets: what passes in a time is what the quota says, whoever asks and how many at once. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"
#include "quota.h"

static const uint64_t SECOND = 1000000000;

static void a_full_bucket_gives_its_burst_and_then_its_rate(void) {
  shi_bucket bucket = {.cost_ns = 1e8, .burst_ns = 5 * 100000000ull}; /* ten a second, five at once */
  uint64_t now = SECOND;
  for (int k = 0; k < 5; k++) CHECK_EQ(shi_bucket_take(&bucket, now, 1), 0);
  CHECK_EQ(shi_bucket_take(&bucket, now, 1), SECOND / 10);
  CHECK_EQ(shi_bucket_take(&bucket, now + SECOND / 10 - 1, 1), 1);
  CHECK_EQ(shi_bucket_take(&bucket, now + SECOND / 10, 1), 0);
  CHECK_EQ(shi_bucket_take(&bucket, now + SECOND / 10, 1), SECOND / 10);
  now += 100 * SECOND; /* what was not used for long is no more than a burst */
  for (int k = 0; k < 5; k++) CHECK_EQ(shi_bucket_take(&bucket, now, 1), 0);
  CHECK(shi_bucket_take(&bucket, now, 1) > 0);
}

static void what_was_used_is_owed_however_much(void) {
  shi_bucket bucket = {.cost_ns = 2, .burst_ns = SECOND}; /* half a processor */
  CHECK_EQ(shi_bucket_wait(&bucket, SECOND), 0);
  shi_bucket_charge(&bucket, SECOND, 3 * SECOND);
  CHECK_EQ(shi_bucket_wait(&bucket, SECOND), 5 * SECOND);
  CHECK_EQ(shi_bucket_wait(&bucket, 6 * SECOND), 0);
  CHECK_EQ(shi_bucket_wait(&bucket, 100 * SECOND), 0);
}

static void the_largest_uses_do_not_wrap(void) {
  shi_bucket bucket = {.cost_ns = 1e9, .burst_ns = UINT64_MAX / 4};
  shi_bucket_charge(&bucket, SECOND, UINT64_MAX);
  CHECK(shi_bucket_wait(&bucket, SECOND) > 0);
  shi_bucket_charge(&bucket, SECOND, UINT64_MAX);
  CHECK(shi_bucket_wait(&bucket, SECOND) > 0);
  CHECK(shi_bucket_take(&bucket, SECOND, UINT64_MAX) > 0);
}

static void a_changed_quota_begins_anew_and_an_equal_one_does_not(void) {
  shi_bucket bucket = {0};
  CHECK(!shi_bucket_limits(&bucket));
  shi_bucket_set(&bucket, 10, 1);
  CHECK(shi_bucket_limits(&bucket));
  CHECK_EQ(shi_bucket_take(&bucket, SECOND, 1), 0);
  CHECK_EQ(shi_bucket_take(&bucket, SECOND, 1), SECOND / 10);
  shi_bucket_set(&bucket, 10, 1);
  CHECK_EQ(shi_bucket_take(&bucket, SECOND, 1), SECOND / 10);
  shi_bucket_charge(&bucket, SECOND, 1000);
  shi_bucket_set(&bucket, 20, 2);
  for (int k = 0; k < 2; k++) CHECK_EQ(shi_bucket_take(&bucket, SECOND, 1), 0);
  CHECK_EQ(shi_bucket_take(&bucket, SECOND, 1), SECOND / 20);
  shi_bucket_set(&bucket, 0, 0);
  CHECK(!shi_bucket_limits(&bucket));
  for (int k = 0; k < 100; k++) CHECK_EQ(shi_bucket_take(&bucket, SECOND, 1), 0);
}

enum { THREADS = 4, TRIES = 20000, TOKENS = 3000 };
static shi_bucket shared = {.cost_ns = 1e9, .burst_ns = TOKENS * 1000000000ull};
static _Atomic uint32_t given;

static void *take_many(void *unused) {
  (void)unused;
  for (int k = 0; k < TRIES; k++)
    if (shi_bucket_take(&shared, SECOND, 1) == 0) atomic_fetch_add(&given, 1);
  return NULL;
}

static void threads_get_no_more_than_there_is(void) {
  pthread_t threads[THREADS];
  for (int k = 0; k < THREADS; k++) CHECK_EQ(pthread_create(&threads[k], NULL, take_many, NULL), 0);
  for (int k = 0; k < THREADS; k++) pthread_join(threads[k], NULL);
  CHECK_EQ(atomic_load(&given), TOKENS);
}

static void what_is_given_back_can_be_taken(void) {
  shi_bucket bucket = {.burst_ns = SECOND, .cost_ns = SECOND};
  CHECK_EQ(shi_bucket_take(&bucket, SECOND, 1), 0);
  CHECK(shi_bucket_take(&bucket, SECOND, 1) > 0);
  shi_bucket_give_back(&bucket, 1);
  CHECK_EQ(shi_bucket_take(&bucket, SECOND, 1), 0);
  CHECK(shi_bucket_take(&bucket, SECOND, 1) > 0);
}

int main(void) {
  RUN(a_full_bucket_gives_its_burst_and_then_its_rate);
  RUN(what_was_used_is_owed_however_much);
  RUN(the_largest_uses_do_not_wrap);
  RUN(a_changed_quota_begins_anew_and_an_equal_one_does_not);
  RUN(threads_get_no_more_than_there_is);
  RUN(what_is_given_back_can_be_taken);
  return 0;
}
