#include "workers.h"

#include <signal.h>

#include "fiber.h"
#include "os.h"

static void push(shi_workers *workers, shi_guest *guest) {
  guest->fiber->next = NULL;
  *workers->tail = guest;
  workers->tail = &guest->fiber->next;
  workers->queued++;
}

static shi_guest *pop(shi_workers *workers) {
  shi_guest *guest = workers->head;
  workers->head = guest->fiber->next;
  if (!workers->head) workers->tail = &workers->head;
  workers->queued--;
  return guest;
}

/* Our threads block all signals, so that the application's own get them. A guest's fault is this thread's. */
static void let_faults_through(void) {
  sigset_t faults;
  sigemptyset(&faults);
  sigaddset(&faults, SIGSEGV);
  sigaddset(&faults, SIGBUS);
  sigaddset(&faults, SIGILL);
  sigaddset(&faults, SIGFPE);
  sigaddset(&faults, SIGTRAP);
  pthread_sigmask(SIG_UNBLOCK, &faults, NULL);
}

static void *work(void *argument) {
  shi_workers *workers = argument;
  let_faults_through();
  shi_os_thread_give_way(workers->background);
  pthread_mutex_lock(&workers->lock);
  for (;;) {
    workers->idle++;
    while (!workers->head && !workers->stop) pthread_cond_wait(&workers->wake, &workers->lock);
    workers->idle--;
    if (workers->stop) break;
    shi_guest *guest = pop(workers);
    pthread_mutex_unlock(&workers->lock);
    bool again = shi_fiber_slice(guest);
    pthread_mutex_lock(&workers->lock);
    if (again) push(workers, guest);
  }
  pthread_mutex_unlock(&workers->lock);
  return NULL;
}

void shi_workers_init(shi_workers *workers, uint32_t most, bool background) {
  pthread_mutex_init(&workers->lock, NULL);
  pthread_cond_init(&workers->wake, NULL);
  workers->tail = &workers->head;
  workers->most = most < SHI_WORKERS_MAX ? most : SHI_WORKERS_MAX;
  workers->background = background;
}

void shi_workers_stop(shi_workers *workers) {
  pthread_mutex_lock(&workers->lock);
  workers->stop = true;
  pthread_cond_broadcast(&workers->wake);
  pthread_mutex_unlock(&workers->lock);
  for (uint32_t k = 0; k < workers->count; k++) pthread_join(workers->threads[k], NULL);
  pthread_cond_destroy(&workers->wake);
  pthread_mutex_destroy(&workers->lock);
}

bool shi_workers_give(shi_workers *workers, shi_guest *guest) {
  if (workers->most == 0) return false;
  pthread_mutex_lock(&workers->lock);
  if (workers->idle == 0 && workers->count < workers->most &&
      shi_os_thread_start(&workers->threads[workers->count], "sandhost-worker", work, workers) == 0)
    workers->count++;
  bool taken = workers->count > 0;
  if (taken) {
    push(workers, guest);
    if (workers->idle) pthread_cond_signal(&workers->wake);
  }
  pthread_mutex_unlock(&workers->lock);
  return taken;
}

void shi_workers_stats(shi_workers *workers, sh_worker_stats *out) {
  pthread_mutex_lock(&workers->lock);
  *out = (sh_worker_stats){.threads = workers->count, .idle = workers->idle, .queued = workers->queued};
  pthread_mutex_unlock(&workers->lock);
}
