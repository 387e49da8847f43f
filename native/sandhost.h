/* sandhost's C interface: everything that Python can call. cffi reads this file too (see ffi_build.py), so between the
 * two marks it holds only plain declarations. */
#ifndef SANDHOST_H
#define SANDHOST_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- memory policy and figures --------------------------------------------------------------------------------- */

enum sh_policy {
  SH_POLICY_IMMEDIATE, /* everything goes back to the OS before close returns */
  SH_POLICY_WARM,      /* up to a budget stays resident, already reset */
  SH_POLICY_LAZY       /* MADV_FREE: the kernel takes pages when it wants them */
};

/* What the end of a guest did with its memory. Pages are OS pages that held private data of the guest. */
typedef struct {
  uint64_t returned_bytes; /* back with the OS when close returned */
  uint64_t kept_bytes;     /* reset in place, still resident */
  uint64_t deferred_bytes; /* queued: back with the OS soon, or marked MADV_FREE */
  uint64_t ns;             /* how long the resets took */
  uint32_t policy;         /* enum sh_policy */
  uint32_t quarantined;    /* slots taken out of use because they could not be reset */
} sh_reclaim;

/* One snapshot of a pool. All bytes; gauges unless said otherwise. */
typedef struct {
  uint64_t regions_live;
  uint64_t regions_peak;
  uint64_t regions_max;
  uint64_t slots_warm;        /* free, with resident pages */
  uint64_t slots_queued;      /* waiting for decommit; not free */
  uint64_t slots_quarantined; /* never used again */
  uint64_t reserved_bytes;    /* address space */
  uint64_t committed_bytes;   /* accessible in live regions */
  uint64_t warm_bytes;        /* resident in free slots */
  uint64_t queued_bytes;
  uint64_t image_bytes;       /* in sealed memfds */
  uint64_t images;
  uint64_t acquired_same;     /* counter: slots reused with the same image and tenant */
  uint64_t acquired_cold;     /* counter: slots that held nothing */
  uint64_t acquired_other;    /* counter: slots remapped from another image or tenant */
  uint64_t returned_bytes;    /* counter: given back to the OS */
  uint64_t restored_bytes;    /* counter: reset in place */
  uint64_t reset_failures;    /* counter */
  uint64_t nodes;             /* NUMA nodes in use */
  uint64_t numa_refused;      /* counter: node policies that the kernel did not take; memory comes from anywhere */
} sh_pool_stats;

/* What a slot of the pool is. */
enum sh_slot_state {
  SH_SLOT_COLD,        /* free, and holds nothing; or about to be used for the first time */
  SH_SLOT_WARM,        /* free, with clean pages that stay resident */
  SH_SLOT_STALE,       /* free, with pages that the kernel takes when it wants them (MADV_FREE) */
  SH_SLOT_LIVE,        /* a guest's */
  SH_SLOT_QUEUED,      /* its guest has ended, its pages go back soon */
  SH_SLOT_QUARANTINED  /* could not be reset: never used again */
};
typedef struct {
  uint64_t committed_bytes; /* live: its guest may touch; else: what it maps for the next one */
  uint64_t resident_bytes;  /* private pages; UINT64_MAX: not measured */
  uint64_t guest;           /* live: its id; 0: nobody's any more, or a view keeps it */
  uint32_t plugin, tenant;  /* as sh_plugin_id, sh_tenant_id; 0: none */
  uint32_t node;            /* NUMA, the kernel's number */
  uint32_t state;           /* enum sh_slot_state */
} sh_slot_row;

/* ---- status ---------------------------------------------------------------------------------------------------- */

/* What a function that returns int says: 0 or one of these. The details are what sh_take_error() gives. */
enum sh_status {
  SH_OK,
  SH_CLOSED,        /* the guest (or host) has ended */
  SH_BUSY,          /* another thread is in the guest, or a view of its memory is alive */
  SH_FORKED,        /* this process was forked from one that had guests */
  SH_ARGUMENT,      /* what was asked for cannot be; message says why */
  SH_OVERFLOW,      /* an integer does not fit its parameter; message says which */
  SH_TRAP,          /* trap_code, frames */
  SH_EXIT,          /* exit_status: WASI's proc_exit */
  SH_HOST_ERROR,    /* a host function raised; Python holds the exception under `guest` */
  SH_INTERRUPTED,   /* a Python signal handler raised while the guest ran */
  SH_WAITS,         /* the guest waits for what only a call on a fiber can wait for; message says for what */
  SH_DEADLINE,      /* limit: nanoseconds */
  SH_CANCELLED,
  SH_OUT_OF_FUEL,   /* limit: fuel */
  SH_OUT_OF_MEMORY, /* wanted, limit in bytes; level: enum sh_level */
  SH_TABLE_LIMIT,   /* wanted, limit in elements */
  SH_REGION_FULL,   /* no slot is free; limit: slots */
  SH_STACK,         /* the calling thread's own stack is too short; wanted, limit in bytes */
  SH_NATIVE,        /* an OS call failed: os_errno, operation */
  SH_WASMTIME,      /* wasmtime refused; message */
  SH_INVALID_HANDLE, /* message says which and why */
  SH_HANDLE_LIMIT,   /* wanted, limit; message */
  SH_QUOTA,          /* of the tenant, in a time; message: of what; limit: nanoseconds until it has some again */
  SH_REFUSED,        /* the host takes no new guests; limit: nanoseconds until it is worth to ask again */
  SH_EVICTED,        /* the host ended the guest, for its memory */
  SH_LONG            /* the call was to be short, and is not: see sh_python_here */
};

enum sh_level { SH_LEVEL_GUEST, SH_LEVEL_TENANT, SH_LEVEL_HOST };

/* One activation in a wasm backtrace, innermost first. Names are the module's: hostile, cut off, not always UTF-8. */
typedef struct {
  uint32_t function_index;
  uint64_t module_offset; /* bytes into the wasm file */
  char function[128];     /* "" if the module has no name for it */
  char module[64];
} sh_frame;

typedef struct {
  int32_t status;
  int32_t os_errno;
  int32_t trap_code;   /* -1: none */
  int32_t exit_status;
  uint32_t level;
  uint32_t frame_count;
  uint64_t wanted;
  uint64_t limit;
  uint64_t guest;
  char operation[32];
  char message[2048];
  sh_frame frames[32];
} sh_error;
const sh_error *sh_last_error(void);
/* Copies the thread's last error (of `frames` as many as there are). To be called once for each call that failed: errors
 * that were not taken are kept below later ones. */
void sh_take_error(sh_error *out);

/* ---- wasmtime's library ---------------------------------------------------------------------------------------- */

/* Opens wasmtime's shared library and resolves every function that we call. SH_WASMTIME: message names what is missing. */
int sh_wasmtime_open(const char *path);
/* Text wat -> binary wasm. Free *out with sh_bytes_free. */
int sh_wat2wasm(const char *text, size_t length, uint8_t **out, size_t *out_length);
void sh_bytes_free(uint8_t *bytes, size_t length);

/* ---- host ------------------------------------------------------------------------------------------------------ */

typedef struct sh_host sh_host;
typedef struct sh_tenant sh_tenant;
typedef struct sh_module sh_module;
typedef struct sh_plugin sh_plugin;

typedef struct {
  uint64_t memory_limit;      /* bytes committed over all guests; UINT64_MAX: none */
  uint32_t max_regions;
  uint32_t policy;            /* enum sh_policy */
  uint64_t resident_per_slot; /* bytes; see Host */
  uint64_t resident_total;
  uint64_t decay_ns;
  uint64_t wasm_stack;        /* bytes */
  uint64_t optimize;          /* 0: compile fast, 1: run fast */
  uint32_t workers;           /* most threads for calls on fibers; 0: they run where they are polled */
  uint32_t numa_bind;
  uint32_t realtime;     /* the highest priority of SCHED_FIFO that threads have which call guests; 0: none has one */
  uint32_t background;   /* 0: workers have a tenth of others' weight, 1: what no other wants of the processor */
  uint64_t handles;      /* of all guests and the host itself */
  uint64_t handle_bytes; /* that those stand for; UINT64_MAX: none */
} sh_host_options;

sh_host *sh_host_new(const sh_host_options *options);
/* Ends every guest that no thread is in, cancels the others. SH_BUSY while some still run or have views: call again. */
int sh_host_close(sh_host *host);
/* Drops Python's reference; modules, plugins and guests hold their own. */
void sh_host_release(sh_host *host);
/* Gives memory of free slots that idle for `idle_ns` back to the OS; returns the bytes. */
uint64_t sh_host_trim(sh_host *host, uint64_t idle_ns);
/* The process is about to exit: no callback enters Python any more, running guests are cancelled. */
void sh_exiting(void);
/* Whether nothing has to be given back any more: after sh_exiting, and in a forked child, which owns none of it. */
int sh_leaving(void);

/* Nothing new is spawned: SH_REFUSED, with that hint. 0: no longer. */
void sh_host_refuse(sh_host *host, uint64_t retry_ns);
/* The files that tell of the cgroup's memory and of waiting for it; NULL: there is none. */
void sh_host_watch(sh_host *host, const char *cgroup, const char *stall);
/* Gives memory of the C library's free lists back to the OS. 1: some was. */
int sh_trim_malloc(void);

typedef struct {
  uint64_t memory; /* bytes that its guests may have committed; UINT64_MAX: none, as the next */
  uint64_t handles, handle_bytes;
  uint64_t guests;        /* alive at once */
  double starts_per_s;    /* 0: any number */
  uint64_t starts_burst;  /* of these, at once */
  double cpus;            /* share of one processor's time; 0: all */
  uint64_t cpu_burst_ns;  /* CPU time at once */
} sh_tenant_limits;
sh_tenant *sh_tenant_new(sh_host *host, const sh_tenant_limits *limits); /* freed with the host */
/* From now on. What is in use above a lower limit stays, and lets nothing more in; calls go on. A quota in a time begins
 * anew, as if nothing had been used, if it is another. */
void sh_tenant_set_limits(sh_tenant *tenant, const sh_tenant_limits *limits);
/* The same for one tenant, whose guests' memories grow to no more than `memory` bytes meanwhile. 0, UINT64_MAX: no longer. */
void sh_tenant_refuse(sh_tenant *tenant, uint64_t retry_ns, uint64_t memory);
typedef struct {
  uint64_t memory_bytes, memory_peak_bytes;
  uint64_t handles, handle_bytes;
  uint64_t guests_live, guests_peak;
  uint64_t spawns, calls; /* counters; calls of guests that ended */
  uint64_t cpu_ns; /* counter; where it has a quota */
  uint64_t refusals; /* counter: spawns refused by a quota or under pressure */
} sh_tenant_stats;
void sh_tenant_get_stats(const sh_tenant *tenant, sh_tenant_stats *out);
uint32_t sh_tenant_id(const sh_tenant *tenant); /* of its host, from 1 on */

/* ---- modules and plugins --------------------------------------------------------------------------------------- */

/* Whether wasmtime would compile it. */
int sh_module_validate(sh_host *host, const uint8_t *wasm, size_t length, int fuel);
/* `fuel`: compile with fuel counters. NULL: see sh_take_error. */
sh_module *sh_module_compile(sh_host *host, const uint8_t *wasm, size_t length, int fuel);
sh_module *sh_module_load(sh_host *host, const char *path, int fuel);
int sh_module_serialize(sh_module *module, uint8_t **out, size_t *out_length);
void sh_module_free(sh_module *module);

/* Value types in signatures, one character each: i i32, l i64, f f32, d f64, v v128, r any reference. */

/* A plugin is put together once, then spawned from many threads. Takes the module over, also when it fails. */
sh_plugin *sh_plugin_new(sh_host *host, sh_module *module);
/* In index order. `image_length` 0: no image. The runs are copied. */
int sh_plugin_memory(sh_plugin *plugin, uint64_t minimum, uint64_t maximum, uint64_t page_size, uint64_t image_length,
                     size_t run_count, const uint64_t *offsets, const uint8_t *const *bytes, const uint64_t *lengths);
int sh_plugin_import(sh_plugin *plugin, const char *module, const char *name, const char *params, const char *results,
                     uint32_t callback_id, int asynchronous);
/* The memory that WASI calls use by pointer. */
int sh_plugin_wasi(sh_plugin *plugin, uint32_t memory_index);
/* The imports of module "sandhost". `releases`: it imports "release", so that its guests' memory need not be scanned. */
int sh_plugin_handles(sh_plugin *plugin, int releases);
/* Import `k` of that module with its types; NULL: there is none. */
const char *sh_handle_import(uint32_t k, const char **params, const char **results);
int sh_plugin_export(sh_plugin *plugin, const char *name, size_t name_length, const char *params, const char *results);
int sh_plugin_tables(sh_plugin *plugin, uint32_t count, uint64_t largest_minimum);
/* What of an instance changes beside its memories, in the order in which snapshots number it. Letters: i l f d v for
 * numbers, F E X for references to functions, host objects and exceptions; segments: D data, T elements. `index` counts
 * in the module. */
int sh_plugin_global(sh_plugin *plugin, uint32_t index, int letter);
int sh_plugin_table(sh_plugin *plugin, uint32_t index, int letter);
int sh_plugin_segment(sh_plugin *plugin, uint32_t index, int letter, uint32_t target);
/* The functions that tables and globals may refer to, ascending, and whether there is a start function. */
int sh_plugin_functions(sh_plugin *plugin, const uint32_t *indices, uint32_t count, int start);
int sh_plugin_link(sh_plugin *plugin);
uint32_t sh_plugin_id(const sh_plugin *plugin); /* of its host, from 1 on */
void sh_plugin_release(sh_plugin *plugin); /* its guests keep it alive */

/* ---- guests ---------------------------------------------------------------------------------------------------- */

/* A guest is named by a 64-bit id: generation and index of a table that is never freed, so an id can be stale but can
 * never dangle. 0 is no guest. */

typedef struct {
  uint64_t memory; /* bytes over all its memories; UINT64_MAX: none */
  uint64_t deadline_ns; /* per call; 0: none */
  uint64_t fuel; /* per call; 0: not counted */
  uint64_t table_elements; /* per table; 8 bytes each, all tables together no more than `memory` */
  uint64_t handles; /* held at once */
  uint64_t handle_bytes; /* that those stand for; UINT64_MAX: none */
} sh_limits;

typedef struct {
  const char *const *argv;
  size_t argc;
  const char *const *env_names;
  const char *const *env_values;
  size_t env_count;
  const uint8_t *input;
  size_t input_length;
  const char *const *host_dirs; /* NULL: a name with nothing behind it */
  const char *const *guest_dirs;
  const uint8_t *writable; /* one flag a directory */
  size_t dir_count;
  uint64_t output_limit; /* bytes kept of stdout and of stderr, each */
  uint32_t stream; /* bit 0: stdout, bit 1: stderr go to the output callback; bit 2: stdin comes from the input's */
} sh_wasi_options;

/* What a guest is given by WASI, prepared once for any number of spawns; the strings and the input are copied, the
 * directories opened. NULL: see sh_take_error. */
typedef struct sh_wasi sh_wasi;
sh_wasi *sh_wasi_new(const sh_wasi_options *options);
void sh_wasi_release(sh_wasi *wasi); /* its guests keep it alive */

typedef struct sh_snapshot sh_snapshot;

/* 0: see sh_take_error. `wasi` may be NULL. `from` NULL: a fresh guest; else one that goes on from there. */
uint64_t sh_spawn(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits, sh_wasi *wasi);
/* The same, but its start function, if it has one, is still to be called: sh_fiber_begin(SH_START), before any other. */
uint64_t sh_spawn_unstarted(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits,
                            sh_wasi *wasi);
/* SH_BUSY changes nothing: a thread is in it, or a view is alive. SH_CLOSED: was closed before. */
int sh_close(uint64_t guest, int policy, sh_reclaim *out);
/* The same with the host's policy; what came back as numbers that Python reads at once: returned_bytes, kept_bytes,
 * deferred_bytes, ns, policy. */
enum { SH_RECLAIM_FIGURES = 5 };
int sh_end(uint64_t guest, uint64_t *figures);
/* Ends the call in progress at its next check. Returns 1 if there was one. */
int sh_cancel(uint64_t guest);
/* Closes it, for its memory. SH_BUSY: its call was told to end (SH_EVICTED), or a view is alive; come again. */
int sh_evict(uint64_t guest, sh_reclaim *out);

/* The export's parameters are given, and its results left, in `cells`: 16 bytes each, integers and doubles in the first
 * 8. f32 travels as a double. `cells` holds max(params, results) of them. */
int sh_call(uint64_t guest, uint32_t export_index, int64_t *cells);
/* The fast path for up to four i32 or i64 parameters and at most one such result. On failure returns
 * SH_CALL_FAILED, and sh_take_error() gives a status that is not 0; the same number with status 0 is an honest result. */
enum { SH_CALL_FAILED = -7905747460161236407 }; /* an unlikely result */
int64_t sh_call_ints(uint64_t guest, uint32_t export_index, int64_t a, int64_t b, int64_t c, int64_t d);
/* A whole life in one crossing: a guest is spawned, called as by the two above, and closed. No WASI. */
int sh_live(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits, uint32_t export_index,
            int64_t *cells);
int64_t sh_live_ints(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits,
                     uint32_t export_index, int64_t a, int64_t b, int64_t c, int64_t d);

typedef struct {
  uint8_t *base;
  uint64_t size; /* bytes now */
  uint64_t capacity; /* bytes of address space behind base, most of it not accessible */
} sh_memory;
int sh_memory_get(uint64_t guest, uint32_t memory_index, sh_memory *out);
/* The current size of a memory lives in one word that outlives the guest (it is then 0). */
const uint64_t *sh_memory_size(uint64_t guest, uint32_t memory_index);
int sh_memory_pin(uint64_t guest, uint32_t memory_index);
void sh_memory_unpin(uint64_t guest, uint32_t memory_index);

/* What WASI wrote to both streams, kept or dropped, in bytes. UINT64_MAX: it cannot be read now; sh_output says why. */
uint64_t sh_output_total(uint64_t guest);
/* Copies what WASI wrote to stdout (1) or stderr (2), if `room` is enough for its *length. */
int sh_output(uint64_t guest, int stream, uint8_t *to, uint64_t room, uint64_t *length, uint64_t *dropped);

typedef struct {
  uint64_t calls;
  uint64_t host_calls;
  uint64_t fuel_used;
  uint64_t committed_bytes;
  uint64_t peak_bytes;
  uint64_t age_ns;
  uint32_t memories;
  uint32_t running;
} sh_guest_stats;
int sh_guest_running(uint64_t guest); /* whether a thread is in it */
int sh_guest_get_stats(uint64_t guest, sh_guest_stats *out);

/* One line a live guest: who it is, and what it holds. */
enum sh_doing { SH_DOING_NOTHING, SH_DOING_CALL, SH_DOING_WAIT /* its call does, without a thread */ };
typedef struct {
  uint64_t guest;
  uint64_t committed_bytes, peak_bytes; /* of its memories */
  uint64_t handles, handle_bytes;
  uint64_t age_ns;
  uint64_t calls;
  uint32_t plugin, tenant; /* sh_plugin_id, sh_tenant_id; 0: no tenant */
  uint32_t node; /* the kernel's number of the NUMA node of its first memory */
  uint32_t doing; /* enum sh_doing */
} sh_guest_row;
/* Fills in up to `room` rows of the host's guests, beginning at *from, 0 at first, which becomes where to go on. Returns
 * how many; 0: no more. Stops nobody: each row is true by itself. */
uint32_t sh_host_guests(sh_host *host, uint32_t *from, sh_guest_row *rows, uint32_t room);
/* The same for the slots of its guests' memories that were used at least once. `measure`: ask the kernel what is resident;
 * of a slot in very many pieces it is a lower bound. */
uint32_t sh_host_slots(sh_host *host, uint64_t *from, sh_slot_row *rows, uint32_t room, int measure);

/* ---- calls that can wait (fiber.h) -------------------------------------------------------------------------------- */

/* Where an event loop learns of guests that have come back. NULL: see sh_take_error. */
typedef struct sh_port sh_port;
sh_port *sh_port_new(void);
void sh_port_release(sh_port *port); /* calls on their way hold it */
int sh_port_fd(const sh_port *port); /* readable while there is something to take */
uint32_t sh_port_take(sh_port *port, uint64_t *guests, uint32_t room);

enum sh_step {
  SH_STEP_DONE, /* results are in the cells */
  SH_STEP_FAILED, /* see sh_take_error */
  SH_STEP_AWAY, /* a worker has it; its port will name it: then sh_fiber_go_on */
  SH_STEP_YIELD, /* its slice is over: let others run, then sh_fiber_go_on */
  SH_STEP_AWAIT, /* a callback said that it answers later: sh_fiber_answer, when it has */
  SH_STEP_SLEEP /* sh_fiber_times says how long; then sh_fiber_go_on */
};
enum { SH_START = 0xffffffff }; /* the index of the start function */

/* Each returns an enum sh_step. `cells` as for sh_call. Until a call is DONE or FAILED its guest cannot be used otherwise,
 * but by a call of the next level while it AWAITs a host function, which ends before it is answered. The outermost call
 * is of level 1. */
int sh_fiber_begin(uint64_t guest, uint32_t level, uint32_t export_index, int64_t *cells, sh_port *port);
int sh_fiber_go_on(uint64_t guest, uint32_t level, int64_t *cells);
int sh_fiber_answer(uint64_t guest, uint32_t level, void *answer, int64_t *cells); /* a Python object; see callbacks */
/* Ends the call for that reason, an enum sh_status. AWAY: it will be, once it has come back. */
int sh_fiber_stop(uint64_t guest, uint32_t level, int why, int64_t *cells);
/* SLEEP: how long; and the time left until the call's deadline. UINT64_MAX: it has none. */
int sh_fiber_times(uint64_t guest, uint64_t *pause_ns, uint64_t *left_ns);
/* Nobody drives the call any more: it ends, now or at its next look. */
void sh_fiber_abandon(uint64_t guest);

/* ---- snapshots ------------------------------------------------------------------------------------------------- */

/* A snapshot belongs to a plugin, holds it, and is held by the guests that came from it. NULL: see sh_take_error. */
sh_snapshot *sh_snapshot_take(uint64_t guest);
void sh_snapshot_release(sh_snapshot *snapshot);

enum { SH_NO_FUNCTION = 0xffffffff }; /* a null reference */
typedef struct {
  uint8_t bytes[16]; /* of a number, little-endian, filled up with zeros */
  uint32_t function; /* of a reference: the function's index in the module */
} sh_global;

/* Positions count what the plugin was told of, in order. */
const uint8_t *sh_snapshot_memory(const sh_snapshot *snapshot, uint32_t index, uint64_t *size, uint64_t *image_length);
const sh_global *sh_snapshot_global(const sh_snapshot *snapshot, uint32_t position);
const uint32_t *sh_snapshot_table(const sh_snapshot *snapshot, uint32_t position, uint64_t *size);
int sh_snapshot_dropped(const sh_snapshot *snapshot, uint32_t position);
/* WASI's table of files, as bytes to be kept; NULL: the plugin uses no WASI. */
const uint8_t *sh_snapshot_wasi(const sh_snapshot *snapshot, size_t *length);
/* The module's own image of a memory. */
const uint8_t *sh_plugin_image(const sh_plugin *plugin, uint32_t index, uint64_t *image_length);

/* One that is put together: each memory, global and table must be set, once, before the first spawn. What does not fit
 * the plugin is refused (SH_ARGUMENT). */
typedef struct {
  uint64_t offset, length; /* whole OS pages */
  uint8_t from_module; /* the module's own image, at the same offset; else the file's */
  uint64_t file_offset;
} sh_image_part;
sh_snapshot *sh_snapshot_new(sh_plugin *plugin);
int sh_snapshot_set_memory(sh_snapshot *snapshot, uint32_t index, uint64_t size, uint64_t image_length,
                           const sh_image_part *parts, size_t part_count, int fd); /* takes fd; -1: none */
int sh_snapshot_set_global(sh_snapshot *snapshot, uint32_t position, const sh_global *global);
int sh_snapshot_set_table(sh_snapshot *snapshot, uint32_t position, const uint32_t *functions, uint64_t size);
int sh_snapshot_set_dropped(sh_snapshot *snapshot, uint32_t position);
int sh_snapshot_set_wasi(sh_snapshot *snapshot, const uint8_t *bytes, size_t length);

/* ---- handles --------------------------------------------------------------------------------------------------- */

/* The handle heap of a host, made when it is first asked for, as old as the host: see heap.h. NULL: see sh_take_error. */
typedef struct shi_heap sh_heap;
sh_heap *sh_host_heap(sh_host *host);

/* A handle for `object` (an index; UINT32_MAX: none) to a guest, or to the host itself (0). 0: see sh_take_error. */
uint64_t sh_handle_new(sh_heap *heap, uint64_t guest, uint32_t kind, uint64_t size, uint32_t object, uint32_t label);
/* The object of a handle of that guest (0: whosever) and kind (0: whatever). -1: see sh_take_error. */
int64_t sh_handle_object(sh_heap *heap, uint64_t guest, uint64_t handle, uint32_t kind);
int sh_handle_retain(sh_heap *heap, uint64_t handle, uint64_t *out); /* of a weak one: its target, or 0 */
int sh_handle_release(sh_heap *heap, uint64_t handle);
int sh_handle_weak(sh_heap *heap, uint64_t handle, uint64_t *out);
int sh_handle_pin(sh_heap *heap, uint64_t handle, int by); /* 1 or -1 */
int sh_handle_lend(sh_heap *heap, uint64_t handle); /* a root until its owner's next call ends, or this one */
int sh_handle_link(sh_heap *heap, uint64_t from, uint64_t to);
int sh_handle_unlink(sh_heap *heap, uint64_t from, uint64_t to);
typedef struct {
  uint64_t size;
  uint64_t guest; /* 0: the host */
  uint32_t kind, owners, pins, label, in_call;
} sh_handle_info;
int sh_handle_get_info(sh_heap *heap, uint64_t handle, sh_handle_info *out);

/* A cycle step by step: begin, mark until it gives 1, finish (SH_BUSY: mark on), sweep until it gives 1. SH_BUSY: one is
 * under way. Budgets are bytes of scan work, and cells. */
int sh_heap_begin(sh_heap *heap);
int sh_heap_mark(sh_heap *heap, uint64_t budget);
int sh_heap_finish_mark(sh_heap *heap);
int sh_heap_sweep(sh_heap *heap, uint64_t cells);
/* The same by a thread. `wait` gives 1 when its cycle that runs now is over, or none does. */
int sh_heap_start(sh_heap *heap);
int sh_heap_wait(sh_heap *heap, uint64_t timeout_ns);
/* What the collector wants. Goal, trigger, ratio and reason are of one moment, `as_of`: twice the number of the cycle that
 * began last, less 1 while it ran (UINT64_MAX: whenever). If the heap has gone on since, they are too old, and not taken. */
typedef struct {
  uint64_t goal, trigger; /* live bytes that reach the trigger want a cycle */
  double assist_ratio; /* guests that allocate while marking scan so much for each byte, if the background did not; */
  double cores; /*   that has the time of so many, of which its thread uses one at most */
  uint64_t as_of;
  int limited; /* the memory limit sets the goal */
  int begins; /* a cycle begins by itself at the trigger; and until somebody sets a goal for the next one, that is: */
  double growth; /*   what was left, and so much of it again; below 0: no goal, */
  uint64_t minimum, ceiling; /*   not less than this, and not more */
} sh_heap_plan;
int sh_heap_set_plan(sh_heap *heap, const sh_heap_plan *plan);
int sh_heap_wants_cycle(sh_heap *heap);
/* Called when live bytes reach the trigger, once for each cycle or goal, or when many objects wait to be taken, by the
 * thread that allocates or releases. */
typedef void (*sh_trigger_fn)(sh_heap *heap);
void sh_heap_set_trigger(sh_trigger_fn callback);
/* Takes objects whose cells are gone, up to `room`; none while the thread is in a host function. */
uint32_t sh_heap_dropped(sh_heap *heap, uint32_t *objects, uint32_t room);
/* live bytes, live cells, goal bytes; counters: allocs, frees, alloc bytes, free bytes; of the last or current cycle:
 * marked bytes, scan work bytes, roots bytes; counters: assist ns, mark ns, sweep ns; longest stop ns, cycles, phase (0
 * idle, 1 marking, 2 sweeping), objects to be taken; live bytes when marking last ended; counter: ns spent marking, by
 * the clock; cycles that have begun. */
enum { SH_HEAP_FIGURES = 20 };
void sh_heap_get_figures(sh_heap *heap, uint64_t *out);
/* A cycle of the thread's, of which nobody said yet that he knows it. */
enum sh_cycle_reason { SH_CYCLE_ASKED, SH_CYCLE_GOAL, SH_CYCLE_LIMIT };
typedef struct {
  uint64_t number; /* of all cycles that have begun */
  uint64_t began_ns, ended_ns; /* CLOCK_MONOTONIC; 0: it runs */
  uint64_t trigger;
  uint32_t reason;
  uint64_t before[SH_HEAP_FIGURES], after[SH_HEAP_FIGURES];
} sh_heap_cycle;
/* The oldest of these: 1, or 0 if there is none. */
int sh_heap_get_cycle(sh_heap *heap, sh_heap_cycle *out);
void sh_heap_forget_cycle(sh_heap *heap, uint64_t number);

/* ---- buffers for requests and results (page_pool.h) -------------------------------------------------------------- */

typedef struct sh_pages sh_pages;
/* `count` buffers of `buffer_bytes`, rounded up to OS pages. `poison`: what was used is filled with 0xDB, and with it what
 * a user has not written; else with zeros. After `idle_ns` without use the free ones' pages go back to the OS. NULL: see
 * sh_take_error. */
sh_pages *sh_pages_new(uint64_t buffer_bytes, uint32_t count, int poison, uint64_t idle_ns);
/* Puts take, put, pin and unpin of this pool (page_pool.h) into a dict, as functions that keep Python's lock: take() gives
 * a lease or 0, put(lease) an enum sh_status, pin(lease, end) whether it is one. They must not outlive the pool. */
int sh_python_pages(sh_pages *pages, void *dict);
uint8_t *sh_pages_base(const sh_pages *pages); /* of all buffers, the one of a lease by its low bits */
enum { SH_LEASE_INDEX = 0xffffff };
/* Gives the pages of free buffers back to the OS; returns the bytes. */
uint64_t sh_pages_trim(sh_pages *pages);
/* Unmaps all of it. SH_BUSY changes nothing: a buffer is out. */
int sh_pages_close(sh_pages *pages);
void sh_pages_free(sh_pages *pages); /* left as it is while a buffer is out, and in a forked child */
void sh_pages_count(sh_pages *pages, int waited); /* somebody had to wait, or (0) went without */
typedef struct {
  uint64_t buffers; /* 0: closed */
  uint64_t in_use; /* exact when nothing moves, else not too many */
  uint64_t peak;
  uint64_t resident_bytes; /* that were written to and not given back */
  uint64_t acquired; /* counters from here */
  uint64_t waits;
  uint64_t refused;
  uint64_t trimmed_bytes;
} sh_pages_stats;
void sh_pages_get_stats(sh_pages *pages, sh_pages_stats *out);

/* ---- captures: who holds what, at one instant (heap_capture.h) --------------------------------------------------------- */

/* Whose handles are counted together: the guests of a plugin on a NUMA node, for a tenant (0: none). */
typedef struct {
  uint32_t tenant, node;
  uint32_t host; /* the application's own handles: no plugin */
  uint32_t others; /* what there was no room to tell apart: of a tenant, or of anybody */
  char plugin[64]; /* its name; of a long one, such as a path, the end, after an ellipsis */
} sh_source;

/* Counters of one source, kind and label (0: none, or any). Entry 0 is of all that there was no room for. */
typedef struct {
  uint32_t source, kind, label, spare;
  uint64_t allocs, frees, alloc_bytes, free_bytes;
} sh_site;

enum { SH_CELL_IN_CALL = 1, SH_CELL_SCANNED = 2 /* its guest does not release: its memory may hold it */ };
typedef struct {
  uint64_t handle, size;
  uint64_t guest; /* 0: the host */
  uint32_t edges, edge_count; /* see sh_capture_edges */
  uint32_t owners, pins;
  uint32_t born; /* in ticks, as sh_capture_view.now */
  uint16_t site, flags;
} sh_captured_cell;

/* What keeps a cell alive, where its path begins. */
enum sh_root {
  SH_ROOT_PIN,
  SH_ROOT_OWNED, /* its owner has not released it as often as it was given */
  SH_ROOT_IN_CALL, /* received or returned by a call that is not over */
  SH_ROOT_MEMORY, /* its guest is one whose memory is scanned, and nothing else leads to it */
  SH_ROOT_NONE, /* nothing leads to it: the next collection takes it */
  SH_ROOTS
};
enum { SH_NO_CELL = 0xffffffff };
/* A way from a root, by what lies on it: cells of equal sites in a row are one step. The first SH_ROOTS are the roots. */
typedef struct {
  uint32_t outer; /* the path to the cell of this step */
  uint32_t site; /* that cell's */
} sh_path;
/* Cells that are alike. */
typedef struct {
  uint32_t site, path;
  uint32_t age; /* a: in ticks from 2^a - 1 to below 2^(a + 1) - 1 */
  uint32_t oldest; /* one of them */
  uint64_t cells, bytes;
} sh_group;

typedef struct sh_capture sh_capture;
typedef struct {
  const sh_captured_cell *cells;
  const sh_site *sites;
  const sh_source *sources;
  const sh_guest_row *guests; /* ascending by id; handles and handle_bytes are those of `cells` */
  const sh_group *groups;
  const sh_path *paths;
  uint64_t cell_count;
  uint32_t site_count, source_count, guest_count, group_count, path_count;
  uint64_t cycle; /* the number of the collection under way, or of the last one */
  uint64_t instant_ns; /* by the clock that cannot be set */
  uint32_t now; /* ticks */
  uint64_t tick_ns;
  uint64_t took_ns, cpu_ns; /* of which its thread computed */
  uint64_t longest_hold_ns; /* of the heap's lock at once, as it computed */
  uint64_t figures[SH_HEAP_FIGURES]; /* as sh_heap_get_figures */
} sh_capture_view;
/* Handles and guests of this instant, while everybody goes on. NULL: see sh_take_error. */
sh_capture *sh_capture_take(sh_host *host);
void sh_capture_view_of(const sh_capture *capture, sh_capture_view *out); /* good as long as the capture */
/* What cell `cell` referred to, as cells; those that were gone are left out. Returns how many there are. */
uint32_t sh_capture_edges(const sh_capture *capture, uint64_t cell, uint32_t *cells, uint32_t room);
/* The cell from which the shortest way from a root comes to this one; SH_NO_CELL: it is a root itself, *root says which. */
uint32_t sh_capture_holder(const sh_capture *capture, uint64_t cell, uint32_t *root);
void sh_capture_free(sh_capture *capture);

/* The wasm stacks of guests in calls: each is asked, and tells at once if it waits on a fiber, else at its next look at the
 * clock, within `patience_ns` or not at all. NULL: see sh_take_error. */
typedef struct sh_stacks sh_stacks;
sh_stacks *sh_stacks_take(sh_host *host, uint64_t patience_ns);
/* Of plugin `k`: a profile as Firefox's profiler reads it, JSON of wasmtime's, of which sample `i` is of `guests[i]`.
 * False: there is no plugin `k`. */
int sh_stacks_of(const sh_stacks *stacks, uint32_t k, const uint8_t **json, size_t *length, const uint64_t **guests,
                 uint32_t *count);
void sh_stacks_free(sh_stacks *stacks);
/* What a guest's call is in or waits for, outside of its own code: a host function by its name, or what WASI waits for.
 * Cuts it to `room`; "": neither. */
void sh_guest_inside(uint64_t guest, char *name, uint32_t room);

/* ---- callbacks into Python ------------------------------------------------------------------------------------- */

enum sh_said {
  SH_SAID, /* it is done */
  SH_RAISED, /* Python keeps the exception */
  SH_SAID_LATER /* Python keeps what it waits for: only of a call that can wait */
};
/* Runs host function `id`; parameters and results in `cells` as in sh_call. */
typedef int (*sh_hostcall_fn)(uint64_t guest, uint32_t id, int64_t *cells);
/* The late answer of host function `id`, a Python object, becomes results in `cells`. */
typedef int (*sh_answer_fn)(uint64_t guest, uint32_t id, void *answer, int64_t *cells);
/* A guest's output. */
typedef int (*sh_output_fn)(uint64_t guest, int stream, const uint8_t *bytes, size_t length, int may_wait);
/* A guest wants input, of so many bytes at the most. Never SH_SAID. */
typedef int (*sh_input_fn)(uint64_t guest, uint64_t length);
/* The late input, a bytes object of Python's, goes to `to`. *length: room, then what it has. */
typedef int (*sh_take_fn)(uint64_t guest, void *answer, uint8_t *to, uint64_t *length);
/* Lets Python run its signal handlers, on the main thread, while a guest computes. 0: go on. */
typedef int (*sh_signals_fn)(void);
typedef struct {
  sh_hostcall_fn hostcall;
  sh_answer_fn answer;
  sh_output_fn output;
  sh_input_fn input;
  sh_take_fn take;
  sh_signals_fn signals;
} sh_callbacks;
void sh_set_callbacks(const sh_callbacks *callbacks); /* copied */

/* python.c: host functions are called past cffi. Addresses of Python objects are what id() says. */
int sh_python_hostcall(uint64_t guest, uint32_t id, int64_t *cells);
int sh_python_answer(uint64_t guest, uint32_t id, void *answer, int64_t *cells);
int sh_python_take(uint64_t guest, void *answer, uint8_t *to, uint64_t *length);
/* The dicts for the exceptions of host functions, and for what their asynchronous ones wait for, by guest id. Kept. */
void sh_python_keep(void *pending, void *awaited);
/* What host function `id` is: the tuple (function, misfit, guest_of, guest_at, params, results, asynchronous), which must
 * live until it is unbound. SH_NATIVE: out of memory. */
int sh_python_bind(uint32_t id, void *tuple);
void sh_python_unbind(uint32_t id);

/* Puts `here` (python_here.c) of an export into a dict: a function that keeps Python's lock while a guest lives for one
 * call, on a thread that runs an event loop. here(arguments, sh_snapshot or 0, sh_tenant or 0, sh_limits) returns the
 * results; `is_long` if the call is not one to make there; or what `ended()` returns, which mostly raises. It must
 * not outlive the plugin, which imports no function. */
int sh_python_here(sh_plugin *plugin, uint32_t export_index, void *ended, void *is_long, void *dict);

/* ---- statistics ------------------------------------------------------------------------------------------------ */

/* Log-linear buckets as in HdrHistogram with 32 sub-buckets: relative error <= 1/32. Values in nanoseconds. */
typedef struct {
  uint64_t counts[1184];
  uint64_t max;
} sh_histogram;
uint64_t sh_histogram_value(uint32_t bucket); /* the highest value that falls into it */

typedef struct {
  sh_pool_stats pool;
  sh_pool_stats stacks; /* of calls that can wait */
  uint64_t memory_limit;
  uint64_t guests_live;
  uint64_t guests_peak;
  uint64_t spawns; /* counters from here */
  uint64_t spawn_failures;
  uint64_t calls; /* of guests that ended */
  uint64_t host_calls; /* of guests that ended */
  uint64_t traps;
  uint64_t deadlines;
  uint64_t cancels;
  uint64_t memory_refusals; /* growth or spawn past a limit */
  uint64_t quota_refusals;
  uint64_t pressure_refusals;
  uint64_t evictions;
  uint64_t handles; /* gauges: live handles, and what they count for; where the collector wants to keep that */
  uint64_t handle_bytes;
  uint64_t handle_goal_bytes;
  uint64_t handle_allocs; /* counters */
  uint64_t handle_frees;
  uint64_t collections;
  uint64_t rss_bytes; /* the kernel's figures; UINT64_MAX: it has none. Of the process: /proc/self/statm */
  uint64_t cgroup_bytes;
  uint64_t stall_us; /* counter: somebody waited for memory */
} sh_host_stats;
enum { SH_HOST_FIGURES = 63 };
void sh_host_get_figures(sh_host *host, uint64_t *out); /* the same as so many numbers, which Python unpacks at once */
void sh_host_get_stats(sh_host *host, sh_host_stats *out);
/* The threads that run calls which can wait and compute. threads - idle of them are in a slice. */
typedef struct {
  uint32_t threads;
  uint32_t idle;
  uint32_t queued; /* guests that wait for a thread */
} sh_worker_stats;
void sh_host_get_workers(sh_host *host, sh_worker_stats *out);
/* What the regions of one NUMA node hold. All gauges; bytes unless said otherwise. */
#define SH_UNKNOWN 0xffffffffffffffff
typedef struct {
  uint64_t node; /* the kernel's number */
  uint64_t cpus;
  uint64_t slots_live;
  uint64_t slots_warm; /* free, with resident pages */
  uint64_t committed_bytes; /* accessible in live regions */
  uint64_t warm_bytes; /* resident in free slots */
  uint64_t resident_bytes; /* private pages in RAM of all its slots, by pagemap. SH_UNKNOWN: Linux before 6.7 */
  uint64_t local_bytes; /* of these, what lies on the node, by move_pages of up to 4,096. SH_UNKNOWN: not told */
} sh_node_stats;
/* Of up to `room` nodes; returns how many there are. Takes a walk over the page tables of all regions. */
uint32_t sh_host_node_stats(sh_host *host, sh_node_stats *out, uint32_t room);
enum sh_operation { SH_OP_SPAWN, SH_OP_CALL, SH_OP_CLOSE };
void sh_host_histogram(sh_host *host, int operation, sh_histogram *out);

typedef struct {
  uint64_t guests_live;
  uint64_t spawns;
  uint64_t calls; /* of guests that ended */
  uint64_t host_calls; /* of guests that ended */
  uint64_t traps;
  uint64_t image_bytes;
} sh_plugin_stats;
void sh_plugin_get_stats(const sh_plugin *plugin, sh_plugin_stats *out);

/* ---- events ---------------------------------------------------------------------------------------------------- */

/* What happened, by kind, with what its `detail` and `values` are. Nanoseconds are CLOCK_MONOTONIC's, or durations. */
enum sh_event_kind {
  SH_EVENT_SPAWN, /* committed bytes, ns it took; detail 1: of a snapshot */
  SH_EVENT_CLOSE, /* bytes returned, kept, deferred, ns it took; detail: enum sh_policy */
  SH_EVENT_COMMIT, /* growth: bytes more, size then */
  SH_EVENT_DECOMMIT, /* after the close, by upkeep: bytes */
  SH_EVENT_RESET, /* one region: bytes returned, kept, deferred, ns; detail: enum sh_policy */
  SH_EVENT_QUARANTINE, /* bytes that stay counted */
  SH_EVENT_REFUSED, /* wanted, limit, enum sh_level; detail: enum sh_refusal */
  SH_EVENT_TRAP, /* code, as in sh_error */
  SH_EVENT_DEADLINE, /* limit in ns */
  SH_EVENT_CANCEL,
  SH_EVENT_CYCLE_BEGIN, /* number of the cycle, live bytes, live handles */
  SH_EVENT_MARK_DONE, /* the same, ns since it began */
  SH_EVENT_CYCLE_END, /* number of the cycle, live bytes, live handles */
  SH_EVENT_HANDLE_ALLOC, /* handle, bytes, label */
  SH_EVENT_HANDLE_FREE, /* handle, bytes */
  SH_EVENT_KINDS
};
enum sh_refusal {
  SH_REFUSED_MEMORY,
  SH_REFUSED_REGIONS,
  SH_REFUSED_TABLE,
  SH_REFUSED_FUEL,
  SH_REFUSED_HANDLES,
  SH_REFUSED_HANDLE_MEMORY,
  SH_REFUSED_OS, /* no limit: the system had no more */
  SH_REFUSED_QUOTA, /* of the tenant's, in a time or of guests; limit: nanoseconds to wait, or guests */
  SH_REFUSED_PRESSURE /* the host is short of memory; limit: nanoseconds to wait */
};
typedef struct {
  uint32_t logged; /* 1: the log lets it through */
  uint16_t kind, detail;
  uint64_t ns, guest;
  uint32_t plugin, tenant; /* numbers; 0: none */
  uint64_t values[4];
} sh_event;
/* Listens to the kinds whose bits are set, and no others. SH_NATIVE. */
int sh_events_listen(sh_host *host, uint32_t kinds);
/* What a log takes of each second of the events' own time. Whoever has it sets the first two and begins with zeros. */
typedef struct {
  uint32_t kinds; /* bits */
  uint64_t most; /* of each of them */
  uint64_t second;
  uint64_t seen[SH_EVENT_KINDS]; /* in that second */
  uint64_t suppressed[SH_EVENT_KINDS]; /* since the beginning: there were too many */
} sh_event_log;
/* Takes them, the oldest first, and gives up to `room`: those of `kinds`, and what the log lets through. `log` may be
 * NULL. Fewer than `room`: there are no more just now, or so many that the rest can wait for the next look. */
uint32_t sh_events_read(sh_host *host, sh_event *out, uint32_t room, uint32_t kinds, sh_event_log *log);
/* Counters, SH_EVENT_KINDS of them: those that nobody read in time. */
void sh_events_lost(sh_host *host, uint64_t *by_kind);
/* Names the plugin for probes. Once, before its first guest. */
int sh_plugin_name(sh_plugin *plugin, const char *name);

/* ---- fault injection (for tests of the error paths) ------------------------------------------------------------ */

/* The OS calls that can be made to fail. */
enum sh_os_call {
  SH_OS_MMAP,
  SH_OS_MPROTECT,
  SH_OS_MADVISE,
  SH_OS_MEMFD,
  SH_OS_WRITE,
  SH_OS_SEAL,
  SH_OS_PAGEMAP_SCAN,
  SH_OS_PAGEMAP_READ,
  SH_OS_MBIND,
  SH_OS_MOVE_PAGES,
  SH_OS_THREAD,
  SH_OS_OPEN_BENEATH, /* openat2 */
  SH_OS_SCHEDULER,
  SH_OS_CALLS
};
/* After `skip` more calls the next `times` ones of `call` fail with `error`; times = 0 clears. Process-wide. */
void sh_fault_inject(int call, uint32_t skip, uint32_t times, int error);

/* cffi: end */

#endif
