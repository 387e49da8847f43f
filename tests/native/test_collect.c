/* The collector: what can be reached stays, what cannot goes, whatever guests do in between. */
#include <stdatomic.h>
#include <string.h>

#include "bridge.h"
#include "check.h"
#include "heap.h"

enum { KIND = SHI_KIND_FIRST };
static const uint64_t no_limit = UINT64_MAX;

static shi_account host_handles = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_HOST};
static shi_account host_bytes = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_HOST};
static shi_heap *heap;
static shi_holder *holder;

static uint8_t memory[1 << 20] __attribute__((aligned(4096)));
static uint64_t memory_bytes = sizeof memory;

static bool piece(void *context, uint32_t k, const uint8_t **base, uint64_t *bytes) {
  (void)context;
  *base = memory;
  *bytes = memory_bytes;
  return k == 0;
}

static shi_holder *new_holder(bool scans) {
  const shi_holder_request request = {
      .scans = scans, .pieces = piece, .global_count = 1, .handles_limit = no_limit, .bytes_limit = no_limit};
  shi_holder *made = shi_holder_new(heap, &request);
  CHECK(made);
  return made;
}

static void open_heap(bool scans) {
  CHECK_EQ(shi_heap_create(&host_handles, &host_bytes, &heap), SH_OK);
  memset(memory, 0, sizeof memory);
  holder = new_holder(scans);
}

static void close_heap(void) {
  shi_heap_lock(heap);
  shi_heap_check(heap);
  shi_heap_unlock(heap);
  shi_holder_close(holder);
  CHECK_EQ(heap->live_cells, 0);
  CHECK_EQ(host_handles.used, 0);
  CHECK_EQ(host_bytes.used, 0);
  shi_heap_destroy(heap);
}

static uint64_t cell(void) {
  const shi_cell_request request = {.kind = KIND, .size = 16, .object = SHI_NONE};
  uint64_t handle;
  CHECK_EQ(shi_cell_new(holder, &request, &handle), SH_OK);
  return handle;
}

static uint64_t list(void) {
  uint64_t handle;
  CHECK_EQ(shi_list_new(holder, 0, &handle), SH_OK);
  return handle;
}

static void push(uint64_t to, uint64_t entry) { CHECK_EQ(shi_list_push(heap, holder, to, entry), SH_OK); }
static void release(uint64_t handle) {
  uint32_t left;
  CHECK_EQ(shi_cell_release(heap, holder, handle, &left), SH_OK);
}

static void call_ends(void) {
  *shi_holder_new_globals(holder) = 0;
  shi_holder_call_ends(holder);
}

static bool lives(uint64_t handle) {
  uint64_t size;
  bool found = shi_cell_size(heap, NULL, handle, &size) == SH_OK;
  if (!found) shi_error_forget();
  return found;
}

static void mark_all(void) {
  while (!shi_mark(heap, 4096)) {
  }
}

static void sweep_all(void) {
  CHECK_EQ(shi_mark_finish(heap), SH_OK);
  while (!shi_sweep(heap, 100)) {
  }
  shi_heap_lock(heap);
  shi_heap_check(heap);
  shi_heap_unlock(heap);
}

static void collect(void) {
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  mark_all();
  sweep_all();
}

static void cycles_are_collected(void) {
  open_heap(false);
  uint64_t a = list(), b = list();
  push(a, b);
  push(b, a);
  release(a);
  collect();
  CHECK(lives(a) && lives(b)); /* b is retained, and refers to a */
  release(b);
  collect();
  CHECK(!lives(a) && !lives(b));
  close_heap();
}

static void pins_are_roots(void) {
  open_heap(false);
  uint64_t a = list(), b = cell();
  push(a, b);
  CHECK_EQ(shi_cell_pin(heap, a, 1), SH_OK);
  release(a);
  release(b);
  collect();
  CHECK(lives(b));
  CHECK_EQ(shi_cell_pin(heap, a, -1), SH_OK);
  CHECK_EQ(shi_cell_pin(heap, a, -1), SH_INVALID_HANDLE);
  collect();
  CHECK(!lives(a) && !lives(b));
  close_heap();
}

static void a_weak_handle_keeps_nothing(void) {
  open_heap(false);
  uint64_t a = list(), in = list(), weak, again;
  push(in, a);
  CHECK_EQ(shi_cell_weak(heap, holder, a, &weak), SH_OK);
  release(a);
  collect();
  CHECK_EQ(shi_cell_retain(heap, holder, weak, &again), SH_OK);
  CHECK_EQ(again, a);
  release(a);
  release(in);
  collect();
  CHECK(!lives(a));
  CHECK_EQ(shi_cell_retain(heap, holder, weak, &again), SH_OK);
  CHECK_EQ(again, 0);
  close_heap();
}

static void what_a_weak_handle_gives_while_marking_stays(void) {
  open_heap(false);
  uint64_t a = cell(), b = list(), weak, again;
  push(b, a);
  CHECK_EQ(shi_cell_weak(heap, holder, a, &weak), SH_OK);
  release(a);
  release(b);
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  mark_all();
  CHECK_EQ(shi_cell_retain(heap, holder, weak, &again), SH_OK);
  CHECK_EQ(again, a);
  sweep_all();
  CHECK(lives(a) && !lives(b));
  close_heap();
}

/* A cycle in which the marker has been at `behind`, and at none of the cells that are made after this. */
static void begin_past(uint64_t behind) {
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  CHECK(!shi_mark(heap, 1)); /* the walk has found it ... */
  shi_heap_lock(heap);
  CHECK(!shi_is_white(heap, &heap->hot[shi_index_of(behind)]));
  heap->hot[shi_index_of(behind)].grey = 0; /* ... and say that its edges were followed at once */
  shi_heap_unlock(heap);
}

static void make_a_gap(void) {
  for (int k = 0; k < SHI_QUARANTINE; k++) release(cell());
}

/* The barrier, for edges: the only one to a cell moves from where the marker is yet to come to where it has been. */
static void an_edge_that_moves_behind_the_marker_is_not_lost(void) {
  open_heap(false);
  uint64_t behind = cell(), other = cell();
  CHECK_EQ(shi_link(heap, holder, behind, other), SH_OK);
  make_a_gap();
  uint64_t ahead = cell(), moved = cell();
  CHECK_EQ(shi_link(heap, holder, ahead, moved), SH_OK);
  release(moved);
  begin_past(behind);
  CHECK_EQ(shi_link(heap, holder, behind, moved), SH_OK);
  CHECK_EQ(shi_unlink(heap, holder, ahead, moved), SH_OK);
  CHECK_EQ(shi_unlink(heap, holder, ahead, moved), SH_ARGUMENT);
  mark_all();
  sweep_all();
  CHECK(lives(moved));
  close_heap();
}

/* The same for roots. */
static void a_root_that_becomes_an_edge_behind_the_marker_is_not_lost(void) {
  open_heap(false);
  uint64_t behind = list();
  push(behind, 0);
  make_a_gap();
  uint64_t moved = cell();
  begin_past(behind);
  push(behind, moved);
  release(moved);
  mark_all();
  sweep_all();
  CHECK(lives(moved));
  close_heap();
}

static void what_is_born_while_marking_stays(void) {
  open_heap(false);
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  mark_all();
  uint64_t young = cell(), kept = list();
  sweep_all();
  CHECK(lives(young) && lives(kept));
  close_heap();
}

static void a_long_list_is_marked_in_steps_while_it_changes(void) {
  open_heap(false);
  uint64_t long_list = list(), other = list(), out;
  enum { ENTRIES = 20000 };
  static uint64_t entries[ENTRIES];
  for (int k = 0; k < ENTRIES; k++) push(long_list, entries[k] = cell()), release(entries[k]);
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  int steps = 0;
  for (; !shi_mark(heap, 3000); steps++) {
    if (steps % 3 == 0 && shi_list_pop(heap, holder, long_list, &out) == SH_OK) push(other, out), release(out);
    if (steps % 3 == 1) CHECK_EQ(shi_list_set(heap, holder, long_list, (uint64_t)steps, entries[2]), SH_OK);
    if (steps % 3 == 2) push(long_list, entries[1]);
  }
  CHECK(steps > 50);
  sweep_all();
  for (int k = 0; k < ENTRIES; k++) CHECK(lives(entries[k])); /* the snapshot held all of them */
  close_heap();
}

static void store(uint64_t at, uint64_t handle) { memcpy(memory + at, &handle, sizeof handle); }

static void handles_in_memory_are_roots_of_who_does_not_release(void) {
  open_heap(true);
  shi_holder_call_begins(holder);
  uint64_t kept = list(), inner = cell(), lost = cell(), in_global = cell();
  push(kept, inner);
  store(0x8000, kept);
  store(0x8008, lost ^ UINT64_C(1) << 32); /* another generation */
  collect();
  CHECK(lives(lost)); /* in flight */
  *shi_holder_new_globals(holder) = in_global;
  shi_holder_call_ends(holder);
  collect();
  CHECK(lives(kept) && lives(inner) && lives(in_global) && !lives(lost));
  store(0x8000, 0);
  collect();
  CHECK(!lives(kept) && !lives(inner));
  close_heap();
}

/* A call that stands still holds what is in memory, globals and its stack; what it was given and has nowhere goes. */
static void a_call_that_stands_is_scanned_with_its_stack(void) {
  static uint64_t stack[64] __attribute__((aligned(4096)));
  open_heap(true);
  shi_holder_call_begins(holder);
  uint64_t in_memory = list(), on_stack = list(), inner = cell(), in_global = cell(), lost = cell();
  push(on_stack, inner);
  store(64, in_memory);
  stack[63] = on_stack;
  *shi_holder_new_globals(holder) = in_global;
  shi_holder_call_stands(holder, (const uint8_t *)stack, sizeof stack, true);
  collect(); /* the walk finds all of it in flight, and the scan lets that go */
  collect();
  CHECK(lives(in_memory) && lives(on_stack) && lives(inner) && lives(in_global) && !lives(lost));
  shi_holder_call_goes_on(holder);
  stack[63] = 0;
  uint64_t young = cell();
  collect();
  CHECK(lives(on_stack) && lives(young)); /* now it runs, and keeps all it owns */
  shi_holder_call_stands(holder, (const uint8_t *)stack, sizeof stack, true);
  collect();
  collect();
  CHECK(lives(in_memory) && !lives(on_stack) && !lives(inner) && !lives(young));
  shi_holder_call_goes_on(holder);
  call_ends();
  store(64, 0);
  collect();
  CHECK_EQ(heap->live_cells, 0);
  close_heap();
}

static void what_the_host_got_by_number_stays_while_a_call_stands(void) {
  static uint64_t stack[8] __attribute__((aligned(4096)));
  open_heap(true);
  for (int way = 0; way < 3; way++) {
    shi_holder_call_begins(holder);
    uint64_t handle = cell(), out;
    if (way == 1) CHECK_EQ(shi_cell_lend(heap, handle), SH_OK);
    shi_holder_call_stands(holder, (const uint8_t *)stack, sizeof stack, way != 0);
    if (way == 2) CHECK_EQ(shi_cell_retain(heap, NULL, handle, &out), SH_OK);
    collect();
    collect();
    CHECK(lives(handle));
    shi_holder_call_goes_on(holder);
    call_ends();
    collect();
    CHECK(!lives(handle));
  }
  close_heap();
}

static void a_call_that_looks_up_scans_itself(void) {
  static uint64_t stack[64] __attribute__((aligned(4096)));
  open_heap(true);
  memory_bytes = 64 << 10; /* more than a call reads while it stands would be kept */
  shi_holder_call_begins(holder);
  uint64_t kept = cell(), lost = cell();
  stack[1] = kept;
  for (int tries = 0; tries < 1000 && lives(lost); tries++) {
    CHECK_EQ(shi_cycle_start(heap), SH_OK);
    while (!shi_cycle_wait(heap, 1000000))
      if (shi_holder_is_waited_for(holder))
        shi_holder_scan_standing(holder, (const uint8_t *)stack, sizeof stack, true);
  }
  CHECK(lives(kept) && !lives(lost));
  call_ends();
  stack[1] = 0;
  collect();
  CHECK(!lives(kept));
  memory_bytes = sizeof memory;
  close_heap();
}

static void a_guest_in_a_call_keeps_all_it_owns(void) {
  open_heap(true);
  uint64_t handle = cell();
  shi_holder_call_begins(holder);
  call_ends(); /* what was lent to the call has landed */
  shi_holder_call_begins(holder);
  collect();
  CHECK(lives(handle));
  call_ends();
  collect();
  CHECK(!lives(handle));
  close_heap();
}

/* The hybrid part of the barrier: it was only in memory, is moved into a cell that is black, and gone from memory before
 * the scan. */
static void what_moves_from_memory_into_a_black_cell_is_not_lost(void) {
  open_heap(true);
  uint64_t black = list(), moved = cell();
  CHECK_EQ(shi_cell_pin(heap, black, 1), SH_OK);
  store(64, moved);
  shi_holder_call_begins(holder);
  call_ends();
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  shi_holder_call_begins(holder);
  push(black, moved);
  call_ends();
  shi_heap_lock(heap);
  heap->hot[shi_index_of(black)].mark = heap->mark; /* as if the marker had been there before the push */
  shi_heap_unlock(heap);
  store(64, 0);
  mark_all();
  sweep_all();
  CHECK(lives(moved));
  close_heap();
}

static void a_scan_that_a_call_interrupts_begins_again(void) {
  open_heap(true);
  uint64_t handle = cell();
  shi_holder_call_begins(holder);
  call_ends();
  store(sizeof memory - 8, handle);
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  for (memory[0] = 1; holder->scan_at == 0;) CHECK(!shi_mark(heap, 1)); /* in the middle of it */
  shi_holder_call_begins(holder);
  store(sizeof memory - 8, 0); /* moves to where the scan has been */
  store(0, handle);
  call_ends();
  mark_all();
  sweep_all();
  CHECK(lives(handle));
  close_heap();
}

static void words_are_found_as_one_by_one(void) {
  static uint64_t words[1000], found[1000];
  uint64_t seed = 99;
  for (int round = 0; round < 200; round++) {
    uint32_t count = round % 2 ? 1000 : 0x7fffffff;
    uint64_t length = (uint64_t)(round * 37 % 1000) * 8, wanted = 0;
    for (int k = 0; k < 1000; k++) {
      seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
      words[k] = seed % 3 == 0 ? 0 : seed % 3 == 1 ? seed : (seed & 0x7fffffff00000000) | seed % 2000;
    }
    for (uint64_t k = 0; k < length / 8; k++)
      wanted += (uint32_t)words[k] < count && words[k] >> 56 > 0 && words[k] >> 63 == 0;
    uint32_t got;
    CHECK_EQ(shi_scan_words((const uint8_t *)words, length, count, found, 1000, &got), length);
    CHECK_EQ(got, wanted);
  }
}

static void an_owner_that_closes_while_marking_takes_all_with_it(void) {
  open_heap(false);
  shi_holder *first = holder;
  uint64_t big = list();
  for (int k = 0; k < 5000; k++) push(big, cell());
  holder = new_holder(false);
  uint64_t stays = cell();
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  shi_mark(heap, 1);
  shi_holder_close(first);
  CHECK_EQ(heap->live_cells, 1);
  mark_all();
  sweep_all();
  CHECK(lives(stays));
  close_heap();
}

static void allocating_guests_do_their_share(void) {
  open_heap(false);
  for (int k = 0; k < 50000; k++) cell();
  shi_heap_lock(heap);
  heap->assist_ratio = 1000;
  shi_heap_unlock(heap);
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  for (int k = 0; k < 1000; k++) cell();
  CHECK(holder->assist_ns > 0);
  CHECK_EQ(holder->assist_ns, heap->assist_ns);
  CHECK_EQ(heap->cursor, heap->walk_end); /* they walked over all of it */
  mark_all();
  sweep_all();
  close_heap();
}

static void what_the_background_has_marked_is_taken_first(void) {
  open_heap(false);
  for (int k = 0; k < 50000; k++) cell();
  shi_heap_lock(heap);
  heap->assist_ratio = 100;
  shi_heap_unlock(heap);
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  shi_mark(heap, 400000);
  double before = heap->credit;
  CHECK(before >= 400000);
  for (int k = 0; k < 200; k++) cell(); /* 16 bytes each, so 320000 of work */
  CHECK_EQ(heap->assist_ns, 0);
  CHECK(heap->credit > before - 320001 && heap->credit < before - 300000);
  for (int k = 0; k < 200; k++) cell();
  CHECK(heap->credit < 4096 && heap->assist_ns > 0);
  mark_all();
  CHECK(heap->credit > 0); /* of this cycle, not of the next */
  sweep_all();
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  CHECK_EQ(heap->credit, 0);
  mark_all();
  sweep_all();
  close_heap();
}

/* ---- cycles that begin by themselves ------------------------------------------------------------------------------- */

static const sh_heap_plan no_plan = {
    .goal = UINT64_MAX, .trigger = UINT64_MAX, .cores = 1, .growth = -1, .ceiling = UINT64_MAX, .as_of = UINT64_MAX};

static void plan(sh_heap_plan wanted) { CHECK_EQ(sh_heap_set_plan(heap, &wanted), SH_OK); }

static void cells(uint64_t bytes) {
  for (uint64_t made = 0; made < bytes; made += 16) cell();
}

static sh_heap_cycle next_record(void) {
  sh_heap_cycle record;
  CHECK(sh_heap_get_cycle(heap, &record));
  CHECK(record.ended_ns >= record.began_ns);
  CHECK(record.after[0] == record.after[5] - record.after[6]); /* live == allocated - freed */
  sh_heap_forget_cycle(heap, record.number);
  return record;
}

static void wait_for_cycles(uint64_t count) {
  for (uint64_t done = 0; done < count;) {
    CHECK(shi_cycle_wait(heap, UINT64_C(60000000000)));
    shi_heap_lock(heap);
    done = heap->cycles;
    shi_heap_unlock(heap);
  }
}

static void a_cycle_begins_as_the_heap_passes_the_trigger(void) {
  sh_heap_plan wanted = no_plan;
  open_heap(false);
  wanted.goal = 100000, wanted.trigger = 64000, wanted.begins = 1;
  plan(wanted);
  cells(63984);
  CHECK_EQ(heap->cycle, 0);
  cell();
  CHECK_EQ(heap->cycle, 1); /* at once, not when a thread comes to it */
  wait_for_cycles(1);
  sh_heap_cycle record = next_record();
  CHECK_EQ(record.number, 1);
  CHECK_EQ(record.reason, SH_CYCLE_GOAL);
  CHECK_EQ(record.before[0], 64000);
  CHECK_EQ(record.trigger, 64000);
  CHECK(!sh_heap_get_cycle(heap, &record));
  CHECK_EQ(heap->trigger_bytes, UINT64_MAX); /* neither growth nor ceiling ask for another */
  close_heap();
}

/* What it goes by while nobody says anything: goals, triggers, reasons. */
static void cycle_follows_cycle_while_nobody_looks(void) {
  sh_heap_plan wanted = no_plan;
  open_heap(false);
  wanted.trigger = 64000, wanted.begins = 1, wanted.growth = 0.5, wanted.minimum = 80000;
  plan(wanted);
  cells(64000);
  wait_for_cycles(1);
  CHECK_EQ(heap->goal_bytes, heap->left_bytes + heap->left_bytes / 2);
  CHECK_EQ(heap->trigger_bytes, heap->left_bytes + heap->left_bytes / 2 / 64 * 45);
  CHECK(!heap->limited);
  cells(heap->trigger_bytes - heap->live_bytes);
  CHECK_EQ(heap->cycle, 2);
  wait_for_cycles(2);
  wanted.ceiling = heap->live_bytes + 6400;
  wanted.as_of = 3; /* it thinks that the second one runs: only what holds for every cycle is taken */
  wanted.trigger = 1;
  plan(wanted);
  CHECK_EQ(heap->cycle, 2);
  CHECK_EQ(heap->goal_bytes, wanted.ceiling);
  CHECK(heap->limited);
  cells(6400);
  wait_for_cycles(3);
  static const uint32_t reasons[] = {SH_CYCLE_GOAL, SH_CYCLE_GOAL, SH_CYCLE_LIMIT};
  for (uint64_t k = 0; k < 3; k++) {
    sh_heap_cycle record = next_record();
    CHECK_EQ(record.number, k + 1);
    CHECK_EQ(record.reason, reasons[k]);
    CHECK_EQ(record.after[14], k + 1); /* cycles */
  }
  close_heap();
}

static void a_heap_that_fills_its_ceiling_rests_between_cycles(void) {
  sh_heap_plan wanted = no_plan;
  open_heap(false);
  cells(16000000); /* so that a cycle takes a while */
  wanted.goal = wanted.trigger = wanted.ceiling = 16000000, wanted.limited = wanted.begins = 1;
  plan(wanted); /* it is there already */
  CHECK_EQ(heap->cycle, 1);
  wait_for_cycles(1);
  sh_heap_cycle first = next_record();
  uint64_t cycles, took_ns = first.ended_ns - first.began_ns, second_ns;
  do {
    cell();
    shi_heap_lock(heap);
    cycles = heap->cycle;
    second_ns = heap->marking_since_ns;
    shi_heap_unlock(heap);
  } while (cycles == 1);
  CHECK(second_ns - first.ended_ns >= took_ns / 2); /* nearly: what lies between two looks at the clock is not rest */
  wait_for_cycles(2);
  CHECK_EQ(next_record().reason, SH_CYCLE_LIMIT);
  close_heap();
}

static void no_cycle_begins_that_is_not_allowed(void) {
  sh_heap_plan wanted = no_plan;
  open_heap(false);
  wanted.goal = wanted.trigger = 16000;
  plan(wanted);
  cells(32000);
  CHECK(sh_heap_wants_cycle(heap));
  CHECK_EQ(heap->cycle, 0);
  wanted.begins = 1, wanted.trigger = UINT64_MAX, wanted.growth = 0.5;
  plan(wanted);
  collect(); /* somebody's own */
  CHECK(heap->trigger_bytes < UINT64_MAX);
  wanted.growth = -1, wanted.as_of = 0; /* paused; and it does not know of the cycle */
  plan(wanted);
  CHECK_EQ(heap->trigger_bytes, UINT64_MAX);
  cells(64000);
  CHECK_EQ(heap->cycle, 1);
  close_heap();
}

/* The thread has no processor: then guests that are late do all of it, or the heap would grow as long as that lasts. */
static void guests_do_a_cycle_whose_thread_does_not_come(void) {
  sh_heap_plan wanted = no_plan;
  open_heap(false);
  cells(1 << 20);
  for (int k = 0; k < 1000; k++) list(), release(cell());
  shi_heap_lock(heap);
  heap->plan = wanted, heap->plan.begins = 1;
  heap->goal_bytes = heap->live_bytes + 32000, heap->trigger_bytes = UINT64_MAX, heap->limited = true;
  shi_cycle_begin(heap, SH_CYCLE_LIMIT); /* there is no thread */
  uint64_t most = heap->goal_bytes;
  shi_heap_unlock(heap);
  CHECK(heap->assist_ratio > 0);
  while (heap->cycles == 0) {
    cell();
    CHECK(heap->live_bytes <= most + most / 100);
  }
  CHECK_EQ(next_record().number, 1);
  CHECK(!heap->asked);
  close_heap();
}

static void with_too_many_that_nobody_knows_of_no_more_begin(void) {
  sh_heap_plan wanted = no_plan;
  open_heap(false);
  wanted.begins = 1, wanted.growth = 0.01, wanted.trigger = 16000;
  plan(wanted);
  for (uint64_t k = 0; k < SHI_UNKNOWN_MOST; k++) {
    shi_heap_lock(heap);
    uint64_t left = heap->trigger_bytes - heap->live_bytes;
    shi_heap_unlock(heap);
    shi_holder *first = holder;
    cells(left + 16);
    CHECK_EQ(heap->cycle, k + 1);
    wait_for_cycles(k + 1);
    holder = new_holder(false);
    shi_holder_close(first);
    CHECK_EQ(heap->live_cells, 0);
    plan((sh_heap_plan){.goal = 1,
                        .trigger = 16000,
                        .cores = 1,
                        .as_of = UINT64_MAX,
                        .begins = 1,
                        .growth = 0.01,
                        .ceiling = UINT64_MAX});
  }
  cells(32000);
  CHECK_EQ(heap->cycle, SHI_UNKNOWN_MOST);
  CHECK(sh_heap_wants_cycle(heap));
  CHECK_EQ(next_record().number, 1);
  cell();
  CHECK_EQ(heap->cycle, SHI_UNKNOWN_MOST + 1);
  wait_for_cycles(SHI_UNKNOWN_MOST + 1);
  close_heap();
}

/* ---- threads ---------------------------------------------------------------------------------------------------------- */

static void set_share(double share) {
  shi_heap_lock(heap);
  shi_cycle_set_share(heap, share);
  shi_heap_unlock(heap);
}

/* CPU time beside the clock's: how busy the machine is can only make the share smaller. */
static void the_thread_marks_a_share_of_its_time(void) {
  open_heap(false);
  for (int k = 0; k < 1000000; k++) cell();
  set_share(0.1);
  CHECK_EQ(shi_cycle_start(heap), SH_OK);
  CHECK(shi_cycle_wait(heap, UINT64_C(60000000000)));
  CHECK(heap->mark_ns * 8 < heap->marking_ns);
  CHECK_EQ(heap->peak_bytes, heap->live_bytes);
  close_heap();
}

static void who_wants_the_cycle_soon_wakes_the_thread(void) {
  open_heap(false);
  for (int k = 0; k < 1000000; k++) cell();
  set_share(0); /* not less than a hundredth: it takes a second or more */
  CHECK_EQ(shi_cycle_start(heap), SH_OK);
  CHECK(!shi_cycle_wait(heap, 50000000));
  set_share(1);
  CHECK(shi_cycle_wait(heap, UINT64_C(60000000000)));
  CHECK_EQ(heap->cycles, 1);
  CHECK(heap->mark_ns * 50 > heap->marking_ns);
  close_heap();
}

static void a_heap_goes_in_the_middle_of_a_cycle(void) {
  open_heap(false);
  for (int k = 0; k < 1000000; k++) cell();
  set_share(0);
  CHECK_EQ(shi_cycle_start(heap), SH_OK);
  CHECK(!shi_cycle_wait(heap, 1000000));
  shi_heap_destroy(heap);
  host_handles.used = host_bytes.used = 0;
}

enum { MUTATORS = 2, STEPS = UNDER_TSAN ? 20000 : 200000, ROOTS = 32 };

/* Each keeps a model of what it holds: a list of lists under retained roots, moved about all the time. */
static void *mutate(void *seed_of) {
  uint64_t seed = (uint64_t)(uintptr_t)seed_of, roots[ROOTS], out;
  uint32_t left;
  const shi_holder_request request = {.handles_limit = no_limit, .bytes_limit = no_limit};
  shi_holder *mine = shi_holder_new(heap, &request);
  for (int k = 0; k < ROOTS; k++) CHECK_EQ(shi_list_new(mine, 0, &roots[k]), SH_OK);
  for (int step = 0; step < STEPS; step++) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    uint64_t from = roots[seed % ROOTS], to = roots[seed >> 8 & (ROOTS - 1)], length;
    CHECK_EQ(shi_container_length(heap, mine, from, &length), SH_OK);
    if (length == 0 || seed >> 20 & 1) {
      CHECK_EQ(shi_list_new(mine, 0, &out), SH_OK);
    } else {
      CHECK_EQ(shi_list_pop(heap, mine, from, &out), SH_OK);
      CHECK(out); /* what the list held is there */
    }
    if (seed >> 30 & 1) CHECK_EQ(shi_list_push(heap, mine, to, out), SH_OK);
    CHECK_EQ(shi_cell_release(heap, mine, out, &left), SH_OK);
  }
  shi_holder_close(mine);
  return NULL;
}

static void guests_mutate_while_the_thread_marks(void) {
  open_heap(false);
  pthread_t threads[MUTATORS];
  for (uintptr_t k = 0; k < MUTATORS; k++) CHECK_EQ(pthread_create(&threads[k], NULL, mutate, (void *)(k + 1)), 0);
  for (int k = 0; k < 30; k++) {
    CHECK_EQ(shi_cycle_start(heap), SH_OK);
    CHECK(shi_cycle_wait(heap, UINT64_C(60000000000)));
  }
  for (int k = 0; k < MUTATORS; k++) pthread_join(threads[k], NULL);
  CHECK_EQ(heap->live_cells, 0);
  CHECK_EQ(heap->cycles, 30);
  close_heap();
}

static _Atomic bool over;

/* A guest that scans: calls begin and end, its memory changes only in calls. */
static void *call(void *unused) {
  (void)unused;
  uint64_t slots[64] = {0}, seed = 5;
  const shi_cell_request request = {.kind = KIND, .size = 16, .object = SHI_NONE};
  for (int step = 0; step < STEPS / 10; step++) {
    shi_holder_call_begins(holder);
    for (int k = 0; k < 4; k++) {
      seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
      uint32_t at = seed & 63, object;
      if (slots[at]) CHECK_EQ(shi_cell_object(heap, holder, slots[at], KIND, &object), SH_OK);
      CHECK_EQ(shi_cell_new(holder, &request, &slots[at]), SH_OK);
      __atomic_store_n((uint64_t *)(memory + at * 16384), slots[at], __ATOMIC_RELAXED);
    }
    call_ends();
  }
  atomic_store(&over, true);
  return NULL;
}

/* A busy machine may let the end of the call come too late; then it is kept, and the next cycle has another. */
static void a_guest_that_is_called_again_and_again_scans_itself(void) {
  open_heap(true);
  for (int tries = 0; tries < 1000 && (heap->cycle == 0 || heap->live_cells > 1); tries++) {
    shi_holder_call_begins(holder);
    uint64_t stays = cell(), asked_in = 0;
    for (int k = 0; k < 100; k++) cell();
    __atomic_store_n((uint64_t *)memory, stays, __ATOMIC_RELAXED);
    call_ends();
    shi_holder_call_begins(holder);
    CHECK_EQ(shi_cycle_start(heap), SH_OK);
    while (asked_in != (uint64_t)tries + 1) {
      shi_heap_lock(heap);
      asked_in = heap->asked_in;
      shi_heap_unlock(heap);
    }
    call_ends();
    shi_holder_call_begins(holder); /* nobody else had the time to look */
    CHECK(shi_cycle_wait(heap, UINT64_C(60000000000)));
    call_ends();
  }
  CHECK_EQ(heap->live_cells, 1);
  CHECK(lives(*(uint64_t *)memory));
  close_heap();
}

static void a_guest_is_scanned_between_its_calls(void) {
  open_heap(true);
  pthread_t thread;
  CHECK_EQ(pthread_create(&thread, NULL, call, NULL), 0);
  while (!atomic_load(&over)) {
    CHECK_EQ(shi_cycle_start(heap), SH_OK);
    CHECK(shi_cycle_wait(heap, UINT64_C(60000000000)));
  }
  pthread_join(thread, NULL);
  collect();
  collect();
  CHECK(heap->live_cells <= 64);
  close_heap();
}

int main(void) {
  RUN(cycles_are_collected);
  RUN(pins_are_roots);
  RUN(a_weak_handle_keeps_nothing);
  RUN(what_a_weak_handle_gives_while_marking_stays);
  RUN(an_edge_that_moves_behind_the_marker_is_not_lost);
  RUN(a_root_that_becomes_an_edge_behind_the_marker_is_not_lost);
  RUN(what_is_born_while_marking_stays);
  RUN(a_long_list_is_marked_in_steps_while_it_changes);
  RUN(handles_in_memory_are_roots_of_who_does_not_release);
  RUN(a_call_that_stands_is_scanned_with_its_stack);
  RUN(what_the_host_got_by_number_stays_while_a_call_stands);
  RUN(a_call_that_looks_up_scans_itself);
  RUN(a_guest_in_a_call_keeps_all_it_owns);
  RUN(what_moves_from_memory_into_a_black_cell_is_not_lost);
  RUN(a_scan_that_a_call_interrupts_begins_again);
  RUN(words_are_found_as_one_by_one);
  RUN(an_owner_that_closes_while_marking_takes_all_with_it);
  RUN(allocating_guests_do_their_share);
  RUN(what_the_background_has_marked_is_taken_first);
  RUN(a_cycle_begins_as_the_heap_passes_the_trigger);
  RUN(cycle_follows_cycle_while_nobody_looks);
  RUN(a_heap_that_fills_its_ceiling_rests_between_cycles);
  RUN(no_cycle_begins_that_is_not_allowed);
  RUN(guests_do_a_cycle_whose_thread_does_not_come);
  RUN(with_too_many_that_nobody_knows_of_no_more_begin);
  RUN(the_thread_marks_a_share_of_its_time);
  RUN(who_wants_the_cycle_soon_wakes_the_thread);
  RUN(a_heap_goes_in_the_middle_of_a_cycle);
  RUN(guests_mutate_while_the_thread_marks);
  if (!UNDER_TSAN) /* the scan reads what the guest may be writing: then it counts for nothing */
    RUN(a_guest_is_scanned_between_its_calls);
  RUN(a_guest_that_is_called_again_and_again_scans_itself);
}
