#include "turnstile.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "guest.h"
#include "os.h"

/* Longer than Python takes between two of our calls, shorter than a futex takes to wake a thread (20 to 50 us here). */
enum { PATIENCE_NS = 10000, PAUSES = 16 };

static _Atomic uintptr_t inside;  /* who passed last, until it leaves; 0: nobody */
static _Atomic uint32_t waiting;  /* awake */

static uintptr_t self(void) { return (uintptr_t)&shi_thread_in_guest; }

static bool enter(void) {
  uintptr_t nobody = 0;
  return atomic_load_explicit(&inside, memory_order_relaxed) == 0 &&
         atomic_compare_exchange_strong_explicit(&inside, &nobody, self(), memory_order_acq_rel, memory_order_relaxed);
}

static void pause_cpu(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Asked once: it reads a file. */
static uint32_t processors(void) {
  static _Atomic uint32_t known;
  uint32_t count = atomic_load_explicit(&known, memory_order_relaxed);
  if (__builtin_expect(count == 0, 0)) {
    count = shi_os_cpu_count();
    atomic_store_explicit(&known, count, memory_order_relaxed);
  }
  return count;
}

/* False: it took too long. */
static bool wait_awake(void) {
  uint64_t until = shi_now_ns() + PATIENCE_NS;
  do {
    for (int k = 0; k < PAUSES; k++) {
      if (enter()) return true;
      pause_cpu();
    }
  } while (shi_now_ns() < until);
  return false;
}

void shi_turnstile_leave(void) {
  if (atomic_load_explicit(&inside, memory_order_relaxed) == self())
    atomic_store_explicit(&inside, 0, memory_order_release);
}

void shi_turnstile_pass(void) {
  if (__builtin_expect(enter(), 1)) return;
  /* Threads that wait awake must leave a processor to the one they wait for. */
  bool allowed = atomic_fetch_add_explicit(&waiting, 1, memory_order_relaxed) + 1 < processors();
  bool entered = allowed && wait_awake();
  atomic_fetch_sub_explicit(&waiting, 1, memory_order_relaxed);
  if (allowed && !entered) atomic_store_explicit(&inside, self(), memory_order_relaxed); /* who was there is gone */
}
