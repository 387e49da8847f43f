/* The crossings that Python makes for every guest: spawn, call, close, and all three in one.
 *
 * cffi gives the interpreter's lock away for each, so each goes through the turnstile. What keeps it is in here.c.
 */
#include "fiber.h"
#include "turnstile.h"

uint64_t sh_spawn(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits, sh_wasi *wasi) {
  shi_turnstile_leave();
  uint64_t guest = shi_spawn(plugin, from, tenant, limits, wasi, true);
  shi_turnstile_pass();
  return guest;
}

uint64_t sh_spawn_unstarted(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits,
                            sh_wasi *wasi) {
  shi_turnstile_leave();
  uint64_t guest = shi_spawn(plugin, from, tenant, limits, wasi, false);
  shi_turnstile_pass();
  return guest;
}

int sh_call(uint64_t guest, uint32_t export_index, int64_t *cells) {
  shi_turnstile_leave();
  int status = shi_call(guest, export_index, (wasmtime_val_raw_t *)cells, false);
  shi_turnstile_pass();
  return status;
}

static int64_t call_ints(uint64_t guest, uint32_t export_index, int64_t a, int64_t b, int64_t c, int64_t d) {
  wasmtime_val_raw_t values[4] = {{.i64 = a}, {.i64 = b}, {.i64 = c}, {.i64 = d}};
  int status = shi_call(guest, export_index, values, true);
  if (__builtin_expect(status != SH_OK, 0)) return SH_CALL_FAILED;
  if (__builtin_expect(values[0].i64 == SH_CALL_FAILED, 0)) shi_fail(SH_OK, "%s", "");
  return values[0].i64;
}

int64_t sh_call_ints(uint64_t guest, uint32_t export_index, int64_t a, int64_t b, int64_t c, int64_t d) {
  shi_turnstile_leave();
  int64_t result = call_ints(guest, export_index, a, b, c, d);
  shi_turnstile_pass();
  return result;
}

int sh_end(uint64_t guest, uint64_t *figures) {
  shi_turnstile_leave();
  sh_reclaim reclaim = {0};
  int status = sh_close(guest, -1, &reclaim);
  if (status == SH_CLOSED || status == SH_FORKED) shi_error_forget(); /* it has ended: nobody asks why */
  figures[0] = reclaim.returned_bytes;
  figures[1] = reclaim.kept_bytes;
  figures[2] = reclaim.deferred_bytes;
  figures[3] = reclaim.ns;
  figures[4] = reclaim.policy;
  shi_turnstile_pass();
  return status;
}

/* Nobody else knows the guest of a whole life: only the host's own close can have been first. */
void shi_guest_end_life(uint64_t guest) {
  sh_reclaim reclaim;
  sh_close(guest, -1, &reclaim);
}

int sh_live(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits, uint32_t export_index,
            int64_t *cells) {
  shi_turnstile_leave();
  uint64_t guest = shi_spawn(plugin, from, tenant, limits, NULL, true);
  int status = SH_CLOSED; /* any failure: the thread's error says which */
  if (guest) {
    status = shi_call(guest, export_index, (wasmtime_val_raw_t *)cells, false);
    shi_guest_end_life(guest);
  }
  shi_turnstile_pass();
  return status;
}

int64_t sh_live_ints(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits,
                     uint32_t export_index, int64_t a, int64_t b, int64_t c, int64_t d) {
  shi_turnstile_leave();
  uint64_t guest = shi_spawn(plugin, from, tenant, limits, NULL, true);
  int64_t result = SH_CALL_FAILED;
  if (guest) {
    result = call_ints(guest, export_index, a, b, c, d);
    shi_guest_end_life(guest);
  }
  shi_turnstile_pass();
  return result;
}
