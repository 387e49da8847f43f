/* The wasmtime bridge without Python: guests spawned, called, cancelled, viewed and closed by many threads at once. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bridge_fixture.h"

enum { THREADS = 4 };

/* ---- modules, hosts, callbacks ---------------------------------------------------------------------------------- */

static const char worker_wat[] =
    "(module (import \"env\" \"call\" (func $call (param i32) (result i32)))"
    " (memory (export \"memory\") 1 16)"
    " (func (export \"add\") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))"
    " (func (export \"swap\") (param i32 i32) (result i32)"
    "  (i32.load (local.get 0)) (i32.store (local.get 0) (local.get 1)))"
    " (func (export \"grow\") (param i32) (result i32) (memory.grow (local.get 0)))"
    " (func (export \"host\") (param i32) (result i32) (call $call (local.get 0)))"
    " (func (export \"spin\") (loop (br 0)))"
    " (func (export \"trap\") unreachable))";
enum { ADD, SWAP, GROW, HOST, SPIN, TRAP };
static const export_row worker_exports[] = {{"add", "ii", "i"}, {"swap", "ii", "i"}, {"grow", "i", "i"},
                                            {"host", "i", "i"}, {"spin", "", ""},    {"trap", "", ""}};

/* Its start function calls the host, which spawns a worker meanwhile. */
static const char starter_wat[] = "(module (import \"env\" \"call\" (func $call (param i32) (result i32)))"
                                  " (memory (export \"memory\") 1) (memory 2)"
                                  " (func $start (drop (call $call (i32.const 3)))) (start $start)"
                                  " (func (export \"size\") (result i32) (memory.size)))";

static const char writer_wat[] =
    "(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func $write (param i32 i32 i32 i32) (result i32)))"
    " (memory (export \"memory\") 1)"
    " (data (i32.const 0) \"\\40\\00\\00\\00\\40\\00\\00\\00\")"
    " (func (export \"write\") (param i32) (result i32)"
    "  (call $write (local.get 0) (i32.const 0) (i32.const 1) (i32.const 16))))";
enum { WRITE, WRITTEN = 64 };

/* Its state is exported under the names that the rewrite would give. */
static const char keeper_wat[] =
    "(module (type $number (func (result i32)))"
    " (memory (export \"sandhost:memory:0\") 1 16)"
    " (global $kept (export \"sandhost:global:0\") (mut i32) (i32.const 1))"
    " (table $functions (export \"sandhost:table:0\") 2 10 funcref) (elem (i32.const 0) func $ten $ten)"
    " (func $ten (export \"sandhost:func:0\") (result i32) (i32.const 10))"
    " (func $twenty (export \"sandhost:func:1\") (result i32) (i32.const 20))"
    " (func (export \"set\") (param i32) (result i32) (global.set $kept (local.get 0))"
    "  (table.set $functions (i32.const 1) (ref.func $twenty))"
    "  (drop (table.grow $functions (ref.func $ten) (i32.const 1)))"
    "  (i32.store (i32.const 40000) (local.get 0)) (memory.grow (i32.const 1)))"
    " (func (export \"sum\") (result i32) (i32.add (i32.add (global.get $kept) (i32.load (i32.const 40000)))"
    "  (i32.add (call_indirect (type $number) (i32.const 1)) (table.size $functions)))))";
enum { SET, SUM };

static sh_plugin *nested_plugin;
static _Thread_local bool in_call; /* callbacks come on the thread that calls */
static _Thread_local uint64_t heard;

static int hostcall(uint64_t guest, uint32_t id, int64_t *cells) {
  CHECK(in_call);
  CHECK_EQ(id, 1);
  switch (cells[0]) {
  case 1: /* re-enters the guest */
    cells[0] = sh_call_ints(guest, ADD, 20, 22, 0, 0);
    return 0;
  case 2: /* raises */
    return 1;
  case 3: { /* spawns, calls and closes another guest */
    uint64_t other = sh_spawn(nested_plugin, NULL, NULL, &no_limits, NULL);
    CHECK(other);
    CHECK_EQ(sh_call_ints(other, ADD, 1, 2, 0, 0), 3);
    sh_reclaim reclaim;
    CHECK_EQ(sh_close(other, -1, &reclaim), SH_OK);
    return 0;
  }
  case 4: { /* may do neither */
    sh_reclaim reclaim;
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_BUSY);
    return 0;
  }
  default:
    return 0;
  }
}

static int output(uint64_t guest, int stream, const uint8_t *bytes, size_t length, int may_wait) {
  (void)may_wait;
  (void)stream;
  (void)bytes;
  CHECK(in_call);
  CHECK_EQ(sh_call_ints(guest, WRITE, 1, 0, 0, 0), SH_CALL_FAILED);
  CHECK_EQ(sh_last_error()->status, SH_BUSY);
  heard += length;
  return 0;
}

static int signals(void) { return 0; }

static int64_t call(uint64_t guest, uint32_t export_index, int64_t a, int64_t b) {
  in_call = true;
  int64_t result = sh_call_ints(guest, export_index, a, b, 0, 0);
  in_call = false;
  return result;
}

static sh_host *new_host(uint32_t policy) {
  sh_host_options options = host_options();
  options.policy = policy;
  return open_host(&options);
}

static sh_plugin *new_plugin(sh_host *host, const char *wat, bool imports_call) {
  sh_plugin *plugin = compile(host, wat);
  if (imports_call) CHECK_EQ(sh_plugin_import(plugin, "env", "call", "i", "i", 1, 0), SH_OK);
  return plugin;
}

static sh_plugin *new_worker(sh_host *host) {
  sh_plugin *plugin = new_plugin(host, worker_wat, true);
  add_memory(plugin, 1, 16);
  ADD_EXPORTS(plugin, worker_exports);
  CHECK_EQ(sh_plugin_link(plugin), SH_OK);
  return plugin;
}

static void pause_us(uint64_t us) { nanosleep(&(struct timespec){.tv_nsec = (long)us * 1000}, NULL); }

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void in_threads(void *(*run)(void *), void *argument) {
  pthread_t threads[THREADS];
  for (int k = 0; k < THREADS; k++) CHECK_EQ(pthread_create(&threads[k], NULL, run, argument), 0);
  for (int k = 0; k < THREADS; k++) CHECK_EQ(pthread_join(threads[k], NULL), 0);
}

/* ---- every thread its own guests -------------------------------------------------------------------------------- */

static void *live_whole_lives(void *argument) {
  sh_plugin *plugin = argument;
  sh_reclaim reclaim;
  for (int k = 0; k < 150; k++) {
    uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
    CHECK(guest);
    CHECK_EQ(call(guest, ADD, k, 1), k + 1);
    CHECK_EQ(call(guest, SWAP, 4096, k + 1), 0); /* nobody was here before */
    CHECK_EQ(call(guest, SWAP, 4096, 7), k + 1);
    CHECK_EQ(call(guest, HOST, 1, 0), 42);
    CHECK_EQ(call(guest, HOST, 3, 0), 3);
    CHECK_EQ(call(guest, HOST, 4, 0), 4);
    CHECK_EQ(call(guest, HOST, 2, 0), SH_CALL_FAILED);
    CHECK_EQ(sh_last_error()->status, SH_HOST_ERROR);
    CHECK_EQ(call(guest, TRAP, 0, 0), SH_CALL_FAILED);
    CHECK_EQ(sh_last_error()->status, SH_TRAP);
    CHECK_EQ(call(guest, GROW, k % 8, 0), 1);
    sh_memory memory;
    CHECK_EQ(sh_memory_get(guest, 0, &memory), SH_OK);
    CHECK_EQ(memory.size, (uint64_t)(1 + k % 8) * WASM_PAGE);
    CHECK_EQ(sh_memory_pin(guest, 0), SH_OK);
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_BUSY);
    CHECK_EQ(memory.base[4096], 7);
    sh_memory_unpin(guest, 0);
    CHECK_EQ(sh_close(guest, k % 3 - 1, &reclaim), SH_OK);
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_CLOSED);
    CHECK_EQ(call(guest, ADD, 1, 1), SH_CALL_FAILED);
    CHECK_EQ(sh_last_error()->status, SH_CLOSED);
  }
  return NULL;
}

static void threads_live_whole_lives_beside_each_other(void) {
  for (uint32_t policy = SH_POLICY_IMMEDIATE; policy <= SH_POLICY_LAZY; policy++) {
    sh_host *host = new_host(policy);
    nested_plugin = new_worker(host);
    in_threads(live_whole_lives, nested_plugin);
    check_empty(host);
    CHECK_EQ(sh_host_close(host), SH_OK);
    sh_plugin_release(nested_plugin);
    sh_host_release(host);
  }
}

/* ---- what is counted --------------------------------------------------------------------------------------------- */

enum { COUNTING = 24, LIVES = UNDER_TSAN ? 40 : 400 }; /* more threads than there are copies of a counter */

static void *live_counted_lives(void *argument) {
  sh_plugin *plugin = argument;
  sh_reclaim reclaim;
  for (int k = 0; k < LIVES; k++) {
    uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
    CHECK(guest);
    CHECK_EQ(call(guest, ADD, k, 1), k + 1);
    CHECK_EQ(call(guest, HOST, 5, 0), 5);
    CHECK_EQ(call(guest, TRAP, 0, 0), SH_CALL_FAILED);
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  }
  return NULL;
}

static uint64_t recorded(sh_host *host, int operation) {
  static sh_histogram histogram;
  sh_host_histogram(host, operation, &histogram);
  uint64_t sum = 0;
  for (size_t k = 0; k < sizeof histogram.counts / sizeof *histogram.counts; k++) sum += histogram.counts[k];
  CHECK(sum == 0 || histogram.max > 0);
  return sum;
}

static void all_that_threads_do_is_counted(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  sh_plugin *plugin = new_worker(host);
  pthread_t threads[COUNTING];
  for (int k = 0; k < COUNTING; k++) CHECK_EQ(pthread_create(&threads[k], NULL, live_counted_lives, plugin), 0);
  for (int k = 0; k < COUNTING; k++) pthread_join(threads[k], NULL);
  const uint64_t lives = (uint64_t)COUNTING * LIVES;
  sh_host_stats stats;
  sh_host_get_stats(host, &stats);
  CHECK_EQ(stats.spawns, lives);
  CHECK_EQ(stats.spawn_failures, 0);
  CHECK_EQ(stats.calls, 3 * lives);
  CHECK_EQ(stats.host_calls, lives);
  CHECK_EQ(stats.traps, lives);
  CHECK_EQ(stats.guests_live, 0);
  CHECK(stats.guests_peak >= 1 && stats.guests_peak <= COUNTING);
  CHECK(stats.pool.regions_peak >= 1 && stats.pool.regions_peak <= COUNTING);
  CHECK_EQ(stats.pool.acquired_same + stats.pool.acquired_cold + stats.pool.acquired_other, lives);
  sh_plugin_stats plugin_stats;
  sh_plugin_get_stats(plugin, &plugin_stats);
  CHECK_EQ(plugin_stats.spawns, lives);
  CHECK_EQ(plugin_stats.calls, 3 * lives);
  CHECK_EQ(plugin_stats.host_calls, lives);
  CHECK_EQ(plugin_stats.traps, lives);
  CHECK_EQ(plugin_stats.guests_live, 0);
  CHECK_EQ(recorded(host, SH_OP_SPAWN), lives);
  CHECK_EQ(recorded(host, SH_OP_CALL), 3 * lives);
  CHECK_EQ(recorded(host, SH_OP_CLOSE), lives);
  check_empty(host);
  end_host(host, plugin);
}

/* ---- free guests hold a plugin ---------------------------------------------------------------------------------- */

static uint64_t images(sh_host *host) {
  sh_host_stats stats;
  sh_host_get_stats(host, &stats);
  return stats.pool.images;
}

static sh_plugin *new_plugin_with_image(sh_host *host) {
  sh_plugin *plugin = new_plugin(host, keeper_wat, false);
  const uint8_t byte = 7;
  CHECK_EQ(sh_plugin_memory(plugin, WASM_PAGE, 16 * WASM_PAGE, WASM_PAGE, 4096, 1, (const uint64_t[]){0},
                            (const uint8_t *const[]){&byte}, (const uint64_t[]){1}),
           SH_OK);
  CHECK_EQ(sh_plugin_link(plugin), SH_OK);
  return plugin;
}

typedef struct {
  sh_plugin *plugin;
  sh_snapshot *snapshot;
} origin;

static void *spawn_and_close(void *argument) {
  const origin *from = argument;
  sh_reclaim reclaim;
  for (int k = 0; k < 3; k++) {
    uint64_t guest = sh_spawn(from->plugin, from->snapshot, NULL, &no_limits, NULL);
    CHECK(guest);
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  }
  return NULL;
}

static void a_plugin_is_gone_when_it_is_let_go_of(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  for (int round = 0; round < 2; round++) {
    origin from = {.plugin = new_plugin_with_image(host)};
    CHECK_EQ(images(host), 1);
    in_threads(spawn_and_close, &from); /* on each thread a free guest holds it */
    uint64_t last = 0;
    if (round == 1) CHECK((last = sh_spawn(from.plugin, NULL, NULL, &no_limits, NULL)));
    sh_plugin_release(from.plugin);
    CHECK_EQ(images(host), last ? 1 : 0);
    sh_reclaim reclaim;
    if (last) CHECK_EQ(sh_close(last, -1, &reclaim), SH_OK);
    CHECK_EQ(images(host), 0);
  }
  CHECK_EQ(sh_host_close(host), SH_OK);
  sh_host_release(host);
}

static void a_snapshot_is_gone_when_it_is_let_go_of(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  origin from = {.plugin = new_plugin_with_image(host)};
  uint64_t guest = sh_spawn(from.plugin, NULL, NULL, &no_limits, NULL);
  CHECK(guest);
  sh_memory memory;
  CHECK_EQ(sh_memory_get(guest, 0, &memory), SH_OK);
  memory.base[40000] = 1;
  CHECK((from.snapshot = sh_snapshot_take(guest)));
  sh_reclaim reclaim;
  CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  CHECK_EQ(images(host), 2);
  in_threads(spawn_and_close, &from);
  sh_snapshot_release(from.snapshot);
  CHECK_EQ(images(host), 1);
  sh_plugin_release(from.plugin);
  CHECK_EQ(images(host), 0);
  CHECK_EQ(sh_host_close(host), SH_OK);
  sh_host_release(host);
}

/* ---- all threads the same guests -------------------------------------------------------------------------------- */

enum { SHARED = 3, ROUNDS = 2000 };
static _Atomic uint64_t shared[SHARED];
static sh_plugin *shared_plugin;
static _Atomic uint64_t outcomes[SH_WASMTIME + 1];

static bool is_one_of(int status, int a, int b, int c, int d) {
  atomic_fetch_add(&outcomes[status], 1);
  return status == SH_OK || status == a || status == b || status == c || status == d;
}

/* Its calls end by themselves: all threads may be in one at a time, and none left to cancel it. */
static uint64_t spawn_shared(void) {
  sh_limits limits = no_limits;
  limits.deadline_ns = 3000000;
  uint64_t guest = sh_spawn(shared_plugin, NULL, NULL, &limits, NULL);
  CHECK(guest);
  return guest;
}

static void *meddle(void *argument) {
  (void)argument;
  uint64_t seed = (uint64_t)(uintptr_t)&seed | 1;
  for (int round = 0; round < ROUNDS; round++) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    _Atomic uint64_t *place = &shared[seed % SHARED];
    uint64_t guest = atomic_load(place);
    sh_reclaim reclaim;
    sh_guest_stats stats;
    sh_memory memory;
    int status;
    switch ((seed >> 32) % 9) {
    case 0: /* ends it, and puts another in its place */
      status = sh_close(guest, -1, &reclaim);
      CHECK(is_one_of(status, SH_CLOSED, SH_BUSY, -1, -1));
      if (status != SH_OK) break;
      atomic_store(place, spawn_shared());
      break;
    case 1:
      call(guest, SPIN, 0, 0);
      CHECK(is_one_of(sh_last_error()->status, SH_CLOSED, SH_BUSY, SH_DEADLINE, SH_CANCELLED));
      break;
    case 2:
      sh_cancel(guest);
      break;
    case 3:
      if (sh_memory_pin(guest, 0) != SH_OK) break;
      CHECK_EQ(sh_memory_get(guest, 0, &memory), SH_OK); /* a pinned guest is not ended */
      CHECK(memory.base[round % WASM_PAGE] == 0 || round);
      CHECK(__atomic_load_n(sh_memory_size(guest, 0), __ATOMIC_ACQUIRE) >= WASM_PAGE);
      sh_memory_unpin(guest, 0);
      break;
    case 4:
      status = sh_memory_get(guest, 0, &memory);
      CHECK(is_one_of(status, SH_CLOSED, -1, -1, -1));
      break;
    case 5:
      status = sh_guest_get_stats(guest, &stats);
      CHECK(is_one_of(status, SH_CLOSED, -1, -1, -1));
      if (status == SH_OK) CHECK(stats.memories == 1 && stats.committed_bytes >= WASM_PAGE);
      break;
    case 6:
      if (call(guest, HOST, 1, 0) == SH_CALL_FAILED)
        CHECK(is_one_of(sh_last_error()->status, SH_CLOSED, SH_BUSY, SH_DEADLINE, SH_CANCELLED));
      break;
    case 7:
      if (call(guest, GROW, 1, 0) == SH_CALL_FAILED)
        CHECK(is_one_of(sh_last_error()->status, SH_CLOSED, SH_BUSY, SH_DEADLINE, SH_CANCELLED));
      break;
    default:
      sh_guest_running(guest);
      break;
    }
  }
  return NULL;
}

static void threads_meddle_with_the_same_guests(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  nested_plugin = shared_plugin = new_worker(host);
  for (int k = 0; k < SHARED; k++) shared[k] = spawn_shared();
  in_threads(meddle, NULL);
  for (int k = 0; k < SHARED; k++) {
    sh_reclaim reclaim;
    CHECK_EQ(sh_close(shared[k], -1, &reclaim), SH_OK);
  }
  check_empty(host);
  CHECK(outcomes[SH_BUSY] > 0 && outcomes[SH_DEADLINE] > 0 && outcomes[SH_CANCELLED] > 0);
  CHECK_EQ(sh_host_close(host), SH_OK);
  sh_plugin_release(shared_plugin);
  sh_host_release(host);
}

/* ---- the end of a host ------------------------------------------------------------------------------------------ */

static void *spawn_until_closed(void *argument) {
  sh_plugin *plugin = argument;
  for (;;) {
    uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
    if (!guest) {
      int status = sh_last_error()->status;
      CHECK(status == SH_CLOSED || status == SH_REGION_FULL);
      if (status == SH_CLOSED) return NULL;
      continue;
    }
    int64_t sum = call(guest, ADD, 1, 2);
    CHECK(sum == 3 || (sum == SH_CALL_FAILED && is_one_of(sh_last_error()->status, SH_CLOSED, SH_CANCELLED, -1, -1)));
    if (guest % 4) continue; /* left to the host's close */
    sh_reclaim reclaim;
    int status = sh_close(guest, -1, &reclaim);
    CHECK(is_one_of(status, SH_CLOSED, -1, -1, -1));
  }
}

/* Two hosts, so that a struct that one gives up is taken by the other at once. */
static void hosts_close_while_threads_spawn(void) {
  for (int round = 0; round < 10; round++) {
    sh_host *hosts[2];
    sh_plugin *plugins[2];
    pthread_t threads[2][2];
    for (int k = 0; k < 2; k++) {
      hosts[k] = new_host(SH_POLICY_WARM);
      plugins[k] = new_worker(hosts[k]);
      for (int n = 0; n < 2; n++) pthread_create(&threads[k][n], NULL, spawn_until_closed, plugins[k]);
    }
    for (int k = 0; k < 2; k++) {
      pause_us(3000);
      while (sh_host_close(hosts[k]) != SH_OK) CHECK_EQ(sh_last_error()->status, SH_BUSY);
      for (int n = 0; n < 2; n++) pthread_join(threads[k][n], NULL);
      CHECK_EQ(sh_host_close(hosts[k]), SH_OK);
      check_empty(hosts[k]);
    }
    for (int k = 0; k < 2; k++) {
      sh_plugin_release(plugins[k]);
      sh_host_release(hosts[k]);
    }
  }
}

static void a_guest_outlives_its_plugin_and_its_host(void) {
  sh_host *host = new_host(SH_POLICY_IMMEDIATE);
  sh_plugin *plugin = new_worker(host);
  uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
  CHECK(guest);
  sh_plugin_release(plugin);
  sh_host_release(host);
  CHECK_EQ(call(guest, ADD, 40, 2), 42);
  sh_reclaim reclaim;
  CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
}

/* ---- spawns within spawns --------------------------------------------------------------------------------------- */

static void *spawn_nested(void *argument) {
  for (int k = 0; k < 100; k++) {
    in_call = true;
    uint64_t guest = sh_spawn(argument, NULL, NULL, &no_limits, NULL);
    in_call = false;
    CHECK(guest);
    CHECK_EQ(call(guest, 0, 0, 0), 1);
    sh_guest_stats stats;
    CHECK_EQ(sh_guest_get_stats(guest, &stats), SH_OK);
    CHECK(stats.memories == 2 && stats.committed_bytes == 3 * WASM_PAGE);
    sh_reclaim reclaim;
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  }
  return NULL;
}

static void start_functions_spawn_guests_of_other_plugins(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  nested_plugin = new_worker(host);
  sh_plugin *starter = new_plugin(host, starter_wat, true);
  add_memory(starter, 1, 0);
  add_memory(starter, 2, 0);
  CHECK_EQ(sh_plugin_export(starter, "size", 4, "", "i"), SH_OK);
  CHECK_EQ(sh_plugin_link(starter), SH_OK);
  in_threads(spawn_nested, starter);
  check_empty(host);
  CHECK_EQ(sh_host_close(host), SH_OK);
  sh_plugin_release(starter);
  sh_plugin_release(nested_plugin);
  sh_host_release(host);
}

static void a_tenant_of_another_host_is_refused(void) {
  sh_host *host = new_host(SH_POLICY_WARM), *other = new_host(SH_POLICY_WARM);
  sh_plugin *plugin = new_worker(host);
  CHECK_EQ(sh_spawn(plugin, NULL, sh_tenant_new(other, &(sh_tenant_limits){.memory = UINT64_MAX, .guests = UINT64_MAX}),
                    &no_limits, NULL),
           0);
  CHECK_EQ(sh_last_error()->status, SH_ARGUMENT);
  check_empty(host);
  sh_plugin_release(plugin);
  sh_host_release(host);
  sh_host_release(other);
}

/* ---- quotas that change -------------------------------------------------------------------------------------------- */

static const sh_tenant_limits no_quotas = {
    .memory = UINT64_MAX, .handles = UINT64_MAX, .handle_bytes = UINT64_MAX, .guests = UINT64_MAX};

static uint64_t spawn_for(sh_plugin *plugin, sh_tenant *tenant) {
  return sh_spawn(plugin, NULL, tenant, &no_limits, NULL);
}

static void a_lower_quota_ends_nobody_and_lets_nobody_in(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  sh_plugin *plugin = new_worker(host);
  sh_tenant *tenant = sh_tenant_new(host, &no_quotas);
  uint64_t guests[3];
  for (int k = 0; k < 3; k++) CHECK(guests[k] = spawn_for(plugin, tenant));
  sh_tenant_limits one = no_quotas;
  one.guests = 1;
  sh_tenant_set_limits(tenant, &one);
  sh_reclaim reclaim;
  for (int k = 0; k < 3; k++) {
    CHECK_EQ(call(guests[k], ADD, k, 1), k + 1);
    CHECK_EQ(spawn_for(plugin, tenant), 0);
    CHECK_EQ(sh_last_error()->status, SH_QUOTA);
    CHECK_EQ(sh_close(guests[k], -1, &reclaim), SH_OK);
  }
  CHECK(guests[0] = spawn_for(plugin, tenant));
  sh_tenant_limits page = no_quotas;
  page.memory = WASM_PAGE;
  sh_tenant_set_limits(tenant, &page);
  CHECK_EQ(call(guests[0], GROW, 1, 0), -1);
  sh_tenant_refuse(tenant, 1, 0); /* the host is short of memory, meanwhile the quota rises */
  sh_tenant_set_limits(tenant, &no_quotas);
  CHECK_EQ(call(guests[0], GROW, 1, 0), -1);
  sh_tenant_refuse(tenant, 0, UINT64_MAX);
  CHECK_EQ(call(guests[0], GROW, 1, 0), 1);
  CHECK_EQ(sh_close(guests[0], -1, &reclaim), SH_OK);
  check_empty(host);
  sh_plugin_release(plugin);
  sh_host_release(host);
}

static sh_tenant *changing;
static _Atomic bool spinning, changed_enough;

static void *spin_for_tenant(void *argument) {
  uint64_t guest = spawn_for(argument, changing);
  atomic_store(&spinning, true);
  CHECK_EQ(call(guest, SPIN, 0, 0), SH_CALL_FAILED);
  CHECK_EQ(sh_last_error()->status, SH_QUOTA);
  CHECK_EQ(call(guest, ADD, 1, 2), SH_CALL_FAILED);
  sh_tenant_set_limits(changing, &no_quotas);
  CHECK_EQ(call(guest, ADD, 1, 2), 3);
  sh_reclaim reclaim;
  CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  return NULL;
}

static void a_quota_of_time_holds_for_a_call_that_is_older(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  sh_plugin *plugin = new_worker(host);
  changing = sh_tenant_new(host, &no_quotas);
  atomic_store(&spinning, false);
  pthread_t thread;
  CHECK_EQ(pthread_create(&thread, NULL, spin_for_tenant, plugin), 0);
  while (!atomic_load(&spinning)) pause_us(1000);
  pause_us(20000);
  sh_tenant_limits little = no_quotas;
  little.cpus = 0.001;
  little.cpu_burst_ns = 1000000;
  sh_tenant_set_limits(changing, &little);
  pthread_join(thread, NULL);
  check_empty(host);
  sh_plugin_release(plugin);
  sh_host_release(host);
}

static void *live_under_changes(void *argument) {
  for (int k = 0; k < LIVES; k++) {
    uint64_t guest = spawn_for(argument, changing);
    if (!guest) {
      CHECK_EQ(sh_last_error()->status, SH_QUOTA);
      continue;
    }
    int64_t sum = call(guest, ADD, k, 1);
    CHECK(sum == k + 1 || (sum == SH_CALL_FAILED && sh_last_error()->status == SH_QUOTA));
    sh_reclaim reclaim;
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  }
  return NULL;
}

static void *change_quotas(void *unused) {
  (void)unused;
  for (uint64_t k = 0; !atomic_load(&changed_enough); k++) {
    sh_tenant_limits limits = no_quotas;
    limits.guests = k % THREADS;
    if (k % 3) limits.cpus = (double)(k % 3), limits.cpu_burst_ns = 1000000000;
    if (k % 5) limits.starts_per_s = 1e6 * (double)(k % 5), limits.starts_burst = 100;
    sh_tenant_set_limits(changing, &limits);
    sh_tenant_refuse(changing, 0, k % 2 ? UINT64_MAX : 16 * MIB);
    sh_tenant_stats stats;
    sh_tenant_get_stats(changing, &stats);
    CHECK(stats.guests_live <= THREADS);
  }
  return NULL;
}

static void threads_live_while_quotas_change(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  sh_plugin *plugin = new_worker(host);
  changing = sh_tenant_new(host, &no_quotas);
  atomic_store(&changed_enough, false);
  pthread_t changer;
  CHECK_EQ(pthread_create(&changer, NULL, change_quotas, NULL), 0);
  in_threads(live_under_changes, plugin);
  atomic_store(&changed_enough, true);
  pthread_join(changer, NULL);
  sh_tenant_stats stats;
  sh_tenant_get_stats(changing, &stats);
  CHECK_EQ(stats.guests_live, 0);
  CHECK_EQ(stats.memory_bytes, 0);
  check_empty(host);
  sh_plugin_release(plugin);
  sh_host_release(host);
}

/* ---- time ------------------------------------------------------------------------------------------------------- */

/* Between the calls the ticker goes to sleep, or is just about to. */
static void a_deadline_is_noticed_however_long_the_ticker_was_idle(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  sh_plugin *plugin = new_worker(host);
  sh_limits limits = no_limits;
  limits.deadline_ns = 4000000;
  uint64_t guest = sh_spawn(plugin, NULL, NULL, &limits, NULL);
  for (uint64_t idle_ms = 40; idle_ms < 70; idle_ms++) {
    pause_us(idle_ms * 1000);
    uint64_t begun = now_ns();
    CHECK_EQ(call(guest, SPIN, 0, 0), SH_CALL_FAILED);
    CHECK_EQ(sh_last_error()->status, SH_DEADLINE);
    CHECK(now_ns() - begun < 5000000000u);
  }
  sh_reclaim reclaim;
  CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  end_host(host, plugin);
}

/* ---- who is there, and where in its code -------------------------------------------------------------------------- */

static _Atomic bool looked_enough;

static void *compute_and_end(void *argument) {
  sh_plugin *plugin = argument;
  sh_limits limits = no_limits;
  limits.deadline_ns = 4000000;
  while (!atomic_load(&looked_enough)) {
    uint64_t guest = sh_spawn(plugin, NULL, NULL, &limits, NULL);
    CHECK(guest);
    CHECK_EQ(call(guest, SPIN, 0, 0), SH_CALL_FAILED);
    CHECK_EQ(sh_last_error()->status, SH_DEADLINE);
    if (call(guest, HOST, 0, 0) == SH_CALL_FAILED)
      CHECK_EQ(sh_last_error()->status, SH_DEADLINE); /* kept from its processor */
    sh_reclaim reclaim;
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  }
  return NULL;
}

static uint32_t stacks_told(sh_host *host, uint64_t patience_ns) {
  sh_stacks *stacks = sh_stacks_take(host, patience_ns);
  CHECK(stacks);
  uint32_t told = 0, count = 0;
  const uint8_t *json;
  const uint64_t *guests;
  size_t length;
  for (uint32_t k = 0; sh_stacks_of(stacks, k, &json, &length, &guests, &count); told += count, k++) {
    CHECK(length > 0 && json[0] == '{');
    for (uint32_t g = 0; g < count; g++) CHECK(guests[g] != 0);
  }
  sh_stacks_free(stacks);
  return told;
}

static void guests_are_looked_at_while_they_compute_and_end(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  sh_plugin *plugin = new_worker(host);
  pthread_t threads[THREADS];
  for (int k = 0; k < THREADS; k++) CHECK_EQ(pthread_create(&threads[k], NULL, compute_and_end, plugin), 0);
  uint32_t told = 0, listed = 0;
  char inside[8];
  for (int k = 0; k < 100 || ((!told || !listed) && k < 10000); k++) {
    told += stacks_told(host, k % 2 ? 10000000 : 0);
    sh_capture *capture = sh_capture_take(host);
    CHECK(capture);
    sh_capture_view view;
    sh_capture_view_of(capture, &view);
    CHECK(view.guest_count <= 2 * THREADS);
    for (uint32_t g = 0; g < view.guest_count; g++) sh_guest_inside(view.guests[g].guest, inside, sizeof inside);
    listed += view.guest_count;
    sh_capture_free(capture);
  }
  atomic_store(&looked_enough, true);
  for (int k = 0; k < THREADS; k++) CHECK_EQ(pthread_join(threads[k], NULL), 0);
  CHECK(told > 0 && listed > 0);
  CHECK_EQ(stacks_told(host, 0), 0);
  check_empty(host);
  end_host(host, plugin);
}

/* ---- output ----------------------------------------------------------------------------------------------------- */

static void *write_output(void *argument) {
  sh_wasi *wasi = sh_wasi_new(&(sh_wasi_options){.output_limit = 1000, .stream = 1});
  CHECK(wasi);
  heard = 0;
  for (int k = 0; k < 30; k++) {
    uint64_t guest = sh_spawn(argument, NULL, NULL, &no_limits, wasi);
    CHECK(guest);
    for (int n = 0; n < 20; n++) {
      CHECK_EQ(call(guest, WRITE, 1, 0), 0);
      CHECK_EQ(call(guest, WRITE, 2, 0), 0);
      CHECK_EQ(heard, (uint64_t)(k * 20 + n + 1) * WRITTEN);
    }
    uint8_t kept[2000];
    uint64_t length, dropped;
    CHECK_EQ(sh_output(guest, 2, kept, sizeof kept, &length, &dropped), SH_OK);
    CHECK_EQ(length, 1000);
    CHECK_EQ(dropped, 20 * WRITTEN - 1000);
    sh_reclaim reclaim;
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  }
  sh_wasi_release(wasi);
  return NULL;
}

static void output_is_heard_on_the_guests_own_thread(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  sh_plugin *plugin = new_plugin(host, writer_wat, false);
  add_memory(plugin, 1, 0);
  CHECK_EQ(sh_plugin_export(plugin, "write", 5, "i", "i"), SH_OK);
  CHECK_EQ(sh_plugin_wasi(plugin, 0), SH_OK);
  CHECK_EQ(sh_plugin_link(plugin), SH_OK);
  in_threads(write_output, plugin);
  check_empty(host);
  end_host(host, plugin);
}

/* ---- snapshots -------------------------------------------------------------------------------------------------- */

static int64_t sum_of(sh_plugin *plugin, sh_snapshot *snapshot, uint64_t *kept) {
  uint64_t guest = sh_spawn(plugin, snapshot, NULL, &no_limits, NULL);
  CHECK(guest);
  int64_t sum = call(guest, SUM, 0, 0);
  if (kept) {
    *kept = guest;
    return sum;
  }
  sh_reclaim reclaim;
  CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  return sum;
}

static sh_snapshot *shared_snapshot;

static void *fork_and_take(void *argument) {
  sh_plugin *plugin = argument;
  for (int k = 1; k < (UNDER_TSAN ? 100 : 400); k++) {
    uint64_t guest;
    CHECK_EQ(sum_of(plugin, shared_snapshot, &guest), 5 + 5 + 20 + 3);
    CHECK_EQ(call(guest, SET, k, 0), 2);
    sh_snapshot *own = sh_snapshot_take(guest);
    CHECK(own);
    CHECK_EQ(call(guest, SET, 1000, 0), 3);
    sh_reclaim reclaim;
    CHECK_EQ(sum_of(plugin, own, NULL), k + k + 20 + 4);
    uint64_t outlives;
    CHECK_EQ(sum_of(plugin, own, &outlives), k + k + 20 + 4);
    sh_snapshot_release(own);
    CHECK_EQ(call(outlives, SUM, 0, 0), k + k + 20 + 4);
    CHECK_EQ(sh_close(outlives, -1, &reclaim), SH_OK);
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  }
  return NULL;
}

static void threads_fork_from_one_snapshot_and_take_their_own(void) {
  sh_host *host = new_host(SH_POLICY_WARM);
  sh_plugin *plugin = new_plugin(host, keeper_wat, false);
  add_memory(plugin, 1, 16);
  CHECK_EQ(sh_plugin_export(plugin, "set", 3, "i", "i"), SH_OK);
  CHECK_EQ(sh_plugin_export(plugin, "sum", 3, "", "i"), SH_OK);
  CHECK_EQ(sh_plugin_tables(plugin, 1, 2), SH_OK);
  CHECK_EQ(sh_plugin_global(plugin, 0, 'i'), SH_OK);
  CHECK_EQ(sh_plugin_table(plugin, 0, 'F'), SH_OK);
  CHECK_EQ(sh_plugin_functions(plugin, (const uint32_t[]){0, 1}, 2, 0), SH_OK);
  CHECK_EQ(sh_plugin_link(plugin), SH_OK);
  CHECK_EQ(sum_of(plugin, NULL, NULL), 1 + 0 + 10 + 2);
  uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
  CHECK_EQ(call(guest, SET, 5, 0), 1);
  shared_snapshot = sh_snapshot_take(guest);
  CHECK(shared_snapshot);
  sh_reclaim reclaim;
  CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  in_threads(fork_and_take, plugin);
  sh_snapshot_release(shared_snapshot);
  check_empty(host);
  end_host(host, plugin);
}

int main(void) {
  open_wasmtime();
  sh_set_callbacks(&(sh_callbacks){.hostcall = hostcall, .output = output, .signals = signals});
  RUN(threads_live_whole_lives_beside_each_other);
  RUN(all_that_threads_do_is_counted);
  RUN(a_plugin_is_gone_when_it_is_let_go_of);
  RUN(a_snapshot_is_gone_when_it_is_let_go_of);
  RUN(threads_meddle_with_the_same_guests);
  RUN(hosts_close_while_threads_spawn);
  RUN(a_guest_outlives_its_plugin_and_its_host);
  RUN(start_functions_spawn_guests_of_other_plugins);
  RUN(a_tenant_of_another_host_is_refused);
  RUN(a_lower_quota_ends_nobody_and_lets_nobody_in);
  RUN(a_quota_of_time_holds_for_a_call_that_is_older);
  RUN(threads_live_while_quotas_change);
  RUN(a_deadline_is_noticed_however_long_the_ticker_was_idle);
  RUN(guests_are_looked_at_while_they_compute_and_end);
  RUN(output_is_heard_on_the_guests_own_thread);
  RUN(threads_fork_from_one_snapshot_and_take_their_own);
  return 0;
}
