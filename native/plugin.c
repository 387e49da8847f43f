/* A plugin: module, imports, memory images and exports, resolved once so that a spawn has nothing left to look up. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest.h"

sh_plugin *sh_plugin_new(sh_host *host, sh_module *module) {
  sh_plugin *plugin = calloc(1, sizeof *plugin);
  if (!plugin) {
    sh_module_free(module);
    shi_fail_no_memory();
    return NULL;
  }
  plugin->host = host;
  pthread_mutex_lock(&host->mutex);
  plugin->id = ++host->plugins;
  pthread_mutex_unlock(&host->mutex);
  plugin->module = module;
  plugin->references = 1;
  static char start[] = "sandhost:start", nothing[] = "";
  plugin->start = (shi_export){.name = start, .name_length = sizeof start - 1, .params = nothing, .results = nothing};
  plugin->linker = wt.wasmtime_linker_new(host->ticker.engines[module->engine]);
  return plugin;
}

uint32_t sh_plugin_id(const sh_plugin *plugin) { return plugin->id; }

int sh_plugin_name(sh_plugin *plugin, const char *name) {
  plugin->name = strdup(name);
  return plugin->name ? SH_OK : shi_fail_no_memory();
}

int sh_plugin_memory(sh_plugin *plugin, uint64_t minimum, uint64_t maximum, uint64_t page_size, uint64_t image_length,
                     size_t run_count, const uint64_t *offsets, const uint8_t *const *bytes, const uint64_t *lengths) {
  if (plugin->memory_count == SHI_MEMORIES_MAX)
    return shi_fail_limit(SH_ARGUMENT, plugin->memory_count + 1, SHI_MEMORIES_MAX,
                          "the module has more than %d memories", SHI_MEMORIES_MAX);
  if (minimum > shi_memory_reservation)
    return shi_fail_limit(SH_ARGUMENT, minimum, shi_memory_reservation,
                          "memory %u starts with %llu bytes; a region holds at most %llu", plugin->memory_count,
                          (unsigned long long)minimum, (unsigned long long)shi_memory_reservation);
  if (image_length > minimum) return shi_fail(SH_ARGUMENT, "memory %u: data beyond its end", plugin->memory_count);

  shi_image *image = NULL;
  if (image_length) {
    shi_image_run *runs = calloc(run_count ? run_count : 1, sizeof *runs);
    if (!runs) return shi_fail_no_memory();
    for (size_t k = 0; k < run_count; k++)
      runs[k] = (shi_image_run){.offset = offsets[k], .bytes = bytes[k], .length = lengths[k]};
    int error = shi_image_create(image_length, runs, run_count, &image);
    free(runs);
    if (error) return shi_fail_native(error);
  }
  plugin->memories[plugin->memory_count++] = (shi_memory_plan){
      .minimum = minimum,
      .maximum = maximum < shi_memory_reservation ? maximum : shi_memory_reservation,
      .page_size = page_size,
      .image = image,
  };
  return SH_OK;
}

static bool equals(const wasm_byte_vec_t *name, const char *text) {
  return name->size == strlen(text) && memcmp(name->data, text, name->size) == 0;
}

/* The type as the module imports it. The C API cannot make one with a v128, but it can pass one on. */
static wasm_functype_t *imported_type(const sh_plugin *plugin, const char *module, const char *name) {
  wasm_functype_t *found = NULL;
  wasm_importtype_vec_t imports;
  wt.wasmtime_module_imports(plugin->module->module, &imports);
  for (size_t k = 0; k < imports.size && !found; k++) {
    const wasm_importtype_t *import = imports.data[k];
    if (!equals(wt.wasm_importtype_module(import), module) || !equals(wt.wasm_importtype_name(import), name)) continue;
    const wasm_functype_t *type = wt.wasm_externtype_as_functype_const(wt.wasm_importtype_type(import));
    if (type) found = wt.wasm_functype_copy(type);
  }
  wt.wasm_importtype_vec_delete(&imports);
  return found;
}

static void free_import(shi_import *import) {
  if (!import) return;
  free(import->params);
  free(import->results);
  free(import->name);
  free(import);
}

int sh_plugin_import(sh_plugin *plugin, const char *module, const char *name, const char *params, const char *results,
                     uint32_t callback_id, int asynchronous) {
  bool vectors = strchr(params, 'v') || strchr(results, 'v');
  wasm_functype_t *type = vectors ? imported_type(plugin, module, name) : shi_functype(params, results);
  if (!type) return shi_fail(SH_ARGUMENT, "import %s.%s: references cannot cross", module, name);
  shi_import *import = calloc(1, sizeof *import);
  bool made = import && (import->params = strdup(params)) && (import->results = strdup(results));
  if (made && asprintf(&import->name, "%s.%s", module, name) < 0) {
    import->name = NULL;
    made = false;
  }
  if (!made) {
    free_import(import);
    wt.wasm_functype_delete(type);
    return shi_fail_no_memory();
  }
  import->asynchronous = asynchronous ? import->name : NULL;
  import->callback_id = callback_id;
  import->param_count = (uint32_t)strlen(params);
  import->result_count = (uint32_t)strlen(results);
  import->next = plugin->imports;
  plugin->imports = import;
  wt.wasmtime_linker_allow_shadowing(plugin->linker, true); /* it may stand in for one of WASI */
  wasmtime_error_t *error = wt.wasmtime_linker_define_func_unchecked(
      plugin->linker, module, strlen(module), name, strlen(name), type, shi_hostcall_trampoline, import, NULL);
  wt.wasmtime_linker_allow_shadowing(plugin->linker, false);
  wt.wasm_functype_delete(type);
  return error ? shi_fail_wasmtime(error) : SH_OK;
}

int sh_plugin_wasi(sh_plugin *plugin, uint32_t memory_index) {
  plugin->wasi = true;
  plugin->wasi_memory = memory_index;
  return shi_wasi_define(plugin);
}

static bool fits_integer_call(const char *params, const char *results) {
  return strlen(params) <= 4 && strlen(results) <= 1 && strspn(params, "il") == strlen(params) &&
         strspn(results, "il") == strlen(results);
}

int sh_plugin_export(sh_plugin *plugin, const char *name, size_t name_length, const char *params, const char *results) {
  shi_export *exports = realloc(plugin->exports, (plugin->export_count + 1) * sizeof *exports);
  if (!exports) return shi_fail_no_memory();
  plugin->exports = exports;
  shi_export *export = &exports[plugin->export_count];
  *export = (shi_export){
      .name = malloc(name_length ? name_length : 1),
      .name_length = name_length,
      .params = strdup(params),
      .results = strdup(results),
      .param_count = (uint32_t)strlen(params),
      .result_count = (uint32_t)strlen(results),
      .integers = fits_integer_call(params, results),
      .references = strchr(params, 'r') || strchr(results, 'r'),
  };
  plugin->export_count++;
  if (!export->name || !export->params || !export->results) return shi_fail_no_memory();
  memcpy(export->name, name, name_length);
  return SH_OK;
}

int sh_plugin_tables(sh_plugin *plugin, uint32_t count, uint64_t largest_minimum) {
  plugin->table_count = count;
  plugin->largest_table = largest_minimum;
  return SH_OK;
}

int sh_plugin_link(sh_plugin *plugin) {
  wasmtime_error_t *error = wt.wasmtime_linker_instantiate_pre(plugin->linker, plugin->module->module, &plugin->pre);
  if (error) return shi_fail_wasmtime(error);
  wt.wasmtime_linker_delete(plugin->linker);
  plugin->linker = NULL;
  return SH_OK;
}

static void free_plugin(sh_plugin *plugin) {
  if (plugin->pre) wt.wasmtime_instance_pre_delete(plugin->pre);
  if (plugin->linker) wt.wasmtime_linker_delete(plugin->linker);
  sh_module_free(plugin->module);
  for (uint32_t k = 0; k < plugin->memory_count; k++)
    if (plugin->memories[k].image) shi_image_release(plugin->memories[k].image);
  for (uint32_t k = 0; k < plugin->export_count; k++) {
    free(plugin->exports[k].name);
    free(plugin->exports[k].params);
    free(plugin->exports[k].results);
  }
  free(plugin->exports);
  free(plugin->name);
  shi_state_plan_free(&plugin->state);
  while (plugin->imports) {
    shi_import *import = plugin->imports;
    plugin->imports = import->next;
    free_import(import);
  }
  free(plugin);
}

void shi_plugin_release(sh_plugin *plugin) {
  if (atomic_fetch_sub(&plugin->references, 1) == 1) free_plugin(plugin);
}

void sh_plugin_release(sh_plugin *plugin) {
  if (atomic_load(&shi_forked)) return;
  atomic_store(&plugin->unloaded, true);
  shi_guests_let_go_of(plugin, NULL);
  shi_plugin_release(plugin);
}

void sh_plugin_get_stats(const sh_plugin *plugin, sh_plugin_stats *out) {
  const shi_counters *counters = &plugin->counters;
  uint64_t ended = shi_counted(counters, SHI_PLUGIN_ENDED);
  uint64_t spawns = shi_counted(counters, SHI_PLUGIN_SPAWNS);
  *out = (sh_plugin_stats){
      .guests_live = spawns - ended,
      .spawns = spawns,
      .calls = shi_counted(counters, SHI_PLUGIN_CALLS),
      .host_calls = shi_counted(counters, SHI_PLUGIN_HOST_CALLS),
      .traps = shi_counted(counters, SHI_PLUGIN_TRAPS),
  };
  for (uint32_t k = 0; k < plugin->memory_count; k++)
    if (plugin->memories[k].image) out->image_bytes += shi_image_length(plugin->memories[k].image);
}
