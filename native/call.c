/* Calls into a guest, and how they end. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "fiber.h"
#include "heap.h"

/* What a host function or a trap handler may need of the native stack, on top of the wasm stack. */
enum { HOST_STACK = 256 << 10 };
static const uint64_t signals_every_ns = 50000000;

/* ---- limits -------------------------------------------------------------------------------------------------------- */

bool shi_guest_may_go_on(shi_guest *guest) {
  uint64_t now = shi_now_ns();
  shi_cpu_charge(guest);
  if (atomic_load(&shi_exiting) || shi_guest_cancelled(guest)) {
    guest->stop = shi_guest_cancelled_for(guest);
  } else if (!shi_cpu_left(guest, now)) {
    guest->stop = SH_QUOTA;
  } else if (guest->deadline_ns && now >= guest->deadline_ns) {
    guest->stop = SH_DEADLINE;
  } else if (guest->brief_from_ns && shi_is_long_since(guest->brief_from_ns)) {
    guest->stop = SH_LONG;
  } else if (now >= guest->signals_due_ns && !guest->brief_from_ns && !shi_on_fiber(guest) && shi_on_main_thread()) {
    guest->signals_due_ns = now + signals_every_ns;
    uint32_t depth = shi_host_code_begins(guest);
    if (shi_signals && shi_signals()) guest->stop = SH_INTERRUPTED;
    shi_host_code_ends(guest, depth);
    if (atomic_load(&shi_forked)) guest->stop = SH_FORKED; /* by a signal handler: the memory is gone */
  }
  return guest->stop == 0;
}

bool shi_guest_goes_on(shi_guest *guest) {
  return shi_guest_may_go_on(guest) && (!shi_on_fiber(guest) || shi_fiber_breathe(guest));
}

wasmtime_error_t *shi_epoch_reached(wasmtime_context_t *context, void *guest, uint64_t *delta, uint8_t *kind) {
  (void)context;
  shi_stack_tell(guest);
  if (!shi_guest_may_go_on(guest)) return wt.wasmtime_error_new("sandhost: stopped");
  if (__builtin_expect(((shi_guest *)guest)->holder != NULL, 0)) shi_guest_handles_tick(guest);
  if (shi_on_fiber(guest)) *kind = WASMTIME_UPDATE_DEADLINE_YIELD; /* else it stays "continue" */
  *delta = 1;
  return NULL;
}

int shi_guest_arm(shi_guest *guest, uint64_t now_ns) {
  guest->stop = 0;
  guest->refused = false;
  if (!shi_cpu_left(guest, now_ns)) return shi_cpu_refuse(guest, now_ns);
  guest->deadline_ns = guest->limits.deadline_ns ? now_ns + guest->limits.deadline_ns : 0;
  guest->signals_due_ns = now_ns + signals_every_ns;
  wt.wasmtime_context_set_epoch_deadline(guest->context, 1);
  if (guest->plugin->module->engine == SHI_ENGINE_FUEL) {
    wasmtime_error_t *error =
        wt.wasmtime_context_set_fuel(guest->context, guest->limits.fuel ? guest->limits.fuel : UINT64_MAX);
    if (error) return shi_fail_wasmtime(error);
  }
  if (__builtin_expect(guest->holder != NULL, 0)) shi_guest_handles_begin(guest);
  return SH_OK;
}

void shi_guest_disarm(shi_guest *guest) {
  if (__builtin_expect(guest->holder != NULL, 0)) shi_guest_handles_finish(guest);
  if (guest->plugin->module->engine != SHI_ENGINE_FUEL) return;
  uint64_t left = 0, given = guest->limits.fuel ? guest->limits.fuel : UINT64_MAX;
  wasmtime_error_t *error = wt.wasmtime_context_get_fuel(guest->context, &left);
  if (error) wt.wasmtime_error_delete(error);
  shi_tally(&guest->fuel_used, given - left);
}

int shi_guest_begin(shi_guest *guest, uint64_t now_ns) {
  uint64_t wanted = guest->plugin->host->options.wasm_stack + HOST_STACK;
  uint64_t left = shi_stack_left();
  if (left < wanted)
    return shi_fail_limit(SH_STACK, wanted, left,
                          "the calling thread has %" PRIu64 " KiB of stack left; a call needs %" PRIu64
                          " KiB (threading.stack_size, or less recursion between guests and host functions)",
                          left >> 10, wanted >> 10);
  if (!shi_stack_is_ours())
    return shi_fail(SH_BUSY,
                    "another greenlet of this thread was switched away in a host function; it has to return first");
  shi_trap_signals_check();
  shi_thread_in_guest++;
  if (guest->depth > 1) return SH_OK; /* the outermost call has armed the rest */
  guest->stack_top = __builtin_frame_address(0);
  int status = shi_guest_arm(guest, now_ns);
  if (status == SH_OK) {
    shi_ticker_enter(&guest->plugin->host->ticker);
    shi_cpu_begins(guest);
  } else {
    shi_thread_in_guest--;
  }
  return status;
}

void shi_guest_finish(shi_guest *guest) {
  shi_thread_in_guest--;
  if (guest->depth > 1) { /* the host may have got handles from it */
    if (guest->holder) shi_holder_lends(guest->holder);
    return;
  }
  shi_cpu_ends(guest);
  shi_ticker_leave(&guest->plugin->host->ticker);
  shi_guest_disarm(guest);
}

/* ---- outcome ------------------------------------------------------------------------------------------------------- */

static int out_of_memory(const shi_guest *guest, bool keep_frames) {
  static const char *const whose[] = {"its own limit", "its tenant's limit", "the host's limit"};
  if (guest->refused_errno || !keep_frames) shi_error_forget();
  if (guest->refused_errno) return shi_fail_native(-guest->refused_errno);
  if (!keep_frames) shi_fail(SH_OUT_OF_MEMORY, "%s", "");
  sh_error *error = shi_error();
  error->status = SH_OUT_OF_MEMORY;
  error->wanted = guest->refused_wanted;
  error->limit = guest->refused_limit;
  error->level = guest->refused_level;
  strcpy(error->message, whose[guest->refused_level]);
  return SH_OUT_OF_MEMORY;
}

/* We ended the call; wasmtime's error only carries the backtrace. */
static int stopped(shi_guest *guest, wasmtime_error_t *error, wasm_trap_t *trap) {
  sh_host *host = guest->plugin->host;
  int why = guest->stop;
  guest->stop = 0; /* an outer call of the same guest may go on */
  if (error)
    shi_fail_wasmtime(error);
  else if (trap)
    shi_fail_trap(trap);
  else
    shi_fail(why, "%s", "");
  switch (why) {
  case SH_OUT_OF_MEMORY:
    return out_of_memory(guest, false);
  case SH_REGION_FULL:
    shi_error_forget();
    shi_event_refused(&host->events, guest->whose, SH_REFUSED_REGIONS, SH_LEVEL_HOST, 1, host->options.max_regions);
    return shi_fail_limit(SH_REGION_FULL, 1, host->options.max_regions, "all %u regions are in use",
                          host->options.max_regions);
  case SH_NATIVE:
    shi_error_forget();
    return shi_fail_native(-(int)guest->refused_wanted);
  case SH_QUOTA:
    shi_error_forget();
    return shi_cpu_refuse(guest, shi_now_ns());
  case SH_DEADLINE:
    shi_count(&host->counters, SHI_HOST_DEADLINES, 1);
    shi_event_deadline(&host->events, guest->whose, guest->limits.deadline_ns);
    shi_error()->limit = guest->limits.deadline_ns;
    break;
  case SH_HOST_ERROR:
    shi_error()->guest = shi_guest_id(guest);
    break;
  case SH_EXIT:
    shi_error()->exit_status = guest->exit_status;
    break;
  case SH_WAITS:
    snprintf(shi_error()->message, sizeof shi_error()->message,
             "the guest waits for %s, which a call cannot that blocks its thread; use `await guest.call_async(...)`",
             guest->waits_for);
    break;
  case SH_FORKED:
    shi_error_forget();
    return shi_fail(SH_FORKED, "this process was forked from the one that has the guests; it has none");
  case SH_CANCELLED:
  case SH_EVICTED:
    shi_count(&host->counters, SHI_HOST_CANCELS, 1);
    shi_event_cancel(&host->events, guest->whose);
    break;
  default:
    break;
  }
  shi_fail_is(why);
  return why;
}

int shi_guest_outcome(shi_guest *guest, wasmtime_error_t *error, wasm_trap_t *trap) {
  if (__builtin_expect(guest->stop != 0, 0)) return stopped(guest, error, trap);
  if (__builtin_expect(!error && !trap, 1)) return SH_OK;
  int status = error ? shi_fail_wasmtime(error) : shi_fail_trap(trap);
  if (status == SH_TRAP && shi_error()->trap_code == WASMTIME_TRAP_OUT_OF_FUEL) {
    shi_error()->limit = guest->limits.fuel;
    shi_fail_is(SH_OUT_OF_FUEL);
    shi_event_refused(&guest->plugin->host->events, guest->whose, SH_REFUSED_FUEL, SH_LEVEL_GUEST, guest->limits.fuel,
                      guest->limits.fuel);
    return SH_OUT_OF_FUEL;
  }
  if (status == SH_TRAP) {
    shi_count(&guest->plugin->host->counters, SHI_HOST_TRAPS, 1);
    shi_count(&guest->plugin->counters, SHI_PLUGIN_TRAPS, 1);
    shi_event_trap(&guest->plugin->host->events, guest->whose, shi_error()->trap_code);
    if (guest->refused) return out_of_memory(guest, true);
  }
  return status;
}

/* ---- calls --------------------------------------------------------------------------------------------------------- */

static int resolve(shi_guest *guest, const shi_export *export, wasmtime_func_t *out) {
  wasmtime_extern_t item;
  if (!wt.wasmtime_instance_export_get(guest->context, &guest->instance, export->name, export->name_length, &item) ||
      item.kind != WASMTIME_EXTERN_FUNC)
    return shi_fail(SH_ARGUMENT, "the instance has no such function");
  *out = item.of.func;
  return SH_OK;
}

int shi_guest_export(shi_guest *guest, uint32_t index, bool integers, const shi_export **out,
                     wasmtime_func_t *function) {
  sh_plugin *plugin = guest->plugin;
  bool starts = index == SH_START && plugin->state.start && !integers;
  if (!starts && (index >= plugin->export_count || (integers && !plugin->exports[index].integers)))
    return shi_fail(SH_ARGUMENT, "no such function");
  *out = starts ? &plugin->start : &plugin->exports[index];
  if ((*out)->references) return shi_fail(SH_ARGUMENT, "references cannot cross");
  if (starts) return resolve(guest, *out, function);
  int status = guest->functions[index].store_id ? SH_OK : resolve(guest, *out, &guest->functions[index]);
  *function = guest->functions[index];
  return status;
}

void shi_guest_expect_call(shi_guest *guest) {
  if (__builtin_expect(guest->called, 1)) return;
  guest->called = true;
  atomic_store_explicit(&guest->touched, true, memory_order_relaxed);
  for (uint32_t k = 0; k < guest->region_count; k++) shi_region_expect_call(guest->regions[k]);
}

/* The guest is entered; values hold the parameters, then the results. */
static int run(shi_guest *guest, const shi_export *export, const wasmtime_func_t *function, wasmtime_val_raw_t *values,
               uint64_t now_ns) {
  int status = shi_cells_check(export->params, values);
  if (__builtin_expect(status == SH_OK && shi_on_fiber(guest), 0))
    return shi_fiber_call(guest, export, function, values);
  if (status == SH_OK) status = shi_guest_begin(guest, now_ns);
  if (status != SH_OK) return status;
  shi_guest_expect_call(guest);
  shi_cells_to_raw(export->params, values);
  uint32_t count = export->param_count > export->result_count ? export->param_count : export->result_count;
  wasm_trap_t *trap = NULL;
  wasmtime_error_t *error = wt.wasmtime_func_call_unchecked(guest->context, function, values, count, &trap);
  shi_guest_finish(guest);
  status = shi_guest_outcome(guest, error, trap);
  if (status == SH_OK) shi_raw_to_cells(export->results, values);
  shi_tally(&guest->calls, 1);
  return status;
}

/* Python is going away, and takes daemon threads with it: one that got an exception now would print it. What CPython
 * does from 3.14 on with a daemon thread that wants to go on at that point is to let it hang, as we do. */
void shi_stay_if_exiting(void) {
  if (!atomic_load(&shi_exiting) || shi_on_main_thread()) return;
  for (;;) pause();
}

static int call(uint64_t id, uint32_t index, wasmtime_val_raw_t *values, bool integers, bool briefly) {
  shi_guest *guest;
  int status = shi_guest_enter(id, &guest);
  if (status != SH_OK) return status;
  sh_host *host = guest->plugin->host;
  uint64_t begun = shi_now_ns();
  if (briefly) guest->brief_from_ns = shi_thread_cpu_ns();
  const shi_export *export = NULL;
  wasmtime_func_t function;
  status = shi_guest_export(guest, index, integers, &export, &function);
  if (status == SH_OK) status = run(guest, export, &function, values, begun);
  uint64_t taken = shi_now_ns() - begun;
  if (briefly) {
    if (export && taken > SHI_LONG_NS && shi_is_long_since(guest->brief_from_ns)) shi_export_was_long(export);
    guest->brief_from_ns = 0;
  }
  shi_guest_leave(guest);
  if (__builtin_expect(status == SH_CANCELLED, 0) && !briefly) shi_stay_if_exiting(); /* else it has the lock */
  shi_histogram_record(&host->latency[SH_OP_CALL], taken);
  return status;
}

int shi_call(uint64_t id, uint32_t index, wasmtime_val_raw_t *values, bool integers) {
  return call(id, index, values, integers, false);
}

int shi_call_briefly(uint64_t id, uint32_t index, wasmtime_val_raw_t *values) {
  return call(id, index, values, false, true);
}
