/* A module: code that wasmtime compiled, or that was compiled before and is mapped from a file. */
#include <stdlib.h>

#include "bridge.h"

static sh_module *new_module(sh_host *host, int fuel) {
  if (atomic_load(&shi_forked)) {
    shi_fail(SH_FORKED, "this process was forked after its parent had made a Host; make hosts after the fork");
    return NULL;
  }
  sh_module *module = calloc(1, sizeof *module);
  if (!module) {
    shi_fail_no_memory();
    return NULL;
  }
  module->host = host;
  atomic_fetch_add(&host->references, 1);
  module->engine = fuel ? SHI_ENGINE_FUEL : SHI_ENGINE_PLAIN;
  return module;
}

static sh_module *finish(sh_module *module, wasmtime_error_t *error) {
  if (!error) return module;
  shi_fail_wasmtime(error);
  shi_host_release(module->host);
  free(module);
  return NULL;
}

int sh_module_validate(sh_host *host, const uint8_t *wasm, size_t length, int fuel) {
  wasmtime_error_t *error =
      wt.wasmtime_module_validate(host->ticker.engines[fuel ? SHI_ENGINE_FUEL : SHI_ENGINE_PLAIN], wasm, length);
  return error ? shi_fail_wasmtime(error) : SH_OK;
}

sh_module *sh_module_compile(sh_host *host, const uint8_t *wasm, size_t length, int fuel) {
  sh_module *module = new_module(host, fuel);
  if (!module) return NULL;
  wasm_engine_t *engine = host->ticker.engines[module->engine];
  return finish(module, wt.wasmtime_module_new(engine, wasm, length, &module->module));
}

/* Precondition: the file is trusted. It is native code. */
sh_module *sh_module_load(sh_host *host, const char *path, int fuel) {
  sh_module *module = new_module(host, fuel);
  if (!module) return NULL;
  wasm_engine_t *engine = host->ticker.engines[module->engine];
  return finish(module, wt.wasmtime_module_deserialize_file(engine, path, &module->module));
}

int sh_module_serialize(sh_module *module, uint8_t **out, size_t *out_length) {
  wasm_byte_vec_t bytes;
  wasmtime_error_t *error = wt.wasmtime_module_serialize(module->module, &bytes);
  if (error) return shi_fail_wasmtime(error);
  *out = bytes.data;
  *out_length = bytes.size;
  return SH_OK;
}

void sh_module_free(sh_module *module) {
  if (atomic_load(&shi_forked)) return;
  sh_host *host = module->host;
  wt.wasmtime_module_delete(module->module);
  free(module);
  shi_host_release(host);
}
