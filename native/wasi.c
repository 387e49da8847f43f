/* WASI preview 1: wasmtime's implementation, with our own streams (output.c), poll_oneoff and proc_exit.
 *
 * https://github.com/WebAssembly/WASI/blob/wasi-0.1/preview1/docs.md
 *
 * poll_oneoff is ours because wasmtime's blocks the thread for as long as the guest asks, and no epoch ends that: a
 * guest could sleep past its deadline. Files are always ready, so only clocks are waited for. proc_exit is ours because
 * wasmtime's makes an error without a status of every status above 125.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "guest.h"

static ssize_t write_stdout(void *guest, const unsigned char *bytes, size_t length) {
  return shi_output_write(guest, 0, bytes, length);
}
static ssize_t write_stderr(void *guest, const unsigned char *bytes, size_t length) {
  return shi_output_write(guest, 1, bytes, length);
}

/* ---- poll_oneoff ---------------------------------------------------------------------------------------------------- */

enum { SUBSCRIPTIONS_MOST = 65536 }; /* about 4 ms; arbitrary */
enum { SUBSCRIPTION = 48, EVENT = 32, CLOCK = 0, ABSTIME = 1, WASI_INVAL = 28, WASI_FAULT = 21, WASI_SUCCESS = 0 };

static uint64_t read_u64(const uint8_t *at) {
  uint64_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

/* Nanoseconds from now until a clock subscription is due. */
static uint64_t due_in(const uint8_t *subscription) {
  uint64_t timeout = read_u64(subscription + 24);
  uint16_t flags;
  memcpy(&flags, subscription + 40, sizeof flags);
  if (!(flags & ABSTIME)) return timeout;
  struct timespec now;
  uint32_t clock;
  memcpy(&clock, subscription + 16, sizeof clock);
  clock_gettime(clock == 0 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &now);
  uint64_t at = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
  return timeout > at ? timeout - at : 0;
}

/* After having waited for `waited` nanoseconds. */
static bool is_due(const uint8_t *subscription, uint64_t waited) {
  uint16_t flags;
  memcpy(&flags, subscription + 40, sizeof flags);
  return due_in(subscription) <= (flags & ABSTIME ? 0 : waited);
}

/* Sleeps in ticks, so that deadline and cancellation end it. False: the call is to be stopped. */
static bool nap(shi_guest *guest, uint64_t ns) {
  uint64_t until = shi_now_ns() + ns;
  if (until < ns) until = UINT64_MAX;
  for (uint64_t now; (now = shi_now_ns()) < until;) {
    uint64_t delta;
    uint8_t kind;
    wasmtime_error_t *error = shi_epoch_reached(guest->context, guest, &delta, &kind);
    if (error) {
      wt.wasmtime_error_delete(error);
      return false;
    }
    uint64_t slice = until - now < SHI_TICK_NS ? until - now : SHI_TICK_NS;
    nanosleep(&(struct timespec){.tv_nsec = (long)slice}, NULL);
  }
  return true;
}

static wasm_trap_t *poll_oneoff(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t count) {
  (void)env;
  (void)count;
  shi_guest *guest = wt.wasmtime_context_get_data(wt.wasmtime_caller_context(caller));
  uint64_t in = (uint32_t)values[0].i32, out = (uint32_t)values[1].i32, number = (uint32_t)values[2].i32,
           written = (uint32_t)values[3].i32;
  uint32_t index = guest->plugin->wasi_memory;
  uint64_t size = guest->region_count > index ? atomic_load(&guest->sizes[index]) : 0;
  if (number == 0) {
    values[0].i64 = WASI_INVAL;
    return NULL;
  }
  if (in + number * SUBSCRIPTION > size || out + number * EVENT > size || written + 4 > size) {
    values[0].i64 = WASI_FAULT;
    return NULL;
  }
  if (number > SUBSCRIPTIONS_MOST) { /* no deadline ends the loops below */
    values[0].i64 = WASI_INVAL;
    return NULL;
  }
  uint8_t *memory = guest->regions[index]->base;
  uint64_t wait = UINT64_MAX;
  for (uint64_t k = 0; k < number; k++) {
    const uint8_t *subscription = memory + in + k * SUBSCRIPTION;
    uint64_t due = subscription[8] == CLOCK ? due_in(subscription) : 0;
    if (due < wait) wait = due;
  }
  if (!nap(guest, wait)) {
    static const char message[] = "sandhost: stopped while asleep";
    return wt.wasmtime_trap_new(message, sizeof message - 1);
  }
  uint32_t events = 0;
  for (uint64_t k = 0; k < number; k++) {
    uint8_t subscription[SUBSCRIPTION]; /* copied: the event may be written over it */
    memcpy(subscription, memory + in + k * SUBSCRIPTION, SUBSCRIPTION);
    if (subscription[8] == CLOCK && !is_due(subscription, wait)) continue;
    uint8_t event[EVENT] = {0};
    memcpy(event, subscription, 8); /* userdata */
    event[10] = subscription[8];    /* type */
    memcpy(memory + out + events * EVENT, event, EVENT);
    events++;
  }
  memcpy(memory + written, &events, sizeof events);
  values[0].i64 = WASI_SUCCESS;
  return NULL;
}

/* ---- proc_exit ------------------------------------------------------------------------------------------------------ */

static wasm_trap_t *proc_exit(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t count) {
  (void)env;
  (void)count;
  static const char message[] = "sandhost: the guest exited";
  shi_guest *guest = wt.wasmtime_context_get_data(wt.wasmtime_caller_context(caller));
  guest->exit_status = values[0].i32;
  guest->stop = SH_EXIT;
  return wt.wasmtime_trap_new(message, sizeof message - 1);
}

/* ---- linking -------------------------------------------------------------------------------------------------------- */

static wasmtime_error_t *define(sh_plugin *plugin, const char *name, const char *params, const char *results,
                                wasmtime_func_unchecked_callback_t function) {
  static const char module[] = "wasi_snapshot_preview1";
  wasm_functype_t *type = shi_functype(params, results);
  wasmtime_error_t *error = wt.wasmtime_linker_define_func_unchecked(plugin->linker, module, sizeof module - 1, name,
                                                                     strlen(name), type, function, NULL, NULL);
  wt.wasm_functype_delete(type);
  return error;
}

int shi_wasi_define(sh_plugin *plugin) {
  wasmtime_error_t *error = wt.wasmtime_linker_define_wasi(plugin->linker);
  if (error) return shi_fail_wasmtime(error);
  wt.wasmtime_linker_allow_shadowing(plugin->linker, true);
  error = define(plugin, "poll_oneoff", "iiii", "i", poll_oneoff);
  if (!error) error = define(plugin, "proc_exit", "i", "", proc_exit);
  wt.wasmtime_linker_allow_shadowing(plugin->linker, false);
  return error ? shi_fail_wasmtime(error) : SH_OK;
}

/* ---- what one guest is given ----------------------------------------------------------------------------------------- */

int shi_wasi_attach(shi_guest *guest, const sh_wasi *wasi) {
  wasi_config_t *config = wt.wasi_config_new();
  shi_output_open(guest, wasi ? wasi->output_limit : 0, wasi ? wasi->stream : 0);
  if (wasi) {
    if (!wt.wasi_config_set_argv(config, wasi->argc, (const char **)wasi->argv) ||
        !wt.wasi_config_set_env(config, wasi->env_count, (const char **)wasi->env_names,
                                (const char **)wasi->env_values)) {
      wt.wasi_config_delete(config);
      return shi_fail(SH_ARGUMENT, "argv and env must be UTF-8");
    }
    if (wasi->input_length) {
      wasm_byte_vec_t input;
      wt.wasm_byte_vec_new(&input, wasi->input_length, (const char *)wasi->input);
      wt.wasi_config_set_stdin_bytes(config, &input);
    }
    for (size_t k = 0; k < wasi->dir_count; k++) {
      if (wt.wasi_config_preopen_dir(config, wasi->host_dirs[k], wasi->guest_dirs[k], wasi->writable[k])) continue;
      wt.wasi_config_delete(config);
      return shi_fail(SH_ARGUMENT, "cannot open the directory %s for the guest", wasi->host_dirs[k]);
    }
  }
  wt.wasi_config_set_stdout_custom(config, write_stdout, guest, NULL);
  wt.wasi_config_set_stderr_custom(config, write_stderr, guest, NULL);
  wasmtime_error_t *error = wt.wasmtime_context_set_wasi(guest->context, config); /* takes the config */
  return error ? shi_fail_wasmtime(error) : SH_OK;
}
