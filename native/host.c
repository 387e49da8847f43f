/* The host: engines, region pool, ticker, tenants, counters. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "guest.h"

/* The reservation makes wasmtime leave out bounds checks of 32-bit memories; the guard covers their offsets. */
const uint64_t shi_memory_reservation = 4ull << 30, shi_memory_guard = 32ull << 20;

enum { ARENA_SLOTS = 1024 };
static const uint64_t queue_bytes = 64ull << 20, queue_ns = 10000000; /* bounds of deferred decommit; arbitrary */

static wasm_engine_t *new_engine(const sh_host_options *options, bool fuel) {
  wasm_config_t *config = wt.wasm_config_new();
  wt.wasmtime_config_host_memory_creator_set(config, &shi_creator);
  wt.wasmtime_config_memory_init_cow_set(config, false); /* aborts with a memory creator: wasmtime issue 10740 */
  wt.wasmtime_config_memory_may_move_set(config, false);
  wt.wasmtime_config_memory_reservation_set(config, shi_memory_reservation);
  wt.wasmtime_config_memory_guard_size_set(config, shi_memory_guard);
  wt.wasmtime_config_epoch_interruption_set(config, true);
  wt.wasmtime_config_consume_fuel_set(config, fuel);
  wt.wasmtime_config_max_wasm_stack_set(config, options->wasm_stack);
  wt.wasmtime_config_wasm_threads_set(config, false); /* shared memories bypass the memory creator */
  wt.wasmtime_config_shared_memory_set(config, false);
  wt.wasmtime_config_wasm_gc_set(config, false);
  wt.wasmtime_config_wasm_exceptions_set(config, true);
  wt.wasmtime_config_wasm_multi_memory_set(config, true);
  wt.wasmtime_config_wasm_memory64_set(config, true);
  wt.wasmtime_config_wasm_tail_call_set(config, true);
  wt.wasmtime_config_wasm_custom_page_sizes_set(config, true);
  wt.wasmtime_config_cranelift_opt_level_set(config, options->optimize ? WASMTIME_OPT_SPEED : WASMTIME_OPT_NONE);
  return wt.wasm_engine_new_with_config(config); /* takes the config */
}

static int new_pool(sh_host *host) {
  const sh_host_options *options = &host->options;
  shi_pool_options pool = {
      .slot_capacity = shi_memory_reservation,
      .slot_guard = shi_memory_guard,
      .max_regions = options->max_regions,
      .arena_slots = options->max_regions < ARENA_SLOTS ? options->max_regions : ARENA_SLOTS,
      .policy = (enum sh_policy)options->policy,
      .resident_per_slot = options->resident_per_slot,
      .resident_total = options->resident_total,
      .decay_ns = options->decay_ns,
      .queue_bytes = queue_bytes,
      .queue_ns = queue_ns,
      .numa_bind = options->numa_bind,
  };
  int error = shi_pool_create(&pool, &host->pool);
  return error ? shi_fail_native(error) : SH_OK;
}

sh_host *sh_host_new(const sh_host_options *options) {
  if (atomic_load(&shi_forked)) {
    shi_fail(SH_FORKED, "this process was forked after its parent had made a Host; make hosts after the fork");
    return NULL;
  }
  sh_host *host = calloc(1, sizeof *host);
  if (!host) {
    shi_fail_no_memory();
    return NULL;
  }
  host->options = *options;
  host->references = 1;
  host->account = (shi_account){.limit = options->memory_limit, .level = SHI_ACCOUNT_HOST};
  host->handles = (shi_account){.limit = options->handles, .level = SHI_ACCOUNT_HOST};
  host->handle_bytes = (shi_account){.limit = options->handle_bytes, .level = SHI_ACCOUNT_HOST};
  pthread_mutex_init(&host->mutex, NULL);
  if (new_pool(host) != SH_OK) goto no_pool;
  for (int k = 0; k < SHI_ENGINES; k++) host->ticker.engines[k] = new_engine(options, k == SHI_ENGINE_FUEL);
  if (shi_trap_signals_installed() != SH_OK) goto no_ticker;
  if (shi_ticker_start(&host->ticker) != SH_OK) goto no_ticker;
  shi_process_add(host);
  return host;

no_ticker:
  for (int k = 0; k < SHI_ENGINES; k++) wt.wasm_engine_delete(host->ticker.engines[k]);
  shi_pool_destroy(host->pool);
no_pool:
  pthread_mutex_destroy(&host->mutex);
  free(host);
  return NULL;
}

int sh_host_close(sh_host *host) {
  if (atomic_load(&shi_forked)) return SH_FORKED;
  atomic_store(&host->closed, true); /* no spawn from here on */
  for (int tries = 0; tries < 50; tries++) {
    uint32_t left = shi_guests_end(host);
    if (left == 0) return SH_OK;
    shi_ticker_advance(&host->ticker);
    nanosleep(&(struct timespec){.tv_nsec = SHI_TICK_NS}, NULL);
  }
  return shi_fail(SH_BUSY, "guests are still in a call, or views of their memory are alive");
}

static void free_host(sh_host *host) {
  shi_process_remove(host);
  shi_host_heap_free(host);
  shi_ticker_stop(&host->ticker);
  for (int k = 0; k < SHI_ENGINES; k++) wt.wasm_engine_delete(host->ticker.engines[k]);
  shi_pool_destroy(host->pool);
  while (host->tenants) {
    sh_tenant *tenant = host->tenants;
    host->tenants = tenant->next;
    free(tenant);
  }
  pthread_mutex_destroy(&host->mutex);
  free(host);
}

void shi_host_release(sh_host *host) {
  if (atomic_fetch_sub(&host->references, 1) == 1) free_host(host);
}

void sh_host_release(sh_host *host) {
  if (!atomic_load(&shi_forked)) shi_host_release(host); /* a child of a fork owns none of it */
}

uint64_t sh_host_trim(sh_host *host, uint64_t idle_ns) { return shi_pool_trim(host->pool, idle_ns); }

sh_tenant *sh_tenant_new(sh_host *host, uint64_t memory_limit) {
  sh_tenant *tenant = calloc(1, sizeof *tenant);
  if (!tenant) return shi_fail_no_memory(), NULL;
  tenant->account = (shi_account){.parent = &host->account, .limit = memory_limit, .level = SHI_ACCOUNT_TENANT};
  tenant->handles = (shi_account){.parent = &host->handles, .limit = UINT64_MAX, .level = SHI_ACCOUNT_TENANT};
  tenant->handle_bytes = (shi_account){.parent = &host->handle_bytes, .limit = UINT64_MAX, .level = SHI_ACCOUNT_TENANT};
  pthread_mutex_lock(&host->mutex);
  tenant->id = host->tenants ? host->tenants->id + 1 : 1;
  tenant->next = host->tenants;
  host->tenants = tenant;
  pthread_mutex_unlock(&host->mutex);
  return tenant;
}

void sh_tenant_limit_handles(sh_tenant *tenant, uint64_t handles, uint64_t handle_bytes) {
  tenant->handles.limit = handles;
  tenant->handle_bytes.limit = handle_bytes;
}

uint64_t sh_tenant_used(const sh_tenant *tenant) { return atomic_load(&tenant->account.used); }
uint64_t sh_tenant_peak(const sh_tenant *tenant) { return atomic_load(&tenant->account.peak); }

void sh_host_get_stats(sh_host *host, sh_host_stats *out) {
  memset(out, 0, sizeof *out);
  shi_pool_stats(host->pool, &out->pool);
  out->memory_limit = host->options.memory_limit;
  out->guests_live = atomic_load(&host->guests_live);
  out->guests_peak = atomic_load(&host->guests_peak);
  out->spawns = atomic_load(&host->spawns);
  out->spawn_failures = atomic_load(&host->spawn_failures);
  out->calls = atomic_load(&host->calls);
  out->host_calls = atomic_load(&host->host_calls);
  out->traps = atomic_load(&host->traps);
  out->deadlines = atomic_load(&host->deadlines);
  out->cancels = atomic_load(&host->cancels);
  out->memory_refusals = atomic_load(&host->memory_refusals);
}

void sh_host_histogram(sh_host *host, int operation, sh_histogram *out) {
  shi_histogram_copy(&host->latency[operation], out);
}
