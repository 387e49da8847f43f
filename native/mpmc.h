/* A ring of small numbers that any thread puts in and takes out, oldest first, without a lock.
 *
 * Dmitry Vyukov's bounded queue for many producers and consumers (1024cores.net, "Bounded MPMC queue"), in C11's memory
 * model. Each cell says by its `turn` whose it is:
 *
 *   position          p                  p + 1              p + capacity: the cell's next lap
 *   turn == p         free for the put of position p
 *   turn == p + 1     holds what position p put; the take of position p may have it
 *   turn == p + capacity                 taken: free for the put of the next lap
 *
 * Who wins the compare-and-swap on `put` or `taken` owns that position, so its cell, until it stores the next turn. That
 * store is a release, and whoever finds that turn has loaded it with acquire: what was done before a put is seen after
 * the take of it.
 *
 * No thread holds a lock, but one that is stopped between its compare-and-swap and its store keeps its one cell. Until
 * it goes on a take that comes to that cell finds the ring empty, also when later cells are full, and a put that comes to
 * it a lap later waits. With room for twice what is ever in the ring that is a long lap.
 */
#ifndef SANDHOST_MPMC_H
#define SANDHOST_MPMC_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include "counters.h"

typedef struct {
  _Atomic uint64_t turn;
  uint32_t number;
} shi_mpmc_cell;

/* Invariant: taken <= put <= taken + (the most that was ever in it) <= taken + capacity; capacity == mask + 1. */
typedef struct {
  shi_mpmc_cell *cells;
  uint64_t mask;
  uint8_t apart_from_put[SHI_APART];
  _Atomic uint64_t put; /* how many were put, or are being */
  uint8_t apart_from_taken[SHI_APART];
  _Atomic uint64_t taken;
  uint8_t apart[SHI_APART];
} shi_mpmc;

/* Empty, for up to `most` numbers at once. 0 or -ENOMEM. */
static inline int shi_mpmc_init(shi_mpmc *ring, uint32_t most) {
  uint64_t capacity = 2;
  while (capacity < 2 * (uint64_t)most) {
    capacity *= 2;
  }
  *ring = (shi_mpmc){.cells = calloc(capacity, sizeof *ring->cells), .mask = capacity - 1};
  if (ring->cells == NULL) {
    return -ENOMEM;
  }
  for (uint64_t k = 0; k < capacity; k++) {
    atomic_init(&ring->cells[k].turn, k);
  }
  return 0;
}

static inline void shi_mpmc_destroy(shi_mpmc *ring) { free(ring->cells); }

/* Precondition: fewer than `most` are in it. */
static inline void shi_mpmc_put(shi_mpmc *ring, uint32_t number) {
  uint64_t at = atomic_load_explicit(&ring->put, memory_order_relaxed);
  for (;;) {
    shi_mpmc_cell *cell = &ring->cells[at & ring->mask];
    uint64_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
    if (turn == at) {
      if (atomic_compare_exchange_weak_explicit(&ring->put, &at, at + 1, memory_order_seq_cst, memory_order_relaxed)) {
        cell->number = number;
        atomic_store_explicit(&cell->turn, at + 1, memory_order_release);
        return;
      }
    } else {
      if (turn < at) { /* who took from it a lap ago was stopped in the middle, and may have a lower priority */
        nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
      }
      at = atomic_load_explicit(&ring->put, memory_order_relaxed);
    }
  }
}

/* False: the ring is empty, or its oldest is still being put in: then whoever does so finds it there right after. */
static inline bool shi_mpmc_take(shi_mpmc *ring, uint32_t *number) {
  uint64_t at = atomic_load_explicit(&ring->taken, memory_order_relaxed);
  for (;;) {
    shi_mpmc_cell *cell = &ring->cells[at & ring->mask];
    uint64_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
    if (turn == at + 1) {
      if (atomic_compare_exchange_weak_explicit(&ring->taken, &at, at + 1, memory_order_seq_cst,
                                                memory_order_relaxed)) {
        *number = cell->number;
        atomic_store_explicit(&cell->turn, at + ring->mask + 1, memory_order_release);
        return true;
      }
    } else if (turn <= at) {
      return false;
    } else {
      at = atomic_load_explicit(&ring->taken, memory_order_relaxed);
    }
  }
}

#endif
