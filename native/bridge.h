/* What the files of the wasmtime bridge share: host, plugin and guest as structs.
 *
 *   host     engines, region pool, ticker, counters             host.c
 *   module   one compiled artifact                              module.c
 *   plugin   module + imports + images, ready to instantiate    plugin.c
 *   guest    one store, one instance, its regions               guest.c (life), call.c (use), memory.c (its bytes),
 *                                                               table.c (who gets which struct)
 *   fiber    a guest's call that can wait                       fiber.c, drive.c; workers.c, port.c: the event loop
 *   snapshot what a guest was, to spawn others from             snapshot.c, state.c (globals, tables, segments)
 *   heap     handles of guests, and their collector             heap.h has the map
 *
 * What Python calls for every guest is in crossings.c, and passes turnstile.c. WASI has a map of its own, wasi.h.
 *
 * Who may touch a guest is said by one word, `state` (guest.h).
 */
#ifndef SANDHOST_BRIDGE_H
#define SANDHOST_BRIDGE_H

#include <pthread.h>

#include "machine.h"
#include "quota.h"
#include "region.h"
#include "state.h"
#include "wasmtime_abi.h"
#include "workers.h"

/* ---- errors (error.c): each returns the status it records in the thread's sh_error ------------------------------ */

int shi_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
int shi_fail_limit(int status, uint64_t wanted, uint64_t limit, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int shi_fail_native(int error); /* a negative errno from the region allocator */
int shi_fail_os(int error, const char *operation); /* a positive errno */
int shi_fail_no_memory(void);
int shi_fail_wasmtime(wasmtime_error_t *error); /* takes the error: message, frames */
int shi_fail_trap(wasm_trap_t *trap);           /* takes the trap */
void shi_fail_is(int status);                   /* renames what was just recorded, keeping message and frames */
sh_error *shi_error(void);     /* what was recorded last */
void shi_error_forget(void);   /* before recording something else in its place, or when nobody will ask */

/* ---- time, histograms (histogram.c) ------------------------------------------------------------------------------ */

uint64_t shi_now_ns(void); /* CLOCK_MONOTONIC */
typedef struct {
  struct {
    uint8_t apart[SHI_APART];
    _Atomic uint64_t counts[1184];
    _Atomic uint64_t max;
  } copies[SHI_COPIES]; /* counters.h; the pages of those that nobody uses are never touched */
} shi_histogram;
void shi_histogram_record(shi_histogram *histogram, uint64_t ns);
void shi_histogram_copy(shi_histogram *histogram, sh_histogram *out);

/* ---- the ticker (ticker.c): one thread that advances the engines' epochs while guests run ------------------------ */

enum { SHI_ENGINE_PLAIN, SHI_ENGINE_FUEL, SHI_ENGINES };
enum { SHI_TICK_NS = 2000000 }; /* deadlines and cancellation are noticed within one tick; chosen, not measured */

typedef struct {
  wasm_engine_t *engines[SHI_ENGINES];
  struct {
    uint8_t apart[SHI_APART];
    _Atomic uint32_t guests;
  } running[SHI_COPIES]; /* in a call: the sum; one copy alone may wrap */
  uint8_t apart[SHI_APART];
  _Atomic bool asleep;
  bool stop;
  pthread_t thread;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
} shi_ticker;
int shi_ticker_start(shi_ticker *ticker, uint32_t realtime);
void shi_ticker_stop(shi_ticker *ticker);
void shi_ticker_enter(shi_ticker *ticker); /* a guest starts to run */
void shi_ticker_leave(shi_ticker *ticker);
void shi_ticker_advance(shi_ticker *ticker); /* every running guest checks its flags now */

/* ---- host -------------------------------------------------------------------------------------------------------- */

enum shi_tenant_counter {
  SHI_TENANT_SPAWNS,
  SHI_TENANT_CALLS,
  SHI_TENANT_CPU_NS, /* where it has a quota of it */
  SHI_TENANT_REFUSALS,
  SHI_TENANT_COUNTERS
};

struct sh_tenant {
  shi_account account;
  shi_credits credits;
  shi_account handles, handle_bytes;
  shi_account guests; /* live ones */
  shi_credits guest_credits;
  shi_bucket starts, cpu; /* CPU time in nanoseconds */
  pthread_mutex_t limiting; /* held to set the limit of `account`: the lower one of these two */
  uint64_t memory_limit, memory_share; /* its quota; what the host leaves it while memory is short, else UINT64_MAX */
  _Atomic uint64_t refusing_ns; /* no new guests of its own; as the host's */
  shi_counters counters;
  uint32_t id;
  sh_tenant *next;
};

struct sh_host {
  sh_host_options options;
  shi_ticker ticker; /* owns the engines */
  shi_pool *pool;
  shi_pool *_Atomic stacks; /* of fibers; made when first needed */
  uint64_t stack_bytes; /* each */
  wasmtime_linker_t *fiber_linkers[SHI_ENGINES];
  shi_workers workers;
  shi_account account;
  shi_account handles, handle_bytes;
  sh_heap *heap; /* of handles; NULL: nobody has asked for it. Set under `mutex` */
  sh_tenant *tenants; /* under `mutex` */
  uint32_t plugins; /* made so far; under `mutex` */
  pthread_mutex_t captures; /* one is taken at a time */
  pthread_mutex_t stacks_told; /* by guests that were asked: see stacks.c */
  _Atomic(sh_capture *) capture; /* on its way: who ends a guest tells it. Set, and used by others, under `mutex` */
  pthread_mutex_t mutex;
  shi_machine machine;
  _Atomic bool closed;
  _Atomic uint64_t refusing_ns; /* no new guests; come again after so long. 0: they are welcome */
  _Atomic uint32_t references; /* Python's one, and one for each module */
  sh_host *next; /* in the list of all hosts, see process.c */

  shi_credits credits, guest_credits;
  shi_account guests; /* live ones */
  shi_counters counters;
  shi_histogram latency[3]; /* by enum sh_operation */
  shi_events events;
};

enum shi_host_counter {
  SHI_HOST_SPAWNS,
  SHI_HOST_SPAWN_FAILURES,
  SHI_HOST_CALLS,
  SHI_HOST_HOST_CALLS,
  SHI_HOST_TRAPS,
  SHI_HOST_DEADLINES,
  SHI_HOST_CANCELS,
  SHI_HOST_MEMORY_REFUSALS,
  SHI_HOST_QUOTA_REFUSALS,
  SHI_HOST_PRESSURE_REFUSALS,
  SHI_HOST_EVICTIONS,
  SHI_HOST_COUNTERS
};
enum shi_plugin_counter {
  SHI_PLUGIN_SPAWNS,
  SHI_PLUGIN_ENDED,
  SHI_PLUGIN_CALLS,
  SHI_PLUGIN_HOST_CALLS,
  SHI_PLUGIN_TRAPS,
  SHI_PLUGIN_COUNTERS
};
_Static_assert((int)SHI_HOST_COUNTERS <= (int)SHI_COUNTERS && (int)SHI_PLUGIN_COUNTERS <= (int)SHI_COUNTERS &&
                   (int)SHI_TENANT_COUNTERS <= (int)SHI_COUNTERS,
               "shi_counters has room");

/* wasmtime is promised this much address space behind every memory (facts: the engine's reservation and guard). */
extern const uint64_t shi_memory_reservation, shi_memory_guard;

/* ---- module and plugin ------------------------------------------------------------------------------------------- */

struct sh_module {
  sh_host *host;
  wasmtime_module_t *module;
  int engine; /* SHI_ENGINE_* */
};

typedef struct {
  uint64_t minimum, maximum; /* bytes; maximum is clipped to the slot's capacity */
  uint64_t page_size;
  shi_image *image; /* may be NULL */
} shi_memory_plan;

typedef struct {
  char *name;
  size_t name_length;
  char *params, *results; /* see sh_plugin_export */
  uint32_t param_count, result_count;
  bool integers; /* fits sh_call_ints */
  bool references; /* takes or returns one: cannot be called from Python */
  _Atomic uint32_t away; /* fiber.c: so many of its calls go to the workers at once; 0: they are short */
} shi_export;

typedef struct shi_import {
  uint32_t callback_id;
  uint32_t param_count, result_count;
  char *params, *results;
  char *name; /* "module.name" */
  char *asynchronous; /* the same, of a function that may answer later; NULL: it answers at once */
  struct shi_import *next;
} shi_import;

enum { SHI_MEMORIES_MAX = 16 };

struct sh_plugin {
  sh_host *host;
  uint32_t id;
  sh_module *module;
  wasmtime_linker_t *linker; /* until linked */
  wasmtime_instance_pre_t *pre;
  shi_memory_plan memories[SHI_MEMORIES_MAX];
  uint32_t memory_count;
  shi_export *exports;
  uint32_t export_count;
  shi_export start; /* as the rewrite exports it */
  shi_import *imports;
  bool wasi;
  uint32_t wasi_memory;
  bool releases; /* its guests release handles by hand: their memory is not scanned */
  uint32_t table_count;
  uint64_t largest_table;
  shi_state_plan state;
  _Atomic uint32_t references; /* Python's one, and one for each guest and each snapshot */
  _Atomic bool unloaded; /* Python has let go of it: free guests hold it no longer */
  uint32_t number; /* for events; 0: it has no name */
  char *name;
  shi_counters counters;
};

void shi_host_heap_free(sh_host *host); /* heap_guest.c */
void shi_host_heap_stats(sh_host *host, sh_host_stats *out);
void shi_host_release(sh_host *host);
shi_pool *shi_host_stacks(sh_host *host); /* NULL: it cannot be made; see shi_error() */
void shi_plugin_release(sh_plugin *plugin);

/* ---- signatures (signature.c) -------------------------------------------------------------------------------------- */

wasm_functype_t *shi_functype(const char *params,
                              const char *results); /* NULL: a v128, a reference or unknown character */
/* Cells (Python's side: i32 sign-extended, f32 as double) to and from wasmtime's raw values, in place. */
void shi_cells_to_raw(const char *types, wasmtime_val_raw_t *values);
void shi_raw_to_cells(const char *types, wasmtime_val_raw_t *values);
/* 0, or SH_OVERFLOW naming the first integer that does not fit its type. */
int shi_cells_check(const char *types, const wasmtime_val_raw_t *values);

/* ---- the rest ------------------------------------------------------------------------------------------------------ */

extern sh_hostcall_fn shi_hostcall;
extern sh_answer_fn shi_answer;
extern sh_output_fn shi_output;
extern sh_input_fn shi_input;
extern sh_take_fn shi_take;
extern sh_signals_fn shi_signals;

wasm_trap_t *shi_hostcall_trampoline(void *import, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t count);

/* process.c: what holds for the whole process */
extern _Atomic bool shi_forked; /* we are the child of a process that had hosts */
extern _Atomic bool shi_exiting; /* Python is going away */
void shi_process_add(sh_host *host);
void shi_process_remove(sh_host *host);
bool shi_on_main_thread(void);
uint64_t shi_stack_left(void); /* bytes of the calling thread's stack below this frame */

/* trap_signals.c: keeps wasmtime's fault handlers reachable */
int shi_trap_signals_installed(void); /* right after an engine was made */
void shi_trap_signals_check_all(void);
void shi_trap_signals_check(void); /* cheap; puts a chain right if somebody installed handlers since */

#endif
