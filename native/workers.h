/* The threads that run guests whose call can wait and has used up its slice on the event loop. They never enter Python.
 *
 * They give way to all threads that do not: a call that is here has shown that it takes its time, and the event loop's
 * thread, where the short ones are, should not wait for the end of its slice.
 *
 * One queue: first come, first served, a slice of one tick each, so that no guest waits for more than the others' slices.
 */
#ifndef SANDHOST_WORKERS_H
#define SANDHOST_WORKERS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "sandhost.h"

typedef struct shi_guest shi_guest;

enum { SHI_WORKERS_MAX = 64 };

typedef struct {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  shi_guest *head;
  shi_guest **tail;
  uint32_t most; /* threads; 0: nobody may give them a guest */
  uint32_t idle;
  uint32_t count; /* started, at first need */
  uint32_t queued; /* guests from head on */
  bool stop;
  bool background;
  pthread_t threads[SHI_WORKERS_MAX];
} shi_workers;

/* Background: they run while no other thread here wants their processor. */
void shi_workers_init(shi_workers *workers, uint32_t most, bool background);
/* Precondition: no guest is queued. */
void shi_workers_stop(shi_workers *workers);
/* Hands over a guest that is RUNNING and the caller's. False: there is no thread that could take it. */
bool shi_workers_give(shi_workers *workers, shi_guest *guest);
void shi_workers_stats(shi_workers *workers, sh_worker_stats *out);

#endif
