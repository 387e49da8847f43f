/* The host: engines, region pool, ticker, tenants, counters. */
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fiber.h"

/* The reservation makes wasmtime leave out bounds checks of 32-bit memories; the guard covers their offsets. */
const uint64_t shi_memory_reservation = 4ull << 30, shi_memory_guard = 32ull << 20;

enum { ARENA_SLOTS = 1024 };
static const uint64_t queue_bytes = 64ull << 20, queue_ns = 10000000; /* bounds of deferred decommit; arbitrary */

/* A fiber's stack has room for the guest, and for our and wasmtime's functions on top of it. */
enum { STACK_FOR_HOST = 128 << 10, STACK_GUARD = 64 << 10 };
static uint64_t stack_bytes_of(const sh_host_options *options) {
  return (options->wasm_stack + STACK_FOR_HOST + 0xffff) & ~0xffffull;
}

static wasm_engine_t *new_engine(const sh_host_options *options, bool fuel) {
  wasm_config_t *config = wt.wasm_config_new();
  wt.wasmtime_config_host_memory_creator_set(config, &shi_creator);
  wt.wasmtime_config_host_stack_creator_set(config, &shi_stack_creator);
  wt.wasmtime_config_async_stack_size_set(config, stack_bytes_of(options));
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

static int new_pool(sh_host *host, uint64_t capacity, uint64_t guard, shi_pool **out) {
  const sh_host_options *options = &host->options;
  shi_pool_options pool = {
      .slot_capacity = capacity,
      .slot_guard = guard,
      .max_regions = options->max_regions,
      .arena_slots = options->max_regions < ARENA_SLOTS ? options->max_regions : ARENA_SLOTS,
      .policy = (enum sh_policy)options->policy,
      .resident_per_slot = options->resident_per_slot,
      .resident_total = options->resident_total,
      .decay_ns = options->decay_ns,
      .queue_bytes = queue_bytes,
      .queue_ns = queue_ns,
      .numa_bind = options->numa_bind,
      .events = &host->events,
  };
  int error = shi_pool_create(&pool, out);
  return error ? shi_fail_native(error) : SH_OK;
}

shi_pool *shi_host_stacks(sh_host *host) {
  shi_pool *stacks = atomic_load(&host->stacks);
  if (stacks) return stacks;
  pthread_mutex_lock(&host->mutex);
  stacks = atomic_load(&host->stacks);
  if (!stacks && new_pool(host, host->stack_bytes, STACK_GUARD, &stacks) == SH_OK) atomic_store(&host->stacks, stacks);
  pthread_mutex_unlock(&host->mutex);
  return stacks;
}

static int new_engines(sh_host *host) {
  int status = SH_OK;
  for (int k = 0; k < SHI_ENGINES; k++) {
    host->ticker.engines[k] = new_engine(&host->options, k == SHI_ENGINE_FUEL);
    if (status == SH_OK) status = shi_fiber_linker_new(host->ticker.engines[k], &host->fiber_linkers[k]);
  }
  return status;
}

static void delete_engines(sh_host *host) {
  for (int k = 0; k < SHI_ENGINES; k++) {
    if (host->fiber_linkers[k]) wt.wasmtime_linker_delete(host->fiber_linkers[k]);
    wt.wasm_engine_delete(host->ticker.engines[k]);
  }
}

static void free_struct(sh_host *host) {
  pthread_mutex_destroy(&host->stacks_told);
  pthread_mutex_destroy(&host->captures);
  shi_machine_close(&host->machine);
  shi_events_destroy(&host->events);
  pthread_mutex_destroy(&host->mutex);
  shi_credits_destroy(&host->credits);
  shi_credits_destroy(&host->guest_credits);
  free(host);
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
  shi_credits_init(&host->credits);
  shi_credits_init(&host->guest_credits);
  host->account = (shi_account){.limit = options->memory_limit, .level = SHI_ACCOUNT_HOST, .credits = &host->credits};
  host->guests = (shi_account){.limit = UINT64_MAX, .credits = &host->guest_credits};
  host->handles = (shi_account){.limit = options->handles, .level = SHI_ACCOUNT_HOST};
  host->handle_bytes = (shi_account){.limit = options->handle_bytes, .level = SHI_ACCOUNT_HOST};
  pthread_mutex_init(&host->mutex, NULL);
  pthread_mutex_init(&host->captures, NULL);
  pthread_mutex_init(&host->stacks_told, NULL);
  shi_machine_open(&host->machine);
  shi_events_init(&host->events);
  host->stack_bytes = stack_bytes_of(options);
  if (new_pool(host, shi_memory_reservation, shi_memory_guard, &host->pool) != SH_OK) goto no_pool;
  if (new_engines(host) != SH_OK) goto no_ticker;
  if (shi_trap_signals_installed() != SH_OK) goto no_ticker;
  if (shi_ticker_start(&host->ticker, options->realtime) != SH_OK) goto no_ticker;
  shi_workers_init(&host->workers, options->workers, options->background);
  shi_process_add(host);
  return host;

no_ticker:
  delete_engines(host);
  shi_pool_destroy(host->pool);
no_pool:
  free_struct(host);
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
  shi_workers_stop(&host->workers);
  shi_host_heap_free(host);
  shi_ticker_stop(&host->ticker);
  delete_engines(host);
  shi_pool_destroy(host->pool);
  if (host->stacks) shi_pool_destroy(host->stacks);
  while (host->tenants) {
    sh_tenant *tenant = host->tenants;
    host->tenants = tenant->next;
    shi_credits_destroy(&tenant->credits);
    shi_credits_destroy(&tenant->guest_credits);
    pthread_mutex_destroy(&tenant->limiting);
    free(tenant);
  }
  free_struct(host);
}

void shi_host_release(sh_host *host) {
  if (atomic_fetch_sub(&host->references, 1) == 1) free_host(host);
}

void sh_host_release(sh_host *host) {
  if (!atomic_load(&shi_forked)) shi_host_release(host); /* a child of a fork owns none of it */
}

uint64_t sh_host_trim(sh_host *host, uint64_t idle_ns) {
  shi_pool *stacks = atomic_load(&host->stacks);
  return shi_pool_trim(host->pool, idle_ns) + (stacks ? shi_pool_trim(stacks, idle_ns) : 0);
}

sh_tenant *sh_tenant_new(sh_host *host, const sh_tenant_limits *limits) {
  sh_tenant *tenant = calloc(1, sizeof *tenant);
  if (!tenant) return shi_fail_no_memory(), NULL;
  shi_credits_init(&tenant->credits);
  shi_credits_init(&tenant->guest_credits);
  pthread_mutex_init(&tenant->limiting, NULL);
  const enum shi_account_level level = SHI_ACCOUNT_TENANT;
  tenant->account = (shi_account){.parent = &host->account, .level = level, .credits = &tenant->credits};
  tenant->handles = (shi_account){.parent = &host->handles, .level = level};
  tenant->handle_bytes = (shi_account){.parent = &host->handle_bytes, .level = level};
  tenant->guests = (shi_account){.parent = &host->guests, .level = level, .credits = &tenant->guest_credits};
  tenant->memory_share = UINT64_MAX;
  sh_tenant_set_limits(tenant, limits);
  pthread_mutex_lock(&host->mutex);
  tenant->id = host->tenants ? host->tenants->id + 1 : 1;
  tenant->next = host->tenants;
  host->tenants = tenant;
  pthread_mutex_unlock(&host->mutex);
  return tenant;
}

static void limit_memory(sh_tenant *tenant) {
  uint64_t quota = tenant->memory_limit, share = tenant->memory_share;
  shi_account_set_limit(&tenant->account, share < quota ? share : quota);
}

void sh_tenant_set_limits(sh_tenant *tenant, const sh_tenant_limits *limits) {
  pthread_mutex_lock(&tenant->limiting);
  tenant->memory_limit = limits->memory;
  limit_memory(tenant);
  shi_account_set_limit(&tenant->handles, limits->handles);
  shi_account_set_limit(&tenant->handle_bytes, limits->handle_bytes);
  shi_account_set_limit(&tenant->guests, limits->guests);
  shi_bucket_set(&tenant->starts, limits->starts_per_s, (double)limits->starts_burst);
  shi_bucket_set(&tenant->cpu, limits->cpus * 1e9, (double)limits->cpu_burst_ns);
  pthread_mutex_unlock(&tenant->limiting);
}

uint32_t sh_tenant_id(const sh_tenant *tenant) { return tenant->id; }

void sh_tenant_get_stats(const sh_tenant *tenant, sh_tenant_stats *out) {
  const shi_counters *counters = &tenant->counters;
  *out = (sh_tenant_stats){
      .memory_bytes = shi_account_used(&tenant->account),
      .memory_peak_bytes = shi_account_peak(&tenant->account),
      .handles = shi_account_used(&tenant->handles),
      .handle_bytes = shi_account_used(&tenant->handle_bytes),
      .guests_live = shi_account_used(&tenant->guests),
      .guests_peak = shi_account_peak(&tenant->guests),
      .spawns = shi_counted(counters, SHI_TENANT_SPAWNS),
      .calls = shi_counted(counters, SHI_TENANT_CALLS),
      .cpu_ns = shi_counted(counters, SHI_TENANT_CPU_NS),
      .refusals = shi_counted(counters, SHI_TENANT_REFUSALS),
  };
}

int sh_trim_malloc(void) { return malloc_trim(0); }

void sh_host_refuse(sh_host *host, uint64_t retry_ns) { atomic_store(&host->refusing_ns, retry_ns); }

void sh_tenant_refuse(sh_tenant *tenant, uint64_t retry_ns, uint64_t memory) {
  atomic_store(&tenant->refusing_ns, retry_ns);
  pthread_mutex_lock(&tenant->limiting);
  tenant->memory_share = memory;
  limit_memory(tenant);
  pthread_mutex_unlock(&tenant->limiting);
}

void sh_host_watch(sh_host *host, const char *cgroup, const char *stall) {
  shi_machine_watch(&host->machine, cgroup, stall);
}

void sh_host_get_stats(sh_host *host, sh_host_stats *out) {
  memset(out, 0, sizeof *out);
  shi_pool_stats(host->pool, &out->pool);
  shi_pool *stacks = atomic_load(&host->stacks);
  if (stacks) shi_pool_stats(stacks, &out->stacks);
  out->memory_limit = host->options.memory_limit;
  out->guests_live = shi_account_used(&host->guests);
  out->guests_peak = shi_account_peak(&host->guests);
  const shi_counters *counters = &host->counters;
  out->spawns = shi_counted(counters, SHI_HOST_SPAWNS);
  out->spawn_failures = shi_counted(counters, SHI_HOST_SPAWN_FAILURES);
  out->calls = shi_counted(counters, SHI_HOST_CALLS);
  out->host_calls = shi_counted(counters, SHI_HOST_HOST_CALLS);
  out->traps = shi_counted(counters, SHI_HOST_TRAPS);
  out->deadlines = shi_counted(counters, SHI_HOST_DEADLINES);
  out->cancels = shi_counted(counters, SHI_HOST_CANCELS);
  out->memory_refusals = shi_counted(counters, SHI_HOST_MEMORY_REFUSALS);
  out->quota_refusals = shi_counted(counters, SHI_HOST_QUOTA_REFUSALS);
  out->pressure_refusals = shi_counted(counters, SHI_HOST_PRESSURE_REFUSALS);
  out->evictions = shi_counted(counters, SHI_HOST_EVICTIONS);
  shi_host_heap_stats(host, out);
  out->rss_bytes = shi_machine_rss_bytes(&host->machine);
  out->cgroup_bytes = shi_machine_cgroup_bytes(&host->machine);
  out->stall_us = shi_machine_stall_us(&host->machine, shi_now_ns());
}

void sh_host_get_workers(sh_host *host, sh_worker_stats *out) {
  memset(out, 0, sizeof *out);
  if (!atomic_load(&shi_forked)) shi_workers_stats(&host->workers, out); /* who holds the lock may not be here */
}

void sh_host_get_figures(sh_host *host, uint64_t *out) {
  sh_host_stats stats;
  _Static_assert(sizeof stats == SH_HOST_FIGURES * sizeof *out, "a number each");
  sh_host_get_stats(host, &stats);
  memcpy(out, &stats, sizeof stats);
}

uint32_t sh_host_node_stats(sh_host *host, sh_node_stats *out, uint32_t room) {
  return shi_pool_node_stats(host->pool, out, room);
}

void sh_host_histogram(sh_host *host, int operation, sh_histogram *out) {
  shi_histogram_copy(&host->latency[operation], out);
}

int sh_events_listen(sh_host *host, uint32_t kinds) {
  if (atomic_load(&shi_forked)) return shi_fail(SH_FORKED, "this process was forked from the one that has the host");
  int error = shi_events_listen(&host->events, kinds);
  return error ? shi_fail_native(error) : SH_OK;
}

uint32_t sh_events_read(sh_host *host, sh_event *out, uint32_t room, uint32_t kinds, sh_event_log *log) {
  return atomic_load(&shi_forked) ? 0 : shi_events_read(&host->events, out, room, kinds, log);
}

void sh_events_lost(sh_host *host, uint64_t *by_kind) {
  if (!atomic_load(&shi_forked)) shi_events_lost(&host->events, by_kind);
}
