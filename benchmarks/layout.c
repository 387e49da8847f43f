/* The accesses of the handle heap to its cells, in its layout and, with WHOLE, in one struct with all fields: for a cache
 * simulator. handles.py runs it under cachegrind, with a phase and without, and takes the difference.
 *
 *   layout none|check|mark|walk|sweep|churn
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"

enum { CELLS = 200000, OPERATIONS = 200000 };

#ifdef WHOLE
typedef struct {
  uint32_t tag, owner;
  uint64_t size;
  bool mark, grey, edged, linked, flight, root;
  shi_edges *edges;
  uint32_t object, retained, pins, label, next, previous;
} whole;
static whole *cells;
#define HOT(k) (&cells[k])
#define COLD(k) (&cells[k])
static const size_t bytes_each = sizeof(whole);
#else
static shi_hot *hot;
static shi_cold *cold;
#define HOT(k) (&hot[k])
#define COLD(k) (&cold[k])
static const size_t bytes_each = sizeof(shi_hot) + sizeof(shi_cold);
#endif

static uint32_t *order, holder_first = SHI_NONE, oldest_free = SHI_NONE, newest_free = SHI_NONE;
static uint64_t sum;

static void own(uint32_t k) {
  COLD(k)->previous = SHI_NONE;
  COLD(k)->next = holder_first;
  if (holder_first != SHI_NONE) COLD(holder_first)->previous = k;
  holder_first = k;
}

static void let_go(uint32_t k) {
  sum += COLD(k)->object + HOT(k)->size;
  if (COLD(k)->next != SHI_NONE) COLD(COLD(k)->next)->previous = COLD(k)->previous;
  if (COLD(k)->previous != SHI_NONE)
    COLD(COLD(k)->previous)->next = COLD(k)->next;
  else
    holder_first = COLD(k)->next;
  HOT(k)->tag = (HOT(k)->tag + 1) & (SHI_GENERATIONS - 1);
  COLD(k)->next = SHI_NONE;
  if (newest_free == SHI_NONE)
    oldest_free = k;
  else
    COLD(newest_free)->next = k;
  newest_free = k;
}

static void be_new(uint32_t k) {
  HOT(k)->tag = SHI_KIND_FIRST << 24 | (HOT(k)->tag & (SHI_GENERATIONS - 1));
  HOT(k)->owner = 1;
  HOT(k)->size = 64;
  HOT(k)->mark = 0;
  HOT(k)->root = 1;
  COLD(k)->object = k;
  COLD(k)->retained = 1;
  own(k);
}

static void check(void) {
  for (uint32_t n = 0; n < OPERATIONS; n++)
    sum += HOT(order[n])->tag == (SHI_KIND_FIRST << 24 | 1) && HOT(order[n])->owner == 1;
}

/* Random edges to cells that have none themselves. */
static void mark(void) {
  for (uint32_t n = 0; n < OPERATIONS; n++) {
    if (HOT(order[n])->mark) continue;
    HOT(order[n])->mark = 1;
    sum += HOT(order[n])->size + HOT(order[n])->edged;
  }
}

static void walk(void) {
  for (uint32_t k = 0; k < CELLS; k++)
    if (HOT(k)->tag >> 24 && HOT(k)->root) sum += HOT(k)->mark;
}

/* One in 64 is garbage. */
static void sweep(void) {
  for (uint32_t k = 0; k < CELLS; k++)
    if (HOT(k)->tag >> 24 && HOT(k)->mark == (k % 64 == 0)) {
      if (k % 64 == 0) let_go(k);
    }
}

static void churn(void) {
  for (uint32_t n = 0; n < OPERATIONS; n++) {
    uint32_t k = oldest_free;
    oldest_free = COLD(k)->next;
    be_new(k);
    let_go(k);
  }
}

int main(int argc, char **argv) {
  const char *phase = argc > 1 ? argv[1] : "none";
#ifdef WHOLE
  cells = aligned_alloc(64, (CELLS + 2048) * sizeof *cells);
  memset(cells, 0, (CELLS + 2048) * sizeof *cells);
#else
  hot = aligned_alloc(64, (CELLS + 2048) * sizeof *hot);
  cold = aligned_alloc(64, (CELLS + 2048) * sizeof *cold);
  memset(hot, 0, (CELLS + 2048) * sizeof *hot);
  memset(cold, 0, (CELLS + 2048) * sizeof *cold);
#endif
  order = malloc(OPERATIONS * sizeof *order);
  uint64_t seed = 7;
  for (uint32_t n = 0; n < OPERATIONS; n++) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    order[n] = (uint32_t)(seed % CELLS);
  }
  for (uint32_t k = 0; k < CELLS + 2048; k++) {
    HOT(k)->tag = 1;
    be_new(k);
    if (k % 64 == 0) HOT(k)->mark = 1; /* sweep takes these */
  }
  for (uint32_t k = CELLS; k < CELLS + 2048; k++) let_go(k);
  if (strcmp(phase, "check") == 0) check();
  if (strcmp(phase, "mark") == 0) mark();
  if (strcmp(phase, "walk") == 0) walk();
  if (strcmp(phase, "sweep") == 0) sweep();
  if (strcmp(phase, "churn") == 0) churn();
  printf("%zu %llu\n", bytes_each, (unsigned long long)sum);
}
