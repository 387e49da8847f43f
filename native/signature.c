/* Value types of signatures, and values between Python's cells and wasmtime's raw values.
 *
 * A cell and a raw value are both 16 bytes, so the conversion is in place:
 *   i32   cell: int64, -2^31 <= x < 2^32 (addresses are unsigned, results signed)    raw: low 32 bits
 *   i64   cell: int64 bits                                                          raw: the same
 *   f32   cell: double                                                              raw: float
 *   f64, v128                                                                       the same bytes
 */
#include "bridge.h"

static int kind_of(char type) {
  switch (type) {
  case 'i':
    return WASM_I32;
  case 'l':
    return WASM_I64;
  case 'f':
    return WASM_F32;
  case 'd':
    return WASM_F64;
  default:
    return -1; /* v128 too: it has no kind in the C API, and wasm_valtype_new ends the process that asks */
  }
}

static bool to_vec(const char *types, wasm_valtype_vec_t *out) {
  enum { MOST = 1000 }; /* the specification's own limit for parameters and for results */
  wasm_valtype_t *list[MOST];
  size_t count = 0;
  for (; types[count]; count++) {
    int kind = kind_of(types[count]);
    if (kind < 0 || count == MOST) {
      wasm_valtype_vec_t partial;
      wt.wasm_valtype_vec_new(&partial, count, list);
      wt.wasm_valtype_vec_delete(&partial);
      return false;
    }
    list[count] = wt.wasm_valtype_new((uint8_t)kind);
  }
  wt.wasm_valtype_vec_new(out, count, list);
  return true;
}

wasm_functype_t *shi_functype(const char *params, const char *results) {
  wasm_valtype_vec_t in, out;
  if (!to_vec(params, &in)) return NULL;
  if (!to_vec(results, &out)) {
    wt.wasm_valtype_vec_delete(&in);
    return NULL;
  }
  return wt.wasm_functype_new(&in, &out);
}

int shi_cells_check(const char *types, const wasmtime_val_raw_t *values) {
  for (uint32_t k = 0; types[k]; k++)
    if (types[k] == 'i' && (values[k].i64 < INT32_MIN || values[k].i64 > (int64_t)UINT32_MAX))
      return shi_fail(SH_OVERFLOW, "argument %u is %lld, which does not fit an i32", k + 1, (long long)values[k].i64);
  return SH_OK;
}

void shi_cells_to_raw(const char *types, wasmtime_val_raw_t *values) {
  for (; *types; types++, values++)
    if (*types == 'f') values->f32 = (float)values->f64;
}

void shi_raw_to_cells(const char *types, wasmtime_val_raw_t *values) {
  for (; *types; types++, values++) {
    if (*types == 'i') values->i64 = values->i32;
    if (*types == 'f') values->f64 = values->f32;
  }
}
