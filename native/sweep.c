/* Sweeping: what marking did not reach is freed, a slice at a time; and the thread that runs whole cycles. */
#include <time.h>

#include "bridge.h"
#include "heap.h"

enum { SWEPT_AT_ONCE = 32 };
enum { MARK_SLICE = 256 << 10, SWEEP_SLICE = 4096 }; /* of the thread: bytes, cells. Arbitrary */

bool shi_sweep(shi_heap *heap, uint64_t budget_cells) {
  uint64_t begun_ns = shi_thread_cpu_ns();
  pthread_mutex_lock(&heap->mutex);
  bool over = heap->phase != SHI_HEAP_SWEEPING;
  for (uint64_t done = 0; !over && done < budget_cells; done += SWEPT_AT_ONCE) {
    for (int k = 0; k < SWEPT_AT_ONCE && heap->cursor < heap->walk_end; k++, heap->cursor++) {
      const shi_hot *cell = &heap->hot[heap->cursor];
      if (cell->tag >> 24 != 0 && shi_is_white(heap, cell)) shi_cell_free(heap, heap->cursor);
    }
    over = heap->cursor == heap->walk_end;
    if (over) {
      heap->phase = SHI_HEAP_IDLE;
      heap->cycles++;
    } else if (shi_heap_wanted(heap)) {
      shi_heap_let_in(heap);
      over = heap->phase != SHI_HEAP_SWEEPING; /* another thread sweeps too */
    }
  }
  heap->sweep_ns += shi_thread_cpu_ns() - begun_ns;
  pthread_mutex_unlock(&heap->mutex);
  return over;
}

/* ---- the thread -------------------------------------------------------------------------------------------------------- */

static void run_cycle(shi_heap *heap) {
  if (shi_mark_begin(heap) != SH_OK) {
    shi_error_forget();
    return;
  }
  while (!atomic_load_explicit(&shi_exiting, memory_order_relaxed)) {
    if (!shi_mark(heap, MARK_SLICE)) continue;
    if (shi_mark_finish(heap) == SH_OK) break;
    shi_error_forget();
  }
  while (!shi_sweep(heap, SWEEP_SLICE)) {
  }
}

static void *run(void *argument) {
  shi_heap *heap = argument;
  pthread_mutex_lock(&heap->mutex);
  for (;;) {
    while (!heap->asked && !heap->stop) pthread_cond_wait(&heap->wake, &heap->mutex);
    if (heap->stop) break;
    pthread_mutex_unlock(&heap->mutex);
    run_cycle(heap);
    pthread_mutex_lock(&heap->mutex);
    heap->asked = false;
    pthread_cond_broadcast(&heap->done);
  }
  pthread_mutex_unlock(&heap->mutex);
  return NULL;
}

int shi_cycle_start(shi_heap *heap) {
  shi_heap_lock(heap);
  int error = 0;
  bool free_to_run = !heap->asked && heap->phase == SHI_HEAP_IDLE && !heap->stop;
  if (free_to_run && !heap->has_thread) error = shi_os_thread_start(&heap->thread, "sandhost-marker", run, heap);
  if (free_to_run && !error) {
    heap->has_thread = heap->asked = true;
    pthread_cond_signal(&heap->wake);
  }
  shi_heap_unlock(heap);
  if (error) return shi_fail_native(error);
  return free_to_run ? SH_OK : shi_fail(SH_BUSY, "a collection is under way");
}

bool shi_cycle_wait(shi_heap *heap, uint64_t timeout_ns) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  uint64_t ns = (uint64_t)until.tv_nsec + timeout_ns % 1000000000u;
  until.tv_sec += (time_t)(timeout_ns / 1000000000u + ns / 1000000000u);
  until.tv_nsec = (long)(ns % 1000000000u);
  shi_heap_lock(heap);
  int error = 0;
  while (heap->asked && error == 0) error = pthread_cond_timedwait(&heap->done, &heap->mutex, &until);
  bool done = !heap->asked;
  shi_heap_unlock(heap);
  return done;
}

void shi_cycle_thread_end(shi_heap *heap) {
  if (!heap->has_thread) return;
  pthread_mutex_lock(&heap->mutex);
  heap->stop = true;
  pthread_cond_signal(&heap->wake);
  pthread_mutex_unlock(&heap->mutex);
  pthread_join(heap->thread, NULL);
}
