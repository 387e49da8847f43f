/* From the guest into Python and back.
 *
 * What a host function leaves on the stack below it, wasmtime's bookkeeping above all, must be there when it returns. A
 * greenlet that switches away in a host function takes its stack with it, and another one may run over the place. So
 * each host function leaves a mark on the stack: calls begin only below an intact one, and it must be the innermost when
 * its host function returns. After that it is too late for an error: wasmtime would unwind into the wrong guest.
 */
#include <stdio.h>
#include <stdlib.h>

#include "fiber.h"

sh_hostcall_fn shi_hostcall;
sh_answer_fn shi_answer;
sh_output_fn shi_output;
sh_input_fn shi_input;
sh_take_fn shi_take;
sh_signals_fn shi_signals;

void sh_set_callbacks(const sh_callbacks *callbacks) {
  shi_hostcall = callbacks->hostcall;
  shi_answer = callbacks->answer;
  shi_output = callbacks->output;
  shi_input = callbacks->input;
  shi_take = callbacks->take;
  shi_signals = callbacks->signals;
}

uint32_t shi_host_code_begins(shi_guest *guest) {
  uint32_t depth = shi_thread_in_guest;
  shi_thread_in_guest = 0;
  guest->in_callback = true;
  return depth;
}

void shi_host_code_ends(shi_guest *guest, uint32_t depth) {
  guest->in_callback = false;
  shi_thread_in_guest = depth;
}

static wasm_trap_t *stop(shi_guest *guest, int why) {
  static const char message[] = "sandhost: stopped in a host function";
  guest->stop = why;
  return wt.wasmtime_trap_new(message, sizeof message - 1);
}

/* The host function is called from where the fiber was polled, and may answer later. */
static wasm_trap_t *wait_for_host(shi_guest *guest, const shi_import *import, wasmtime_val_raw_t *values) {
  shi_wait wait = {.step = SH_STEP_AWAIT, .import = import, .values = values};
  return shi_fiber_park(guest, &wait) ? NULL : stop(guest, guest->stop);
}

typedef struct mark {
  const struct mark *outer;
  uintptr_t outer_frame;
  uintptr_t intact; /* its own address */
} mark;
static _Thread_local const mark *innermost __attribute__((tls_model("initial-exec")));
static _Thread_local uintptr_t innermost_frame __attribute__((tls_model("initial-exec")));

bool shi_stack_is_ours(void) {
  const volatile mark *found = innermost;
  if (!found) return true;
  return (uintptr_t)__builtin_frame_address(0) < innermost_frame && found->intact == (uintptr_t)found;
}

bool shi_within_host_function(void) { return innermost != NULL; }

static void end_process(void) {
  fputs("sandhost: a host function returned before one that was called later in the same thread; greenlets cannot be "
        "switched in host functions\n",
        stderr);
  abort();
}

wasm_trap_t *shi_hostcall_trampoline(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t count) {
  (void)count;
  const shi_import *import = env;
  shi_guest *guest = wt.wasmtime_context_get_data(wt.wasmtime_caller_context(caller));
  if (atomic_load_explicit(&shi_exiting, memory_order_relaxed)) return stop(guest, SH_CANCELLED);
  shi_tally(&guest->host_calls, 1);
  if (__builtin_expect(shi_on_fiber(guest), 0)) return wait_for_host(guest, import, values);
  if (__builtin_expect(import->asynchronous != NULL, 0)) {
    guest->waits_for = import->asynchronous;
    return stop(guest, SH_WAITS);
  }
  shi_raw_to_cells(import->params, values);
  /* In Python we are host code: a fault there is the host's, and nested calls count from here. */
  uint32_t in_guest = shi_thread_in_guest;
  shi_thread_in_guest = 0;
  const char *outer = atomic_load_explicit(&guest->inside, memory_order_relaxed);
  atomic_store_explicit(&guest->inside, import->name, memory_order_relaxed);
  mark here = {innermost, innermost_frame, (uintptr_t)&here};
  innermost = &here;
  innermost_frame = (uintptr_t)__builtin_frame_address(0);
  int failed = shi_hostcall(shi_guest_id(guest), import->callback_id, &values->i64);
  if (__builtin_expect(innermost != &here, 0)) end_process();
  atomic_store_explicit(&guest->inside, outer, memory_order_relaxed);
  innermost = here.outer;
  innermost_frame = here.outer_frame;
  shi_thread_in_guest = in_guest;
  if (atomic_load_explicit(&shi_forked, memory_order_relaxed)) return stop(guest, SH_FORKED); /* its memory is gone */
  if (failed) return stop(guest, SH_HOST_ERROR);
  if (guest->deadline_ns && shi_now_ns() >= guest->deadline_ns) return stop(guest, SH_DEADLINE);
  if (shi_guest_cancelled(guest)) return stop(guest, shi_guest_cancelled_for(guest));
  shi_cells_to_raw(import->results, values);
  return NULL;
}
