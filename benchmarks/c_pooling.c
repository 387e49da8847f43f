/* The rival in C: cycles of spawn, call and close with wasmtime's own pooling allocator, no Python anywhere.
 *
 * usage: c_pooling LIBWASMTIME GUEST.wasm KEEP_RESIDENT_BYTES
 *
 * Reads lines "PAGES MILLISECONDS" and answers each with one line: the nanoseconds of every cycle it ran in that time.
 * A cycle: a store, an instance by instance_pre, its export "dirty" looked up and called unchecked, the store deleted.
 * Copy-on-write images stay on, as they are by default.
 */
#include "wasmtime_abi.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct pool_config pool_config;

static struct {
  pool_config *(*config_new)(void);
  void (*total_memories)(pool_config *, uint32_t);
  void (*total_core_instances)(pool_config *, uint32_t);
  void (*max_memory_size)(pool_config *, size_t);
  void (*keep_resident)(pool_config *, size_t);
  void (*strategy)(wasm_config_t *, const pool_config *);
} pool;

static shi_wasmtime wasmtime;

enum { GUESTS = 1024, MEMORY_BYTES = 17 * 65536, MOST_CYCLES = 4000000 };

static void fail(const char *what, const char *why) {
  fprintf(stderr, "c_pooling: %s: %s\n", what, why);
  exit(1);
}

static void check(const char *what, wasmtime_error_t *error) {
  if (error == NULL) return;
  wasm_byte_vec_t message;
  wasmtime.wasmtime_error_message(error, &message);
  fprintf(stderr, "c_pooling: %s: %.*s\n", what, (int)message.size, (const char *)message.data);
  exit(1);
}

static void *symbol(void *library, const char *name) {
  void *found = dlsym(library, name);
  if (found == NULL) fail("no such symbol", name);
  return found;
}

static void open_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) fail("dlopen", dlerror());
#define RESOLVE(result, name, parameters) *(void **)&wasmtime.name = symbol(library, #name);
  SHI_WASMTIME_FUNCTIONS(RESOLVE)
#undef RESOLVE
  *(void **)&pool.config_new = symbol(library, "wasmtime_pooling_allocation_config_new");
  *(void **)&pool.total_memories = symbol(library, "wasmtime_pooling_allocation_config_total_memories_set");
  *(void **)&pool.total_core_instances = symbol(library, "wasmtime_pooling_allocation_config_total_core_instances_set");
  *(void **)&pool.max_memory_size = symbol(library, "wasmtime_pooling_allocation_config_max_memory_size_set");
  *(void **)&pool.keep_resident = symbol(library, "wasmtime_pooling_allocation_config_linear_memory_keep_resident_set");
  *(void **)&pool.strategy = symbol(library, "wasmtime_pooling_allocation_strategy_set");
}

static uint8_t *read_file(const char *path, size_t *length) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) fail("cannot read", path);
  size_t room = 1 << 20;
  uint8_t *bytes = malloc(room);
  *length = fread(bytes, 1, room, file);
  fclose(file);
  return bytes;
}

static int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void cycle(wasm_engine_t *engine, const wasmtime_instance_pre_t *pre, int32_t pages) {
  wasm_trap_t *trap = NULL;
  wasmtime_store_t *store = wasmtime.wasmtime_store_new(engine, NULL, NULL);
  wasmtime_context_t *context = wasmtime.wasmtime_store_context(store);
  wasmtime_instance_t instance;
  check("instantiate", wasmtime.wasmtime_instance_pre_instantiate(pre, context, &instance, &trap));
  wasmtime_extern_t export;
  if (trap || !wasmtime.wasmtime_instance_export_get(context, &instance, "dirty", 5, &export)) fail("export", "dirty");
  wasmtime_val_raw_t cell = {.i32 = pages};
  check("call", wasmtime.wasmtime_func_call_unchecked(context, &export.of.func, &cell, 1, &trap));
  if (trap) fail("call", "trap");
  wasmtime.wasmtime_store_delete(store);
}

int main(int argc, char **argv) {
  if (argc != 4) fail("usage", "c_pooling LIBWASMTIME GUEST.wasm KEEP_RESIDENT_BYTES");
  open_library(argv[1]);
  size_t length;
  uint8_t *wasm = read_file(argv[2], &length);

  pool_config *options = pool.config_new();
  pool.total_memories(options, GUESTS);
  pool.total_core_instances(options, GUESTS);
  pool.max_memory_size(options, MEMORY_BYTES);
  pool.keep_resident(options, strtoull(argv[3], NULL, 10));
  wasm_config_t *config = wasmtime.wasm_config_new();
  pool.strategy(config, options);
  wasm_engine_t *engine = wasmtime.wasm_engine_new_with_config(config);
  if (engine == NULL) fail("engine", "refused its configuration");
  wasmtime_module_t *module;
  check("module", wasmtime.wasmtime_module_new(engine, wasm, length, &module));
  wasmtime_linker_t *linker = wasmtime.wasmtime_linker_new(engine);
  wasmtime_instance_pre_t *pre;
  check("link", wasmtime.wasmtime_linker_instantiate_pre(linker, module, &pre));

  int64_t *taken = malloc(sizeof *taken * MOST_CYCLES);
  int pages, milliseconds;
  while (scanf("%d %d", &pages, &milliseconds) == 2) {
    size_t count = 0;
    int64_t before = now_ns(), end = before + (int64_t)milliseconds * 1000000;
    while (before < end && count < MOST_CYCLES) {
      cycle(engine, pre, pages);
      int64_t after = now_ns();
      taken[count++] = after - before;
      before = after;
    }
    for (size_t i = 0; i < count; i++) printf("%lld ", (long long)taken[i]);
    printf("\n");
    fflush(stdout);
  }
  return 0;
}
