#include "fiber.h"

#include <stdlib.h>

#include "heap.h"

/* ---- on the fiber -------------------------------------------------------------------------------------------------- */

static bool may_go_on(void *fiber) { return !((shi_fiber *)fiber)->parked; }

static void suspend(void *env, wasmtime_caller_t *caller, const wasmtime_val_t *args, size_t nargs,
                    wasmtime_val_t *results, size_t nresults, wasm_trap_t **trap,
                    wasmtime_async_continuation_t *continuation) {
  (void)env, (void)args, (void)nargs, (void)results, (void)nresults, (void)trap;
  shi_guest *guest = wt.wasmtime_context_get_data(wt.wasmtime_caller_context(caller));
  guest->fiber->parked = true;
  *continuation = (wasmtime_async_continuation_t){.callback = may_go_on, .env = guest->fiber};
}

static void run_job(shi_guest *guest) {
  shi_job *job = guest->fiber->job;
  uint32_t params = job->export->param_count, results = job->export->result_count;
  shi_cells_to_raw(job->export->params, job->values);
  job->error = wt.wasmtime_func_call_unchecked(guest->context, &job->function, job->values,
                                               params > results ? params : results, &job->trap);
}

/* False: the call was dropped, and its frames are being left; they cannot wait any more, and wasmtime ends the process of
 * who tries. */
static __attribute__((noinline)) bool give_way(shi_guest *guest) {
  if (guest->fiber->dropped) return false;
  guest->fiber->low = __builtin_frame_address(0); /* the caller's frame, and the registers in it, are above */
  if (guest->holder) shi_guest_handles_look(guest);
  wasm_trap_t *trap = NULL;
  wasmtime_val_raw_t nothing;
  wasmtime_error_t *error = wt.wasmtime_func_call_unchecked(guest->context, &guest->fiber->suspend, &nothing, 0, &trap);
  if (error) wt.wasmtime_error_delete(error);
  if (trap) wt.wasm_trap_delete(trap);
  return !error && !trap;
}

static const char *what_of(const shi_wait *wait) {
  if (wait->import) return wait->import->name;
  if (wait->step == SH_STEP_SLEEP) return "time";
  return wait->stream ? "room for output" : "input";
}

bool shi_fiber_park(shi_guest *guest, shi_wait *wait) {
  shi_fiber *fiber = guest->fiber;
  if (shi_guest_cancelled(guest)) { /* while it computed, and no tick has told it: who stops a call waits for its end */
    guest->stop = shi_guest_cancelled_for(guest);
    return false;
  }
  int step = wait->step;
  bool goes_on = false;
  __builtin_unwind_init(); /* all registers that wasm may keep across our call are in this frame from here on */
  wait->outer = fiber->innermost;
  fiber->innermost = wait;
  const char *outside = atomic_load_explicit(&guest->inside, memory_order_relaxed);
  atomic_store_explicit(&guest->inside, what_of(wait), memory_order_release);
  while (give_way(guest)) {
    if (wait->order == SHI_CALL) { /* the host calls us before it answers */
      run_job(guest);
      wait->step = SH_STEP_DONE;
      continue;
    }
    if (wait->order == SHI_TELL) {
      shi_stack_tell(guest);
      continue;
    }
    goes_on = wait->order == SHI_GO_ON;
    break;
  }
  wait->step = step;
  atomic_store_explicit(&guest->inside, outside, memory_order_relaxed);
  fiber->innermost = wait->outer;
  if (!goes_on && !guest->stop) guest->stop = shi_guest_cancelled_for(guest);
  wt.wasmtime_context_set_epoch_deadline(guest->context, 1); /* many ticks may have passed */
  return goes_on && shi_guest_may_go_on(guest);
}

bool shi_fiber_breathe(shi_guest *guest) {
  if (shi_now_ns() < guest->fiber->slice_until_ns) return true;
  shi_wait wait = {.step = SH_STEP_SLEEP};
  return shi_fiber_park(guest, &wait);
}

static wasm_trap_t *run_main(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t count) {
  (void)env, (void)values, (void)count;
  run_job(wt.wasmtime_context_get_data(wt.wasmtime_caller_context(caller)));
  return NULL;
}

static const char module_name[] = "sandhost", main_name[] = "main", suspend_name[] = "suspend";

int shi_fiber_linker_new(wasm_engine_t *engine, wasmtime_linker_t **out) {
  *out = wt.wasmtime_linker_new(engine);
  wasm_functype_t *type = shi_functype("", "");
  wasmtime_error_t *error = wt.wasmtime_linker_define_async_func(
      *out, module_name, sizeof module_name - 1, suspend_name, sizeof suspend_name - 1, type, suspend, NULL, NULL);
  if (!error)
    error = wt.wasmtime_linker_define_func_unchecked(*out, module_name, sizeof module_name - 1, main_name,
                                                     sizeof main_name - 1, type, run_main, NULL, NULL);
  wt.wasm_functype_delete(type);
  return error ? shi_fail_wasmtime(error) : SH_OK;
}

/* ---- polling ------------------------------------------------------------------------------------------------------- */

#ifdef __SANITIZE_THREAD__
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);

/* Frames stay behind on the fiber, which ThreadSanitizer would count as the thread's. */
static void *switch_in(shi_fiber *fiber) {
  void *thread = __tsan_get_current_fiber();
  if (!fiber->sanitizer) fiber->sanitizer = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(fiber->sanitizer, 0);
  return thread;
}
static void switch_out(void *thread) { __tsan_switch_to_fiber(thread, 0); }
static void forget_fiber(shi_fiber *fiber) {
  if (fiber->sanitizer) __tsan_destroy_fiber(fiber->sanitizer);
  fiber->sanitizer = NULL;
}
#else
static void *switch_in(shi_fiber *fiber) { return fiber; }
static void switch_out(void *thread) { (void)thread; }
static void forget_fiber(shi_fiber *fiber) { (void)fiber; }
#endif

enum shi_outcome shi_fiber_poll(shi_guest *guest) {
  shi_fiber *fiber = guest->fiber;
  shi_ticker *ticker = &guest->plugin->host->ticker;
  uint32_t in_guest = shi_thread_in_guest;
  fiber->parked = false;
  fiber->slice_until_ns = shi_now_ns() + SHI_TICK_NS;
  shi_trap_signals_check();
  shi_creator_expect(guest); /* of a stack */
  shi_ticker_enter(ticker);
  shi_thread_in_guest = 1;
  shi_cpu_begins(guest);
  void *thread = switch_in(fiber);
  bool ended = wt.wasmtime_call_future_poll(fiber->future);
  switch_out(thread);
  shi_cpu_ends(guest);
  shi_thread_in_guest = in_guest;
  shi_ticker_leave(ticker);
  shi_creator_expect(NULL);
  return ended ? SHI_ENDED : fiber->parked ? SHI_AT_REST : SHI_YIELDED;
}

void shi_fiber_tell(shi_guest *guest) {
  shi_fiber *fiber = guest->fiber;
  if (!fiber->parked) return; /* it has ended, or its slice of time was over */
  shi_wait *wait = fiber->innermost;
  enum shi_order order = wait->order;
  wait->order = SHI_TELL;
  enum shi_outcome outcome = shi_fiber_poll(guest);
  if (outcome == SHI_AT_REST)
    wait->order = order;
  else
    fiber->outcome = outcome; /* wasmtime could not leave its stack again: its driver will see */
}

/* ---- beginning and end --------------------------------------------------------------------------------------------- */

static int prepare(shi_guest *guest) {
  if (!guest->fiber) guest->fiber = calloc(1, sizeof *guest->fiber);
  shi_fiber *fiber = guest->fiber;
  if (!fiber) return shi_fail_no_memory();
  if (fiber->main.store_id) return SH_OK;
  const wasmtime_linker_t *linker = guest->plugin->host->fiber_linkers[guest->plugin->module->engine];
  wasmtime_extern_t made[2];
  if (!wt.wasmtime_linker_get(linker, guest->context, module_name, sizeof module_name - 1, main_name,
                              sizeof main_name - 1, &made[0]) ||
      !wt.wasmtime_linker_get(linker, guest->context, module_name, sizeof module_name - 1, suspend_name,
                              sizeof suspend_name - 1, &made[1]))
    return shi_fail(SH_WASMTIME, "wasmtime does not know our own functions");
  fiber->main = made[0].of.func;
  fiber->suspend = made[1].of.func;
  return SH_OK;
}

int shi_fiber_begin(shi_guest *guest, shi_job *job, sh_port *port) {
  int status = prepare(guest);
  if (status == SH_OK) status = shi_guest_arm(guest, job->begun_ns);
  if (status != SH_OK) return status;
  shi_guest_expect_call(guest);
  shi_fiber *fiber = guest->fiber;
  fiber->job = job;
  fiber->slices = 0;
  fiber->dropped = false;
  fiber->outcome = SHI_NOT_POLLED;
  atomic_store(&fiber->orphaned, false);
  shi_port_hold(port);
  fiber->port = port;
  fiber->future =
      wt.wasmtime_func_call_async(guest->context, &fiber->main, NULL, 0, NULL, 0, &fiber->trap, &fiber->error);
  return SH_OK;
}

void shi_fiber_leave(shi_guest *guest) {
  shi_fiber *fiber = guest->fiber;
  uint32_t in_guest = shi_thread_in_guest;
  if (guest->holder) shi_holder_call_goes_on(guest->holder);
  shi_thread_in_guest = 1;
  void *thread = switch_in(fiber);
  fiber->dropped = true;
  wt.wasmtime_call_future_delete(fiber->future); /* leaves the frames, if there are any */
  switch_out(thread);
  shi_thread_in_guest = in_guest;
  forget_fiber(fiber);
  fiber->future = NULL;
  fiber->innermost = NULL;
  shi_port_unlink(fiber->port, &fiber->link);
  sh_port_release(fiber->port);
  fiber->port = NULL;
}

void shi_fiber_give_back(shi_guest *guest, int policy, sh_reclaim *reclaim) {
  if (!guest->fiber || !guest->fiber->stack) return;
  shi_region_release(shi_host_stacks(guest->plugin->host), guest->fiber->stack, policy, reclaim);
  guest->fiber->stack = NULL;
}

void shi_fiber_forget(shi_guest *guest) {
  if (guest->fiber) guest->fiber->main.store_id = 0;
}
