#include "bridge_fixture.h"

#include <string.h>

/* wasmtime's code is not instrumented, so that what sanitizers see is ours: every access of ours from any thread. Its
 * own locks and atomics are invisible to ThreadSanitizer, and so what it frees on one thread and used on another looks
 * like a race. And its fault handler allocates; a trap comes from wasm code, where no allocator is interrupted. Only
 * what it does itself is left out: our callbacks are seen. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) { return "called_from_lib:_libwasmtime.so\nsignal:_libwasmtime.so\n"; }
/* What wasmtime keeps for the life of the process: its table of types. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:_libwasmtime.so\n"; }

const sh_limits no_limits = {.memory = UINT64_MAX, .table_elements = 1000};

void open_wasmtime(void) {
  const char *library = getenv("SANDHOST_WASMTIME_LIBRARY");
  if (!library || !*library) {
    printf("skipped: SANDHOST_WASMTIME_LIBRARY does not say where wasmtime's library is\n");
    exit(0);
  }
  if (sh_wasmtime_open(library) != SH_OK) {
    printf("%s\n", sh_last_error()->message);
    exit(1);
  }
}

sh_host_options host_options(void) {
  return (sh_host_options){.memory_limit = UINT64_MAX,
                           .max_regions = 64,
                           .policy = SH_POLICY_WARM,
                           .resident_per_slot = MIB,
                           .resident_total = 16 * MIB,
                           .decay_ns = 50000000,
                           .wasm_stack = 256 << 10};
}

sh_host *open_host(const sh_host_options *options) {
  sh_host *host = sh_host_new(options);
  CHECK(host);
  return host;
}

sh_plugin *compile(sh_host *host, const char *wat) {
  uint8_t *wasm;
  size_t length;
  CHECK_EQ(sh_wat2wasm(wat, strlen(wat), &wasm, &length), SH_OK);
  sh_module *module = sh_module_compile(host, wasm, length, 0);
  CHECK(module);
  sh_bytes_free(wasm, length);
  sh_plugin *plugin = sh_plugin_new(host, module);
  CHECK(plugin);
  return plugin;
}

void add_memory(sh_plugin *plugin, uint64_t pages, uint64_t most_pages) {
  uint64_t maximum = most_pages ? most_pages * WASM_PAGE : UINT64_MAX;
  CHECK_EQ(sh_plugin_memory(plugin, pages * WASM_PAGE, maximum, WASM_PAGE, 0, 0, NULL, NULL, NULL), SH_OK);
}

void add_exports(sh_plugin *plugin, const export_row *exports, size_t count) {
  for (const export_row *e = exports; e < exports + count; e++) {
    CHECK_EQ(sh_plugin_export(plugin, e->name, strlen(e->name), e->params, e->results), SH_OK);
  }
}

void check_empty(sh_host *host) {
  sh_host_trim(host, 0);
  sh_host_stats stats;
  sh_host_get_stats(host, &stats);
  CHECK_EQ(stats.guests_live, 0);
  CHECK_EQ(stats.pool.regions_live, 0);
  CHECK_EQ(stats.pool.committed_bytes, 0);
  CHECK_EQ(stats.stacks.regions_live, 0);
  CHECK_EQ(stats.stacks.committed_bytes, 0);
  CHECK_EQ(stats.stacks.warm_bytes, 0);
  CHECK_EQ(stats.pool.slots_quarantined + stats.stacks.slots_quarantined, 0);
}

void end_host(sh_host *host, sh_plugin *plugin) {
  CHECK_EQ(sh_host_close(host), SH_OK);
  sh_plugin_release(plugin);
  sh_host_release(host);
}
