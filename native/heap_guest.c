/* Handles as guests use them: the imports of module "sandhost", and what a guest's calls and its end mean to the heap.
 *
 * A guest has a holder from the first handle it is given. A plugin that imports "release" releases by hand; of all others
 * the memory is scanned.
 */
#include <string.h>

#include "fiber.h"
#include "heap.h"

/* ---- the host's heap, the guest's holder ------------------------------------------------------------------------------ */

sh_heap *sh_host_heap(sh_host *host) {
  if (atomic_load(&shi_forked))
    return shi_fail(SH_FORKED, "this process was forked from the one that has the handles"), NULL;
  pthread_mutex_lock(&host->mutex);
  if (!host->heap && shi_heap_create(&host->handles, &host->handle_bytes, &host->heap) == SH_OK)
    host->heap->events = &host->events;
  sh_heap *heap = host->heap;
  pthread_mutex_unlock(&host->mutex);
  return heap;
}

void shi_host_heap_free(sh_host *host) {
  if (host->heap) shi_heap_destroy(host->heap);
}

void shi_host_heap_stats(sh_host *host, sh_host_stats *out) {
  out->handles = shi_account_used(&host->handles);
  out->handle_bytes = shi_account_used(&host->handle_bytes);
  pthread_mutex_lock(&host->mutex);
  sh_heap *heap = host->heap;
  pthread_mutex_unlock(&host->mutex);
  if (!heap || atomic_load(&shi_forked)) return;
  shi_heap_lock(heap);
  out->handle_goal_bytes = heap->goal_bytes;
  out->handle_allocs = heap->allocs;
  out->handle_frees = heap->frees;
  out->collections = heap->cycles;
  shi_heap_unlock(heap);
}

static bool piece(void *context, uint32_t k, const uint8_t **base, uint64_t *bytes) {
  const shi_guest *guest = context;
  if (k >= guest->region_count) return false;
  *base = guest->regions[k]->base;
  *bytes = atomic_load_explicit(&guest->sizes[k], memory_order_acquire);
  return true;
}

/* Of type i64, in the order in which `globals_of` reads them. */
static uint32_t count_globals(const sh_plugin *plugin) {
  uint32_t count = 0;
  for (uint32_t k = 0; k < plugin->state.globals.count; k++) count += plugin->state.globals.items[k].letter == 'l';
  return count;
}

shi_holder *shi_guest_holder(shi_guest *guest, bool in_call) {
  if (__builtin_expect(guest->holder != NULL, 1)) return guest->holder;
  sh_plugin *plugin = guest->plugin;
  sh_heap *heap = sh_host_heap(plugin->host);
  if (!heap) return NULL;
  const shi_holder_request request = {
      .guest = shi_guest_id(guest),
      .plugin = guest->whose.plugin,
      .tenant = guest->whose.tenant,
      .node = atomic_load_explicit(&guest->node, memory_order_relaxed),
      .plugin_name = plugin->name ? plugin->name : "",
      .scans = !plugin->releases,
      .in_call = in_call,
      .pieces = piece,
      .context = guest,
      .global_count = plugin->releases ? 0 : count_globals(plugin),
      .handles = guest->tenant ? &guest->tenant->handles : NULL,
      .bytes = guest->tenant ? &guest->tenant->handle_bytes : NULL,
      .handles_limit = guest->limits.handles,
      .bytes_limit = guest->limits.handle_bytes,
  };
  return guest->holder = shi_holder_new(heap, &request);
}

void shi_guest_handles_begin(shi_guest *guest) { shi_holder_call_begins(guest->holder); }

void shi_guest_handles_look(shi_guest *guest) {
  shi_holder *holder = guest->holder;
  uint64_t *globals = shi_holder_new_globals(holder);
  const shi_state_items *items = &guest->plugin->state.globals;
  for (uint32_t k = 0; k < items->count && holder->global_count; k++)
    if (items->items[k].letter == 'l') *globals++ = shi_state_integer(guest, items->items[k].index);
}

void shi_guest_handles_finish(shi_guest *guest) {
  shi_guest_handles_look(guest);
  shi_holder_call_ends(guest->holder);
}

/* ---- calls that stand still -------------------------------------------------------------------------------------------- */

static const uint8_t *stack_top(const shi_guest *guest) {
  if (!shi_on_fiber(guest)) return guest->stack_top;
  const shi_region *stack = guest->fiber->stack;
  return stack->base + stack->committed;
}

void shi_guest_handles_stand(shi_guest *guest) {
  shi_holder *holder = guest->holder;
  /* One that has yielded in the middle of wasm code has registers where nobody looks; an outcome is in nobody's memory. */
  if (!holder->scans || !shi_on_fiber(guest) || !guest->fiber->parked || holder->stands) return;
  const uint8_t *low = guest->fiber->low;
  shi_holder_call_stands(holder, low, (uint64_t)(stack_top(guest) - low), guest->depth == 1);
}

static __attribute__((noinline)) void scan_above(shi_guest *guest) {
  const uint8_t *low = __builtin_frame_address(0);
  shi_holder_scan_standing(guest->holder, low, (uint64_t)(stack_top(guest) - low), guest->depth == 1);
}

void shi_guest_handles_tick(shi_guest *guest) {
  shi_holder *holder = guest->holder;
  if (!holder->scans || !shi_holder_is_waited_for(holder)) return;
  __builtin_unwind_init(); /* what wasm keeps in registers is in this frame */
  shi_guest_handles_look(guest);
  scan_above(guest);
}

void shi_guest_handles_end(shi_guest *guest) {
  shi_holder_close(guest->holder);
  guest->holder = NULL;
}

/* ---- imports ------------------------------------------------------------------------------------------------------------ */

typedef struct {
  shi_heap *heap;
  shi_holder *holder;
  wasmtime_val_raw_t *values;
} call;

static uint64_t argument(const call *of, uint32_t k) { return (uint64_t)of->values[k].i64; }
static uint32_t small(const call *of, uint32_t k) { return (uint32_t)of->values[k].i32; }
static uint64_t *result(const call *of) { return (uint64_t *)&of->values[0].i64; }

static int retain(call *of) { return shi_cell_retain(of->heap, of->holder, argument(of, 0), result(of)); }

static int release(call *of) {
  uint32_t left = 0;
  int status = shi_cell_release(of->heap, of->holder, argument(of, 0), &left);
  of->values[0].i32 = (int32_t)left;
  return status;
}

static int weak(call *of) { return shi_cell_weak(of->heap, of->holder, argument(of, 0), result(of)); }
static int size(call *of) { return shi_cell_size(of->heap, of->holder, argument(of, 0), result(of)); }

static int kind(call *of) {
  uint64_t handle = argument(of, 0), bytes;
  int status = shi_cell_size(of->heap, of->holder, handle, &bytes);
  of->values[0].i32 = (int32_t)shi_kind_of(handle);
  return status;
}

static int length(call *of) {
  uint64_t entries = 0;
  int status = shi_container_length(of->heap, of->holder, argument(of, 0), &entries);
  of->values[0].i32 = (int32_t)entries;
  return status;
}

static int list_new(call *of) { return shi_list_new(of->holder, 0, result(of)); }
static int list_push(call *of) { return shi_list_push(of->heap, of->holder, argument(of, 0), argument(of, 1)); }
static int list_pop(call *of) { return shi_list_pop(of->heap, of->holder, argument(of, 0), result(of)); }

static int record_new(call *of) {
  uint32_t fields = small(of, 0);
  return fields ? shi_list_new(of->holder, fields, result(of)) : shi_fail(SH_INVALID_HANDLE, "a record without fields");
}

static int entry_get(call *of) { return shi_list_get(of->heap, of->holder, argument(of, 0), small(of, 1), result(of)); }
static int entry_set(call *of) {
  return shi_list_set(of->heap, of->holder, argument(of, 0), small(of, 1), argument(of, 2));
}

static int map_new(call *of) { return shi_map_new(of->holder, result(of)); }
static int map_get(call *of) { return shi_map_get(of->heap, of->holder, argument(of, 0), argument(of, 1), result(of)); }
static int map_put(call *of) {
  return shi_map_put(of->heap, of->holder, argument(of, 0), argument(of, 1), argument(of, 2));
}

typedef struct {
  const char *name, *params, *results;
  int (*run)(call *of);
} function;

static const function functions[] = {
    {"retain", "l", "l", retain},
    {"release", "l", "i", release},
    {"weak", "l", "l", weak},
    {"kind", "l", "i", kind},
    {"size", "l", "l", size},
    {"length", "l", "i", length},
    {"list_new", "", "l", list_new},
    {"list_push", "ll", "", list_push},
    {"list_pop", "l", "l", list_pop},
    {"list_get", "li", "l", entry_get},
    {"list_set", "lil", "", entry_set},
    {"record_new", "i", "l", record_new},
    {"record_get", "li", "l", entry_get},
    {"record_set", "lil", "", entry_set},
    {"map_new", "", "l", map_new},
    {"map_get", "ll", "l", map_get},
    {"map_put", "lll", "", map_put},
};

/* The trap carries the message; shi_guest_outcome gives it its status. */
static wasm_trap_t *stop(shi_guest *guest, int status) {
  sh_error *error = shi_error();
  char message[256];
  size_t length_of = strnlen(error->message, sizeof message - 1);
  memcpy(message, error->message, length_of);
  message[length_of] = 0;
  guest->stop = status;
  guest->refused_wanted = status == SH_NATIVE ? (uint64_t)error->os_errno : error->wanted;
  guest->refused_limit = error->limit;
  guest->refused_level = error->level;
  guest->refused_errno = 0;
  shi_error_forget();
  return wt.wasmtime_trap_new(message, length_of);
}

static wasm_trap_t *run(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t count) {
  (void)count;
  shi_guest *guest = wt.wasmtime_context_get_data(wt.wasmtime_caller_context(caller));
  shi_holder *holder = shi_guest_holder(guest, true);
  if (!holder) return stop(guest, shi_error()->status);
  call of = {.heap = holder->heap, .holder = holder, .values = values};
  int status = ((const function *)env)->run(&of);
  if (__builtin_expect(status != SH_OK, 0)) return stop(guest, status);
  if (__builtin_expect(atomic_load_explicit(&holder->heap->tells, memory_order_relaxed), 0)) {
    uint32_t depth = shi_host_code_begins(guest);
    shi_heap_tell(holder->heap);
    shi_host_code_ends(guest, depth);
  }
  return NULL;
}

const char *sh_handle_import(uint32_t k, const char **params, const char **results) {
  if (k >= sizeof functions / sizeof functions[0]) return NULL;
  *params = functions[k].params;
  *results = functions[k].results;
  return functions[k].name;
}

int sh_plugin_handles(sh_plugin *plugin, int releases) {
  static const char module[] = "sandhost";
  plugin->releases = releases;
  for (size_t k = 0; k < sizeof functions / sizeof functions[0]; k++) {
    const function *one = &functions[k];
    wasm_functype_t *type = shi_functype(one->params, one->results);
    wasmtime_error_t *error =
        wt.wasmtime_linker_define_func_unchecked(plugin->linker, module, sizeof module - 1, one->name,
                                                 strlen(one->name), type, run, (void *)(uintptr_t)one, NULL);
    wt.wasm_functype_delete(type);
    if (error) return shi_fail_wasmtime(error);
  }
  return SH_OK;
}
