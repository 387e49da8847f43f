/* When a cycle of the heap's own thread begins, and what is known of it.
 *
 *            live bytes   ────────────► trigger ── marking, assists ──► goal ── sweep ──► left
 *   begins   whoever allocates past the trigger       Python, or the next one by itself ◄──┘
 *
 * The goal is Python's pacer's, which answers as late as the interpreter's lock lets it: beside threads that keep that lock,
 * after tens of milliseconds, in which guests allocate on. So whoever allocates past the trigger begins the cycle there and
 * then, which takes a fraction of a microsecond, and wakes the thread; and until Python has said what it wants,
 *
 *   goal           min(what is left * (1 + growth), at least `minimum`; at most `ceiling`)
 *   trigger        45/64 of the way there: the earliest that the pacer would choose (gc/goals.py)
 *   assist ratio   what there is left to read by the goal left to allocate (gc/effort.py); what the last cycle read is
 *                  expected, and all there can be once that is exceeded or the goal is
 *
 * which errs on the side of too early. A heap that fills its ceiling by itself rests as long as its last cycle took.
 * Every cycle of the thread's leaves a record, which Python takes into its own account, in order, when it comes to it.
 */
#include "bridge.h"
#include "heap.h"

enum { UNKNOWN_CELL_BYTES = 128 }; /* to read one, until a cycle has shown it; as in gc/cycle.py */

void shi_heap_figures(const shi_heap *heap, uint64_t *out) {
  const uint64_t figures[SH_HEAP_FIGURES] = {
      heap->live_bytes,      heap->live_cells,
      heap->goal_bytes,      heap->allocs,
      heap->frees,           heap->alloc_bytes,
      heap->free_bytes,      heap->marked_bytes,
      heap->scan_work_bytes, heap->roots_bytes,
      heap->assist_ns,       heap->mark_ns,
      heap->sweep_ns,        atomic_load(&heap->longest_stop_ns),
      heap->cycles,          (uint64_t)heap->phase,
      heap->dropped_count,   heap->peak_bytes,
      heap->marking_ns,      heap->cycle,
  };
  for (uint32_t k = 0; k < SH_HEAP_FIGURES; k++) out[k] = figures[k];
}

static sh_heap_cycle *newest(shi_heap *heap) {
  return &heap->cycles_of_thread[(heap->first_unknown + heap->unknown_count - 1) % SHI_UNKNOWN_MOST];
}

/* ---- a cycle ---------------------------------------------------------------------------------------------------------- */

void shi_cycle_begin(shi_heap *heap, uint32_t reason) {
  if (heap->unknown_count == SHI_UNKNOWN_MOST) { /* who asks for all these does not want to know */
    heap->first_unknown = (heap->first_unknown + 1) % SHI_UNKNOWN_MOST;
    heap->unknown_count--;
  }
  heap->unknown_count++;
  sh_heap_cycle *record = newest(heap);
  *record = (sh_heap_cycle){.began_ns = shi_now_ns(), .trigger = heap->trigger_bytes, .reason = reason};
  shi_heap_figures(heap, record->before);
  shi_mark_turn(heap);
  record->number = heap->cycle;
  heap->asked = true;
  shi_cycle_pace(heap);
  pthread_cond_signal(&heap->wake);
}

static void set_own_goal(shi_heap *heap) {
  const sh_heap_plan *plan = &heap->plan;
  double left = (double)heap->left_bytes, most = 0x1p63;
  double wanted = plan->growth < 0 ? most : left + (left + (double)heap->roots_bytes) * plan->growth;
  uint64_t goal = wanted < most ? (uint64_t)wanted : UINT64_MAX;
  uint64_t ceiling = plan->ceiling > heap->left_bytes ? plan->ceiling : heap->left_bytes;
  if (goal < plan->minimum) goal = plan->minimum;
  heap->limited = ceiling < goal;
  if (heap->limited) goal = ceiling;
  heap->goal_bytes = goal;
  heap->trigger_bytes = goal == UINT64_MAX ? goal : heap->left_bytes + (goal - heap->left_bytes) / 64 * 45;
}

void shi_cycle_over(shi_heap *heap) {
  heap->phase = SHI_HEAP_IDLE;
  heap->cycles++;
  shi_event_cycle_end(heap->events, heap->cycle, heap->live_bytes, heap->live_cells);
  heap->left_bytes = heap->live_bytes;
  heap->left_work_bytes = heap->scan_work_bytes;
  heap->assist_ratio = 0;
  if (heap->asked) {
    sh_heap_cycle *record = newest(heap);
    record->ended_ns = shi_now_ns();
    shi_heap_figures(heap, record->after);
    heap->asked = false;
    pthread_cond_broadcast(&heap->done);
  }
  if (!heap->plan.begins) return;
  set_own_goal(heap);
  if (heap->limited && heap->goal_bytes == heap->left_bytes)
    heap->rest_until_ns = 2 * shi_now_ns() - heap->marking_since_ns;
  shi_look_at_trigger(heap);
}

void shi_cycle_pace(shi_heap *heap) {
  static const double least_work = 1000, late = 1.1;
  if (heap->phase != SHI_HEAP_MARKING || heap->paced_in == heap->cycle || !heap->asked || !heap->plan.begins) return;
  double live = (double)heap->live_bytes, goal = (double)heap->goal_bytes, work = (double)heap->scan_work_bytes;
  double worst = (double)heap->live_cells * UNKNOWN_CELL_BYTES, expected = worst;
  if (heap->left_work_bytes) {
    expected = (double)heap->left_work_bytes;
    worst = expected * (heap->left_bytes ? live / (double)heap->left_bytes : 1);
  }
  if (work > expected || live > goal) expected = worst;
  if (live > goal && !heap->limited) goal *= late;
  double left = expected - work > least_work ? expected - work : least_work;
  heap->assist_ratio = left / (goal - live > 1 ? goal - live : 1);
}

/* ---- who begins it ---------------------------------------------------------------------------------------------------- */

static bool begins(const shi_heap *heap) {
  return heap->plan.begins && heap->has_thread && !heap->asked && !heap->stop &&
         heap->unknown_count < SHI_UNKNOWN_MOST && shi_now_ns() >= heap->rest_until_ns;
}

void shi_trigger_reached(shi_heap *heap) {
  if (begins(heap)) {
    shi_cycle_begin(heap, heap->limited ? SH_CYCLE_LIMIT : SH_CYCLE_GOAL);
    atomic_store(&heap->tells, true);
  } else if (!atomic_exchange_explicit(&heap->wants_cycle, true, memory_order_relaxed)) {
    atomic_store(&heap->tells, true);
  }
}

void shi_cycle_take_plan(shi_heap *heap, const sh_heap_plan *plan) {
  bool marking = heap->phase == SHI_HEAP_MARKING, idle = heap->phase == SHI_HEAP_IDLE;
  bool timely = plan->as_of == UINT64_MAX || plan->as_of == 2 * heap->cycle - !idle;
  heap->plan = *plan;
  shi_cycle_set_share(heap, plan->cores);
  if (timely) {
    heap->goal_bytes = plan->goal;
    heap->trigger_bytes = plan->trigger;
    heap->assist_ratio = plan->assist_ratio;
    heap->limited = plan->limited;
    if (marking) heap->paced_in = heap->cycle;
  } else if (idle && plan->begins) {
    set_own_goal(heap); /* the settings may be others */
  }
  atomic_store(&heap->wants_cycle, false);
  shi_look_at_trigger(heap);
  if (heap->dropped_count < SHI_DROPPED_MANY) atomic_store(&heap->tells, false); /* who sets it sees the figures */
}
