/* Capturing and restoring globals, tables and dropped segments, through wasmtime's public interface alone.
 *
 * A reference to a function means nothing in another instance. So functions are known by their index in the module: the
 * rewrite exports every function that a table or a global can hold, and two references are the same function when
 * wasmtime's raw pointers to them are.
 */
#include "state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest.h"

/* ---- exports of ours ------------------------------------------------------------------------------------------------ */

static int get_export(shi_guest *guest, const char *kind, uint32_t index, const char *rest, wasmtime_extern_t *out) {
  char name[64];
  int length = snprintf(name, sizeof name, "sandhost:%s:%u%s", kind, index, rest);
  if (wt.wasmtime_instance_export_get(guest->context, &guest->instance, name, (size_t)length, out)) return SH_OK;
  return shi_fail(SH_WASMTIME, "the compiled module exports no %s", name);
}

static int get_function(shi_guest *guest, uint32_t index, wasmtime_val_t *out) {
  wasmtime_extern_t item;
  int status = get_export(guest, "func", index, "", &item);
  if (status != SH_OK) return status;
  out->kind = WASMTIME_FUNCREF;
  out->of.funcref = item.of.func;
  return SH_OK;
}

static wasmtime_val_t null_of(char letter) {
  wasmtime_val_t value;
  memset(&value, 0, sizeof value); /* a store id of 0 is null */
  value.kind = letter == 'F' ? WASMTIME_FUNCREF : letter == 'E' ? WASMTIME_EXTERNREF : WASMTIME_EXNREF;
  return value;
}

static int get_reference(shi_guest *guest, char letter, uint32_t function, wasmtime_val_t *out) {
  *out = null_of(letter);
  return function == SH_NO_FUNCTION ? SH_OK : get_function(guest, function, out);
}

static bool is_reference(char letter) { return letter == 'F' || letter == 'E' || letter == 'X'; }

/* ---- which function is it ------------------------------------------------------------------------------------------- */

typedef struct {
  const void *raw;
  uint32_t index;
} known_function;

typedef struct {
  known_function *items;
  uint32_t count;
} known_functions;

static int by_raw(const void *a, const void *b) {
  uintptr_t left = (uintptr_t)((const known_function *)a)->raw, right = (uintptr_t)((const known_function *)b)->raw;
  return left < right ? -1 : left > right;
}

static int know_functions(shi_guest *guest, known_functions *known) {
  const shi_state_plan *plan = &guest->plugin->state;
  known->count = 0;
  known->items = malloc((plan->function_count + 1) * sizeof *known->items);
  if (!known->items) return shi_fail_no_memory();
  for (uint32_t k = 0; k < plan->function_count; k++) {
    wasmtime_val_t value;
    int status = get_function(guest, plan->functions[k], &value);
    if (status != SH_OK) return status;
    known->items[known->count++] =
        (known_function){wt.wasmtime_func_to_raw(guest->context, &value.of.funcref), plan->functions[k]};
  }
  qsort(known->items, known->count, sizeof *known->items, by_raw);
  return SH_OK;
}

/* False: it is something that only this instance has. */
static bool recognize(shi_guest *guest, const known_functions *known, wasmtime_val_t *value, uint32_t *function) {
  *function = SH_NO_FUNCTION;
  if (value->kind != WASMTIME_FUNCREF) {
    bool null = value->of.anyref.store_id == 0;
    if (!null) wt.wasmtime_val_unroot(value);
    return null;
  }
  if (value->of.funcref.store_id == 0) return true;
  known_function wanted = {.raw = wt.wasmtime_func_to_raw(guest->context, &value->of.funcref)};
  const known_function *found = bsearch(&wanted, known->items, known->count, sizeof wanted, by_raw);
  if (found) *function = found->index;
  return found;
}

/* ---- capture -------------------------------------------------------------------------------------------------------- */

uint64_t shi_state_integer(shi_guest *guest, uint32_t index) {
  wasmtime_extern_t global;
  wasmtime_val_t value;
  if (get_export(guest, "global", index, "", &global) != SH_OK) return shi_error_forget(), 0;
  wt.wasmtime_global_get(guest->context, &global.of.other, &value);
  return (uint64_t)value.of.i64;
}

static int read_global(shi_guest *guest, const known_functions *known, const shi_state_item *item, sh_global *out) {
  wasmtime_extern_t global;
  int status = get_export(guest, "global", item->index, "", &global);
  if (status != SH_OK) return status;
  wasmtime_val_t value;
  wt.wasmtime_global_get(guest->context, &global.of.other, &value);
  *out = (sh_global){.function = SH_NO_FUNCTION};
  if (!is_reference(item->letter)) {
    memcpy(out->bytes, &value.of, sizeof out->bytes);
    if (item->letter == 'i' || item->letter == 'f') memset(out->bytes + 4, 0, sizeof out->bytes - 4);
    if (item->letter == 'l' || item->letter == 'd') memset(out->bytes + 8, 0, sizeof out->bytes - 8);
    return SH_OK;
  }
  if (recognize(guest, known, &value, &out->function)) return SH_OK;
  return shi_fail(SH_ARGUMENT, "global %u holds a reference that is to no function of the module", item->index);
}

static int read_table(shi_guest *guest, const known_functions *known, const shi_state_item *item,
                      shi_table_state *out) {
  wasmtime_extern_t table;
  int status = get_export(guest, "table", item->index, "", &table);
  if (status != SH_OK) return status;
  out->size = wt.wasmtime_table_size(guest->context, &table.of.other);
  out->functions = malloc((out->size + 1) * sizeof *out->functions);
  if (!out->functions) return shi_fail_no_memory();
  for (uint64_t k = 0; k < out->size; k++) {
    wasmtime_val_t value;
    wt.wasmtime_table_get(guest->context, &table.of.other, k, &value);
    if (!recognize(guest, known, &value, &out->functions[k]))
      return shi_fail(SH_ARGUMENT, "element %" PRIu64 " of table %u is a reference to no function of the module", k,
                      item->index);
  }
  return SH_OK;
}

static int call_export(shi_guest *guest, const char *kind, uint32_t index, const char *rest, wasm_trap_t **trap) {
  wasmtime_extern_t item;
  int status = get_export(guest, kind, index, rest, &item);
  if (status != SH_OK) return status;
  wasmtime_val_raw_t nothing;
  *trap = NULL;
  wasmtime_error_t *error = wt.wasmtime_func_call_unchecked(guest->context, &item.of.func, &nothing, 0, trap);
  return error ? shi_fail_wasmtime(error) : SH_OK;
}

/* The probe copies the first byte of the segment, which traps once it was dropped. */
static int probe_data(shi_guest *guest, const shi_state_item *item, wasm_trap_t **trap) {
  if (atomic_load(&guest->sizes[item->target]) == 0)
    return shi_fail(SH_ARGUMENT, "whether data segment %u was dropped cannot be told while memory %u is empty",
                    item->index, item->target);
  uint8_t *first = guest->regions[item->target]->base, kept = *first;
  int status = call_export(guest, "data", item->index, ":probe", trap);
  *first = kept;
  return status;
}

static int probe_elements(shi_guest *guest, const shi_state_item *item, wasm_trap_t **trap) {
  wasmtime_extern_t table;
  int status = get_export(guest, "table", item->target, "", &table);
  if (status != SH_OK) return status;
  wasmtime_val_t kept;
  if (!wt.wasmtime_table_get(guest->context, &table.of.other, 0, &kept))
    return shi_fail(SH_ARGUMENT, "whether element segment %u was dropped cannot be told while table %u is empty",
                    item->index, item->target);
  status = call_export(guest, "elem", item->index, ":probe", trap);
  wasmtime_error_t *error = wt.wasmtime_table_set(guest->context, &table.of.other, 0, &kept);
  return error ? shi_fail_wasmtime(error) : status;
}

static int read_segment(shi_guest *guest, const shi_state_item *item, uint8_t *dropped) {
  wasm_trap_t *trap = NULL;
  int status = item->letter == 'D' ? probe_data(guest, item, &trap) : probe_elements(guest, item, &trap);
  *dropped = trap != NULL;
  if (!trap) return status;
  uint8_t code;
  bool expected = wt.wasmtime_trap_code(trap, &code) &&
                  (code == WASMTIME_TRAP_MEMORY_OUT_OF_BOUNDS || code == WASMTIME_TRAP_TABLE_OUT_OF_BOUNDS);
  if (!expected) return shi_fail_trap(trap);
  wt.wasm_trap_delete(trap);
  return status;
}

int shi_state_capture(shi_guest *guest, shi_state *state) {
  const shi_state_plan *plan = &guest->plugin->state;
  known_functions known;
  int status = know_functions(guest, &known);
  for (uint32_t k = 0; k < plan->globals.count && status == SH_OK; k++)
    status = read_global(guest, &known, &plan->globals.items[k], &state->globals[k]);
  for (uint32_t k = 0; k < plan->tables.count && status == SH_OK; k++)
    status = read_table(guest, &known, &plan->tables.items[k], &state->tables[k]);
  free(known.items);
  if (status != SH_OK || plan->segments.count == 0) return status;
  status = shi_guest_begin(guest, shi_now_ns());
  if (status != SH_OK) return status;
  atomic_store_explicit(&guest->touched, true, memory_order_relaxed); /* the probes write what was there */
  for (uint32_t k = 0; k < plan->segments.count && status == SH_OK; k++)
    status = read_segment(guest, &plan->segments.items[k], &state->dropped[k]);
  shi_guest_finish(guest);
  return status;
}

/* ---- what differs from a fresh instance ----------------------------------------------------------------------------- */

static int compare_globals(shi_guest *guest, const known_functions *known, shi_state *state) {
  const shi_state_items *items = &guest->plugin->state.globals;
  state->changed_globals = malloc((items->count + 1) * sizeof *state->changed_globals);
  if (!state->changed_globals) return shi_fail_no_memory();
  for (uint32_t k = 0; k < items->count; k++) {
    sh_global fresh;
    int status = read_global(guest, known, &items->items[k], &fresh);
    if (status != SH_OK) return status;
    if (memcmp(&fresh, &state->globals[k], sizeof fresh) != 0)
      state->changed_globals[state->changed_global_count++] = k;
  }
  return SH_OK;
}

static int add_change(shi_state *state, shi_table_change change) {
  if ((state->change_count & (state->change_count - 1)) == 0) { /* full at 0 and at powers of two */
    size_t capacity = state->change_count ? 2 * state->change_count : 1;
    shi_table_change *changes = realloc(state->changes, capacity * sizeof *changes);
    if (!changes) return shi_fail_no_memory();
    state->changes = changes;
  }
  state->changes[state->change_count++] = change;
  return SH_OK;
}

/* Elements beyond the fresh table's come with its growth, filled with the first of them. */
static int compare_table(shi_guest *guest, const known_functions *known, shi_state *state, uint32_t table) {
  const shi_table_state *wanted = &state->tables[table];
  shi_table_state fresh = {0};
  int status = read_table(guest, known, &guest->plugin->state.tables.items[table], &fresh);
  if (status == SH_OK && fresh.size > wanted->size)
    status = shi_fail(SH_ARGUMENT, "table %u of the snapshot is smaller than the module's", table);
  for (uint64_t k = 0; k < wanted->size && status == SH_OK; k++) {
    uint32_t there = k < fresh.size ? fresh.functions[k] : wanted->functions[fresh.size];
    if (there != wanted->functions[k])
      status = add_change(state, (shi_table_change){.table = table, .function = wanted->functions[k], .element = k});
  }
  free(fresh.functions);
  return status;
}

static int compare(shi_guest *guest, shi_state *state) {
  known_functions known;
  state->changed_global_count = 0;
  state->change_count = 0;
  free(state->changed_globals);
  free(state->changes);
  state->changes = NULL;
  state->changed_globals = NULL;
  int status = know_functions(guest, &known);
  if (status == SH_OK) status = compare_globals(guest, &known, state);
  for (uint32_t k = 0; k < guest->plugin->state.tables.count && status == SH_OK; k++)
    status = compare_table(guest, &known, state, k);
  free(known.items);
  return status;
}

static int compare_once(shi_guest *guest, shi_state *state) {
  if (__builtin_expect(atomic_load_explicit(&state->compared, memory_order_acquire), 1)) return SH_OK;
  pthread_mutex_lock(&state->mutex);
  int status = atomic_load(&state->compared) ? SH_OK : compare(guest, state);
  if (status == SH_OK) atomic_store_explicit(&state->compared, true, memory_order_release);
  pthread_mutex_unlock(&state->mutex);
  return status;
}

/* ---- restore -------------------------------------------------------------------------------------------------------- */

static uint8_t kind_of(char letter) {
  switch (letter) {
  case 'i':
    return WASM_I32;
  case 'l':
    return WASM_I64;
  case 'f':
    return WASM_F32;
  case 'd':
    return WASM_F64;
  default:
    return WASMTIME_V128;
  }
}

static int write_global(shi_guest *guest, const shi_state_item *item, const sh_global *from) {
  wasmtime_extern_t global;
  int status = get_export(guest, "global", item->index, "", &global);
  wasmtime_val_t value = {.kind = kind_of(item->letter)};
  if (is_reference(item->letter) && status == SH_OK)
    status = get_reference(guest, item->letter, from->function, &value);
  else
    memcpy(&value.of, from->bytes, sizeof from->bytes);
  if (status != SH_OK) return status;
  wasmtime_error_t *error = wt.wasmtime_global_set(guest->context, &global.of.other, &value);
  return error ? shi_fail_wasmtime(error) : SH_OK;
}

static int grow_table(shi_guest *guest, const shi_state_item *item, const shi_table_state *to) {
  wasmtime_extern_t table;
  int status = get_export(guest, "table", item->index, "", &table);
  if (status != SH_OK) return status;
  uint64_t size = wt.wasmtime_table_size(guest->context, &table.of.other), before;
  if (size >= to->size) return SH_OK;
  wasmtime_val_t value;
  status = get_reference(guest, item->letter, to->functions[size], &value);
  if (status != SH_OK) return status;
  wasmtime_error_t *error = wt.wasmtime_table_grow(guest->context, &table.of.other, to->size - size, &value, &before);
  return error ? shi_fail_wasmtime(error) : SH_OK;
}

static int write_element(shi_guest *guest, const shi_table_change *change) {
  const shi_state_item *item = &guest->plugin->state.tables.items[change->table];
  wasmtime_extern_t table;
  wasmtime_val_t value;
  int status = get_export(guest, "table", item->index, "", &table);
  if (status == SH_OK) status = get_reference(guest, item->letter, change->function, &value);
  if (status != SH_OK) return status;
  wasmtime_error_t *error = wt.wasmtime_table_set(guest->context, &table.of.other, change->element, &value);
  return error ? shi_fail_wasmtime(error) : SH_OK;
}

static int drop_segment(shi_guest *guest, const shi_state_item *item) {
  wasm_trap_t *trap = NULL;
  int status = call_export(guest, item->letter == 'D' ? "data" : "elem", item->index, ":drop", &trap);
  return trap ? shi_fail_trap(trap) : status;
}

int shi_state_restore(shi_guest *guest, shi_state *state) {
  const shi_state_plan *plan = &guest->plugin->state;
  int status = compare_once(guest, state);
  for (uint32_t k = 0; k < state->changed_global_count && status == SH_OK; k++) {
    uint32_t global = state->changed_globals[k];
    status = write_global(guest, &plan->globals.items[global], &state->globals[global]);
  }
  for (uint32_t k = 0; k < plan->tables.count && status == SH_OK; k++)
    status = grow_table(guest, &plan->tables.items[k], &state->tables[k]);
  for (size_t k = 0; k < state->change_count && status == SH_OK; k++) status = write_element(guest, &state->changes[k]);
  for (uint32_t k = 0; k < plan->segments.count && status == SH_OK; k++)
    if (state->dropped[k]) status = drop_segment(guest, &plan->segments.items[k]);
  return status;
}

int shi_state_start(shi_guest *guest) {
  const shi_export *start;
  wasmtime_func_t function;
  int status = shi_guest_export(guest, SH_START, false, &start, &function);
  if (status != SH_OK) return status;
  wasm_trap_t *trap = NULL;
  wasmtime_val_raw_t nothing;
  wasmtime_error_t *error = wt.wasmtime_func_call_unchecked(guest->context, &function, &nothing, 0, &trap);
  return shi_guest_outcome(guest, error, trap);
}

/* ---- the plan, and what is held ------------------------------------------------------------------------------------- */

static int add_item(shi_state_items *items, shi_state_item item) {
  shi_state_item *grown = realloc(items->items, (items->count + 1) * sizeof *grown);
  if (!grown) return shi_fail_no_memory();
  items->items = grown;
  grown[items->count++] = item;
  return SH_OK;
}

int sh_plugin_global(sh_plugin *plugin, uint32_t index, int letter) {
  return add_item(&plugin->state.globals, (shi_state_item){.index = index, .letter = (char)letter});
}

int sh_plugin_table(sh_plugin *plugin, uint32_t index, int letter) {
  return add_item(&plugin->state.tables, (shi_state_item){.index = index, .letter = (char)letter});
}

int sh_plugin_segment(sh_plugin *plugin, uint32_t index, int letter, uint32_t target) {
  if (letter == 'D' && target >= plugin->memory_count) return shi_fail(SH_ARGUMENT, "there is no memory %u", target);
  return add_item(&plugin->state.segments, (shi_state_item){.index = index, .letter = (char)letter, .target = target});
}

int sh_plugin_functions(sh_plugin *plugin, const uint32_t *indices, uint32_t count, int start) {
  shi_state_plan *plan = &plugin->state;
  plan->start = start;
  plan->functions = malloc((count + 1ull) * sizeof *plan->functions);
  if (!plan->functions) return shi_fail_no_memory();
  if (count) memcpy(plan->functions, indices, count * sizeof *indices);
  plan->function_count = count;
  return SH_OK;
}

void shi_state_plan_free(shi_state_plan *plan) {
  free(plan->globals.items);
  free(plan->tables.items);
  free(plan->segments.items);
  free(plan->functions);
}

int shi_state_new(shi_state *state, const shi_state_plan *plan) {
  memset(state, 0, sizeof *state);
  pthread_mutex_init(&state->mutex, NULL);
  state->globals = calloc(plan->globals.count + 1ull, sizeof *state->globals);
  state->tables = calloc(plan->tables.count + 1ull, sizeof *state->tables);
  state->dropped = calloc(plan->segments.count + 1ull, sizeof *state->dropped);
  return state->globals && state->tables && state->dropped ? SH_OK : shi_fail_no_memory();
}

void shi_state_free(shi_state *state, const shi_state_plan *plan) {
  for (uint32_t k = 0; k < plan->tables.count && state->tables; k++) free(state->tables[k].functions);
  free(state->globals);
  free(state->tables);
  free(state->dropped);
  free(state->changed_globals);
  free(state->changes);
  pthread_mutex_destroy(&state->mutex);
}

uint64_t shi_state_largest_table(const shi_state *state, const shi_state_plan *plan) {
  uint64_t largest = 0;
  for (uint32_t k = 0; k < plan->tables.count; k++)
    if (state->tables[k].size > largest) largest = state->tables[k].size;
  return largest;
}
