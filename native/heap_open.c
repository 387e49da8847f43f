/* A heap's beginning and end, and what is true of it in between. */
#include "heap.h"

#include <stdio.h>
#include <stdlib.h>

#include "bridge.h"

static const uint64_t hot_reserved = (uint64_t)SHI_CELLS_MOST * sizeof(shi_hot);
static const uint64_t cold_reserved = (uint64_t)SHI_CELLS_MOST * sizeof(shi_cold);
static const uint64_t origins_reserved = (uint64_t)SHI_CELLS_MOST * sizeof(shi_origin);

static void init_locks(shi_heap *heap) {
  pthread_mutexattr_t adaptive; /* it spins before it sleeps: whoever holds the lock gives it away soon */
  pthread_mutexattr_init(&adaptive);
  pthread_mutexattr_settype(&adaptive, PTHREAD_MUTEX_ADAPTIVE_NP);
  pthread_mutex_init(&heap->mutex, &adaptive);
  pthread_mutexattr_destroy(&adaptive);
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&heap->wake, &monotonic);
  pthread_cond_init(&heap->done, &monotonic);
  pthread_condattr_destroy(&monotonic);
}

int shi_heap_create(shi_account *handles, shi_account *bytes, shi_heap **out) {
  shi_heap *heap = calloc(1, sizeof *heap);
  if (!heap) return shi_fail_no_memory();
  heap->oldest_free = heap->newest_free = SHI_NONE;
  heap->handles = handles;
  heap->bytes = bytes;
  heap->goal_bytes = heap->trigger_bytes = UINT64_MAX;
  heap->plan.growth = -1;
  heap->share = 1;
  heap->born_ns = shi_now_ns();
  heap->events = &shi_no_events;
  init_locks(heap);
  int error = shi_os_pagemap_open(&heap->pagemap);
  if (!error) error = shi_os_reserve(hot_reserved, (uint8_t **)&heap->hot);
  if (!error) error = shi_os_reserve(cold_reserved, (uint8_t **)&heap->cold);
  if (!error) error = shi_os_reserve(origins_reserved, (uint8_t **)&heap->origins);
  int status = error ? shi_fail_native(error) : SH_OK;
  if (status == SH_OK && !(heap->sites = shi_sites_new())) status = shi_fail_no_memory();
  const shi_holder_request host = {.handles_limit = UINT64_MAX, .bytes_limit = UINT64_MAX};
  if (status == SH_OK && !shi_holder_new(heap, &host)) status = SH_NATIVE;
  if (status == SH_OK)
    *out = heap;
  else
    shi_heap_destroy(heap);
  return status;
}

void shi_heap_destroy(shi_heap *heap) {
  shi_cycle_thread_end(heap);
  for (uint32_t index = 0; index < heap->count; index++)
    if (heap->hot[index].edged) free(heap->cold[index].edges);
  for (uint32_t k = 0; k < heap->holder_count; k++) {
    if (heap->holders[k]) free(heap->holders[k]->flight);
    free(heap->holders[k]);
  }
  free(heap->holders);
  free(heap->dropped);
  shi_stack_free(&heap->stack);
  if (heap->hot) shi_os_unreserve((uint8_t *)heap->hot, hot_reserved);
  if (heap->cold) shi_os_unreserve((uint8_t *)heap->cold, cold_reserved);
  if (heap->origins) shi_os_unreserve((uint8_t *)heap->origins, origins_reserved);
  shi_sites_free(heap->sites);
  shi_os_pagemap_close(&heap->pagemap);
  pthread_cond_destroy(&heap->done);
  pthread_cond_destroy(&heap->wake);
  pthread_mutex_destroy(&heap->mutex);
  free(heap);
}

/* ---- invariants ------------------------------------------------------------------------------------------------------ */

#ifdef SANDHOST_DEBUG
static void must(bool holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "handle heap: not true: %s\n", what);
  abort();
}

void shi_heap_check(shi_heap *heap) {
  uint64_t cells = 0, bytes = 0, objects = 0;
  for (uint32_t index = 0; index < heap->count; index++) {
    const shi_hot *cell = &heap->hot[index];
    if (cell->tag >> 24 == 0) continue;
    const shi_cold *cold = &heap->cold[index];
    cells++;
    bytes += cell->size;
    objects += cold->object != SHI_NONE;
    must(cell->root == (cold->retained || cold->pins || cell->flight), "root == retained || pins || flight");
    must(!cell->grey || cell->mark == heap->mark, "grey cells are marked");
  }
  must(cells == heap->live_cells && heap->allocs - heap->frees == cells, "allocs - frees == live_cells");
  must(bytes == heap->live_bytes && heap->alloc_bytes - heap->free_bytes == bytes, "live_bytes");
  must(cells + heap->free_count + heap->retired == heap->count, "every cell is live, free or retired");
  must(objects == heap->objects, "objects");
  for (uint32_t k = 0; k < heap->holder_count; k++) {
    const shi_holder *holder = heap->holders[k];
    uint64_t owned = 0, size = 0;
    for (uint32_t index = holder ? holder->first : SHI_NONE; index != SHI_NONE; index = heap->cold[index].next) {
      owned++;
      size += heap->hot[index].size;
    }
    must(!holder || (owned == holder->cells && owned == holder->handles.used), "a holder's list is what it owns");
    must(!holder || size == holder->bytes.used, "a holder's bytes are those of its cells");
  }
}
#endif
