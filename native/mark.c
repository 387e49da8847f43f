/* Marking: from the roots along all edges, in slices, while the guests go on.
 *
 *   begin    all cells turn white
 *   walk     over the table: roots are shaded (and all cells of a holder that could not be scanned)
 *   drain    grey cells: what they refer to is shaded, they are black. Those that the stack had no memory for are found
 *            by another walk
 *   scan     the memory of each holder that does not release by hand, while no call is in it. Those that are in a call
 *            scan it themselves when it ends, if that is soon; else they keep all they own for this cycle, and the walk
 *            begins again
 *   over     when there is nothing left of any of them, under one hold of the lock
 *
 * Work is counted in bytes read: WALK for a cell passed by, VISIT for a grey one, EDGE for an edge.
 */
#include <stdlib.h>

#include "bridge.h"
#include "heap.h"

enum { WALK = 16, VISIT = 48, EDGE = 8 };
enum { EDGES_AT_ONCE = 64, WALKED_AT_ONCE = 64 };

/* ---- the stack of grey cells: parts, so that it grows without copying ----------------------------------------------- */

enum { PART = 4094 };
struct shi_stack_part {
  shi_stack_part *below;
  uint32_t used, spare;
  uint32_t cells[PART];
};

static bool push(shi_stack *stack, uint32_t index) {
  shi_stack_part *top = stack->top;
  if (!top || top->used == PART) {
    shi_stack_part *part = stack->spare ? stack->spare : malloc(sizeof *part);
    if (!part) return false;
    stack->spare = NULL;
    part->below = top;
    part->used = 0;
    stack->top = top = part;
  }
  top->cells[top->used++] = index;
  return true;
}

static bool pop(shi_stack *stack, uint32_t *index) {
  shi_stack_part *top = stack->top;
  if (!top) return false;
  *index = top->cells[--top->used];
  if (top->used == 0) {
    stack->top = top->below;
    free(stack->spare);
    stack->spare = top;
  }
  return true;
}

void shi_stack_free(shi_stack *stack) {
  uint32_t index;
  while (pop(stack, &index)) {
  }
  free(stack->spare);
  stack->spare = NULL;
}

/* ---- shading ---------------------------------------------------------------------------------------------------------- */

static void grey(shi_heap *heap, shi_hot *cell, uint32_t index) {
  cell->mark = heap->mark;
  heap->marked_bytes += cell->size;
  if (!cell->edged) return;
  cell->grey = 1;
  if (!push(&heap->stack, index)) heap->overflow = true; /* the walk will find it */
}

void shi_shade(shi_heap *heap, uint32_t index) {
  shi_hot *cell = &heap->hot[index];
  if (shi_is_white(heap, cell)) grey(heap, cell, index);
}

void shi_shade_handle(shi_heap *heap, uint64_t handle) {
  uint32_t index = shi_index_of(handle);
  if (!handle) return;
  shi_hot *cell = &heap->hot[index];
  if (cell->tag == shi_tag_of(handle) && shi_is_white(heap, cell)) grey(heap, cell, index);
}

static bool scanned(const shi_heap *heap, const shi_holder *holder) {
  return !holder->scans || holder->scanned_in == heap->cycle;
}

void shi_barrier_store(shi_heap *heap, uint32_t index) {
  if (heap->phase == SHI_HEAP_MARKING && !scanned(heap, heap->holders[heap->hot[index].owner])) shi_shade(heap, index);
}

/* ---- the stages -------------------------------------------------------------------------------------------------------- */

static uint64_t walk(shi_heap *heap) {
  uint32_t end = heap->cursor + WALKED_AT_ONCE < heap->walk_end ? heap->cursor + WALKED_AT_ONCE : heap->walk_end;
  uint64_t work = (uint64_t)(end - heap->cursor) * WALK;
  for (; heap->cursor < end; heap->cursor++) {
    shi_hot *cell = &heap->hot[heap->cursor];
    if (cell->tag >> 24 == 0) continue;
    if (cell->root || heap->holders[cell->owner]->kept_in == heap->cycle) shi_shade(heap, heap->cursor);
    if (__builtin_expect(heap->regrey && cell->grey, 0) && !push(&heap->stack, heap->cursor)) heap->overflow = true;
  }
  return work;
}

/* The cell to be visited; one that will be in a while has its edges fetched. False: none is left. */
static bool next_visit(shi_heap *heap, uint32_t *index) {
  shi_ahead *ahead = &heap->ahead;
  while (ahead->visit_count < SHI_VISITS_AHEAD && pop(&heap->stack, index)) {
    ahead->visits[(ahead->first_visit + ahead->visit_count++) % SHI_VISITS_AHEAD] = *index;
    __builtin_prefetch(&heap->cold[*index]);
  }
  if (ahead->visit_count == 0) return false;
  if (ahead->visit_count > SHI_VISITS_AHEAD / 2) {
    uint32_t later = ahead->visits[(ahead->first_visit + SHI_VISITS_AHEAD / 2) % SHI_VISITS_AHEAD];
    if (heap->hot[later].edged) __builtin_prefetch(heap->cold[later].edges);
  }
  *index = ahead->visits[ahead->first_visit];
  ahead->first_visit = (ahead->first_visit + 1) % SHI_VISITS_AHEAD;
  ahead->visit_count--;
  return true;
}

static void follow_later(shi_heap *heap, uint64_t handle) {
  shi_ahead *ahead = &heap->ahead;
  uint64_t *entry = &ahead->edges[ahead->next_edge];
  __builtin_prefetch(&heap->hot[shi_index_of(handle)]);
  if (*entry) shi_shade_handle(heap, *entry);
  ahead->edge_count += (handle != 0) - (uint32_t)(*entry != 0);
  *entry = handle;
  ahead->next_edge = (ahead->next_edge + 1) % SHI_EDGES_AHEAD;
}

static uint64_t drain(shi_heap *heap) {
  uint64_t work = 0;
  if (heap->partial_left == 0) {
    uint32_t index;
    work = VISIT;
    if (!next_visit(heap, &index)) {
      for (int k = 0; k < SHI_EDGES_AHEAD; k++) follow_later(heap, 0);
      return work;
    }
    if (!heap->hot[index].grey) return work; /* freed meanwhile */
    heap->hot[index].grey = 0;
    heap->partial = index;
    heap->partial_left = heap->cold[index].edges->count;
  }
  const shi_edges *edges = heap->cold[heap->partial].edges;
  if (heap->partial_left > edges->count) heap->partial_left = edges->count; /* some were taken off the end */
  uint32_t left = heap->partial_left, end = left > EDGES_AT_ONCE ? left - EDGES_AT_ONCE : 0;
  work += (uint64_t)(left - end) * EDGE;
  for (; left > end; left--) follow_later(heap, edges->to[left - 1]);
  heap->partial_left = end;
  return work;
}

static bool drained(const shi_heap *heap) {
  return heap->partial_left == 0 && heap->stack.top == NULL && heap->ahead.visit_count == 0 &&
         heap->ahead.edge_count == 0;
}

static shi_holder *next_to_scan(shi_heap *heap) {
  for (; heap->scan_cursor < heap->holder_count; heap->scan_cursor++) {
    shi_holder *holder = heap->holders[heap->scan_cursor];
    if (holder && !holder->closed && holder->kept_in != heap->cycle && !scanned(heap, holder)) return holder;
  }
  return NULL;
}

/* Everything but the memory of guests. 0: nothing is left of it. */
static uint64_t walk_or_drain(shi_heap *heap) {
  if (heap->cursor < heap->walk_end) return walk(heap);
  if (!drained(heap)) return drain(heap);
  if (!heap->overflow) return 0;
  heap->overflow = false;
  heap->regrey = true;
  heap->cursor = 0;
  return WALK;
}

/* A cycle that somebody runs step by step waits for nobody. */
static bool is_waited_for(shi_heap *heap) {
  static const uint64_t patience_ns = 10000000; /* for all guests of a cycle. Arbitrary */
  if (!heap->asked) return false;
  if (heap->asked_in != heap->cycle) {
    heap->asked_in = heap->cycle;
    heap->asked_until_ns = shi_now_ns() + patience_ns;
  }
  return shi_now_ns() < heap->asked_until_ns;
}

/* 0: there is nothing to do but to wait. */
static uint64_t scan_or_keep(shi_heap *heap, shi_holder *holder) {
  if (atomic_load(&holder->calls) % 2 == 0) return shi_scan_slice(heap, holder);
  if (is_waited_for(heap)) return 0;
  holder->kept_in = heap->cycle;
  heap->cursor = 0;
  return WALK;
}

void shi_scan_own(shi_holder *holder) {
  static const uint64_t most_ns = 150000;
  shi_heap *heap = holder->heap;
  uint64_t cycle = heap->cycle, begun_ns = shi_now_ns();
  if (scanned(heap, holder) || holder->kept_in == cycle) return;
  do {
    if (heap->scanning) return; /* by the thread, which began between two calls */
    heap->scan_work_bytes += shi_scan_slice(heap, holder);
  } while (heap->phase == SHI_HEAP_MARKING && heap->cycle == cycle && !holder->closed && !scanned(heap, holder) &&
           holder->kept_in != cycle && shi_now_ns() - begun_ns < most_ns);
  pthread_cond_signal(&heap->wake);
}

/* ---- a cycle ---------------------------------------------------------------------------------------------------------- */

void shi_mark_turn(shi_heap *heap) {
  heap->phase = SHI_HEAP_MARKING;
  heap->cycle++;
  heap->mark = !heap->mark;
  heap->cursor = 0;
  heap->walk_end = heap->count;
  heap->overflow = heap->regrey = false;
  heap->partial_left = 0;
  heap->marked_bytes = heap->scan_work_bytes = heap->roots_bytes = 0;
  heap->credit = 0;
  heap->marking_since_ns = shi_now_ns();
  heap->scan_cursor = 0;
  atomic_store_explicit(&heap->wants_cycle, false, memory_order_relaxed);
  shi_event_cycle_begin(heap->events, heap->cycle, heap->live_bytes, heap->live_cells);
}

int shi_mark_begin(shi_heap *heap) {
  shi_heap_lock(heap);
  bool idle = heap->phase == SHI_HEAP_IDLE;
  if (idle) shi_mark_turn(heap);
  shi_heap_unlock(heap);
  return idle ? SH_OK : shi_fail(SH_BUSY, "a collection is under way");
}

/* A step of any kind. 0: marking is over, or waits for a guest or for another thread. */
static uint64_t step(shi_heap *heap, bool *over) {
  uint64_t work = walk_or_drain(heap);
  if (work) return work;
  shi_holder *holder = next_to_scan(heap);
  if (heap->scanning) return 0;
  *over = !holder;
  return holder ? scan_or_keep(heap, holder) : 0;
}

bool shi_mark(shi_heap *heap, uint64_t budget) {
  uint64_t begun_ns = shi_thread_cpu_ns();
  pthread_mutex_lock(&heap->mutex);
  bool over = heap->phase != SHI_HEAP_MARKING;
  for (uint64_t done = 0; !over && done < budget;) {
    uint64_t work = step(heap, &over);
    if (work == 0) break;
    done += work;
    heap->scan_work_bytes += work;
    heap->credit += (double)work;
    if (shi_heap_wanted(heap)) shi_heap_let_in(heap);
    over = heap->phase != SHI_HEAP_MARKING; /* a guest has done the rest */
  }
  heap->mark_ns += shi_thread_cpu_ns() - begun_ns;
  pthread_mutex_unlock(&heap->mutex);
  return over;
}

static bool finish(shi_heap *heap) {
  bool over = heap->phase == SHI_HEAP_MARKING && heap->cursor >= heap->walk_end && drained(heap) && !heap->overflow &&
              !heap->scanning && !next_to_scan(heap);
  if (!over) return false;
  heap->phase = SHI_HEAP_SWEEPING;
  heap->peak_bytes = heap->live_bytes;
  uint64_t ns = shi_now_ns() - heap->marking_since_ns;
  heap->marking_ns += ns;
  shi_event_mark_done(heap->events, heap->cycle, heap->live_bytes, heap->live_cells, ns);
  heap->cursor = 0;
  heap->walk_end = heap->count;
  return true;
}

int shi_mark_finish(shi_heap *heap) {
  shi_heap_lock(heap);
  bool over = finish(heap);
  shi_heap_unlock(heap);
  return over ? SH_OK : shi_fail(SH_BUSY, "marking is not over");
}

/* ---- assists ---------------------------------------------------------------------------------------------------------- */

/* Bytes of scan work: at least so much at once that the lock is worth it, at most what takes 100 us or so. */
static const double assist_least = 4096, assist_most = 128 << 10;

bool shi_assist_owed(shi_holder *holder, uint64_t bytes) {
  shi_heap *heap = holder->heap;
  if (holder->assists_in != heap->cycle) {
    holder->assists_in = heap->cycle;
    holder->assist_owed = 0;
  }
  holder->assist_owed += (double)bytes * heap->assist_ratio;
  if (holder->assist_owed < assist_least) return false;
  double paid = holder->assist_owed < heap->credit ? holder->assist_owed : heap->credit;
  heap->credit -= paid;
  holder->assist_owed -= paid;
  return holder->assist_owed >= assist_least;
}

void shi_mark_assist(shi_holder *holder) {
  shi_heap *heap = holder->heap;
  uint64_t begun_ns = shi_now_ns(), done = 0;
  shi_heap_lock(heap);
  if (heap->phase == SHI_HEAP_MARKING && holder->assists_in == heap->cycle) {
    uint64_t cpu_ns = shi_thread_cpu_ns(), work = 1;
    double share = holder->assist_owed < assist_most ? holder->assist_owed : assist_most;
    uint64_t cycle = heap->cycle;
    bool over = false;
    while ((double)done < share && work && heap->phase == SHI_HEAP_MARKING && heap->cycle == cycle) {
      work = step(heap, &over);
      done += work;
      heap->scan_work_bytes += work;
    }
    holder->assist_owed = work ? holder->assist_owed - (double)done : 0;
    /* The thread may have to wait long for a processor, and nothing is left that could make guests wait for it. */
    if (over && heap->asked) finish(heap);
    cpu_ns = shi_thread_cpu_ns() - cpu_ns;
    heap->assist_ns += cpu_ns;
    holder->assist_ns += cpu_ns;
    uint64_t ns = shi_now_ns() - begun_ns, longest = atomic_load_explicit(&heap->longest_stop_ns, memory_order_relaxed);
    if (ns > longest) atomic_store_explicit(&heap->longest_stop_ns, ns, memory_order_relaxed);
    SHI_PROBE(gc_assist, holder->guest, done, ns);
  }
  shi_heap_unlock(heap);
}
