/* The thread's errors: filled where a failure is seen, taken by Python on the slow path only.
 *
 * Between a call that fails and Python's taking the error, a signal handler or a finalizer may run, call sandhost itself
 * and fail too. What it leaves comes on top and is taken before it returns, so the one below is found again. What nobody
 * takes (the reader was interrupted) stays below and is dropped in time.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bridge.h"

enum { KEPT = 8 };

typedef struct entry {
  sh_error error;
  struct entry *older; /* not taken yet */
  bool taken;
} entry;

/* On the heap, freed when the thread ends: the module's static TLS must stay small (see shi_thread_in_guest). */
static _Thread_local entry *last;
static entry spare = {.taken = true}; /* when there is no memory even for this; threads may then see each other's */
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void free_all(void *newest) {
  for (entry *each = newest, *older; each; each = older) {
    older = each->older;
    free(each);
  }
}

static void make_key(void) { pthread_key_create(&key, free_all); }

static void set_last(entry *newest) {
  last = newest;
  pthread_setspecific(key, newest);
}

static entry *current(void) {
  if (last) return last;
  pthread_once(&once, make_key);
  entry *first = calloc(1, sizeof *first);
  if (!first) return &spare;
  first->taken = true;
  set_last(first);
  return first;
}

static void drop_oldest(entry *newest) {
  entry *each = newest;
  for (int k = 1; k < KEPT && each; k++) each = each->older;
  if (!each) return;
  free_all(each->older);
  each->older = NULL;
}

sh_error *shi_error(void) { return &current()->error; }

const sh_error *sh_last_error(void) { return shi_error(); }

void shi_error_forget(void) {
  entry *top = current();
  top->taken = true;
  if (!top->older) return;
  set_last(top->older);
  free(top);
}

void sh_take_error(sh_error *out) {
  const sh_error *error = shi_error();
  memcpy(out, error, offsetof(sh_error, frames) + error->frame_count * sizeof error->frames[0]);
  shi_error_forget();
}

static sh_error *reset(int status) {
  entry *top = current();
  entry *newer = top->taken || top == &spare ? NULL : calloc(1, sizeof *newer);
  if (newer) {
    newer->older = top;
    set_last(newer);
    drop_oldest(newer);
    top = newer;
  }
  sh_error *error = &top->error;
  memset(error, 0, offsetof(sh_error, frames));
  error->status = status;
  error->trap_code = -1;
  top->taken = top == &spare;
  return error;
}

int shi_fail(int status, const char *format, ...) {
  sh_error *error = reset(status);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->message, sizeof error->message, format, arguments);
  va_end(arguments);
  return status;
}

int shi_fail_limit(int status, uint64_t wanted, uint64_t limit, const char *format, ...) {
  sh_error *error = reset(status);
  error->wanted = wanted;
  error->limit = limit;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->message, sizeof error->message, format, arguments);
  va_end(arguments);
  return status;
}

int shi_fail_os(int error, const char *operation) {
  sh_error *last_error = reset(SH_NATIVE);
  last_error->os_errno = error;
  snprintf(last_error->operation, sizeof last_error->operation, "%s", operation);
  return SH_NATIVE;
}

int shi_fail_native(int error) {
  const char *operation = shi_last_operation();
  return shi_fail_os(-error, operation ? operation : "?");
}

int shi_fail_no_memory(void) { return shi_fail_os(ENOMEM, "malloc"); }

void shi_fail_is(int status) { shi_error()->status = status; }

static void copy_name(char *to, size_t size, const wasm_byte_vec_t *name) {
  size_t length = name ? name->size : 0;
  if (length >= size) length = size - 1;
  if (length) memcpy(to, name->data, length);
  to[length] = 0;
}

static void take_message(sh_error *into, wasm_byte_vec_t *message) {
  copy_name(into->message, sizeof into->message, message);
  wt.wasm_byte_vec_delete(message);
}

static void take_frames(sh_error *into, wasm_frame_vec_t *frames) {
  size_t most = sizeof into->frames / sizeof into->frames[0];
  into->frame_count = (uint32_t)(frames->size < most ? frames->size : most);
  for (uint32_t k = 0; k < into->frame_count; k++) {
    const wasm_frame_t *frame = frames->data[k];
    into->frames[k].function_index = wt.wasm_frame_func_index(frame);
    into->frames[k].module_offset = wt.wasm_frame_module_offset(frame);
    copy_name(into->frames[k].function, sizeof into->frames[k].function, wt.wasmtime_frame_func_name(frame));
    copy_name(into->frames[k].module, sizeof into->frames[k].module, wt.wasmtime_frame_module_name(frame));
  }
  wt.wasm_frame_vec_delete(frames);
}

int shi_fail_wasmtime(wasmtime_error_t *error) {
  sh_error *into = reset(SH_WASMTIME);
  wasm_byte_vec_t message;
  wt.wasmtime_error_message(error, &message);
  take_message(into, &message);
  wasm_frame_vec_t frames;
  wt.wasmtime_error_wasm_trace(error, &frames);
  take_frames(into, &frames);
  wt.wasmtime_error_delete(error);
  return into->status;
}

int shi_fail_trap(wasm_trap_t *trap) {
  sh_error *into = reset(SH_TRAP);
  uint8_t code;
  if (wt.wasmtime_trap_code(trap, &code)) into->trap_code = code;
  wasm_byte_vec_t message;
  wt.wasm_trap_message(trap, &message);
  take_message(into, &message);
  wasm_frame_vec_t frames;
  wt.wasm_trap_trace(trap, &frames);
  take_frames(into, &frames);
  wt.wasm_trap_delete(trap);
  return SH_TRAP;
}
