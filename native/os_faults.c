/* Failures of the system that a test asks for. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "os.h"

static struct {
  pthread_mutex_t lock;
  _Atomic bool armed[SH_OS_CALLS]; /* read without the lock: the price of injection on a hot path is one load */
  uint32_t skip[SH_OS_CALLS];
  uint32_t times[SH_OS_CALLS];
  int error[SH_OS_CALLS];
} faults = {.lock = PTHREAD_MUTEX_INITIALIZER};

void sh_fault_inject(int call, uint32_t skip, uint32_t times, int error) {
  if (call < 0 || call >= SH_OS_CALLS) {
    return;
  }
  pthread_mutex_lock(&faults.lock);
  faults.skip[call] = skip;
  faults.times[call] = times;
  faults.error[call] = error;
  atomic_store(&faults.armed[call], times > 0);
  pthread_mutex_unlock(&faults.lock);
}

bool shi_os_armed(enum sh_os_call call) {
  return __builtin_expect(atomic_load_explicit(&faults.armed[call], memory_order_relaxed), false);
}

bool shi_os_injected(enum sh_os_call call) {
  if (!shi_os_armed(call)) {
    return false;
  }
  bool hit = false;
  pthread_mutex_lock(&faults.lock);
  if (faults.skip[call] > 0) {
    faults.skip[call]--;
  } else if (faults.times[call] > 0) {
    hit = true;
    errno = faults.error[call];
    if (--faults.times[call] == 0) {
      atomic_store(&faults.armed[call], false);
    }
  }
  pthread_mutex_unlock(&faults.lock);
  return hit;
}
