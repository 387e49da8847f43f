/* One thread advances the epochs of a host's engines, every tick, while any guest runs; else it sleeps.
 *
 * Starting a call must not cost a system call, and a call must never run without a ticking epoch. So the ticker lingers
 * for a while after the last call, and before it sleeps it says so (`asleep`) and looks once more at `running`; a call
 * first counts itself in `running` and then looks at `asleep`. Both pairs are sequentially consistent: at least one of
 * the two sees the other.
 */
#include <time.h>

#include "bridge.h"
#include "os.h"

enum { LINGER_TICKS = 25 };

void shi_ticker_advance(shi_ticker *ticker) {
  for (int k = 0; k < SHI_ENGINES; k++) wt.wasmtime_engine_increment_epoch(ticker->engines[k]);
}

static void *tick(void *argument) {
  shi_ticker *ticker = argument;
  uint32_t idle = 0;
  pthread_mutex_lock(&ticker->mutex);
  while (!ticker->stop) {
    if (atomic_load(&ticker->running)) {
      idle = 0;
    } else if (++idle > LINGER_TICKS) {
      atomic_store(&ticker->asleep, true);
      while (!atomic_load(&ticker->running) && !ticker->stop) pthread_cond_wait(&ticker->wake, &ticker->mutex);
      atomic_store(&ticker->asleep, false);
      idle = 0;
    }
    pthread_mutex_unlock(&ticker->mutex);
    nanosleep(&(struct timespec){.tv_nsec = SHI_TICK_NS}, NULL);
    shi_ticker_advance(ticker);
    if (atomic_load(&ticker->running)) shi_trap_signals_check_all();
    pthread_mutex_lock(&ticker->mutex);
  }
  pthread_mutex_unlock(&ticker->mutex);
  return NULL;
}

int shi_ticker_start(shi_ticker *ticker) {
  pthread_mutex_init(&ticker->mutex, NULL);
  pthread_cond_init(&ticker->wake, NULL);
  int error = shi_os_thread_start(&ticker->thread, "sandhost-ticker", tick, ticker);
  return error ? shi_fail_native(error) : SH_OK;
}

void shi_ticker_stop(shi_ticker *ticker) {
  pthread_mutex_lock(&ticker->mutex);
  ticker->stop = true;
  pthread_cond_signal(&ticker->wake);
  pthread_mutex_unlock(&ticker->mutex);
  pthread_join(ticker->thread, NULL);
  pthread_cond_destroy(&ticker->wake);
  pthread_mutex_destroy(&ticker->mutex);
}

void shi_ticker_enter(shi_ticker *ticker) {
  atomic_fetch_add(&ticker->running, 1);
  if (!atomic_load(&ticker->asleep)) return;
  pthread_mutex_lock(&ticker->mutex);
  pthread_cond_signal(&ticker->wake);
  pthread_mutex_unlock(&ticker->mutex);
}

void shi_ticker_leave(shi_ticker *ticker) { atomic_fetch_sub(&ticker->running, 1); }
