/* Finds wasmtime's functions in the library that its wheel ships. */
#include "wasmtime_abi.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "bridge.h"

shi_wasmtime wt;

int sh_wasmtime_open(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return shi_fail(SH_WASMTIME, "%s", dlerror());

#define RESOLVE(result, name, parameters)                                                                              \
  if (!(*(void **)&wt.name = dlsym(library, #name))) return shi_fail(SH_WASMTIME, "%s has no function %s", path, #name);
  SHI_WASMTIME_FUNCTIONS(RESOLVE)
#undef RESOLVE
  return SH_OK; /* the library stays open for the life of the process: its signal handlers do too */
}

int sh_wat2wasm(const char *text, size_t length, uint8_t **out, size_t *out_length) {
  wasm_byte_vec_t wasm;
  wasmtime_error_t *error = wt.wasmtime_wat2wasm(text, length, &wasm);
  if (error) return shi_fail_wasmtime(error);
  *out = wasm.data;
  *out_length = wasm.size;
  return SH_OK;
}

void sh_bytes_free(uint8_t *bytes, size_t length) {
  wasm_byte_vec_t vec = {length, bytes};
  wt.wasm_byte_vec_delete(&vec);
}
