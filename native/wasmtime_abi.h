/* The part of wasmtime's C API that we use, declared by hand: its wheel ships the library and no headers.
 *
 * Checked against wasmtime 50 (crates/c-api/include). tests/unit/test_wasmtime_abi.py holds every line of the table and
 * every struct against the ctypes declarations that the wheel carries.
 */
#ifndef SANDHOST_WASMTIME_ABI_H
#define SANDHOST_WASMTIME_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct wasm_config_t wasm_config_t;
typedef struct wasm_engine_t wasm_engine_t;
typedef struct wasm_trap_t wasm_trap_t;
typedef struct wasm_frame_t wasm_frame_t;
typedef struct wasm_functype_t wasm_functype_t;
typedef struct wasm_valtype_t wasm_valtype_t;
typedef struct wasm_memorytype_t wasm_memorytype_t;
typedef struct wasm_importtype_t wasm_importtype_t;
typedef struct wasm_externtype_t wasm_externtype_t;
typedef struct wasmtime_error_t wasmtime_error_t;
typedef struct wasmtime_module_t wasmtime_module_t;
typedef struct wasmtime_linker_t wasmtime_linker_t;
typedef struct wasmtime_instance_pre_t wasmtime_instance_pre_t;
typedef struct wasmtime_store_t wasmtime_store_t;
typedef struct wasmtime_context_t wasmtime_context_t;
typedef struct wasmtime_caller_t wasmtime_caller_t;
typedef struct wasmtime_call_future_t wasmtime_call_future_t;
typedef struct wasmtime_guestprofiler_t wasmtime_guestprofiler_t;

typedef struct {
  size_t size;
  uint8_t *data;
} wasm_byte_vec_t;
typedef struct {
  size_t size;
  wasm_frame_t **data;
} wasm_frame_vec_t;
typedef struct {
  size_t size;
  wasm_valtype_t **data;
} wasm_valtype_vec_t;
typedef struct {
  size_t size;
  wasm_importtype_t **data;
} wasm_importtype_vec_t;

typedef struct {
  const wasm_byte_vec_t *name; /* UTF-8 */
  const wasmtime_module_t *mod;
} wasmtime_guestprofiler_modules_t;

typedef union {
  int32_t i32;
  int64_t i64;
  float f32;
  double f64;
  uint8_t v128[16];
} wasmtime_val_raw_t;

typedef struct {
  uint64_t store_id;
  void *__private;
} wasmtime_func_t;
typedef struct {
  uint64_t store_id;
  size_t __private;
} wasmtime_instance_t;
typedef struct {
  uint64_t store_id;
  uint32_t __private1, __private2, __private3;
} wasmtime_memory_like_t;
typedef struct {
  uint8_t kind;
  union {
    wasmtime_func_t func;
    wasmtime_memory_like_t other; /* the largest member: global, table, memory, tag */
  } of;
} wasmtime_extern_t;
enum { WASMTIME_EXTERN_FUNC = 0 };

typedef struct {
  uint64_t store_id;
  uint32_t __private1, __private2;
  void *__private3;
} wasmtime_anyref_t;
typedef struct {
  uint8_t kind; /* WASMTIME_I32 and so on */
  union {
    int32_t i32;
    int64_t i64;
    float f32;
    double f64;
    wasmtime_anyref_t anyref; /* externref and exnref alike; null: store_id is 0 */
    wasmtime_func_t funcref;
    uint8_t v128[16];
  } of;
} wasmtime_val_t;
enum { WASMTIME_V128 = 4, WASMTIME_FUNCREF = 5, WASMTIME_EXTERNREF = 6, WASMTIME_EXNREF = 8 };

typedef struct {
  void *env;
  uint8_t *(*get_memory)(void *env, size_t *byte_size, size_t *byte_capacity);
  wasmtime_error_t *(*grow_memory)(void *env, size_t new_size);
  void (*finalizer)(void *env);
} wasmtime_linear_memory_t;
typedef struct {
  void *env;
  wasmtime_error_t *(*new_memory)(void *env, const wasm_memorytype_t *type, size_t minimum, size_t maximum,
                                  size_t reserved_size_in_bytes, size_t guard_size_in_bytes,
                                  wasmtime_linear_memory_t *memory_ret);
  void (*finalizer)(void *env);
} wasmtime_memory_creator_t;

typedef struct {
  void *env;
  uint8_t *(*get_stack_memory)(void *env, size_t *length); /* its upper end */
  void (*finalizer)(void *env);
} wasmtime_stack_memory_t;
typedef struct {
  void *env;
  wasmtime_error_t *(*new_stack)(void *env, size_t size, bool zeroed, wasmtime_stack_memory_t *stack_ret);
  void (*finalizer)(void *env);
} wasmtime_stack_creator_t;

typedef struct {
  bool (*callback)(void *env); /* whether it is done */
  void *env;
  void (*finalizer)(void *env);
} wasmtime_async_continuation_t;
typedef void (*wasmtime_func_async_callback_t)(void *env, wasmtime_caller_t *caller, const wasmtime_val_t *args,
                                               size_t nargs, wasmtime_val_t *results, size_t nresults,
                                               wasm_trap_t **trap_ret, wasmtime_async_continuation_t *continuation_ret);

typedef wasm_trap_t *(*wasmtime_func_unchecked_callback_t)(void *env, wasmtime_caller_t *caller,
                                                           wasmtime_val_raw_t *args_and_results, size_t count);
typedef wasmtime_error_t *(*shi_epoch_callback_t)(wasmtime_context_t *context, void *data, uint64_t *delta,
                                                  uint8_t *kind);
typedef void (*shi_finalizer_t)(void *data);

enum { WASMTIME_UPDATE_DEADLINE_YIELD = 1 };
enum { WASM_I32 = 0, WASM_I64 = 1, WASM_F32 = 2, WASM_F64 = 3 };
enum { WASMTIME_OPT_NONE = 0, WASMTIME_OPT_SPEED = 1 };
enum {
  WASMTIME_TRAP_STACK_OVERFLOW = 0,
  WASMTIME_TRAP_MEMORY_OUT_OF_BOUNDS = 1,
  WASMTIME_TRAP_TABLE_OUT_OF_BOUNDS = 3,
  WASMTIME_TRAP_OUT_OF_FUEL = 11
};

/* X(result, name, parameters) */
#define SHI_WASMTIME_FUNCTIONS(X)                                                                                      \
  X(wasm_config_t *, wasm_config_new, (void))                                                                          \
  X(void, wasmtime_config_host_memory_creator_set, (wasm_config_t *, wasmtime_memory_creator_t *))                     \
  X(void, wasmtime_config_host_stack_creator_set, (wasm_config_t *, wasmtime_stack_creator_t *))                       \
  X(void, wasmtime_config_async_stack_size_set, (wasm_config_t *, size_t))                                             \
  X(void, wasmtime_config_memory_init_cow_set, (wasm_config_t *, bool))                                                \
  X(void, wasmtime_config_memory_may_move_set, (wasm_config_t *, bool))                                                \
  X(void, wasmtime_config_memory_reservation_set, (wasm_config_t *, uint64_t))                                         \
  X(void, wasmtime_config_memory_guard_size_set, (wasm_config_t *, uint64_t))                                          \
  X(void, wasmtime_config_epoch_interruption_set, (wasm_config_t *, bool))                                             \
  X(void, wasmtime_config_consume_fuel_set, (wasm_config_t *, bool))                                                   \
  X(void, wasmtime_config_max_wasm_stack_set, (wasm_config_t *, size_t))                                               \
  X(void, wasmtime_config_wasm_threads_set, (wasm_config_t *, bool))                                                   \
  X(void, wasmtime_config_shared_memory_set, (wasm_config_t *, bool))                                                  \
  X(void, wasmtime_config_wasm_gc_set, (wasm_config_t *, bool))                                                        \
  X(void, wasmtime_config_wasm_exceptions_set, (wasm_config_t *, bool))                                                \
  X(void, wasmtime_config_wasm_multi_memory_set, (wasm_config_t *, bool))                                              \
  X(void, wasmtime_config_wasm_memory64_set, (wasm_config_t *, bool))                                                  \
  X(void, wasmtime_config_wasm_tail_call_set, (wasm_config_t *, bool))                                                 \
  X(void, wasmtime_config_wasm_custom_page_sizes_set, (wasm_config_t *, bool))                                         \
  X(void, wasmtime_config_cranelift_opt_level_set, (wasm_config_t *, uint8_t))                                         \
  X(wasm_engine_t *, wasm_engine_new_with_config, (wasm_config_t *))                                                   \
  X(void, wasm_engine_delete, (wasm_engine_t *))                                                                       \
  X(void, wasmtime_engine_increment_epoch, (wasm_engine_t *))                                                          \
  X(wasmtime_error_t *, wasmtime_module_new, (wasm_engine_t *, const uint8_t *, size_t, wasmtime_module_t **))         \
  X(wasmtime_error_t *, wasmtime_module_validate, (wasm_engine_t *, const uint8_t *, size_t))                          \
  X(wasmtime_error_t *, wasmtime_module_serialize, (wasmtime_module_t *, wasm_byte_vec_t *))                           \
  X(wasmtime_error_t *, wasmtime_module_deserialize_file, (wasm_engine_t *, const char *, wasmtime_module_t **))       \
  X(void, wasmtime_module_delete, (wasmtime_module_t *))                                                               \
  X(wasmtime_error_t *, wasmtime_wat2wasm, (const char *, size_t, wasm_byte_vec_t *))                                  \
  X(wasmtime_linker_t *, wasmtime_linker_new, (wasm_engine_t *))                                                       \
  X(void, wasmtime_linker_delete, (wasmtime_linker_t *))                                                               \
  X(void, wasmtime_linker_allow_shadowing, (wasmtime_linker_t *, bool))                                                \
  X(wasmtime_error_t *, wasmtime_linker_define_func_unchecked,                                                         \
    (wasmtime_linker_t *, const char *, size_t, const char *, size_t, const wasm_functype_t *,                         \
     wasmtime_func_unchecked_callback_t, void *, shi_finalizer_t))                                                     \
  X(wasmtime_error_t *, wasmtime_linker_define_async_func,                                                             \
    (wasmtime_linker_t *, const char *, size_t, const char *, size_t, const wasm_functype_t *,                         \
     wasmtime_func_async_callback_t, void *, shi_finalizer_t))                                                         \
  X(bool, wasmtime_linker_get,                                                                                         \
    (const wasmtime_linker_t *, wasmtime_context_t *, const char *, size_t, const char *, size_t,                      \
     wasmtime_extern_t *))                                                                                             \
  X(wasmtime_error_t *, wasmtime_linker_instantiate_pre,                                                               \
    (const wasmtime_linker_t *, const wasmtime_module_t *, wasmtime_instance_pre_t **))                                \
  X(wasmtime_error_t *, wasmtime_instance_pre_instantiate,                                                             \
    (const wasmtime_instance_pre_t *, wasmtime_context_t *, wasmtime_instance_t *, wasm_trap_t **))                    \
  X(void, wasmtime_instance_pre_delete, (wasmtime_instance_pre_t *))                                                   \
  X(wasmtime_store_t *, wasmtime_store_new, (wasm_engine_t *, void *, shi_finalizer_t))                                \
  X(void, wasmtime_store_delete, (wasmtime_store_t *))                                                                 \
  X(wasmtime_context_t *, wasmtime_store_context, (wasmtime_store_t *))                                                \
  X(void, wasmtime_store_limiter, (wasmtime_store_t *, int64_t, int64_t, int64_t, int64_t, int64_t))                   \
  X(void, wasmtime_store_epoch_deadline_callback, (wasmtime_store_t *, shi_epoch_callback_t, void *, shi_finalizer_t)) \
  X(void *, wasmtime_context_get_data, (const wasmtime_context_t *))                                                   \
  X(void, wasmtime_context_set_epoch_deadline, (wasmtime_context_t *, uint64_t))                                       \
  X(wasmtime_error_t *, wasmtime_context_set_fuel, (wasmtime_context_t *, uint64_t))                                   \
  X(wasmtime_error_t *, wasmtime_context_get_fuel, (const wasmtime_context_t *, uint64_t *))                           \
  X(bool, wasmtime_instance_export_get,                                                                                \
    (wasmtime_context_t *, const wasmtime_instance_t *, const char *, size_t, wasmtime_extern_t *))                    \
  X(wasmtime_error_t *, wasmtime_func_call_unchecked,                                                                  \
    (wasmtime_context_t *, const wasmtime_func_t *, wasmtime_val_raw_t *, size_t, wasm_trap_t **))                     \
  X(wasmtime_call_future_t *, wasmtime_func_call_async,                                                                \
    (wasmtime_context_t *, const wasmtime_func_t *, const wasmtime_val_t *, size_t, wasmtime_val_t *, size_t,          \
     wasm_trap_t **, wasmtime_error_t **))                                                                             \
  X(bool, wasmtime_call_future_poll, (wasmtime_call_future_t *))                                                       \
  X(void, wasmtime_call_future_delete, (wasmtime_call_future_t *))                                                     \
  X(void *, wasmtime_func_to_raw, (wasmtime_context_t *, const wasmtime_func_t *))                                     \
  X(void, wasmtime_global_get, (wasmtime_context_t *, const wasmtime_memory_like_t *, wasmtime_val_t *))               \
  X(wasmtime_error_t *, wasmtime_global_set,                                                                           \
    (wasmtime_context_t *, const wasmtime_memory_like_t *, const wasmtime_val_t *))                                    \
  X(bool, wasmtime_table_get, (wasmtime_context_t *, const wasmtime_memory_like_t *, uint64_t, wasmtime_val_t *))      \
  X(wasmtime_error_t *, wasmtime_table_set,                                                                            \
    (wasmtime_context_t *, const wasmtime_memory_like_t *, uint64_t, const wasmtime_val_t *))                          \
  X(uint64_t, wasmtime_table_size, (const wasmtime_context_t *, const wasmtime_memory_like_t *))                       \
  X(wasmtime_error_t *, wasmtime_table_grow,                                                                           \
    (wasmtime_context_t *, const wasmtime_memory_like_t *, uint64_t, const wasmtime_val_t *, uint64_t *))              \
  X(void, wasmtime_val_unroot, (wasmtime_val_t *))                                                                     \
  X(uint8_t *, wasmtime_memory_data, (const wasmtime_context_t *, const wasmtime_memory_like_t *))                     \
  X(wasmtime_context_t *, wasmtime_caller_context, (wasmtime_caller_t *))                                              \
  X(wasm_functype_t *, wasm_functype_new, (wasm_valtype_vec_t *, wasm_valtype_vec_t *))                                \
  X(void, wasm_functype_delete, (wasm_functype_t *))                                                                   \
  X(wasm_functype_t *, wasm_functype_copy, (const wasm_functype_t *))                                                  \
  X(void, wasmtime_module_imports, (const wasmtime_module_t *, wasm_importtype_vec_t *))                               \
  X(const wasm_byte_vec_t *, wasm_importtype_module, (const wasm_importtype_t *))                                      \
  X(const wasm_byte_vec_t *, wasm_importtype_name, (const wasm_importtype_t *))                                        \
  X(const wasm_externtype_t *, wasm_importtype_type, (const wasm_importtype_t *))                                      \
  X(const wasm_functype_t *, wasm_externtype_as_functype_const, (const wasm_externtype_t *))                           \
  X(void, wasm_importtype_vec_delete, (wasm_importtype_vec_t *))                                                       \
  X(wasm_valtype_t *, wasm_valtype_new, (uint8_t))                                                                     \
  X(void, wasm_valtype_vec_new, (wasm_valtype_vec_t *, size_t, wasm_valtype_t *const *))                               \
  X(void, wasm_valtype_vec_delete, (wasm_valtype_vec_t *))                                                             \
  X(void, wasm_byte_vec_delete, (wasm_byte_vec_t *))                                                                   \
  X(wasm_trap_t *, wasmtime_trap_new, (const char *, size_t))                                                          \
  X(bool, wasmtime_trap_code, (const wasm_trap_t *, uint8_t *))                                                        \
  X(void, wasm_trap_message, (const wasm_trap_t *, wasm_byte_vec_t *))                                                 \
  X(void, wasm_trap_trace, (const wasm_trap_t *, wasm_frame_vec_t *))                                                  \
  X(void, wasm_trap_delete, (wasm_trap_t *))                                                                           \
  X(wasmtime_error_t *, wasmtime_error_new, (const char *))                                                            \
  X(void, wasmtime_error_delete, (wasmtime_error_t *))                                                                 \
  X(void, wasmtime_error_message, (const wasmtime_error_t *, wasm_byte_vec_t *))                                       \
  X(void, wasmtime_error_wasm_trace, (const wasmtime_error_t *, wasm_frame_vec_t *))                                   \
  X(void, wasm_frame_vec_delete, (wasm_frame_vec_t *))                                                                 \
  X(uint32_t, wasm_frame_func_index, (const wasm_frame_t *))                                                           \
  X(size_t, wasm_frame_module_offset, (const wasm_frame_t *))                                                          \
  X(const wasm_byte_vec_t *, wasmtime_frame_func_name, (const wasm_frame_t *))                                         \
  X(const wasm_byte_vec_t *, wasmtime_frame_module_name, (const wasm_frame_t *))                                       \
  X(wasmtime_guestprofiler_t *, wasmtime_guestprofiler_new,                                                            \
    (wasm_engine_t *, const wasm_byte_vec_t *, uint64_t, const wasmtime_guestprofiler_modules_t *, size_t))            \
  X(void, wasmtime_guestprofiler_sample, (wasmtime_guestprofiler_t *, const wasmtime_store_t *, uint64_t))             \
  X(wasmtime_error_t *, wasmtime_guestprofiler_finish, (wasmtime_guestprofiler_t *, wasm_byte_vec_t *))

#define SHI_WASMTIME_POINTER(result, name, parameters) result(*name) parameters;
typedef struct {
  SHI_WASMTIME_FUNCTIONS(SHI_WASMTIME_POINTER)
} shi_wasmtime;
#undef SHI_WASMTIME_POINTER

/* Filled by sh_wasmtime_open, constant afterwards. */
extern shi_wasmtime wt;

#endif
