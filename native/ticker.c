/* One thread advances the epochs of a host's engines, every tick, while any guest runs; else it sleeps.
 *
 * Starting a call must not cost a system call, and a call must never run without a ticking epoch. So the ticker lingers
 * for a while after the last call, and before it sleeps it says so (`asleep`) and looks once more at `running`; a call
 * first counts itself in its copy of `running` and then looks at `asleep`. Both pairs are sequentially consistent: at
 * least one of the two sees the other.
 */
#include <time.h>

#include "bridge.h"
#include "os.h"

enum { LINGER_TICKS = 25 };

static uint32_t running(const shi_ticker *ticker) {
  uint32_t sum = 0;
  for (uint32_t k = 0; k < SHI_COPIES; k++) sum += atomic_load(&ticker->running[k].guests);
  return sum;
}

void shi_ticker_advance(shi_ticker *ticker) {
  for (int k = 0; k < SHI_ENGINES; k++) wt.wasmtime_engine_increment_epoch(ticker->engines[k]);
}

static void *tick(void *argument) {
  shi_ticker *ticker = argument;
  uint32_t idle = 0;
  pthread_mutex_lock(&ticker->mutex);
  while (!ticker->stop) {
    if (running(ticker)) {
      idle = 0;
    } else if (++idle > LINGER_TICKS) {
      atomic_store(&ticker->asleep, true);
      while (!running(ticker) && !ticker->stop) pthread_cond_wait(&ticker->wake, &ticker->mutex);
      atomic_store(&ticker->asleep, false);
      idle = 0;
    }
    pthread_mutex_unlock(&ticker->mutex);
    nanosleep(&(struct timespec){.tv_nsec = SHI_TICK_NS}, NULL);
    shi_ticker_advance(ticker);
    if (running(ticker)) shi_trap_signals_check_all();
    pthread_mutex_lock(&ticker->mutex);
  }
  pthread_mutex_unlock(&ticker->mutex);
  return NULL;
}

static void forget(shi_ticker *ticker) {
  pthread_cond_destroy(&ticker->wake);
  pthread_mutex_destroy(&ticker->mutex);
}

/* Guests of a thread with a real-time priority would keep a processor from a ticker without: they would not be ended. */
int shi_ticker_start(shi_ticker *ticker, uint32_t realtime) {
  pthread_mutex_init(&ticker->mutex, NULL);
  pthread_cond_init(&ticker->wake, NULL);
  int error = shi_os_thread_start(&ticker->thread, "sandhost-ticker", tick, ticker);
  if (error) {
    forget(ticker);
    return shi_fail_native(error);
  }
  error = realtime ? shi_os_thread_go_before(ticker->thread, realtime + 1) : 0;
  if (error) shi_ticker_stop(ticker);
  return error ? shi_fail_native(error) : SH_OK;
}

void shi_ticker_stop(shi_ticker *ticker) {
  pthread_mutex_lock(&ticker->mutex);
  ticker->stop = true;
  pthread_cond_signal(&ticker->wake);
  pthread_mutex_unlock(&ticker->mutex);
  pthread_join(ticker->thread, NULL);
  forget(ticker);
}

void shi_ticker_enter(shi_ticker *ticker) {
  atomic_fetch_add(&ticker->running[shi_copy()].guests, 1);
  if (!atomic_load(&ticker->asleep)) return;
  pthread_mutex_lock(&ticker->mutex);
  pthread_cond_signal(&ticker->wake);
  pthread_mutex_unlock(&ticker->mutex);
}

void shi_ticker_leave(shi_ticker *ticker) { atomic_fetch_sub(&ticker->running[shi_copy()].guests, 1); }
