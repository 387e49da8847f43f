/* Calls that can wait. Each runs on a stack of its own, a fiber, is left in the middle, and is taken up again later by
 * any thread.
 *
 *   a task of an event loop                                      worker threads (workers.c)
 *     │  begin, then go on, answer, stop                           │
 *     ▼                                                            ▼
 *   advance ──────────────► poll ◄──────────────────────────────── slice
 *                            │  wasmtime_call_future_poll
 *     on the thread's stack  │
 *     ═══════════════════════╪═══════════════════════════════════════════════════════════
 *     on the fiber's stack   ▼
 *                          main ─► wasm ─► host function, WASI ─► shi_fiber_park ─► (back to poll)
 *
 * After a poll the call has ended, is parked (it waits for the host: `innermost` says for what), or has yielded, since
 * its slice of time is over. A parked guest belongs to nobody (SHI_PARKED), so that whoever drives it takes it as one
 * enters an idle one; one that yielded goes to the worker threads, which post it to its port when it parks or ends.
 *
 * wasmtime suspends a fiber only in a host function that it knows as asynchronous. There is one, without parameters
 * and results (`suspend`), and it is called from ours wherever these have to wait: so all other functions are the same
 * for calls that can wait and for those that cannot. Stack frames of ours are alive on a fiber while it is parked and
 * may go on on another thread; they hold no address of a thread-local.
 *
 * Python never runs on a fiber's stack, which is small: host functions and callbacks are called from `advance`. The
 * guest then stays RUNNING and the thread's own, as in a call that cannot wait, so that the host function may call the
 * guest again; that call runs on the fiber, above the frames of the first one.
 */
#ifndef SANDHOST_FIBER_H
#define SANDHOST_FIBER_H

#include "guest.h"
#include "port.h"

/* One call of a guest, from outside or from a host function of an outer one. Filled on the fiber. */
typedef struct shi_job {
  struct shi_job *outer; /* NULL: the call that made the fiber */
  const shi_export *export;
  wasmtime_func_t function;
  wasmtime_val_raw_t *values; /* parameters, then results */
  wasmtime_error_t *error;
  wasm_trap_t *trap;
  uint64_t begun_ns;
} shi_job;

enum shi_order { SHI_GO_ON, SHI_CALL, SHI_STOP, SHI_TELL };

/* What a parked call waits for; lives in the frame that waits. */
typedef struct shi_wait {
  struct shi_wait *outer;
  int step;                                    /* enum sh_step; SH_STEP_DONE: the call made meanwhile has ended */
  const shi_import *import;                    /* a host function's answer, */
  wasmtime_val_raw_t *values;                  /*   with its parameters, then results; */
  int stream;                                  /* or that output is taken: 1, 2; or input is there: 0; */
  uint8_t *bytes;                              /*   from or into the guest's memory */
  uint64_t length;                             /*   bytes; of input, the most, then what came */
  uint64_t ns;                                 /* or that time has passed */
  enum shi_order order;                        /* what to do when polled next */
} shi_wait;

enum shi_outcome { SHI_NOT_POLLED, SHI_ENDED, SHI_AT_REST, SHI_YIELDED };

/* Invariant: future != NULL exactly while a call is on its way, and then the guest is RUNNING or PARKED. Everything here
 * belongs to whoever has the guest; `posted` and the links to the port. */
struct shi_fiber {
  wasmtime_call_future_t *future;
  wasmtime_func_t main, suspend; /* of this store */
  bool parked;                   /* set by `suspend`: to be polled only when it may go on */
  bool dropped;                  /* its frames are being left */
  const uint8_t *low; /* below all frames and saved registers of a parked call */
  uint64_t slice_until_ns;
  enum shi_outcome outcome;      /* of a poll by a worker, until the driver has seen it */
  shi_wait *innermost;
  shi_job *job; /* the innermost */
  wasmtime_error_t *error;
  wasm_trap_t *trap;
  uint32_t slices;       /* of this call, by workers */
  _Atomic bool orphaned; /* nobody drives it any more: whoever has it next ends it */
  bool stack_taken;
  shi_region *stack;
  sh_port *port;
  void *sanitizer; /* ThreadSanitizer's name for the fiber */
  shi_guest *next; /* in the queue of the workers */
  shi_port_link link;
};

/* Whether a call of the guest is on its way on a fiber: then its wasm code runs there, and nowhere else. */
static inline bool shi_on_fiber(const shi_guest *guest) { return guest->fiber && guest->fiber->future; }

/* fiber.c: leaving the stack and coming back. */

/* On the fiber: waits for the host. False: the call is to be stopped, `guest->stop` says why. */
bool shi_fiber_park(shi_guest *guest, shi_wait *wait);
/* On the fiber: lets others run if the slice is over. False: the call is to be stopped. */
bool shi_fiber_breathe(shi_guest *guest);
/* A new fiber for an entered guest, with a job to run; not polled yet. */
int shi_fiber_begin(shi_guest *guest, shi_job *job, sh_port *port);
enum shi_outcome shi_fiber_poll(shi_guest *guest);
/* The guest is looked at: its call tells its stack (stacks.c), and waits on. */
void shi_fiber_tell(shi_guest *guest);
void shi_fiber_leave(shi_guest *guest); /* it has ended, or is left in the middle: its frames unwind */

/* A guest has ended, and so has its store: the stack goes back with the rest. */
void shi_fiber_give_back(shi_guest *guest, int policy, sh_reclaim *reclaim);
void shi_fiber_forget(shi_guest *guest); /* there is a new guest in the struct */
/* For each engine, what fibers need of the linker. */
int shi_fiber_linker_new(wasm_engine_t *engine, wasmtime_linker_t **out);

/* drive.c: who polls, and until when. */

enum { SHI_LONG_NS = 200000 }; /* for a call on an event loop */
/* Whether the thread has used that much since its CPU time was `cpu_ns`. */
bool shi_is_long_since(uint64_t cpu_ns);
/* Whether its calls have been short enough of late to be made there; and that one was not. */
bool shi_export_is_short(const shi_export *export);
void shi_export_was_long(const shi_export *export);

/* The guest is entered by a host function of its own call: runs another call above it, to its end. */
int shi_fiber_call(shi_guest *guest, const shi_export *export, const wasmtime_func_t *function,
                   wasmtime_val_raw_t *values);
/* By a worker that took the guest from the queue. True: it is to be queued again. */
bool shi_fiber_slice(shi_guest *guest);
/* A guest ends: leaves what is on its way, while the store is there. */
void shi_fiber_end(shi_guest *guest);

#endif
