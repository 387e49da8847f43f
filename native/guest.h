/* A guest, and the one word that says who may touch it. */
#ifndef SANDHOST_GUEST_H
#define SANDHOST_GUEST_H

#include "bridge.h"

/* state = generation (32 bits) << 32 | phase
 *
 *            spawn             enter (one compare-and-swap)
 *   FREE ─────────────► IDLE ◄───────────────────────────► RUNNING   owner = the thread inside; depth = nested calls
 *    ▲                   │                                   │ park   ▲ claim
 *    └───── close ─── CLOSING                                ▼        │
 *                                                            PARKED ──┘  a call on a fiber waits (fiber.h)
 *
 * The generation goes up when a guest becomes FREE.
 * Guests live in chunks that are never freed, so a stale id meets another generation, never freed memory.
 * A struct whose generation would wrap is not used again. */
enum shi_phase { SHI_FREE, SHI_IDLE, SHI_RUNNING, SHI_CLOSING, SHI_PARKED };

/* Set beside RUNNING and PARKED: the call is to end. In the same word, so that it neither misses the call nor meets the next. */
enum { SHI_CANCEL = 0x100 };
/* Set beside RUNNING: the guest waits on, and somebody looks at its stack, under its `mutex` (stacks.c). Who wants to go on
 * with the call, or to end it, waits for that. */
enum { SHI_LOOKED_AT = 0x200 };

typedef struct {
  uint8_t *bytes;
  uint64_t length, capacity, dropped;
} shi_stream;

typedef struct shi_file shi_file; /* wasi.h */
typedef struct shi_fiber shi_fiber; /* fiber.h */

typedef struct shi_guest {
  _Atomic uint64_t state;
  _Atomic uintptr_t owner; /* address of a thread-local of the thread inside; valid while RUNNING */
  uint32_t index;          /* of this struct in the table */
  uint32_t depth;
  sh_plugin *plugin;     /* a reference, as to the snapshot; while FREE see table.c */
  sh_snapshot *snapshot; /* what it was spawned from; NULL: the module itself */
  _Atomic(sh_host *) host; /* the plugin's; only to be compared when the guest is not the caller's own */
  _Atomic bool touched; /* it was called, or its memory was given to the host: it may have changed since its spawn */
  bool called; /* since its spawn; of the thread inside */
  pthread_mutex_t mutex; /* views are given, and closing begins, one at a time */
  bool pinned; /* ended, but a view of its memory is alive: the last unpin ends the rest; under `mutex` */
  wasmtime_store_t *store;
  wasmtime_context_t *context;
  wasmtime_instance_t instance;
  wasmtime_func_t *functions; /* one an export, resolved at first use (store_id 0: not yet) */
  uint32_t function_capacity;
  shi_fiber *fiber; /* kept for the next guest of this struct; NULL: none had a call that can wait */

  shi_account account;
  shi_region *regions[SHI_MEMORIES_MAX];
  uint32_t region_count;
  _Atomic uint64_t sizes[SHI_MEMORIES_MAX]; /* what Python reads; 0 once closed */
  shi_region *gc_heap;                      /* wasmtime's own, for exceptions */

  sh_limits limits;
  uint64_t deadline_ns; /* absolute, of the outermost call; 0: none */
  uint64_t brief_from_ns; /* when a call that keeps an event loop began, in the thread's CPU time; 0: it keeps none */
  uint64_t signals_due_ns;
  int stop; /* enum sh_status: why we ended the call ourselves; 0: we did not */
  uint64_t refused_wanted, refused_limit; /* the last growth refused in this call */
  uint32_t refused_level;
  int refused_errno; /* 0: a limit refused it, else the OS did */
  bool refused;
  const char *waits_for; /* with stop == SH_WAITS */

  /* WASI; touched by the thread inside only. */
  sh_wasi *grant; /* NULL: the plugin uses none of it */
  shi_file *files; /* by number; kept for the next guest of this struct while it is small */
  uint32_t file_count, file_capacity; /* one past the highest number in use */
  uint64_t input_at;     /* read of the grant's standard input */
  shi_stream streams[2]; /* kept of stdout and of stderr */
  int32_t exit_status;   /* with stop == SH_EXIT */

  _Atomic(struct shi_holder *) holder; /* of its handles (heap.h); NULL: it was never given one */
  sh_tenant *tenant;                   /* NULL: none */
  shi_whose whose;                     /* as events call it */
  _Atomic uint32_t node;               /* of its first memory: the kernel's number */
  bool counted;                        /* among the live guests of tenant and host */
  _Atomic bool evicted;                /* the host ends it: its call, and then itself */
  uint64_t cpu_from_ns;                /* of the thread inside; 0: not counted (quota.h) */

  _Atomic(const char *) inside; /* a host function, or what is waited for; lives as long as the plugin. NULL: neither */
  _Atomic(struct shi_asked *) asked; /* for its stack: see stacks.c. Set, and used, under the host's `stacks_told` */

  const uint8_t *stack_top; /* above all frames of the outermost call, where that is on the thread's own stack */
  bool in_callback; /* Python runs on the guest's thread, and not for a host function */
  uint64_t born_ns;
  _Atomic uint64_t calls, host_calls, fuel_used; /* written by the thread inside, read by any */
  struct shi_guest *next_free;
  uint8_t apart[SHI_APART]; /* from the next one, which is another thread's */
} shi_guest;

/* How many calls deep this thread is in guests; its address names the thread (`owner`). Read in signal handlers, hence
 * the static TLS model. */
extern _Thread_local uint32_t shi_thread_in_guest __attribute__((tls_model("initial-exec")));

static inline bool shi_guest_cancelled(const shi_guest *guest) {
  return atomic_load_explicit(&guest->state, memory_order_relaxed) & SHI_CANCEL;
}

/* Why that is. */
static inline int shi_guest_cancelled_for(const shi_guest *guest) {
  return atomic_load_explicit(&guest->evicted, memory_order_relaxed) ? SH_EVICTED : SH_CANCELLED;
}

static inline uint64_t shi_guest_id(const shi_guest *guest) {
  return (atomic_load_explicit(&guest->state, memory_order_relaxed) & ~0xffffffffull) | guest->index;
}

static inline uint64_t shi_tallied(const _Atomic uint64_t *tally) {
  return atomic_load_explicit(tally, memory_order_relaxed);
}
static inline void shi_tally(_Atomic uint64_t *tally, uint64_t by) { /* one writer: no locked instruction */
  atomic_store_explicit(tally, shi_tallied(tally) + by, memory_order_relaxed);
}

/* Makes the calling thread the one inside, or says why not. Nests when it is inside already. */
int shi_guest_enter(uint64_t id, shi_guest **out);
void shi_guest_leave(shi_guest *guest);
/* Leaves a guest whose call goes on later, to whoever claims it. It is not the caller's afterwards. */
void shi_guest_park(shi_guest *guest);
/* Takes a parked guest. SH_BUSY: its call is on its way. */
int shi_guest_claim(uint64_t id, shi_guest **out);
/* Takes a guest that the caller holds, if it is parked, until the caller parks it again. Others see one that waits. */
bool shi_guest_look_at(shi_guest *guest);
/* What of a state tells what the guest does: for one that is looked at, PARKED. */
static inline enum shi_phase shi_phase_shown(uint64_t state) {
  return state & SHI_LOOKED_AT ? SHI_PARKED : (enum shi_phase)(state & 0xff);
}
/* Of the caller's own guest: the call in progress is to end at its next look; or the mark was for another, and goes,
 * unless the guest is evicted. */
void shi_guest_set_cancelled(shi_guest *guest);
void shi_guest_uncancel(shi_guest *guest);
/* The live guest of that id, without entering: for what any thread may read. It does not end, and no guest does, until
 * shi_guest_let_go(). NULL: closed, and nothing to let go. */
shi_guest *shi_guest_hold(uint64_t id);
void shi_guest_let_go(shi_guest *guest);
/* Lets go of a pinned region; of a guest that ended with views alive, the last one gives its memory back. */
void shi_guest_unpin(uint64_t id, uint32_t memory_index);
/* Ends all guests of a host that nobody is in; returns how many are left. */
uint32_t shi_guests_end(sh_host *host);

/* table.c */
shi_guest *shi_guest_at(uint32_t index); /* NULL: there was none yet */
uint32_t shi_guest_table_size(void);
/* A FREE guest that only the caller knows, which holds plugin and snapshot. NULL: out of memory, or 4 million guests. */
shi_guest *shi_guest_take(sh_plugin *plugin, sh_snapshot *snapshot);
/* It has ended: from here on the struct is somebody else's. */
void shi_guest_put(shi_guest *guest);
/* No free guest holds them any longer; `unloaded` was set before. Either may be NULL. */
void shi_guests_let_go_of(const sh_plugin *plugin, const sh_snapshot *snapshot);
/* In the child of a fork: what Python reads as the size of a memory becomes 0. Async-signal-safe. */
void shi_guests_forget(void);

/* crossings.c has what Python calls most; these are what it does. */
uint64_t shi_spawn(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits, sh_wasi *wasi,
                   bool started);

void shi_guest_end_life(uint64_t guest); /* of a guest that nobody else knows */

/* here.c */
/* As sh_live, from a thread that runs an event loop and keeps Python's lock: only of an export whose calls have been short,
 * and ended at the first tick that finds it longer than a call may be there. SH_LONG, without an error to take: nothing
 * has come of it, call it on a fiber. For plugins that import no function: nobody can tell that what was ended had begun. */
int shi_live_here(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits,
                  uint32_t export_index, wasmtime_val_raw_t *cells);

/* call.c */
/* As sh_call; `integers`: as sh_call_ints, four values. */
int shi_call(uint64_t id, uint32_t index, wasmtime_val_raw_t *values, bool integers);
/* As sh_call, on an event loop, and whatever comes back is for the caller to tell; SH_LONG: it was ended, since it took
 * too long for that. Python is not called meanwhile, not for signals either. */
int shi_call_briefly(uint64_t id, uint32_t index, wasmtime_val_raw_t *values);
/* After a call that was cancelled, without Python's lock: does not return if Python is going away. */
void shi_stay_if_exiting(void);
/* Arms an outermost call, on the thread's own stack. `now_ns`: of a moment ago, for a look at the clock is dear. */
int shi_guest_begin(shi_guest *guest, uint64_t now_ns);
void shi_guest_finish(shi_guest *guest); /* after every begin that succeeded */
int shi_guest_arm(shi_guest *guest, uint64_t now_ns); /* deadline, fuel, epoch */
void shi_guest_disarm(shi_guest *guest);
void shi_guest_expect_call(shi_guest *guest); /* it is about to be called, perhaps for the first time */
/* What an entered guest calls by that index, resolved; SH_START: its start function. */
int shi_guest_export(shi_guest *guest, uint32_t index, bool integers, const shi_export **out,
                     wasmtime_func_t *function);
/* Turns what wasmtime returned into a status of ours. */
int shi_guest_outcome(shi_guest *guest, wasmtime_error_t *error, wasm_trap_t *trap);
/* Whether the call in progress may go on: else `stop` says why not. Lets Python run signal handlers now and then, and
 * others run when it is on a fiber and its slice is over. */
bool shi_guest_goes_on(shi_guest *guest);
bool shi_guest_may_go_on(shi_guest *guest); /* the same, at once */
wasmtime_error_t *shi_epoch_reached(wasmtime_context_t *context, void *guest, uint64_t *delta, uint8_t *kind);

/* hostcall.c: whether what the host functions of this thread have on the stack is still there. */
bool shi_stack_is_ours(void);
/* Whether this thread is in a host function, and so in a guest's call. */
bool shi_within_host_function(void);
/* Python is entered on the guest's thread for another reason than a host function. A fault there is the
 * host's, nested calls count from there, and the guest itself cannot be used. Returns what ends gets. */
uint32_t shi_host_code_begins(shi_guest *guest);
void shi_host_code_ends(shi_guest *guest, uint32_t depth);

/* listing.c: of a guest that is held */
sh_guest_row shi_guest_row(shi_guest *guest, uint64_t id, uint64_t now_ns);

/* stacks.c: of a guest that was asked for its stack, at a moment at which its wasm frames are all on this one */
void shi_stack_tell(shi_guest *guest);

/* output.c: `length` bytes at once, to the callback or the kept stream. False: the call is to be stopped. */
bool shi_output_write(shi_guest *guest, int number, const uint8_t *bytes, uint64_t length);
void shi_output_free(shi_guest *guest);

/* wasi.c; the rest is in wasi.h */
int shi_wasi_define(sh_plugin *plugin);

/* heap_guest.c: the guest's handles. Made when the first is given; the rest only of a guest that has a holder. */
struct shi_holder *shi_guest_holder(shi_guest *guest, bool in_call);
void shi_guest_handles_begin(shi_guest *guest);
void shi_guest_handles_finish(shi_guest *guest);
void shi_guest_handles_look(shi_guest *guest); /* its call is about to stand still */
void shi_guest_handles_stand(
    shi_guest *guest); /* it is about to be parked: if nothing of it is anywhere but on the fiber */
/* At a tick, in the middle of wasm code: if the collector waits for the guest, it scans its memory and this stack. */
void shi_guest_handles_tick(shi_guest *guest);
void shi_guest_handles_end(shi_guest *guest); /* before its memory goes */

/* creator.c: wasmtime asks for memory in the middle of an instantiation; this says for whom. */
void shi_creator_expect(shi_guest *guest); /* NULL: nobody, every request is refused */
extern wasmtime_memory_creator_t shi_creator;
extern wasmtime_stack_creator_t shi_stack_creator; /* the stack of the expected guest's fiber */

#endif
