/* Who drives calls on fibers, and how far: the tasks of event loops, the workers, and host functions that call their
 * guest again. fiber.h has the drawing.
 */
#include <stdlib.h>
#include <string.h>

#include "fiber.h"
#include "heap.h"
#include "turnstile.h"

/* An export whose calls took SHI_LONG_NS on the event loop, or a whole slice, is not tried there again until so many of
 * its calls have been short on a worker. Chosen, not measured: a loop that is late by this is late by nothing else.
 * In CPU time of the thread, since a machine that is busy interrupts any call: the time of day would then send all of
 * them to the workers, just when that costs most. */
enum { SHORT_NS = 50000, TRUSTED_AFTER = 16 };

/* ---- where a call runs --------------------------------------------------------------------------------------------- */

static const shi_export *outermost(const shi_fiber *fiber) {
  const shi_job *job = fiber->job;
  while (job->outer) job = job->outer;
  return job->export;
}

/* The one member of an export that changes. */
static _Atomic uint32_t *distrust(const shi_export *export) { return &((shi_export *)export)->away; }

bool shi_export_is_short(const shi_export *export) {
  return atomic_load_explicit(distrust(export), memory_order_relaxed) == 0;
}

void shi_export_was_long(const shi_export *export) {
  atomic_store_explicit(distrust(export), TRUSTED_AFTER, memory_order_relaxed);
}

bool shi_is_long_since(uint64_t cpu_ns) { return shi_thread_cpu_ns() - cpu_ns > SHI_LONG_NS; }

static bool is_short(const shi_guest *guest) {
  return guest->plugin->host->workers.most == 0 || shi_export_is_short(outermost(guest->fiber));
}

static void note_short(const shi_fiber *fiber) {
  _Atomic uint32_t *left = distrust(outermost(fiber));
  uint32_t calls = atomic_load_explicit(left, memory_order_relaxed);
  if (calls) atomic_store_explicit(left, calls - 1, memory_order_relaxed);
}

/* True: the guest is not ours afterwards. */
static bool send_away(shi_guest *guest) {
  atomic_store(&guest->owner, 0);
  if (shi_workers_give(&guest->plugin->host->workers, guest)) return true;
  atomic_store(&guest->owner, (uintptr_t)&shi_thread_in_guest);
  return false;
}

/* ---- the end of a call --------------------------------------------------------------------------------------------- */

/* The job's outcome as a status; its results in `cells`. Frees a job that `begin` made. */
static int take_job(shi_guest *guest, wasmtime_val_raw_t *cells) {
  shi_fiber *fiber = guest->fiber;
  shi_job *job = fiber->job;
  fiber->job = job->outer;
  int status = shi_guest_outcome(guest, job->error, job->trap);
  if (status == SH_OK) {
    shi_raw_to_cells(job->export->results, job->values);
    if (cells != job->values) memcpy(cells, job->values, job->export->result_count * sizeof *cells);
  }
  shi_tally(&guest->calls, 1);
  shi_histogram_record(&guest->plugin->host->latency[SH_OP_CALL], shi_now_ns() - job->begun_ns);
  free(job);
  return status;
}

static int finish(shi_guest *guest, wasmtime_val_raw_t *cells) {
  shi_fiber *fiber = guest->fiber;
  shi_fiber_leave(guest);
  shi_guest_disarm(guest);
  shi_job *job = fiber->job;
  if (fiber->error || fiber->trap) { /* main itself did not get to run: there was no stack */
    job->error = fiber->error;
    job->trap = fiber->trap;
    fiber->error = NULL;
    fiber->trap = NULL;
  }
  int status = take_job(guest, cells);
  shi_guest_leave(guest);
  return status == SH_OK ? SH_STEP_DONE : SH_STEP_FAILED;
}

/* A call of the host's own, within another, has ended: the outer one waits on. */
static int finish_inner(shi_guest *guest, wasmtime_val_raw_t *cells) {
  guest->fiber->innermost->step = SH_STEP_AWAIT;
  int status = take_job(guest, cells);
  shi_guest_uncancel(guest); /* it was the inner one that was meant, also if it came to its end before it saw that */
  if (guest->holder) shi_holder_lends(guest->holder);
  guest->depth--;
  shi_guest_park(guest);
  return status == SH_OK ? SH_STEP_DONE : SH_STEP_FAILED;
}

/* Nobody wants the outcome. */
static void drop(shi_guest *guest) {
  shi_fiber *fiber = guest->fiber;
  shi_fiber_leave(guest);
  shi_guest_disarm(guest);
  if (fiber->error) wt.wasmtime_error_delete(fiber->error);
  if (fiber->trap) wt.wasm_trap_delete(fiber->trap);
  fiber->error = NULL;
  fiber->trap = NULL;
  while (fiber->job) {
    shi_job *job = fiber->job;
    fiber->job = job->outer;
    if (job->error) wt.wasmtime_error_delete(job->error);
    if (job->trap) wt.wasm_trap_delete(job->trap);
    free(job);
  }
  guest->stop = 0;
}

void shi_fiber_end(shi_guest *guest) {
  if (shi_on_fiber(guest)) drop(guest);
}

static void leave_orphan(shi_guest *guest) {
  drop(guest);
  guest->depth = 1;
  shi_guest_leave(guest);
}

/* ---- what the host is waited for ------------------------------------------------------------------------------------ */

static int stop_for(shi_guest *guest, shi_wait *wait, int why) {
  guest->stop = why;
  wait->order = SHI_STOP;
  return SH_OK;
}

/* Asks Python, on the thread's own stack. SH_STEP_AWAIT: it will answer later; else `order` is set, and 0 returned. */
static int serve(shi_guest *guest, shi_wait *wait, bool may_wait) {
  uint32_t in_guest = shi_thread_in_guest;
  if (wait->step == SH_STEP_SLEEP && may_wait) return SH_STEP_SLEEP;
  if (atomic_load_explicit(&shi_exiting, memory_order_relaxed)) return stop_for(guest, wait, SH_CANCELLED);
  if (!may_wait && (wait->step == SH_STEP_SLEEP || wait->stream == 0) && !wait->import) {
    guest->waits_for = wait->step == SH_STEP_SLEEP ? "time" : "standard input";
    return stop_for(guest, wait, SH_WAITS);
  }
  if (!may_wait && wait->import && wait->import->asynchronous) {
    guest->waits_for = wait->import->asynchronous;
    return stop_for(guest, wait, SH_WAITS);
  }
  shi_thread_in_guest = 0;
  guest->in_callback = !wait->import;
  int said;
  if (wait->import) {
    shi_raw_to_cells(wait->import->params, wait->values);
    said = shi_hostcall(shi_guest_id(guest), wait->import->callback_id, &wait->values->i64);
  } else if (wait->stream) {
    said = shi_output(shi_guest_id(guest), wait->stream, wait->bytes, wait->length, may_wait);
  } else {
    said = shi_input(shi_guest_id(guest), wait->length);
  }
  guest->in_callback = false;
  shi_thread_in_guest = in_guest;
  if (atomic_load_explicit(&shi_forked, memory_order_relaxed)) return stop_for(guest, wait, SH_FORKED);
  if (said == SH_SAID_LATER) return SH_STEP_AWAIT;
  if (said != SH_SAID) return stop_for(guest, wait, SH_HOST_ERROR);
  if (wait->import) shi_cells_to_raw(wait->import->results, wait->values);
  wait->order = SHI_GO_ON;
  return 0;
}

static int advance(shi_guest *guest, wasmtime_val_raw_t *cells, enum shi_outcome outcome, bool here) {
  shi_fiber *fiber = guest->fiber;
  uint64_t begun = shi_now_ns(), begun_cpu = shi_thread_cpu_ns();
  for (;; outcome = SHI_NOT_POLLED) {
    if (outcome == SHI_NOT_POLLED) {
      if (!here && !is_short(guest) && send_away(guest)) return SH_STEP_AWAY;
      outcome = shi_fiber_poll(guest);
      bool is_long = shi_now_ns() - begun > SHI_LONG_NS && shi_is_long_since(begun_cpu);
      if (is_long) shi_export_was_long(outermost(fiber));
      if (outcome == SHI_YIELDED && !is_long) continue; /* the tick came just now */
    }
    if (outcome == SHI_YIELDED && send_away(guest)) return SH_STEP_AWAY;
    if (outcome == SHI_YIELDED) {
      shi_guest_park(guest);
      return SH_STEP_YIELD;
    }
    if (outcome == SHI_ENDED) return finish(guest, cells);
    shi_wait *wait = fiber->innermost;
    if (wait->step == SH_STEP_DONE) return finish_inner(guest, cells);
    int step = serve(guest, wait, true);
    if (step) {
      shi_guest_park(guest);
      return step;
    }
  }
}

bool shi_fiber_slice(shi_guest *guest) {
  shi_fiber *fiber = guest->fiber;
  atomic_store(&guest->owner, (uintptr_t)&shi_thread_in_guest);
  uint64_t begun_cpu = shi_thread_cpu_ns();
  enum shi_outcome outcome = shi_fiber_poll(guest);
  fiber->slices++;
  atomic_store(&guest->owner, 0);
  if (outcome == SHI_YIELDED && !atomic_load(&fiber->orphaned)) return true;
  if (atomic_load(&fiber->orphaned)) {
    leave_orphan(guest);
    return false;
  }
  if (fiber->slices == 1 && shi_thread_cpu_ns() - begun_cpu < SHORT_NS) note_short(fiber);
  fiber->outcome = outcome;
  sh_port *port = fiber->port;
  uint64_t id = shi_guest_id(guest);
  shi_port_hold(port);
  shi_port_post(port, guest, &fiber->link);
  sh_port_release(port);
  /* It was orphaned before it was parked, and whoever did it left it to us. */
  if (atomic_load(&fiber->orphaned) && shi_guest_claim(id, &guest) == SH_OK) leave_orphan(guest);
  return false;
}

int shi_fiber_call(shi_guest *guest, const shi_export *export, const wasmtime_func_t *function,
                   wasmtime_val_raw_t *values) {
  shi_fiber *fiber = guest->fiber;
  shi_wait *outer = fiber->innermost;
  shi_job *job = malloc(sizeof *job);
  if (!job) return shi_fail_no_memory();
  *job = (shi_job){
      .outer = fiber->job, .export = export, .function = *function, .values = values, .begun_ns = shi_now_ns()};
  fiber->job = job;
  outer->order = SHI_CALL;
  for (;;) {
    if (shi_fiber_poll(guest) == SHI_YIELDED) continue;
    shi_wait *wait = fiber->innermost;
    if (wait == outer) break;
    serve(guest, wait, false);
  }
  outer->step = SH_STEP_AWAIT;
  if (guest->holder) shi_holder_lends(guest->holder);
  return take_job(guest, values);
}

/* ---- what Python calls ---------------------------------------------------------------------------------------------- */

/* Its values are its own: they outlive the crossing. */
static shi_job *new_job(const shi_export *export, const wasmtime_func_t *function, const wasmtime_val_raw_t *cells) {
  uint32_t width = export->param_count > export->result_count ? export->param_count : export->result_count;
  shi_job *job = malloc(sizeof *job + (width + 1) * sizeof *cells);
  if (!job) return NULL;
  uintptr_t behind = (uintptr_t)(job + 1);
  *job = (shi_job){.export = export,
                   .function = *function,
                   .values = (wasmtime_val_raw_t *)((behind + 15) & ~(uintptr_t)15),
                   .begun_ns = shi_now_ns()};
  memcpy(job->values, cells, export->param_count * sizeof *cells);
  return job;
}

static int begin_inner(shi_guest *guest, shi_job *job) {
  shi_fiber *fiber = guest->fiber;
  job->outer = fiber->job;
  fiber->job = job;
  fiber->innermost->order = SHI_CALL;
  return SH_OK;
}

/* Takes a parked guest whose innermost call is the `level`th. */
static int claim(uint64_t id, uint32_t level, shi_guest **out) {
  int status = shi_guest_claim(id, out);
  if (status != SH_OK || (*out)->depth == level) return status;
  shi_guest_park(*out);
  return shi_fail(SH_ARGUMENT, "another call of the guest has to end first");
}

/* Takes a parked guest for another call, above the one that waits for the host. */
static int claim_for_inner(uint64_t id, uint32_t level, shi_guest **out) {
  int status = claim(id, level - 1, out);
  if (status != SH_OK) return status;
  const shi_fiber *fiber = (*out)->fiber;
  if (fiber->parked && fiber->outcome == SHI_NOT_POLLED && fiber->innermost->import) {
    (*out)->depth++;
    return SH_OK;
  }
  shi_guest_park(*out);
  return shi_fail(SH_BUSY, "the guest's call does not wait for a host function");
}

int sh_fiber_begin(uint64_t id, uint32_t level, uint32_t index, int64_t *cells, sh_port *port) {
  shi_turnstile_leave();
  shi_guest *guest;
  int step = SH_STEP_FAILED;
  bool inner = level > 1;
  int status = inner ? claim_for_inner(id, level, &guest) : shi_guest_enter(id, &guest);
  if (status != SH_OK) goto out;
  if (!inner && guest->depth > 1) {
    status = shi_fail(SH_BUSY, "this thread is inside the guest; a call that can wait begins outside of it");
    goto leave;
  }
  const shi_export *export;
  wasmtime_func_t function;
  status = shi_guest_export(guest, index, false, &export, &function);
  if (status == SH_OK) status = shi_cells_check(export->params, (wasmtime_val_raw_t *)cells);
  if (status != SH_OK) goto leave;
  shi_job *job = new_job(export, &function, (const wasmtime_val_raw_t *)cells);
  status = !job ? shi_fail_no_memory() : inner ? begin_inner(guest, job) : shi_fiber_begin(guest, job, port);
  if (status != SH_OK) {
    free(job);
    goto leave;
  }
  step = advance(guest, (wasmtime_val_raw_t *)cells, SHI_NOT_POLLED, false);
  goto out;

leave:
  if (inner) {
    guest->depth--;
    shi_guest_park(guest);
  } else {
    shi_guest_leave(guest);
  }
out:
  shi_turnstile_pass();
  return step;
}

/* Takes a parked guest and goes on. `order` is for what it waits for now. */
static int go_on(uint64_t id, uint32_t level, int order, int why, void *answer, int64_t *cells) {
  shi_guest *guest;
  int status = claim(id, level, &guest);
  if (status == SH_BUSY) { /* it has not come back yet */
    shi_error_forget();
    return SH_STEP_AWAY;
  }
  if (status != SH_OK) return SH_STEP_FAILED;
  shi_fiber *fiber = guest->fiber;
  enum shi_outcome outcome = fiber->outcome;
  fiber->outcome = SHI_NOT_POLLED;
  shi_wait *wait = fiber->innermost;
  bool waits = fiber->parked && outcome != SHI_ENDED && wait->step != SH_STEP_DONE;
  if (order == SHI_STOP && waits) {
    stop_for(guest, wait, why);
    outcome = SHI_NOT_POLLED;
  } else if (order == SHI_STOP) { /* it is computing, and will see it */
    shi_guest_set_cancelled(guest);
  } else if (outcome == SHI_NOT_POLLED && waits && wait->step == SH_STEP_AWAIT && !answer) {
    shi_guest_park(guest);
    return shi_fail(SH_ARGUMENT, "what the call waits for is not there yet"), SH_STEP_FAILED;
  } else if (outcome == SHI_NOT_POLLED && waits) {
    int said = SH_SAID;
    wait->order = SHI_GO_ON;
    if (shi_guest_cancelled(guest))
      stop_for(guest, wait, shi_guest_cancelled_for(guest));
    else if (answer && wait->import)
      said = shi_answer(shi_guest_id(guest), wait->import->callback_id, answer, &wait->values->i64);
    else if (answer && !wait->stream)
      said = shi_take(shi_guest_id(guest), answer, wait->bytes, &wait->length);
    if (said != SH_SAID) stop_for(guest, wait, SH_HOST_ERROR);
    if (answer && wait->import && wait->order == SHI_GO_ON) shi_cells_to_raw(wait->import->results, wait->values);
  }
  return advance(guest, (wasmtime_val_raw_t *)cells, outcome, order == SHI_STOP);
}

int sh_fiber_go_on(uint64_t id, uint32_t level, int64_t *cells) {
  shi_turnstile_leave();
  int step = go_on(id, level, SHI_GO_ON, 0, NULL, cells);
  shi_turnstile_pass();
  return step;
}

int sh_fiber_answer(uint64_t id, uint32_t level, void *answer, int64_t *cells) {
  shi_turnstile_leave();
  int step = go_on(id, level, SHI_GO_ON, 0, answer, cells);
  shi_turnstile_pass();
  return step;
}

int sh_fiber_stop(uint64_t id, uint32_t level, int why, int64_t *cells) {
  shi_turnstile_leave();
  int step = go_on(id, level, SHI_STOP, why, NULL, cells);
  if (step == SH_STEP_AWAY) sh_cancel(id);
  shi_turnstile_pass();
  return step;
}

int sh_fiber_times(uint64_t id, uint64_t *pause_ns, uint64_t *left_ns) {
  shi_guest *guest;
  int status = shi_guest_claim(id, &guest);
  if (status != SH_OK) return status;
  const shi_fiber *fiber = guest->fiber;
  *pause_ns = fiber->parked && fiber->innermost->step == SH_STEP_SLEEP ? fiber->innermost->ns : 0;
  *left_ns = guest->deadline_ns - (guest->deadline_ns ? shi_now_ns() : 1); /* none: UINT64_MAX */
  if (guest->deadline_ns && *left_ns > guest->limits.deadline_ns) *left_ns = 0;
  shi_guest_park(guest);
  return SH_OK;
}

void sh_fiber_abandon(uint64_t id) {
  shi_guest *guest;
  int status = shi_guest_claim(id, &guest);
  if (status == SH_OK) {
    leave_orphan(guest);
    return;
  }
  shi_error_forget();
  if (status != SH_BUSY) return;
  guest = shi_guest_hold(id); /* it does not end meanwhile */
  if (!guest) return;
  if (guest->fiber) atomic_store(&guest->fiber->orphaned, true);
  shi_guest_let_go(guest);
  sh_cancel(id);
  if (shi_guest_claim(id, &guest) == SH_OK) /* it came back before it could see that nobody waits */
    leave_orphan(guest);
  else
    shi_error_forget();
}
