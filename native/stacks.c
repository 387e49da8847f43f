/* The wasm stacks of guests in calls, as wasmtime's profiler of guests sees them.
 *
 * It can look at a stack only from the thread that runs on it, in the middle of the call. So a guest is asked (`asked`
 * points to its plugin's sheet), and adds itself to the sheet: if it computes when it looks at its epoch, within a tick;
 * if it waits on a fiber at once, since who asks polls the fiber for that. Who is in a host function that does not wait
 * on a fiber does not look; who asked goes on without him after a while.
 *
 * A sheet has one profiler of wasmtime's, which keeps the samples in order. All of it is under the host's `stacks_told`.
 * Making a profiler reads the names of all functions of the module: who asks does that, before it asks.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fiber.h"

typedef struct shi_asked {
  const sh_plugin *plugin; /* compared only */
  wasmtime_guestprofiler_t *profiler; /* NULL once `json` is there */
  wasm_byte_vec_t json;
  uint64_t *told; /* guests, in order */
  uint32_t told_count, asked_count; /* who was asked twice, by an earlier guest of his struct, is told once */
  struct shi_asked *next;
} shi_asked;

struct sh_stacks {
  shi_asked *sheets;
};

void shi_stack_tell(shi_guest *guest) {
  if (__builtin_expect(atomic_load_explicit(&guest->asked, memory_order_relaxed) == NULL, 1)) return;
  sh_host *host = guest->plugin->host;
  pthread_mutex_lock(&host->stacks_told);
  shi_asked *sheet = atomic_load(&guest->asked);
  /* Of another plugin: the struct had another guest when it was asked. */
  if (sheet && sheet->plugin == guest->plugin) {
    wt.wasmtime_guestprofiler_sample(sheet->profiler, guest->store, 0);
    sheet->told[sheet->told_count++] = shi_guest_id(guest);
  }
  atomic_store(&guest->asked, NULL);
  pthread_mutex_unlock(&host->stacks_told);
}

/* ---- asking ----------------------------------------------------------------------------------------------------------- */

static shi_asked *sheet_of(sh_stacks *stacks, const sh_plugin *plugin) {
  static const char name[] = "guest";
  for (shi_asked *sheet = stacks->sheets; sheet; sheet = sheet->next)
    if (sheet->plugin == plugin) return sheet;
  shi_asked *sheet = calloc(1, sizeof *sheet);
  if (!sheet) return NULL;
  wasm_byte_vec_t title = {.size = sizeof name - 1, .data = (uint8_t *)(uintptr_t)name};
  const wasmtime_guestprofiler_modules_t module = {.name = &title, .mod = plugin->module->module};
  wasm_engine_t *engine = plugin->host->ticker.engines[plugin->module->engine];
  sheet->profiler = wt.wasmtime_guestprofiler_new(engine, &title, SHI_TICK_NS, &module, 1);
  sheet->plugin = plugin;
  sheet->next = stacks->sheets;
  return stacks->sheets = sheet;
}

/* The guest is held, and in a call. False: no memory. */
static bool ask(sh_stacks *stacks, shi_guest *guest) {
  sh_host *host = guest->plugin->host;
  shi_asked *sheet = sheet_of(stacks, guest->plugin);
  if (!sheet) return false;
  pthread_mutex_lock(&host->stacks_told);
  uint64_t *told = realloc(sheet->told, (sheet->asked_count + 1) * sizeof *told);
  if (told) {
    sheet->told = told;
    sheet->asked_count++;
    atomic_store(&guest->asked, sheet);
  }
  pthread_mutex_unlock(&host->stacks_told);
  return told != NULL;
}

static void tell_waiting(shi_guest *guest) {
  if (!shi_guest_look_at(guest)) return;
  shi_fiber_tell(guest);
  shi_guest_park(guest);
}

static bool ask_all(sh_stacks *stacks, sh_host *host) {
  uint32_t size = shi_guest_table_size();
  bool done = true;
  for (uint32_t index = 0; index < size && done; index++) {
    shi_guest *guest = shi_guest_at(index);
    if (atomic_load_explicit(&guest->host, memory_order_relaxed) != host || !shi_guest_hold(shi_guest_id(guest)))
      continue;
    enum shi_phase phase = shi_phase_shown(atomic_load(&guest->state));
    bool in_call = phase == SHI_RUNNING || phase == SHI_PARKED;
    if (in_call && atomic_load_explicit(&guest->host, memory_order_relaxed) == host) done = ask(stacks, guest);
    if (done && phase == SHI_PARKED) tell_waiting(guest);
    shi_guest_let_go(guest);
  }
  return done;
}

static bool is_ours(const sh_stacks *stacks, const shi_asked *sheet) {
  for (const shi_asked *each = stacks->sheets; each; each = each->next)
    if (each == sheet) return sheet != NULL;
  return false;
}

/* Under `stacks_told`: how many compute, and have not told. `no_more`: nobody is to. */
static uint32_t missing(const sh_stacks *stacks, bool no_more) {
  uint32_t size = shi_guest_table_size(), count = 0;
  for (uint32_t index = 0; index < size; index++) {
    shi_guest *guest = shi_guest_at(index);
    const shi_asked *sheet = atomic_load_explicit(&guest->asked, memory_order_relaxed);
    if (!sheet || !is_ours(stacks, sheet)) continue;
    count += atomic_load_explicit(&guest->inside, memory_order_relaxed) == NULL;
    if (no_more) atomic_store(&guest->asked, NULL);
  }
  return count;
}

static void wait_for_all(const sh_stacks *stacks, sh_host *host, uint64_t patience_ns) {
  uint64_t until = shi_now_ns() + patience_ns;
  shi_ticker_advance(&host->ticker);
  for (;;) {
    pthread_mutex_lock(&host->stacks_told);
    bool over = missing(stacks, false) == 0 || shi_now_ns() >= until;
    if (over) missing(stacks, true);
    pthread_mutex_unlock(&host->stacks_told);
    if (over) return;
    nanosleep(&(struct timespec){.tv_nsec = SHI_TICK_NS / 8}, NULL);
  }
}

static int finish(shi_asked *sheet) {
  wasmtime_error_t *error = wt.wasmtime_guestprofiler_finish(sheet->profiler, &sheet->json);
  sheet->profiler = NULL; /* it took it */
  return error ? shi_fail_wasmtime(error) : SH_OK;
}

sh_stacks *sh_stacks_take(sh_host *host, uint64_t patience_ns) {
  if (atomic_load(&shi_forked))
    return shi_fail(SH_FORKED, "this process was forked from the one that has the guests; it has none"), NULL;
  sh_stacks *stacks = calloc(1, sizeof *stacks);
  if (!stacks) return shi_fail_no_memory(), NULL;
  pthread_mutex_lock(&host->captures); /* who asks meanwhile would be told nothing */
  int status = ask_all(stacks, host) ? SH_OK : shi_fail_no_memory();
  wait_for_all(stacks, host, status == SH_OK ? patience_ns : 0);
  pthread_mutex_unlock(&host->captures);
  for (shi_asked *sheet = stacks->sheets; sheet; sheet = sheet->next) {
    int finished = finish(sheet);
    if (status == SH_OK) status = finished;
  }
  if (status == SH_OK) return stacks;
  sh_stacks_free(stacks);
  return NULL;
}

int sh_stacks_of(const sh_stacks *stacks, uint32_t k, const uint8_t **json, size_t *length, const uint64_t **guests,
                 uint32_t *count) {
  const shi_asked *sheet = stacks->sheets;
  while (sheet && k--) sheet = sheet->next;
  if (!sheet) return 0;
  *json = sheet->json.data;
  *length = sheet->json.size;
  *guests = sheet->told;
  *count = sheet->told_count;
  return 1;
}

void sh_stacks_free(sh_stacks *stacks) {
  for (shi_asked *sheet = stacks->sheets, *next; sheet; sheet = next) {
    next = sheet->next;
    if (sheet->json.data) wt.wasm_byte_vec_delete(&sheet->json);
    free(sheet->told);
    free(sheet);
  }
  free(stacks);
}

void sh_guest_inside(uint64_t id, char *name, uint32_t room) {
  name[0] = 0;
  if (atomic_load(&shi_forked)) return;
  shi_guest *guest = shi_guest_hold(id);
  if (!guest) return;
  const char *inside = atomic_load_explicit(&guest->inside, memory_order_acquire);
  if (inside) strncat(name, inside, room - 1);
  shi_guest_let_go(guest);
}
