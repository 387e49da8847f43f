/* Sweeping: what marking did not reach is freed, a slice at a time; and the thread that runs whole cycles. */

#include "bridge.h"
#include "heap.h"

enum { SWEPT_AT_ONCE = 32 };
enum { MARK_SLICE = 256 << 10, SWEEP_SLICE = 4096 }; /* of the thread: bytes, cells. Arbitrary */

/* Under the lock. */
static bool sweep(shi_heap *heap, uint64_t budget_cells) {
  uint64_t begun_ns = shi_thread_cpu_ns();
  bool over = heap->phase != SHI_HEAP_SWEEPING, swept = false;
  for (uint64_t done = 0; !over && done < budget_cells; done += SWEPT_AT_ONCE) {
    for (int k = 0; k < SWEPT_AT_ONCE && heap->cursor < heap->walk_end; k++, heap->cursor++) {
      const shi_hot *cell = &heap->hot[heap->cursor];
      if (cell->tag >> 24 != 0 && shi_is_white(heap, cell)) shi_cell_free(heap, heap->cursor);
    }
    over = swept = heap->cursor == heap->walk_end;
    if (!over && shi_heap_wanted(heap)) {
      shi_heap_let_in(heap);
      over = heap->phase != SHI_HEAP_SWEEPING; /* another thread sweeps too */
    }
  }
  heap->sweep_ns += shi_thread_cpu_ns() - begun_ns;
  if (swept) shi_cycle_over(heap);
  return over;
}

bool shi_sweep(shi_heap *heap, uint64_t budget_cells) {
  pthread_mutex_lock(&heap->mutex);
  bool over = sweep(heap, budget_cells);
  pthread_mutex_unlock(&heap->mutex);
  return over;
}

void shi_sweep_assist(shi_heap *heap) {
  enum { HELP = 256 };
  shi_heap_lock(heap);
  sweep(heap, HELP);
  shi_heap_unlock(heap);
}

/* ---- the thread -------------------------------------------------------------------------------------------------------- */

/* Marking takes a share of the thread's time: it works for a slice, and sleeps until its CPU time is that share of what
 * the clock says. What a busy machine has kept from it, it makes up for within the cycle. Sweeping is short and gives
 * back; it takes what it needs. */
typedef struct {
  uint64_t clock_ns, cpu_ns;
  double left_ns; /* CPU time; below 0: the thread is ahead */
  uint64_t work_bytes; /* scan work when it last looked */
} pace;

static struct timespec at(uint64_t ns) {
  return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

static bool ends(const shi_heap *heap) {
  return heap->stop || atomic_load_explicit(&shi_exiting, memory_order_relaxed);
}

static void sleep_if_ahead(shi_heap *heap, pace *of) {
  static const double least_ns = 500000; /* to fall asleep and wake up takes 10 us of CPU time */
  while (!ends(heap)) {
    uint64_t clock_ns = shi_now_ns(), cpu_ns = shi_thread_cpu_ns();
    of->left_ns += (double)(clock_ns - of->clock_ns) * heap->share - (double)(cpu_ns - of->cpu_ns);
    of->clock_ns = clock_ns;
    of->cpu_ns = cpu_ns;
    if (of->left_ns > -least_ns) return;
    struct timespec until = at(clock_ns + (uint64_t)(-of->left_ns / heap->share));
    pthread_cond_timedwait(&heap->wake, &heap->mutex, &until);
  }
}

/* Until one that was in a call has scanned its memory, or for a while. */
static void wait_for_guests(shi_heap *heap) {
  struct timespec until = at(shi_now_ns() + 500000);
  pthread_cond_timedwait(&heap->wake, &heap->mutex, &until);
}

/* False: the heap is about to go, or the process. */
static bool mark_at_its_pace(shi_heap *heap) {
  pace so_far = {.clock_ns = shi_now_ns(), .cpu_ns = shi_thread_cpu_ns()};
  for (;;) {
    if (shi_mark(heap, MARK_SLICE)) {
      if (shi_mark_finish(heap) == SH_OK) return true;
      shi_error_forget();
    }
    pthread_mutex_lock(&heap->mutex);
    bool idle = heap->scan_work_bytes == so_far.work_bytes;
    so_far.work_bytes = heap->scan_work_bytes;
    shi_cycle_pace(heap);
    if (idle && heap->asked_in == heap->cycle && !ends(heap)) wait_for_guests(heap);
    sleep_if_ahead(heap, &so_far);
    bool over = ends(heap), elsewhere = heap->phase != SHI_HEAP_MARKING;
    pthread_mutex_unlock(&heap->mutex);
    if (over) return false;
    if (elsewhere) return true; /* somebody steps through it as well */
  }
}

static void run_cycle(shi_heap *heap) {
  if (!mark_at_its_pace(heap)) return;
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
  }
  pthread_mutex_unlock(&heap->mutex);
  return NULL;
}

int shi_cycle_thread_begin(shi_heap *heap) {
  int error = heap->has_thread ? 0 : shi_os_thread_start(&heap->thread, "sandhost-marker", run, heap);
  heap->has_thread = error == 0;
  return error;
}

int shi_cycle_start(shi_heap *heap) {
  shi_heap_lock(heap);
  bool free_to_run = !heap->asked && heap->phase == SHI_HEAP_IDLE && !heap->stop;
  int error = free_to_run ? shi_cycle_thread_begin(heap) : 0;
  if (free_to_run && !error) shi_cycle_begin(heap, SH_CYCLE_ASKED);
  shi_heap_unlock(heap);
  if (error) return shi_fail_native(error);
  return free_to_run ? SH_OK : shi_fail(SH_BUSY, "a collection is under way");
}

void shi_cycle_set_share(shi_heap *heap, double share) {
  static const double least = 0.01; /* so that every cycle ends */
  bool more = share > heap->share;
  heap->share = share < least ? least : share > 1 ? 1 : share;
  if (more) pthread_cond_signal(&heap->wake); /* it may sleep for less */
}

bool shi_cycle_wait(shi_heap *heap, uint64_t timeout_ns) {
  uint64_t now_ns = shi_now_ns();
  struct timespec until = at(timeout_ns < UINT64_MAX / 2 ? now_ns + timeout_ns : UINT64_MAX / 2);
  shi_heap_lock(heap);
  int error = 0;
  uint64_t number = heap->cycle; /* the next one may have begun before we wake up */
  while (heap->asked && heap->cycle == number && error == 0)
    error = pthread_cond_timedwait(&heap->done, &heap->mutex, &until);
  bool done = !heap->asked || heap->cycle != number;
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
