/* WASI preview 1: how its functions are reached, and those that concern the process. */
#include <sched.h>

#include "fiber.h"
#include "wasi.h"

typedef struct {
  const char *name, *params;
  shi_wasi_function *run; /* NULL: proc_exit, which has no result */
} function;

/* There are no sockets: whatever number is given is none, or is not one. */
static shi_wasi_errno no_socket(shi_wasi_call *call) {
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), 0, &file);
  return error ? error : WASI_NOTSOCK;
}

static shi_wasi_errno proc_raise(shi_wasi_call *call) {
  (void)call;
  return WASI_NOTSUP;
}

static const function functions[] = {
    {"args_get", "ii", shi_args_get},
    {"args_sizes_get", "ii", shi_args_sizes_get},
    {"clock_res_get", "ii", shi_clock_res_get},
    {"clock_time_get", "ili", shi_clock_time_get},
    {"environ_get", "ii", shi_environ_get},
    {"environ_sizes_get", "ii", shi_environ_sizes_get},
    {"fd_advise", "illi", shi_fd_advise},
    {"fd_allocate", "ill", shi_fd_allocate},
    {"fd_close", "i", shi_fd_close},
    {"fd_datasync", "i", shi_fd_datasync},
    {"fd_fdstat_get", "ii", shi_fd_fdstat_get},
    {"fd_fdstat_set_flags", "ii", shi_fd_fdstat_set_flags},
    {"fd_fdstat_set_rights", "ill", shi_fd_fdstat_set_rights},
    {"fd_filestat_get", "ii", shi_fd_filestat_get},
    {"fd_filestat_set_size", "il", shi_fd_filestat_set_size},
    {"fd_filestat_set_times", "illi", shi_fd_filestat_set_times},
    {"fd_pread", "iiili", shi_fd_pread},
    {"fd_prestat_dir_name", "iii", shi_fd_prestat_dir_name},
    {"fd_prestat_get", "ii", shi_fd_prestat_get},
    {"fd_pwrite", "iiili", shi_fd_pwrite},
    {"fd_read", "iiii", shi_fd_read},
    {"fd_readdir", "iiili", shi_fd_readdir},
    {"fd_renumber", "ii", shi_fd_renumber},
    {"fd_seek", "ilii", shi_fd_seek},
    {"fd_sync", "i", shi_fd_sync},
    {"fd_tell", "ii", shi_fd_tell},
    {"fd_write", "iiii", shi_fd_write},
    {"path_create_directory", "iii", shi_path_create_directory},
    {"path_filestat_get", "iiiii", shi_path_filestat_get},
    {"path_filestat_set_times", "iiiilli", shi_path_filestat_set_times},
    {"path_link", "iiiiiii", shi_path_link},
    {"path_open", "iiiiillii", shi_path_open},
    {"path_readlink", "iiiiii", shi_path_readlink},
    {"path_remove_directory", "iii", shi_path_remove_directory},
    {"path_rename", "iiiiii", shi_path_rename},
    {"path_symlink", "iiiii", shi_path_symlink},
    {"path_unlink_file", "iii", shi_path_unlink_file},
    {"poll_oneoff", "iiii", shi_poll_oneoff},
    {"proc_exit", "i", NULL},
    {"proc_raise", "i", proc_raise},
    {"random_get", "ii", shi_random_get},
    {"sched_yield", "", shi_sched_yield},
    {"sock_accept", "iii", no_socket},
    {"sock_recv", "iiiiii", no_socket},
    {"sock_send", "iiiii", no_socket},
    {"sock_shutdown", "ii", no_socket},
};

static wasm_trap_t *run(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t count) {
  (void)count;
  static uint8_t no_memory;
  shi_guest *guest = wt.wasmtime_context_get_data(wt.wasmtime_caller_context(caller));
  uint32_t index = guest->plugin->wasi_memory;
  shi_wasi_call call = {.guest = guest, .memory = &no_memory, .values = values};
  if (guest->region_count > index) {
    call.memory = guest->regions[index]->base;
    call.size = atomic_load_explicit(&guest->sizes[index], memory_order_relaxed);
  }
  shi_wasi_errno error = ((const function *)env)->run(&call);
  if (__builtin_expect(guest->stop != 0, 0)) {
    static const char message[] = "sandhost: stopped in a call of WASI";
    return wt.wasmtime_trap_new(message, sizeof message - 1);
  }
  values[0].i64 = error;
  return NULL;
}

static wasm_trap_t *proc_exit(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t count) {
  (void)env;
  (void)count;
  static const char message[] = "sandhost: the guest exited";
  shi_guest *guest = wt.wasmtime_context_get_data(wt.wasmtime_caller_context(caller));
  guest->exit_status = values[0].i32;
  guest->stop = SH_EXIT;
  return wt.wasmtime_trap_new(message, sizeof message - 1);
}

int shi_wasi_define(sh_plugin *plugin) {
  static const char module[] = "wasi_snapshot_preview1";
  for (size_t k = 0; k < sizeof functions / sizeof functions[0]; k++) {
    const function *one = &functions[k];
    wasm_functype_t *type = shi_functype(one->params, one->run ? "i" : "");
    wasmtime_error_t *error = wt.wasmtime_linker_define_func_unchecked(
        plugin->linker, module, sizeof module - 1, one->name, strlen(one->name), type, one->run ? run : proc_exit,
        (void *)(uintptr_t)one, NULL);
    wt.wasm_functype_delete(type);
    if (error) return shi_fail_wasmtime(error);
  }
  return SH_OK;
}

shi_wasi_errno shi_sched_yield(shi_wasi_call *call) {
  shi_wait wait = {.step = SH_STEP_SLEEP};
  if (shi_on_fiber(call->guest))
    shi_fiber_park(call->guest, &wait);
  else
    sched_yield();
  return WASI_OK;
}
