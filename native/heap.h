/* The handle heap: what guests hold instead of Python objects, and what finds out that nobody holds it any more.
 *
 *   handle, 64 bits      63..56 kind | 55..32 generation | 31..0 index
 *                        never negative as an i64: kinds are 1 to 127
 *
 *   hot    [ tag | owner | bits, size ] 16 bytes a cell, four to a cache line: all that a check, a mark or a sweep of a
 *                                       cell without edges reads
 *   cold   [ edges or target | object | retained | pins | label | neighbours ] 32 bytes a cell
 *   origin [ born | site ] 8 bytes a cell, of which only captures, births and ends know (heap_sites.h)
 *
 * All are flat arrays in address space reserved once, so a cell never moves and growing copies nothing. A free cell has
 * kind 0, which no handle has, and the generation that comes next. Cells are used again in the order in which they were
 * freed, and not before SHI_QUARANTINE others wait behind them; one whose generation would wrap is never used again.
 *
 *   files   heap.c table, ownership, limits       heap_edges.c what cells refer to; the barrier
 *           heap_holders.c who holds them         heap_open.c  beginning, end, invariants
 *           mark.c who is reachable               sweep.c      who is not, and the whole cycle in a thread
 *           heap_cycle.c when one begins, and what is known of it
 *           scan.c handles in a guest's memory    heap_guest.c what guests import       heap_door.c what Python calls
 *
 * One lock for all. What guests do under it takes less than a microsecond; who marks or sweeps holds it for a slice, and
 * gives it away as soon as somebody waits. Nothing of Python's is entered under it.
 *
 * Colours: white is `mark != heap->mark`, grey is marked and `grey`, black is marked and not. begin turns heap->mark over,
 * so that all become white at once. The barrier is the one of a snapshot at the beginning: an edge or a root that goes
 * away while marking shades what it led to; cells are born black. What a guest keeps in its own memory no barrier sees:
 * until that memory was scanned in this cycle, what it stores in a cell is shaded as well (as in Go's hybrid barrier).
 */
#ifndef SANDHOST_HEAP_H
#define SANDHOST_HEAP_H

#include <pthread.h>

#include "heap_sites.h"
#include "os.h"
#include "region.h"

/* ---- cells -------------------------------------------------------------------------------------------------------- */

enum shi_kind {
  SHI_KIND_LIST = 1,
  SHI_KIND_MAP,
  SHI_KIND_RECORD,
  SHI_KIND_WEAK, /* of a cell it does not keep alive */
  SHI_KIND_FIRST = 8, /* the application's own */
  SHI_KIND_LAST = 127
};

enum {
  SHI_CELLS_MOST = 1 << 26,       /* a heap; its address space is 3 GiB. Arbitrary */
  SHI_CELLS_STEP = 4096,          /* made accessible at once */
  SHI_QUARANTINE = 1024,          /* free cells that wait before one is used again. Arbitrary */
  SHI_DROPPED_MANY = 1024,        /* objects that wait to be dropped: Python is told. Arbitrary */
  SHI_EDGES_MOST = 1 << 16,       /* of one cell, so that nothing done to one takes longer than a slice */
  SHI_GENERATIONS = 1 << 24
};
#define SHI_NONE UINT32_MAX /* no cell, no object */

typedef struct {
  uint32_t tag; /* the handle's upper half */
  uint32_t owner;
  uint64_t size : 48; /* bytes as accounted */
  uint64_t mark : 1;
  uint64_t grey : 1;   /* marked, its edges not yet followed: on the stack, unless heap->overflow */
  uint64_t edged : 1;  /* cold.edges is set */
  uint64_t linked : 1; /* some cell has had an edge to it: only a collection can tell whether one still has */
  uint64_t flight : 1; /* in owner->flight */
  uint64_t root : 1;   /* == retained || pins || flight */
} shi_hot;

typedef struct {
  uint32_t count;    /* entries of `to`, 0 where there is none */
  uint32_t capacity; /* room in `to`, and in what follows it in a map: the keys */
  uint32_t used;     /* entries that are not 0, of a map */
  uint32_t spare;
  uint64_t to[]; /* handles: a cell that is gone meanwhile has another tag, and the edge is none */
} shi_edges;

typedef struct {
  union {
    shi_edges *edges;
    uint64_t target; /* of a weak one */
  };
  uint32_t object; /* index in Python's list, or SHI_NONE */
  uint32_t retained;
  uint32_t pins;
  uint32_t label;          /* index in Python's list of labels; 0: none */
  uint32_t next, previous; /* of the same owner; of a free cell: who was freed after it */
} shi_cold;

_Static_assert(sizeof(shi_hot) == 16, "four hot entries share a cache line");
_Static_assert(sizeof(shi_cold) == 32, "two cold entries share a cache line");
_Static_assert(sizeof(shi_hot) + sizeof(shi_cold) + sizeof(shi_origin) <= 64, "a handle takes at most 64 native bytes");
_Static_assert(offsetof(shi_hot, tag) == 0 && offsetof(shi_hot, owner) == 4, "a check reads one word");

static inline uint32_t shi_index_of(uint64_t handle) { return (uint32_t)handle; }
static inline uint32_t shi_tag_of(uint64_t handle) { return (uint32_t)(handle >> 32); }
static inline uint32_t shi_kind_of(uint64_t handle) { return (uint32_t)(handle >> 56); }

/* ---- who owns cells ------------------------------------------------------------------------------------------------ */

typedef struct shi_heap shi_heap;

/* Where a holder's own bytes are: piece `k`. False: there is none. */
typedef bool shi_pieces_fn(void *context, uint32_t k, const uint8_t **base, uint64_t *bytes);

/* Invariant: `cells` is the length of the list at `first`, and what `handles` has in use; `bytes` the sum of the sizes. */
typedef struct shi_holder {
  shi_heap *heap;
  uint32_t index; /* in heap->holders; 0: the host */
  uint32_t first; /* cell; SHI_NONE: no cell */
  uint32_t cells;
  bool scans;  /* it does not release by hand: handles in its memory are roots */
  bool closed; /* no use of its handles is valid any more */
  shi_account handles, bytes;

  uint32_t *flight; /* received or returned by a call that is not over */
  uint32_t flight_count, flight_capacity;

  _Atomic uint32_t calls; /* odd: a thread is in the guest */
  bool stands; /* its call is on its way, and stands still (`calls` is even); of the thread that has the guest */
  _Atomic bool lent; /* since its call began the host took handles of it by number: see `landing` */
  const uint8_t *stack; /* of the call that stands: scanned with its memory, */
  uint64_t stack_bytes; /*   0: none does; */
  uint32_t landing; /*   and then so many of `flight` are no roots any more: who has none has lost it */
  uint64_t scanned_in; /* the cycle in which its memory was scanned, or it was born */
  uint64_t kept_in; /* the cycle in which it could not be scanned: what it owns stays */
  uint32_t scan_calls, scan_piece;
  uint64_t scan_at; /* offset in the piece */
  shi_pieces_fn *pieces;
  void *context;

  double assist_owed; /* scan work in bytes, of cycle `assists_in`; below 0: it did more than its share */
  uint64_t assists_in;
  uint64_t assist_ns;

  uint64_t guest; /* its id; 0: the host */
  uint32_t plugin, tenant; /* for events */
  uint32_t source; /* in heap->sites */
  uint32_t global_count;
  uint64_t globals[]; /* as they were when its last call ended; and again as many, for the thread inside to fill in */
} shi_holder;

/* ---- the heap ------------------------------------------------------------------------------------------------------- */

enum shi_phase_of_heap { SHI_HEAP_IDLE, SHI_HEAP_MARKING, SHI_HEAP_SWEEPING };

typedef struct shi_stack_part shi_stack_part;

typedef struct {
  shi_stack_part *top, *spare;
  uint64_t count;
} shi_stack; /* of grey cells */

/* Memory answers late. So a cell waits between the stack and its visit, and an edge between the visit and what it leads
 * to, while what they need is fetched: rings, of which the oldest entry is taken and replaced. */
enum { SHI_VISITS_AHEAD = 16, SHI_EDGES_AHEAD = 32 };
/* Cycles of the thread's that Python does not know of yet. With so many of them no more begin by themselves. Arbitrary:
 * seconds of the shortest cycles. */
enum { SHI_UNKNOWN_MOST = 1024 };
typedef struct {
  uint32_t visits[SHI_VISITS_AHEAD], first_visit, visit_count;
  uint64_t edges[SHI_EDGES_AHEAD]; /* 0: no edge */
  uint32_t next_edge, edge_count;
} shi_ahead;

/* Invariant: allocs - frees == live_cells, alloc_bytes - free_bytes == live_bytes, and
 * live_cells + free_count + retired == count. */
struct shi_heap {
  pthread_mutex_t mutex;
  _Atomic uint32_t waiting; /* threads that want the lock from who marks or sweeps */

  shi_hot *hot;
  shi_cold *cold;
  shi_origin *origins;
  shi_sites *sites;
  uint64_t born_ns;
  sh_capture *capture; /* on its way: cells are saved before they change (heap_capture.h) */
  uint32_t count; /* cells that were ever used */
  uint32_t committed; /* cells whose memory is accessible */
  uint32_t oldest_free, newest_free, free_count, retired;

  shi_holder **holders;
  uint32_t holder_count, holder_capacity, holder_hint; /* none is free below the hint */

  uint32_t *dropped; /* objects whose cells are gone; room for one a live object */
  uint32_t dropped_count, dropped_capacity, objects;

  shi_account *handles, *bytes; /* the host's */

  enum shi_phase_of_heap phase;
  uint32_t mark : 1;
  bool overflow; /* there was no memory for the stack: some grey cells are not on it ... */
  bool regrey; /* ... and this walk puts them back */
  uint64_t cycle;
  uint32_t cursor, walk_end; /* of the walk over all cells, for roots or to sweep; what is born meanwhile is black */
  shi_stack stack;
  shi_ahead ahead;
  uint32_t partial, partial_left; /* the cell whose edges are being followed, and how many are left */
  uint32_t scan_cursor; /* holders before this one are scanned, or keep all they own */
  shi_holder *scanning; /* its memory is being read by a thread that does not hold the lock */
  uint64_t asked_in; /* the cycle in which guests in a call were asked to scan their memory when it ends ... */
  uint64_t asked_until_ns; /* ... and until when that is waited for */

  double assist_ratio; /* scan work for each byte allocated while marking */
  double credit; /* scan work that was done in the background, and that no allocation has been paid with */
  double share; /* of its time that the thread marks; 1: all */
  uint64_t goal_bytes, trigger_bytes;
  bool limited; /* the memory limit has set them */
  sh_heap_plan plan; /* what was asked for last; of it only what holds for every cycle */
  uint64_t paced_in; /* the cycle whose `assist_ratio` was set from outside */
  uint64_t rest_until_ns; /* all that is live exceeds the limit by itself: no cycle begins by itself before this */
  uint64_t left_bytes, left_work_bytes; /* live when the last cycle was over, and what it had read; 0: there was none */
  _Atomic bool wants_cycle; /* live bytes have reached the trigger, and no cycle has begun */
  _Atomic bool tells; /* the same, or SHI_DROPPED_MANY, until it was told: see shi_heap_tell */

  uint64_t live_cells, live_bytes, allocs, frees, alloc_bytes, free_bytes;
  uint64_t marked_bytes, scan_work_bytes, roots_bytes;
  uint64_t peak_bytes; /* live when the last cycle had marked everything */
  uint64_t assist_ns, mark_ns, sweep_ns; /* CPU time */
  uint64_t marking_ns,
      marking_since_ns; /* by the clock: the marking that is over, and when the one that is not began */
  _Atomic uint64_t longest_stop_ns;
  uint64_t cycles;

  shi_os_pagemap pagemap;
  shi_events *events; /* the host's */

  pthread_t thread; /* runs whole cycles: see sweep.c */
  pthread_cond_t wake, done;
  bool has_thread, asked, stop; /* asked: the newest cycle of the thread's is not over */
  sh_heap_cycle cycles_of_thread[SHI_UNKNOWN_MOST]; /* a ring */
  uint32_t first_unknown, unknown_count;
};

/* The accounts outlive it. */
int shi_heap_create(shi_account *handles, shi_account *bytes, shi_heap **out);
void shi_heap_destroy(shi_heap *heap);
/* CPU time of the calling thread: what a busy machine gives to others is not the collector's. */
uint64_t shi_thread_cpu_ns(void);
/* Tells Python that a cycle is wanted, or that objects are to be dropped, if it was not told yet (heap_door.c). No lock
 * is held. */
void shi_heap_tell(shi_heap *heap);

/* The lock, for who is not to be kept waiting; and for who works through slices: between two, and whenever
 * `shi_heap_wanted`, lets the others in. */
void shi_heap_lock(shi_heap *heap);
void shi_heap_unlock(shi_heap *heap);
static inline bool shi_heap_wanted(shi_heap *heap) {
  return atomic_load_explicit(&heap->waiting, memory_order_relaxed) != 0;
}
void shi_heap_let_in(shi_heap *heap);

/* `handles` and `bytes` are the parents of the new holder's accounts; NULL: the heap's own. NULL: no memory. */
typedef struct {
  uint64_t guest;
  uint32_t plugin, tenant, node;
  const char *plugin_name; /* what its cells are counted under; NULL: the host's */
  bool scans;
  bool in_call;
  shi_pieces_fn *pieces;
  void *context;
  uint32_t global_count;
  shi_account *handles, *bytes;
  uint64_t handles_limit, bytes_limit;
} shi_holder_request;
shi_holder *shi_holder_new(shi_heap *heap, const shi_holder_request *request);
/* All its cells are gone when this returns, in slices; and the holder. Not the host's. */
void shi_holder_close(shi_holder *holder);

/* The outermost call of a guest begins and ends: what it received or returned is a root until then. Before it ends, its
 * globals are filled in at `shi_holder_new_globals`. */
void shi_holder_call_begins(shi_holder *holder);
static inline uint64_t *shi_holder_new_globals(shi_holder *holder) { return holder->globals + holder->global_count; }
void shi_holder_call_ends(shi_holder *holder);
/* It stands still somewhere in the middle, with `stack` (8-aligned) of all its frames and registers, and the globals filled in
 * as above. `alone`: no frame is the host's. Only of holders that scan. */
void shi_holder_call_stands(shi_holder *holder, const uint8_t *stack, uint64_t bytes, bool alone);
void shi_holder_call_goes_on(shi_holder *holder); /* if it stood */
/* It stands still for as long as this takes: scans itself, if it is waited for, unless that takes too long. */
bool shi_holder_is_waited_for(shi_holder *holder);
void shi_holder_scan_standing(shi_holder *holder, const uint8_t *stack, uint64_t bytes, bool alone);
/* The host got handles of the call by number: they are roots until it ends, wherever it stands before. */
static inline void shi_holder_lends(shi_holder *holder) { atomic_store(&holder->lent, true); }

typedef struct {
  uint32_t kind, object, label;
  uint64_t size;
} shi_cell_request;
/* A new cell is owned once by its holder: retained, or in flight where the holder scans. */
int shi_cell_new(shi_holder *holder, const shi_cell_request *request, uint64_t *handle);
/* With edges, which it takes over unless it fails. */
int shi_cell_new_with(shi_holder *holder, const shi_cell_request *request, shi_edges *edges, uint64_t *handle);

/* Under the lock, before anything of the cell changes that a capture shows. */
void shi_capture_save(sh_capture *capture, const shi_heap *heap, uint32_t index);
static inline void shi_capture_before(const shi_heap *heap, uint32_t index) {
  if (__builtin_expect(heap->capture != NULL, 0)) shi_capture_save(heap->capture, heap, index);
}

/* A cell is a root while somebody holds it that no other cell is. Call it after each change of one of the three. */
static inline void shi_see_root(shi_heap *heap, uint32_t index) {
  heap->hot[index].root = heap->cold[index].retained || heap->cold[index].pins || heap->hot[index].flight;
}

/* What follows takes the lock, and `handle` from anyone: SH_INVALID_HANDLE unless it is live and `holder`'s (NULL: whose
 * it is is not asked). `kind` 0: any. */
int shi_cell_object(shi_heap *heap, shi_holder *holder, uint64_t handle, uint32_t kind, uint32_t *object);
int shi_cell_size(shi_heap *heap, shi_holder *holder, uint64_t handle, uint64_t *size);
/* Counts one more owner; of a weak handle gives the cell it stands for, *out 0: it is gone. */
int shi_cell_retain(shi_heap *heap, shi_holder *holder, uint64_t handle, uint64_t *out);
/* Counts one owner less, and says SH_INVALID_HANDLE if there was none. A cell that nobody owns and no cell ever referred
 * to is gone at once; others when a collection finds that nothing refers to them. */
int shi_cell_release(shi_heap *heap, shi_holder *holder, uint64_t handle, uint32_t *left);
int shi_cell_weak(shi_heap *heap, shi_holder *holder, uint64_t handle, uint64_t *out);
int shi_cell_pin(shi_heap *heap, uint64_t handle, int by); /* 1 or -1 */
/* It is on its way to its owner, through a call: a root until that ends. Of a holder that scans; others own handles. */
int shi_cell_lend(shi_heap *heap, uint64_t handle);

/* Under the lock: one more owner, as a result of a call has. */
int shi_cell_own(shi_heap *heap, uint64_t handle);
/* Counts more or less than `size` for a cell; SH_HANDLE_LIMIT or SH_OUT_OF_MEMORY. Under the lock. */
int shi_cell_resize(shi_heap *heap, uint32_t index, uint64_t size);

/* Under the lock: NULL unless live and the holder's, else its hot entry. Records the error. */
shi_hot *shi_cell_find(shi_heap *heap, const shi_holder *holder, uint64_t handle, uint32_t kind);
int shi_fail_handle(uint64_t handle, const char *why); /* "handle 0x... " and why */
/* Under the lock. */
int shi_cell_add(shi_heap *heap, shi_holder *holder, const shi_cell_request *request, uint32_t *index);
void shi_cell_free(shi_heap *heap, uint32_t index);

/* ---- edges (heap_edges.c) -------------------------------------------------------------------------------------------- */

int shi_link(shi_heap *heap, shi_holder *holder, uint64_t from, uint64_t to);
int shi_unlink(shi_heap *heap, shi_holder *holder, uint64_t from, uint64_t to); /* one; SH_ARGUMENT: there is none */

/* Lists and records: `fields` 0 makes a list. An entry is a handle or 0. What is read is owned as any result is. */
int shi_list_new(shi_holder *holder, uint32_t fields, uint64_t *out);
int shi_list_push(shi_heap *heap, shi_holder *holder, uint64_t list, uint64_t entry);
int shi_list_pop(shi_heap *heap, shi_holder *holder, uint64_t list, uint64_t *out);
int shi_list_get(shi_heap *heap, shi_holder *holder, uint64_t list, uint64_t at, uint64_t *out);
int shi_list_set(shi_heap *heap, shi_holder *holder, uint64_t list, uint64_t at, uint64_t entry);
/* Maps: keys are any 64 bits. */
int shi_map_new(shi_holder *holder, uint64_t *out);
int shi_map_get(shi_heap *heap, shi_holder *holder, uint64_t map, uint64_t key, uint64_t *out); /* 0: no such key */
int shi_map_put(shi_heap *heap, shi_holder *holder, uint64_t map, uint64_t key, uint64_t entry); /* 0 takes it out */
int shi_container_length(shi_heap *heap, shi_holder *holder, uint64_t container, uint64_t *out);

/* ---- the collector ---------------------------------------------------------------------------------------------------- */

/* SH_BUSY: a cycle is under way. */
int shi_mark_begin(shi_heap *heap);
void shi_mark_turn(shi_heap *heap); /* the same, under the lock, when there is none */
/* Does about `budget` bytes of scan work. True: nothing is grey, every root was seen. */
bool shi_mark(shi_heap *heap, uint64_t budget);
int shi_mark_finish(shi_heap *heap); /* SH_BUSY: marking is not over */
bool shi_sweep(shi_heap *heap, uint64_t budget_cells);
/* Under the lock: a guest allocated `bytes` while marking. True: the background has not done the work that this asks
 * for, and the guest is to. */
bool shi_assist_owed(shi_holder *holder, uint64_t bytes);
/* It does so. No lock is held. */
void shi_mark_assist(shi_holder *holder);
/* Under the lock, while sweeping: the heap is beyond its goal, and who allocates is to sweep as well. */
static inline bool shi_sweep_owed(const shi_heap *heap) {
  return heap->phase == SHI_HEAP_SWEEPING && heap->live_bytes > heap->goal_bytes;
}
void shi_sweep_assist(shi_heap *heap); /* It does so. No lock is held */
/* The thread. `wait` gives false after `timeout_ns`, true when its cycle that runs now is over. */
int shi_cycle_start(shi_heap *heap);
int shi_cycle_thread_begin(shi_heap *heap); /* under the lock; 0, or -errno */
/* Under the lock: the share of its time that the thread marks from now on, also in a cycle that runs. */
void shi_cycle_set_share(shi_heap *heap, double share);
bool shi_cycle_wait(shi_heap *heap, uint64_t timeout_ns);
void shi_cycle_thread_end(shi_heap *heap);

/* heap_cycle.c, all under the lock. */
void shi_cycle_begin(shi_heap *heap, uint32_t reason); /* nothing is under way, and there is a thread */
void shi_cycle_over(shi_heap *heap); /* whoever swept the last cell */
void shi_cycle_take_plan(shi_heap *heap, const sh_heap_plan *plan);
void shi_cycle_pace(shi_heap *heap); /* the assist ratio, unless somebody else sets it in this cycle */
void shi_trigger_reached(shi_heap *heap);
static inline void shi_look_at_trigger(shi_heap *heap) {
  if (heap->live_bytes >= heap->trigger_bytes && heap->phase == SHI_HEAP_IDLE) shi_trigger_reached(heap);
}
void shi_heap_figures(const shi_heap *heap, uint64_t *out);

/* Under the lock. Marking: what is white becomes grey, or black if it has no edges. */
void shi_shade(shi_heap *heap, uint32_t index);
void shi_shade_handle(shi_heap *heap, uint64_t handle);
/* A reference to the cell is stored where the marker may have been already. */
void shi_barrier_store(shi_heap *heap, uint32_t index);
static inline bool shi_is_white(const shi_heap *heap, const shi_hot *cell) { return cell->mark != heap->mark; }
void shi_stack_free(shi_stack *stack);

/* scan.c: the words in `bytes` (8-aligned) that look like handles of a heap of `count` cells; stops when `room` are
 * found. Returns how many bytes were read. */
uint64_t shi_scan_words(const uint8_t *bytes, uint64_t length, uint32_t count, uint64_t *found, uint32_t room,
                        uint32_t *found_count);
/* Under the lock: a call that stands was scanned; what was in flight for it is found in its memory, or lost. A piece of them,
 * all of which were there when it came to stand. True: that was the last. */
bool shi_holder_land_some(shi_holder *holder);
/* Under the lock, gives it away meanwhile: the calling thread has left the guest, whose memory is waited for. Scans all of
 * it, unless that takes too long. */
void shi_scan_own(shi_holder *holder);
/* One slice of a holder's memory; entered and left with the lock, gives it away meanwhile. Returns the work done. */
uint64_t shi_scan_slice(shi_heap *heap, shi_holder *holder);

#ifdef SANDHOST_DEBUG
void shi_heap_check(shi_heap *heap); /* ends the process when an invariant does not hold. Under the lock */
#endif

#endif
