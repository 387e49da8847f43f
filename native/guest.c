/* The life of a guest: spawn, close. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fiber.h"
#include "heap.h"
#include "heap_capture.h"
#include "snapshot.h"
#include "wasi.h"

_Thread_local uint32_t shi_thread_in_guest;

static uint64_t state_of(uint64_t generation, enum shi_phase phase) { return generation << 32 | (uint64_t)phase; }
static uint64_t generation_of(uint64_t state) { return state >> 32; }
static enum shi_phase phase_of(uint64_t state) { return (enum shi_phase)(state & 0xff); }

/* ---- who is inside ------------------------------------------------------------------------------------------------- */

static shi_guest *find(uint64_t id) {
  shi_guest *guest = shi_guest_at((uint32_t)id);
  if (!guest) return NULL;
  uint64_t state = atomic_load(&guest->state);
  enum shi_phase phase = phase_of(state);
  bool alive = phase == SHI_IDLE || phase == SHI_RUNNING || phase == SHI_PARKED;
  return alive && generation_of(state) == id >> 32 ? guest : NULL;
}

/* A guest begins to close under its lock: whom we find alive here stays as he is until we let go. */
shi_guest *shi_guest_hold(uint64_t id) {
  shi_guest *guest = shi_guest_at((uint32_t)id);
  if (!guest) return NULL;
  pthread_mutex_lock(&guest->mutex);
  if (find(id)) return guest;
  pthread_mutex_unlock(&guest->mutex);
  return NULL;
}

void shi_guest_let_go(shi_guest *guest) { pthread_mutex_unlock(&guest->mutex); }

static int fail_closed(void) { return shi_fail(SH_CLOSED, "the guest has ended"); }
static int fail_forked(void) {
  return shi_fail(SH_FORKED, "this process was forked from the one that has the guests; it has none");
}

int shi_guest_enter(uint64_t id, shi_guest **out) {
  if (__builtin_expect(atomic_load_explicit(&shi_forked, memory_order_relaxed), 0)) return fail_forked();
  shi_guest *guest = shi_guest_at((uint32_t)id);
  if (!guest) return fail_closed();
  uint64_t expected = state_of(id >> 32, SHI_IDLE);
  uintptr_t self = (uintptr_t)&shi_thread_in_guest;
  if (atomic_compare_exchange_strong(&guest->state, &expected, state_of(id >> 32, SHI_RUNNING))) {
    atomic_store(&guest->owner, self);
  } else if (generation_of(expected) != id >> 32 || phase_of(expected) == SHI_FREE ||
             phase_of(expected) == SHI_CLOSING) {
    return fail_closed();
  } else if (shi_phase_shown(expected) == SHI_PARKED) {
    return shi_fail(SH_BUSY,
                    "a call of the guest waits; from inside its host functions, `await guest.call_async(...)`");
  } else if (atomic_load(&guest->owner) != self) {
    return shi_fail(SH_BUSY, "another thread is in this guest; a guest belongs to one thread at a time");
  } else if (guest->in_callback) { /* wasmtime is in the middle of something: the guest could not be stopped there */
    return shi_fail(SH_BUSY, "the guest is being interrupted; an output callback or signal handler cannot use it");
  }
  guest->depth++;
  *out = guest;
  return SH_OK;
}

void shi_guest_leave(shi_guest *guest) {
  if (--guest->depth) return;
  atomic_store(&guest->owner, 0);
  uint64_t state = atomic_load_explicit(&guest->state, memory_order_relaxed);
  atomic_store(&guest->state, state_of(generation_of(state), SHI_IDLE));
}

void shi_guest_park(shi_guest *guest) {
  if (guest->holder) shi_guest_handles_stand(guest);
  atomic_store(&guest->owner, 0);
  uint64_t state = atomic_load(&guest->state), parked;
  do {
    parked = state_of(generation_of(state), SHI_PARKED) | (state & SHI_CANCEL);
  } while (!atomic_compare_exchange_weak(&guest->state, &state, parked));
}

void shi_guest_set_cancelled(shi_guest *guest) { atomic_fetch_or(&guest->state, SHI_CANCEL); }
void shi_guest_uncancel(shi_guest *guest) {
  atomic_fetch_and(&guest->state, ~(uint64_t)SHI_CANCEL);
  if (atomic_load(&guest->evicted)) shi_guest_set_cancelled(guest); /* sh_evict marks it before it cancels */
}

/* Takes a parked guest; `bits` go beside RUNNING. */
static int unpark(uint64_t id, shi_guest *guest, uint64_t bits) {
  uint64_t state = atomic_load(&guest->state);
  for (;;) {
    if (generation_of(state) != id >> 32 || phase_of(state) == SHI_FREE || phase_of(state) == SHI_CLOSING)
      return fail_closed();
    if (phase_of(state) == SHI_RUNNING && state & SHI_LOOKED_AT) {
      pthread_mutex_lock(&guest->mutex);
      pthread_mutex_unlock(&guest->mutex);
      state = atomic_load(&guest->state);
      continue;
    }
    if (phase_of(state) == SHI_RUNNING) return shi_fail(SH_BUSY, "the guest's call is on its way");
    if (phase_of(state) != SHI_PARKED) return shi_fail(SH_ARGUMENT, "no call of the guest waits");
    uint64_t running = state_of(id >> 32, SHI_RUNNING) | (state & SHI_CANCEL) | bits;
    if (atomic_compare_exchange_weak(&guest->state, &state, running)) break;
  }
  atomic_store(&guest->owner, (uintptr_t)&shi_thread_in_guest);
  if (guest->holder) shi_holder_call_goes_on(guest->holder);
  return SH_OK;
}

int shi_guest_claim(uint64_t id, shi_guest **out) {
  if (atomic_load_explicit(&shi_forked, memory_order_relaxed)) return fail_forked();
  shi_guest *guest = shi_guest_at((uint32_t)id);
  int status = guest ? unpark(id, guest, 0) : fail_closed();
  if (status == SH_OK) *out = guest;
  return status;
}

bool shi_guest_look_at(shi_guest *guest) {
  uint64_t state = atomic_load(&guest->state), id = generation_of(state) << 32 | guest->index;
  if (phase_of(state) != SHI_PARKED) return false;
  if (unpark(id, guest, SHI_LOOKED_AT) == SH_OK) return true;
  shi_error_forget(); /* it has gone on just now */
  return false;
}

/* ---- spawn --------------------------------------------------------------------------------------------------------- */

static bool has_views(const shi_guest *guest) {
  for (uint32_t k = 0; k < guest->region_count; k++)
    if (shi_region_pinned(guest->regions[k])) return true;
  return false;
}

static void give_up(shi_guest *guest, int policy, sh_reclaim *reclaim) {
  shi_pool *pool = guest->plugin->host->pool;
  /* Only a fork: a fresh guest may have a start function, and data that wasmtime wrote. */
  bool untouched = guest->snapshot && !atomic_load_explicit(&guest->touched, memory_order_relaxed);
  for (uint32_t k = 0; k < guest->region_count; k++) {
    guest->regions[k]->untouched = untouched;
    shi_region_release(pool, guest->regions[k], policy, reclaim);
  }
}

/* Every store that is ended goes through here, the half-made ones too. Adds to *reclaim. The guest is CLOSING, so that
 * nobody gets another view; those who have one are the callbacks of a start function that failed. True: put it. */
static bool end(shi_guest *guest, int policy, sh_reclaim *reclaim) {
  shi_fiber_end(guest);
  if (guest->holder) shi_guest_handles_end(guest);
  if (guest->store) wt.wasmtime_store_delete(guest->store);
  guest->store = NULL;
  shi_fiber_give_back(guest, policy, reclaim);
  for (uint32_t k = 0; k < guest->region_count; k++) atomic_store_explicit(&guest->sizes[k], 0, memory_order_release);
  if (guest->gc_heap) shi_region_release(guest->plugin->host->pool, guest->gc_heap, policy, reclaim);
  shi_wasi_detach(guest);
  pthread_mutex_lock(&guest->mutex);
  bool pinned = guest->pinned = has_views(guest);
  pthread_mutex_unlock(&guest->mutex);
  if (!pinned) give_up(guest, policy, reclaim);
  return !pinned;
}

void shi_guest_unpin(uint64_t id, uint32_t memory_index) {
  shi_guest *guest = shi_guest_at((uint32_t)id);
  if (!guest) return;
  pthread_mutex_lock(&guest->mutex);
  uint64_t state = atomic_load(&guest->state);
  bool there = generation_of(state) == id >> 32 && phase_of(state) != SHI_FREE && memory_index < guest->region_count;
  if (there) shi_region_unpin(guest->regions[memory_index]);
  bool last = there && guest->pinned && !has_views(guest);
  if (last) guest->pinned = false;
  pthread_mutex_unlock(&guest->mutex);
  if (!last) return;
  sh_reclaim reclaim = {0};
  give_up(guest, -1, &reclaim);
  shi_guest_put(guest);
}

static shi_account *live_account(const shi_guest *guest) {
  return guest->tenant ? &guest->tenant->guests : &guest->plugin->host->guests;
}

static int prepare(shi_guest *guest, sh_tenant *tenant, const sh_limits *limits, uint64_t now_ns) {
  sh_plugin *plugin = guest->plugin;
  const sh_snapshot *from = guest->snapshot;
  atomic_store_explicit(&guest->host, plugin->host, memory_order_relaxed);
  guest->called = false;
  guest->counted = false;
  guest->pinned = false;
  atomic_store_explicit(&guest->evicted, false, memory_order_relaxed);
  guest->cpu_from_ns = 0;
  atomic_store_explicit(&guest->touched, false, memory_order_relaxed);
  guest->store = NULL;
  guest->region_count = 0;
  guest->gc_heap = NULL;
  guest->grant = NULL;
  guest->limits = *limits;
  guest->depth = 0;
  guest->stop = 0;
  guest->refused = false;
  guest->in_callback = false;
  atomic_store_explicit(&guest->inside, NULL, memory_order_relaxed);
  shi_fiber_forget(guest);
  guest->holder = NULL;
  guest->tenant = tenant;
  atomic_store_explicit(&guest->node, 0, memory_order_relaxed);
  guest->whose = (shi_whose){shi_guest_id(guest), plugin->id, tenant ? tenant->id : 0};
  atomic_store_explicit(&guest->calls, 0, memory_order_relaxed);
  atomic_store_explicit(&guest->host_calls, 0, memory_order_relaxed);
  atomic_store_explicit(&guest->fuel_used, 0, memory_order_relaxed);
  guest->born_ns = now_ns;
  shi_account *parent = tenant ? &tenant->account : &plugin->host->account;
  guest->account = (shi_account){.parent = parent, .limit = limits->memory, .level = SHI_ACCOUNT_GUEST};

  if (from && from->plugin != plugin) return shi_fail(SH_ARGUMENT, "the snapshot is one of another plugin");
  if (guest->function_capacity < plugin->export_count) {
    free(guest->functions);
    guest->functions = malloc(plugin->export_count * sizeof *guest->functions);
    guest->function_capacity = guest->functions ? plugin->export_count : 0;
    if (!guest->functions) return shi_fail_no_memory();
  }
  if (plugin->export_count) memset(guest->functions, 0, plugin->export_count * sizeof *guest->functions);

  /* Tables are wasmtime's, in no region and no account: all of a guest's together take no more than its memory may. */
  if (plugin->table_count && guest->limits.table_elements > limits->memory / sizeof(void *) / plugin->table_count)
    guest->limits.table_elements = limits->memory / sizeof(void *) / plugin->table_count;
  uint64_t largest = from ? shi_state_largest_table(&from->state, &plugin->state) : plugin->largest_table;
  if (largest > guest->limits.table_elements) {
    shi_event_refused(&plugin->host->events, guest->whose, SH_REFUSED_TABLE, SH_LEVEL_GUEST, largest,
                      guest->limits.table_elements);
    return shi_fail_limit(SH_TABLE_LIMIT, largest, guest->limits.table_elements,
                          "a table of the module starts with more elements than the guest may have");
  }
  if (tenant && tenant->account.parent != &plugin->host->account)
    return shi_fail(SH_ARGUMENT, "the tenant is one of another host");
  if (limits->fuel && plugin->module->engine != SHI_ENGINE_FUEL)
    return shi_fail(SH_ARGUMENT, "fuel is asked for, but the plugin was loaded without fuel=True");
  const shi_account *full = shi_account_charge(live_account(guest), 1); /* the host's has no limit */
  guest->counted = !full;
  return full ? shi_quota_refuse_guest(plugin->host, guest->whose, full->limit) : SH_OK;
}

/* Only when wasmtime asked for a GC heap as well can a request have been taken for another: see creator.c. */
static bool memories_are_where_planned(shi_guest *guest) {
  for (uint32_t k = 0; k < guest->region_count; k++) {
    char name[32];
    int length = snprintf(name, sizeof name, "sandhost:memory:%u", k);
    wasmtime_extern_t item;
    if (!wt.wasmtime_instance_export_get(guest->context, &guest->instance, name, (size_t)length, &item) ||
        wt.wasmtime_memory_data(guest->context, &item.of.other) != guest->regions[k]->base)
      return false;
  }
  return true;
}

static int instantiate(shi_guest *guest, bool started) {
  sh_plugin *plugin = guest->plugin;
  wasm_trap_t *trap = NULL;
  shi_creator_expect(guest);
  wasmtime_error_t *error = wt.wasmtime_instance_pre_instantiate(plugin->pre, guest->context, &guest->instance, &trap);
  shi_creator_expect(NULL);
  if (!error && !trap && guest->region_count != plugin->memory_count)
    return shi_fail(SH_WASMTIME, "wasmtime made %u memories where the plugin has %u", guest->region_count,
                    plugin->memory_count);
  if (!error && !trap && guest->gc_heap && !memories_are_where_planned(guest))
    return shi_fail(SH_WASMTIME, "a module that uses exceptions and whose memory starts empty is not supported");
  int status = shi_guest_outcome(guest, error, trap);
  if (status == SH_OK && guest->snapshot) return shi_state_restore(guest, &guest->snapshot->state);
  return status == SH_OK && plugin->state.start && started ? shi_state_start(guest) : status;
}

static void count_spawn(sh_plugin *plugin, sh_tenant *tenant) {
  sh_host *host = plugin->host;
  shi_count(&plugin->counters, SHI_PLUGIN_SPAWNS, 1);
  shi_count(&host->counters, SHI_HOST_SPAWNS, 1);
  if (tenant) shi_count(&tenant->counters, SHI_TENANT_SPAWNS, 1);
}

/* `committed`: what its memories take then. */
static int start(shi_guest *guest, sh_wasi *wasi, bool started, uint64_t *committed) {
  sh_plugin *plugin = guest->plugin;
  guest->store = wt.wasmtime_store_new(plugin->host->ticker.engines[plugin->module->engine], guest, NULL);
  guest->context = wt.wasmtime_store_context(guest->store);
  wt.wasmtime_store_limiter(guest->store, -1, (int64_t)guest->limits.table_elements, -1, -1, -1);
  wt.wasmtime_store_epoch_deadline_callback(guest->store, shi_epoch_reached, guest, NULL);
  if (plugin->wasi) {
    const shi_wasi_state *captured = guest->snapshot ? &guest->snapshot->wasi : NULL;
    int status = shi_wasi_attach(guest, wasi, captured && captured->bytes ? captured : NULL);
    if (status != SH_OK) return status;
  }
  uint64_t generation = generation_of(atomic_load(&guest->state));
  atomic_store(&guest->owner, (uintptr_t)&shi_thread_in_guest);
  atomic_store(&guest->state, state_of(generation, SHI_RUNNING)); /* a start function may call the host */
  guest->depth = 1;
  int status = shi_guest_begin(guest, guest->born_ns);
  if (status == SH_OK) {
    status = instantiate(guest, started);
    shi_guest_finish(guest);
  }
  guest->depth = 0;
  if (status == SH_OK) count_spawn(plugin, guest->tenant);
  *committed = atomic_load_explicit(&guest->account.used, memory_order_relaxed);
  atomic_store(&guest->owner, 0);
  if (status == SH_OK) {
    atomic_store(&guest->state, state_of(generation, SHI_IDLE));
  } else { /* under the lock, as any guest begins to close: see shi_guest_hold */
    pthread_mutex_lock(&guest->mutex);
    atomic_store(&guest->state, state_of(generation, SHI_CLOSING));
    pthread_mutex_unlock(&guest->mutex);
  }
  return status;
}

uint64_t shi_spawn(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits, sh_wasi *wasi,
                   bool started) {
  if (atomic_load_explicit(&shi_forked, memory_order_relaxed)) return fail_forked(), 0;
  if (atomic_load_explicit(&plugin->host->closed, memory_order_relaxed))
    return shi_fail(SH_CLOSED, "the host is closed"), 0;
  uint64_t begun = shi_now_ns();
  if (shi_quota_check(plugin->host, tenant, begun) != SH_OK) return 0;
  shi_guest *guest = shi_guest_take(plugin, from);
  if (!guest) return shi_fail_no_memory(), 0;
  uint64_t id = shi_guest_id(guest);
  int status = prepare(guest, tenant, limits, begun);
  const shi_whose whose = guest->whose;
  uint64_t committed;
  if (status == SH_OK) status = start(guest, wasi, started, &committed);
  if (status != SH_OK) {
    shi_count(&plugin->host->counters, SHI_HOST_SPAWN_FAILURES, 1);
    if (guest->counted) shi_account_refund(live_account(guest), 1);
    sh_reclaim reclaim = {0};
    atomic_store_explicit(&guest->touched, true, memory_order_relaxed); /* nobody knows how far it came */
    if (end(guest, -1, &reclaim)) shi_guest_put(guest);
    return 0;
  }
  /* From here on another thread may end the guest (the host's close does), and its struct may be somebody else's. */
  if (atomic_load(&plugin->host->closed)) { /* closed meanwhile: close() may not have seen this guest */
    sh_reclaim reclaim;
    sh_close(id, -1, &reclaim);
    return shi_fail(SH_CLOSED, "the host is closed"), 0;
  }
  uint64_t now = shi_now_ns();
  shi_histogram_record(&plugin->host->latency[SH_OP_SPAWN], now - begun);
  shi_event_spawn(&plugin->host->events, now, whose, plugin->name, committed, now - begun, from != NULL);
  return id;
}

/* ---- close --------------------------------------------------------------------------------------------------------- */

/* `phase`: SHI_IDLE, or SHI_PARKED to end one whose call waits, call and all. */
static int close_guest(uint64_t id, enum shi_phase phase, int policy, sh_reclaim *out) {
  if (atomic_load_explicit(&shi_forked, memory_order_relaxed)) return fail_forked();
  shi_guest *guest = shi_guest_at((uint32_t)id);
  if (!guest) return fail_closed();
  uint64_t expected = state_of(id >> 32, phase);
  if (phase == SHI_PARKED) expected |= atomic_load(&guest->state) & SHI_CANCEL;
  pthread_mutex_lock(&guest->mutex); /* nobody gets a view meanwhile; and a close that is refused was never seen */
  bool viewed = atomic_load(&guest->state) == expected && has_views(guest);
  bool ours = !viewed && atomic_compare_exchange_strong(&guest->state, &expected, state_of(id >> 32, SHI_CLOSING));
  if (ours && __builtin_expect(atomic_load(&guest->plugin->host->capture) != NULL, 0))
    shi_capture_guest_ends(guest, id);
  pthread_mutex_unlock(&guest->mutex);
  if (viewed) return shi_fail(SH_BUSY, "views of the guest's memory are still alive; release them first");
  if (!ours) {
    if (generation_of(expected) != id >> 32) return fail_closed();
    if (phase_of(expected) == SHI_PARKED) return shi_fail(SH_BUSY, "a call of the guest waits; cancel it first");
    if (phase_of(expected) != SHI_RUNNING) return fail_closed();
    bool inside = atomic_load(&guest->owner) == (uintptr_t)&shi_thread_in_guest;
    return shi_fail(SH_BUSY, inside ? "a guest cannot be closed from inside its own call"
                                    : "another thread is in this guest; cancel() ends its call");
  }
  uint64_t begun = shi_now_ns();
  sh_plugin *plugin = guest->plugin;
  sh_host *host = plugin->host;
  uint64_t calls = shi_tallied(&guest->calls), host_calls = shi_tallied(&guest->host_calls);
  shi_count(&host->counters, SHI_HOST_CALLS, calls);
  shi_count(&host->counters, SHI_HOST_HOST_CALLS, host_calls);
  shi_count(&plugin->counters, SHI_PLUGIN_CALLS, calls);
  shi_count(&plugin->counters, SHI_PLUGIN_HOST_CALLS, host_calls);
  shi_count(&plugin->counters, SHI_PLUGIN_ENDED, 1);
  if (guest->tenant) shi_count(&guest->tenant->counters, SHI_TENANT_CALLS, calls);
  memset(out, 0, sizeof *out);
  bool ended = end(guest, policy, out); /* always: it had no views */
  shi_account_refund(live_account(guest), 1);
  uint64_t now = shi_now_ns();
  shi_histogram_record(&host->latency[SH_OP_CLOSE], now - begun);
  shi_event_close(&host->events, now, guest->whose, out, now - begun);
  if (ended) shi_guest_put(guest); /* last: its reference may be what keeps the host */
  return SH_OK;
}

int sh_close(uint64_t id, int policy, sh_reclaim *out) { return close_guest(id, SHI_IDLE, policy, out); }

int sh_cancel(uint64_t id) {
  if (atomic_load_explicit(&shi_forked, memory_order_relaxed)) return 0;
  shi_guest *guest = find(id);
  if (!guest) return 0;
  uint64_t state = atomic_load(&guest->state);
  do {
    if (generation_of(state) != id >> 32 || (phase_of(state) != SHI_RUNNING && phase_of(state) != SHI_PARKED)) return 0;
  } while (!atomic_compare_exchange_weak(&guest->state, &state, state | SHI_CANCEL));
  shi_ticker_advance(&atomic_load_explicit(&guest->host, memory_order_relaxed)->ticker);
  return 1;
}

int sh_evict(uint64_t id, sh_reclaim *out) {
  if (atomic_load_explicit(&shi_forked, memory_order_relaxed)) return fail_forked();
  shi_guest *guest = shi_guest_hold(id);
  if (!guest) return fail_closed();
  sh_host *host = atomic_load_explicit(&guest->host, memory_order_relaxed);
  bool first = !atomic_exchange(&guest->evicted, true);
  enum shi_phase phase = phase_of(atomic_load(&guest->state));
  shi_guest_let_go(guest);
  if (first) shi_count(&host->counters, SHI_HOST_EVICTIONS, 1);
  int status = close_guest(id, phase == SHI_PARKED ? SHI_PARKED : SHI_IDLE, -1, out);
  if (status == SH_BUSY) sh_cancel(id);
  return status;
}

uint32_t shi_guests_end(sh_host *host) {
  uint32_t size = shi_guest_table_size(), left = 0;
  for (uint32_t index = 0; index < size; index++) {
    shi_guest *guest = shi_guest_at(index);
    uint64_t state = atomic_load(&guest->state);
    if (phase_of(state) == SHI_FREE || atomic_load_explicit(&guest->host, memory_order_relaxed) != host) continue;
    uint64_t id = generation_of(state) << 32 | index;
    sh_reclaim reclaim;
    if (phase_of(state) == SHI_IDLE || phase_of(state) == SHI_PARKED) {
      if (close_guest(id, phase_of(state), -1, &reclaim) == SH_OK) continue;
      shi_error_forget();
    }
    sh_cancel(id);
    left++;
  }
  return left;
}

int sh_guest_running(uint64_t id) {
  shi_guest *guest = find(id);
  if (!guest) return 0;
  enum shi_phase phase = phase_of(atomic_load(&guest->state));
  return phase == SHI_RUNNING || phase == SHI_PARKED;
}

int sh_guest_get_stats(uint64_t id, sh_guest_stats *out) {
  if (atomic_load_explicit(&shi_forked, memory_order_relaxed)) return fail_forked();
  shi_guest *guest = shi_guest_hold(id);
  if (!guest) return fail_closed();
  *out = (sh_guest_stats){
      .calls = shi_tallied(&guest->calls),
      .host_calls = shi_tallied(&guest->host_calls),
      .fuel_used = shi_tallied(&guest->fuel_used),
      .committed_bytes = atomic_load(&guest->account.used),
      .peak_bytes = atomic_load(&guest->account.peak),
      .age_ns = shi_now_ns() - guest->born_ns,
      .memories = guest->region_count,
      .running = phase_of(atomic_load(&guest->state)) != SHI_IDLE,
  };
  shi_guest_let_go(guest);
  return SH_OK;
}
