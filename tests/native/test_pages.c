/* The page pool: a buffer is one user's at a time, a lease is good for one put, and no byte goes from user to user. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"
#include "page_pool.h"

enum { OS_PAGE = 4096, BUFFER = 4 * OS_PAGE, POISON = 0xDB };
static const uint64_t no_idling = UINT64_MAX;

static sh_pages *open_pages(uint32_t count, int poison, uint64_t idle_ns) {
  sh_pages *pages = sh_pages_new(BUFFER, count, poison, idle_ns);
  CHECK(pages);
  return pages;
}

static void close_pages(sh_pages *pages) {
  CHECK(shi_pages_check(pages));
  CHECK_EQ(sh_pages_close(pages), SH_OK);
  CHECK_EQ(sh_pages_close(pages), SH_OK);
  CHECK_EQ(shi_pages_take(pages), 0);
  sh_pages_free(pages);
}

static sh_pages_stats stats(sh_pages *pages) {
  sh_pages_stats out;
  sh_pages_get_stats(pages, &out);
  return out;
}

static uint64_t take(sh_pages *pages) {
  uint64_t lease = shi_pages_take(pages);
  CHECK(lease != 0);
  return lease;
}

static uint8_t *pin(sh_pages *pages, uint64_t lease, uint64_t end) {
  uint8_t *bytes = shi_pages_pin(pages, lease, end);
  CHECK(bytes != NULL);
  return bytes;
}

static bool is_all(const uint8_t *bytes, uint8_t value, uint64_t length) {
  for (uint64_t k = 0; k < length; k++) {
    if (bytes[k] != value) {
      return false;
    }
  }
  return true;
}

static uint64_t resident(const uint8_t *at, uint64_t bytes) {
  unsigned char map[64];
  CHECK(bytes / OS_PAGE <= sizeof map);
  CHECK_EQ(mincore((void *)(uintptr_t)at, bytes, map), 0);
  uint64_t count = 0;
  for (uint64_t k = 0; k < bytes / OS_PAGE; k++) {
    count += map[k] & 1;
  }
  return count * OS_PAGE;
}

/* ---- leases ------------------------------------------------------------------------------------------------------ */

static void a_lease_is_good_for_one_put(void) {
  sh_pages *pages = open_pages(1, 0, no_idling);
  uint64_t first = take(pages);
  CHECK_EQ(shi_pages_take(pages), 0);
  CHECK_EQ(shi_pages_put(pages, first), SH_OK);
  CHECK_EQ(shi_pages_put(pages, first), SH_CLOSED);
  CHECK(shi_pages_pin(pages, first, 1) == NULL);
  uint64_t second = take(pages); /* the same buffer */
  CHECK(second != first);
  CHECK_EQ(shi_pages_put(pages, first), SH_CLOSED);
  CHECK(shi_pages_pin(pages, first, 1) == NULL);
  CHECK_EQ(shi_pages_take(pages), 0); /* nobody got it back by those */
  CHECK_EQ(shi_pages_put(pages, second), SH_OK);
  close_pages(pages);
}

static void a_lease_that_was_never_given_is_refused(void) {
  sh_pages *pages = open_pages(2, 0, no_idling);
  uint64_t lease = take(pages);
  const uint64_t wrong[] = {0, 1, lease + 1, lease + 2, lease | 0xffffff, lease + (UINT64_C(1) << 24), UINT64_MAX};
  for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
    CHECK_EQ(shi_pages_put(pages, wrong[k]), SH_CLOSED);
    CHECK(shi_pages_pin(pages, wrong[k], 1) == NULL);
  }
  CHECK(shi_pages_pin(pages, lease, BUFFER + 1) == NULL);
  CHECK_EQ(shi_pages_put(pages, lease), SH_OK);
  close_pages(pages);
}

static void pins_hold_a_buffer_and_the_pool(void) {
  sh_pages *pages = open_pages(2, 0, no_idling);
  uint64_t lease = take(pages);
  pin(pages, lease, 1);
  pin(pages, lease, BUFFER);
  CHECK_EQ(shi_pages_put(pages, lease), SH_BUSY);
  shi_pages_unpin(pages, lease);
  CHECK_EQ(shi_pages_put(pages, lease), SH_BUSY);
  CHECK_EQ(sh_pages_close(pages), SH_BUSY);
  CHECK_EQ(stats(pages).in_use, 1);
  CHECK_EQ(shi_pages_put(pages, take(pages)), SH_OK); /* the other one is still there after the close that failed */
  shi_pages_unpin(pages, lease);
  CHECK_EQ(sh_pages_close(pages), SH_BUSY);
  CHECK_EQ(shi_pages_put(pages, lease), SH_OK);
  CHECK_EQ(stats(pages).peak, 2);
  CHECK_EQ(stats(pages).acquired, 2);
  close_pages(pages);
}

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

static void no_byte_reaches_the_next_user(void) {
  for (int poison = 0; poison <= 1; poison++) {
    uint8_t clean = poison ? POISON : 0;
    sh_pages *pages = open_pages(1, poison, no_idling);
    const uint64_t ends[] = {BUFFER, 1, OS_PAGE, 0, OS_PAGE + 1, BUFFER - 1};
    for (size_t k = 0; k < sizeof ends / sizeof *ends; k++) {
      uint64_t lease = take(pages);
      uint8_t *bytes = pin(pages, lease, ends[k]);
      CHECK(is_all(bytes, clean, BUFFER)); /* also beyond what was pinned */
      memset(bytes, 7, ends[k]);
      shi_pages_unpin(pages, lease);
      CHECK_EQ(shi_pages_put(pages, lease), SH_OK);
      CHECK(is_all(bytes, clean, BUFFER)); /* already now: what is free holds nobody's bytes */
      if (k == 2) {
        CHECK(sh_pages_trim(pages) > 0);
      }
    }
    close_pages(pages);
  }
}

/* ---- pages go back ------------------------------------------------------------------------------------------------ */

static uint8_t *use_all(sh_pages *pages) {
  uint64_t lease = take(pages);
  uint8_t *bytes = pin(pages, lease, BUFFER);
  memset(bytes, 7, BUFFER);
  shi_pages_unpin(pages, lease);
  CHECK_EQ(shi_pages_put(pages, lease), SH_OK);
  return bytes;
}

static void a_trim_gives_back_what_is_free(void) {
  sh_pages *pages = open_pages(3, 0, no_idling);
  uint8_t *used = use_all(pages);
  uint64_t lease = take(pages);
  uint8_t *kept = pin(pages, lease, OS_PAGE + 1);
  memset(kept, 8, OS_PAGE + 1);
  CHECK_EQ(resident(used, BUFFER), BUFFER);
  CHECK_EQ(stats(pages).resident_bytes, BUFFER + OS_PAGE + 1); /* in a buffer that is out: what may be written */
  CHECK_EQ(sh_pages_trim(pages), BUFFER);
  CHECK_EQ(resident(used, BUFFER), 0);
  CHECK_EQ(resident(kept, BUFFER), 2 * OS_PAGE);
  CHECK(is_all(kept, 8, OS_PAGE + 1));
  shi_pages_unpin(pages, lease);
  CHECK_EQ(shi_pages_put(pages, lease), SH_OK);
  CHECK_EQ(sh_pages_trim(pages), 2 * OS_PAGE);
  CHECK_EQ(stats(pages).resident_bytes, 0);
  CHECK_EQ(stats(pages).trimmed_bytes, BUFFER + 2 * OS_PAGE);
  close_pages(pages);
}

static void wait_until_nothing_is_resident(sh_pages *pages, const uint8_t *bytes) {
  while (stats(pages).resident_bytes > 0 || resident(bytes, BUFFER) > 0) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
}

static void what_idles_goes_back_by_itself(void) {
  sh_pages *pages = open_pages(1, 0, 1000000);
  for (int k = 0; k < 3; k++) {
    wait_until_nothing_is_resident(pages, use_all(pages));
  }
  uint64_t lease = take(pages);
  uint8_t *bytes = pin(pages, lease, BUFFER);
  memset(bytes, 7, BUFFER);
  nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* the pool idles, and trims what is free: nothing */
  CHECK(is_all(bytes, 7, BUFFER));
  shi_pages_unpin(pages, lease);
  CHECK_EQ(shi_pages_put(pages, lease), SH_OK);
  wait_until_nothing_is_resident(pages, bytes);
  close_pages(pages);
}

/* ---- failures ----------------------------------------------------------------------------------------------------- */

static void what_cannot_be_had_is_said(void) {
  static const struct {
    uint64_t bytes;
    uint32_t count;
  } wrong[] = {{0, 1}, {1, 0}, {1, (1 << 20) + 1}, {UINT64_MAX, 1}, {UINT64_C(1) << 44, 1}, {UINT64_C(1) << 43, 3}};
  for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
    CHECK(sh_pages_new(wrong[k].bytes, wrong[k].count, 0, no_idling) == NULL);
    CHECK_EQ(sh_last_error()->status, SH_ARGUMENT);
  }
  static const int calls[] = {SH_OS_MMAP, SH_OS_MPROTECT, SH_OS_MADVISE, SH_OS_THREAD};
  for (size_t k = 0; k < sizeof calls / sizeof *calls; k++) {
    sh_fault_inject(calls[k], 0, 1, ENOMEM);
    CHECK(sh_pages_new(BUFFER, 4, 0, no_idling) == NULL);
    CHECK_EQ(sh_last_error()->status, SH_NATIVE);
    CHECK_EQ(sh_last_error()->os_errno, ENOMEM);
  }
}

static void pages_that_cannot_be_given_back_stay_and_are_clean(void) {
  sh_pages *pages = open_pages(2, 0, no_idling);
  use_all(pages);
  use_all(pages);
  sh_fault_inject(SH_OS_MADVISE, 0, 1, ENOMEM);
  CHECK_EQ(sh_pages_trim(pages), BUFFER);
  CHECK_EQ(stats(pages).resident_bytes, BUFFER);
  for (int k = 0; k < 2; k++) {
    CHECK(is_all(pin(pages, take(pages), BUFFER), 0, BUFFER));
  }
  CHECK_EQ(sh_pages_close(pages), SH_BUSY);
  sh_pages_free(pages); /* pinned: it stays as it is, and so does this memory */
}

/* ---- forks -------------------------------------------------------------------------------------------------------- */

static void a_child_has_no_buffers(void) {
  sh_pages *pages = open_pages(2, 0, no_idling);
  uint64_t lease = take(pages);
  uint8_t *bytes = pin(pages, lease, BUFFER);
  memset(bytes, 7, BUFFER);
  pid_t child = fork();
  if (child == 0) {
    CHECK(is_all(bytes, 0, BUFFER));
    bytes[0] = 1; /* a view that is still there must not crash the child */
    CHECK_EQ(shi_pages_take(pages), 0);
    CHECK_EQ(shi_pages_put(pages, lease), SH_FORKED);
    CHECK(shi_pages_pin(pages, lease, 1) == NULL);
    CHECK_EQ(sh_pages_trim(pages), 0);
    shi_pages_unpin(pages, lease);
    sh_pages_free(pages);
    if (!UNDER_TSAN) { /* which does not start threads in a child */
      close_pages(open_pages(2, 0, no_idling));
    }
    _exit(0);
  }
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(is_all(bytes, 7, BUFFER));
  shi_pages_unpin(pages, lease);
  CHECK_EQ(shi_pages_put(pages, lease), SH_OK);
  close_pages(pages);
}

/* ---- threads ------------------------------------------------------------------------------------------------------ */

enum { THREADS = 8, NUMBERS = 5, ROUNDS = UNDER_TSAN ? 10000 : 400000 };

static shi_mpmc ring;
static _Atomic int had[NUMBERS];

static void *circulate(void *argument) {
  (void)argument;
  for (int k = 0; k < ROUNDS;) {
    uint32_t number;
    if (!shi_mpmc_take(&ring, &number)) {
      sched_yield();
      continue;
    }
    CHECK(number < NUMBERS);
    CHECK_EQ(atomic_exchange(&had[number], 1), 0);
    k++;
    CHECK_EQ(atomic_exchange(&had[number], 0), 1);
    shi_mpmc_put(&ring, number);
  }
  return NULL;
}

static void a_ring_gives_each_number_to_one_thread(void) {
  pthread_t threads[THREADS];
  CHECK_EQ(shi_mpmc_init(&ring, NUMBERS), 0);
  for (uint32_t k = 0; k < NUMBERS; k++) {
    shi_mpmc_put(&ring, k);
  }
  for (int k = 0; k < THREADS; k++) {
    CHECK_EQ(pthread_create(&threads[k], NULL, circulate, NULL), 0);
  }
  for (int k = 0; k < THREADS; k++) {
    pthread_join(threads[k], NULL);
  }
  bool there[NUMBERS] = {false};
  for (int k = 0; k < NUMBERS; k++) {
    uint32_t number;
    CHECK(shi_mpmc_take(&ring, &number));
    CHECK(!there[number]);
    there[number] = true;
  }
  uint32_t none;
  CHECK(!shi_mpmc_take(&ring, &none));
  shi_mpmc_destroy(&ring);
}

static void a_ring_is_in_order_over_many_laps(void) {
  CHECK_EQ(shi_mpmc_init(&ring, 3), 0);
  uint32_t next = 0, number;
  for (uint32_t k = 0; k < 100; k++) {
    shi_mpmc_put(&ring, k);
    if (k % 3 == 2) {
      while (shi_mpmc_take(&ring, &number)) {
        CHECK_EQ(number, next++);
      }
    }
  }
  CHECK(shi_mpmc_take(&ring, &number));
  CHECK_EQ(number, 99);
  shi_mpmc_destroy(&ring);
}

static void *put_nine(void *argument) {
  (void)argument;
  shi_mpmc_put(&ring, 9);
  return NULL;
}

static void a_put_waits_for_a_take_that_was_stopped_a_lap_ago(void) {
  pthread_t thread;
  uint32_t number;
  CHECK_EQ(shi_mpmc_init(&ring, 1), 0); /* room for two */
  shi_mpmc_put(&ring, 7);
  atomic_store(&ring.taken, 1); /* a take of 7 has its position, and is stopped before it says that it is done */
  shi_mpmc_put(&ring, 8);
  CHECK(shi_mpmc_take(&ring, &number));
  CHECK_EQ(number, 8);
  CHECK_EQ(pthread_create(&thread, NULL, put_nine, NULL), 0); /* comes to the cell that 7 is still in */
  nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
  CHECK_EQ(atomic_load(&ring.put), 2);
  CHECK(!shi_mpmc_take(&ring, &number));
  atomic_store(&ring.cells[0].turn, 2); /* it goes on */
  pthread_join(thread, NULL);
  CHECK(shi_mpmc_take(&ring, &number));
  CHECK_EQ(number, 9);
  shi_mpmc_destroy(&ring);
}

static void a_take_does_not_pass_a_put_that_was_stopped(void) {
  uint32_t number;
  CHECK_EQ(shi_mpmc_init(&ring, 2), 0);
  atomic_store(&ring.put, 1); /* a put has its position, and is stopped before it says that it is done */
  shi_mpmc_put(&ring, 8);
  CHECK(!shi_mpmc_take(&ring, &number));
  ring.cells[0].number = 7;
  atomic_store(&ring.cells[0].turn, 1); /* it goes on */
  CHECK(shi_mpmc_take(&ring, &number));
  CHECK_EQ(number, 7);
  CHECK(shi_mpmc_take(&ring, &number));
  CHECK_EQ(number, 8);
  shi_mpmc_destroy(&ring);
}

static sh_pages *shared;
static _Atomic bool over;

/* Each has its buffer for itself, finds it clean, and leaves marks; in between it tries the lease that it had before. */
static void *use_buffers(void *argument) {
  uint8_t mark = (uint8_t)(uintptr_t)argument;
  uint64_t ended = 0;
  for (int k = 0; k < ROUNDS / 40;) {
    uint64_t lease = shi_pages_take(shared);
    if (lease == 0) {
      sched_yield();
      continue;
    }
    k++;
    uint8_t *bytes = pin(shared, lease, BUFFER);
    for (size_t at = 0; at < BUFFER; at += 64) {
      CHECK_EQ(bytes[at], 0);
      bytes[at] = mark;
    }
    if (ended != 0) {
      CHECK_EQ(shi_pages_put(shared, ended), SH_CLOSED);
      CHECK(shi_pages_pin(shared, ended, 1) == NULL);
    }
    CHECK_EQ(shi_pages_put(shared, lease), SH_BUSY);
    for (size_t at = 0; at < BUFFER; at += 64) {
      CHECK_EQ(bytes[at], mark);
    }
    shi_pages_unpin(shared, lease);
    CHECK_EQ(shi_pages_put(shared, lease), SH_OK);
    ended = lease;
  }
  return NULL;
}

static void *trim_on(void *argument) {
  (void)argument;
  while (!atomic_load(&over)) {
    sh_pages_trim(shared);
    CHECK(stats(shared).in_use <= 3);
    CHECK_EQ(sh_pages_close(shared), SH_BUSY);
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
  }
  return NULL;
}

static void each_thread_has_its_buffers_for_itself(void) {
  pthread_t threads[THREADS], trimmer;
  shared = open_pages(3, 0, 100000);
  uint64_t held = take(shared); /* so that it cannot be closed */
  atomic_store(&over, false);
  for (uintptr_t k = 0; k < THREADS; k++) {
    CHECK_EQ(pthread_create(&threads[k], NULL, use_buffers, (void *)(k + 1)), 0);
  }
  CHECK_EQ(pthread_create(&trimmer, NULL, trim_on, NULL), 0);
  for (int k = 0; k < THREADS; k++) {
    pthread_join(threads[k], NULL);
  }
  atomic_store(&over, true);
  pthread_join(trimmer, NULL);
  CHECK_EQ(shi_pages_put(shared, held), SH_OK);
  CHECK_EQ(stats(shared).acquired, 1 + THREADS * (ROUNDS / 40));
  close_pages(shared);
}

int main(void) {
  RUN(a_ring_is_in_order_over_many_laps);
  RUN(a_put_waits_for_a_take_that_was_stopped_a_lap_ago);
  RUN(a_take_does_not_pass_a_put_that_was_stopped);
  RUN(a_ring_gives_each_number_to_one_thread);
  RUN(a_lease_is_good_for_one_put);
  RUN(a_lease_that_was_never_given_is_refused);
  RUN(pins_hold_a_buffer_and_the_pool);
  RUN(no_byte_reaches_the_next_user);
  RUN(a_trim_gives_back_what_is_free);
  RUN(what_idles_goes_back_by_itself);
  RUN(what_cannot_be_had_is_said);
  RUN(pages_that_cannot_be_given_back_stay_and_are_clean);
  RUN(a_child_has_no_buffers);
  RUN(each_thread_has_its_buffers_for_itself);
}
