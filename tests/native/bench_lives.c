/* Whole lives of guests in a loop of C, on one thread and on two, in lives a second: what is left to share when no
 * Python is there. Beside them two threads with a host of their own each, and two processes: what the kernel shares
 * within a process, and what the machine has to give. Before and after stands how long a word takes from one thread to
 * another: that varies by six on virtual machines, whose processors lie now near, now far apart.
 *
 *   bench_lives [milliseconds [rounds]]      SANDHOST_WASMTIME_LIBRARY is the path of wasmtime's library
 *
 * Last the closes of guests that dirtied 1 MiB, policy `immediate`, alone and beside a thread that spawns. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "bridge_fixture.h"
#include "guest.h"

enum { IMAGE = 65536, MAX_ROUNDS = 99 };

static const char wat[] = /* the built-in bench guest, without its data: the image holds it, as after the rewrite */
    "(module (memory (export \"memory\") 17 17)"
    " (func (export \"dirty\") (param $count i32) (local $address i32)"
    "  (local.set $address (i32.const 65536))"
    "  (block $done (loop $again"
    "   (br_if $done (i32.eqz (local.get $count)))"
    "   (i32.store8 (local.get $address) (i32.const 0xa5))"
    "   (local.set $address (i32.add (local.get $address) (i32.const 4096)))"
    "   (local.set $count (i32.sub (local.get $count) (i32.const 1)))"
    "   (br $again)))))";

typedef struct {
  sh_host *host;
  sh_plugin *plugin;
} place;

static place open_place(uint32_t policy) {
  sh_host_options options = host_options();
  options.policy = policy;
  options.resident_per_slot = 2 * MIB;
  options.resident_total = 64 * MIB;
  options.decay_ns = UINT64_C(1000000000);
  options.optimize = 1;
  sh_host *host = open_host(&options);
  sh_plugin *plugin = compile(host, wat);
  static uint8_t data[IMAGE];
  memset(data, 7, sizeof data);
  const uint8_t *runs[] = {data};
  CHECK_EQ(sh_plugin_memory(plugin, 17 * WASM_PAGE, 17 * WASM_PAGE, WASM_PAGE, IMAGE, 1, (const uint64_t[]){0}, runs,
                            (const uint64_t[]){IMAGE}),
           SH_OK);
  CHECK_EQ(sh_plugin_export(plugin, "dirty", 5, "i", ""), SH_OK);
  CHECK_EQ(sh_plugin_link(plugin), SH_OK);
  return (place){.host = host, .plugin = plugin};
}

static void close_place(place *at) { end_host(at->host, at->plugin); }

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int compare(const void *a, const void *b) {
  double left = *(const double *)a, right = *(const double *)b;
  return (left > right) - (left < right);
}

static double at(double *values, int count, double part) {
  qsort(values, (size_t)count, sizeof *values, compare);
  return values[(int)(part * (count - 1))];
}

/* ---- lives ------------------------------------------------------------------------------------------------------ */

static uint64_t budget_ns = 200000000;
static int pages;
static pthread_barrier_t start;

static uint64_t live(const place *in) { /* lives, until the time is up */
  uint64_t lives = 0;
  for (uint64_t until = now_ns() + budget_ns; now_ns() < until; lives++) {
    uint64_t guest =
        shi_spawn(in->plugin, NULL, NULL, &no_limits, NULL, true); /* past the turnstile, which is Python's */
    wasmtime_val_raw_t values[4] = {{.i64 = pages}};
    sh_reclaim reclaim;
    CHECK(guest && shi_call(guest, 0, values, true) == SH_OK && sh_close(guest, -1, &reclaim) == SH_OK);
  }
  return lives;
}

static void *live_on_a_thread(void *in) {
  pthread_barrier_wait(&start);
  return (void *)(uintptr_t)live(in);
}

static double rate_of_threads(place *const *in, int count) {
  pthread_t threads[2];
  pthread_barrier_init(&start, NULL, (unsigned)count);
  uint64_t lives = 0;
  for (int k = 0; k < count; k++) pthread_create(&threads[k], NULL, live_on_a_thread, in[k]);
  for (int k = 0; k < count; k++) {
    void *done;
    pthread_join(threads[k], &done);
    lives += (uintptr_t)done;
  }
  pthread_barrier_destroy(&start);
  return (double)lives * 1e9 / (double)budget_ns;
}

/* ---- processes: forked before this one has a host, told what to do through pipes -------------------------------- */

typedef struct {
  int ask, answer;
} process;

static process start_process(void) {
  int ask[2], answer[2];
  CHECK(pipe(ask) == 0 && pipe(answer) == 0);
  if (fork() == 0) {
    close(ask[1]);
    place in = open_place(SH_POLICY_WARM);
    while (read(ask[0], &pages, sizeof pages) == sizeof pages) {
      uint64_t lives = live(&in);
      CHECK(write(answer[1], &lives, sizeof lives) == sizeof lives);
    }
    _exit(0);
  }
  close(ask[0]);
  return (process){.ask = ask[1], .answer = answer[0]};
}

static double rate_of_processes(const process *programs, int count) {
  uint64_t lives = 0, total = 0;
  for (int k = 0; k < count; k++) CHECK(write(programs[k].ask, &pages, sizeof pages) == sizeof pages);
  for (int k = 0; k < count; k++) {
    CHECK(read(programs[k].answer, &lives, sizeof lives) == sizeof lives);
    total += lives;
  }
  return (double)total * 1e9 / (double)budget_ns;
}

/* ---- how far the processors are apart --------------------------------------------------------------------------- */

enum { TURNS = 20000 };
static _Atomic uint32_t word;

static void take_turns(uint32_t mine) {
  for (uint32_t turn = mine; turn < 2 * TURNS; turn += 2) {
    while (atomic_load(&word) != turn) continue;
    atomic_store(&word, turn + 1);
  }
}

static void *take_odd_turns(void *nothing) {
  take_turns(1);
  return nothing;
}

static void measure_distance(void) {
  double ns[9];
  for (int k = 0; k < 9; k++) {
    pthread_t thread;
    atomic_store(&word, 0);
    uint64_t begun = now_ns();
    pthread_create(&thread, NULL, take_odd_turns, NULL);
    take_turns(0);
    ns[k] = (double)(now_ns() - begun) / (2 * TURNS);
    pthread_join(thread, NULL);
  }
  printf("a word from one thread to the other: %.0f ns\n", at(ns, 9, 0.5));
}

/* ---- lives, measured -------------------------------------------------------------------------------------------- */

static void measure_lives(process *programs, place *a, place *b, int rounds) {
  double one[MAX_ROUNDS], two[MAX_ROUNDS], apart[MAX_ROUNDS], alone[MAX_ROUNDS], processes[MAX_ROUNDS];
  for (int k = 0; k < rounds; k++) {
    one[k] = rate_of_threads((place *[]){a}, 1);
    two[k] = rate_of_threads((place *[]){a, a}, 2);
    apart[k] = rate_of_threads((place *[]){a, b}, 2);
    alone[k] = rate_of_processes(programs, 1);
    processes[k] = rate_of_processes(programs, 2);
  }
  double base = at(one, rounds, 0.5);
  printf("%5d  %8.2f us  %8.2fx  %14.2fx  %10.2fx\n", pages, 1e6 / base, at(two, rounds, 0.5) / base,
         at(apart, rounds, 0.5) / base, at(processes, rounds, 0.5) / at(alone, rounds, 0.5));
  fflush(stdout);
}

/* ---- closes ----------------------------------------------------------------------------------------------------- */

enum { CLOSES = 4000 };
static _Atomic bool stop;

static void *spawn_and_close(void *in) {
  const place *here = in;
  sh_reclaim reclaim;
  while (!atomic_load(&stop)) {
    uint64_t guest = shi_spawn(here->plugin, NULL, NULL, &no_limits, NULL, true);
    CHECK(guest && sh_close(guest, -1, &reclaim) == SH_OK);
  }
  return NULL;
}

static void measure_closes(const place *in, const char *name) {
  static double us[CLOSES];
  sh_reclaim reclaim;
  for (int k = 0; k < CLOSES; k++) {
    uint64_t guest = sh_spawn(in->plugin, NULL, NULL, &no_limits, NULL);
    CHECK(guest && sh_call_ints(guest, 0, 256, 0, 0, 0) != SH_CALL_FAILED);
    uint64_t begun = now_ns();
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
    us[k] = (double)(now_ns() - begun) / 1000;
    CHECK_EQ(reclaim.returned_bytes, 1 << 20);
  }
  printf("close of 1 MiB, immediate, %s: p50 %.1f us, p99 %.1f us, p99.9 %.1f us\n", name, at(us, CLOSES, 0.5),
         at(us, CLOSES, 0.99), at(us, CLOSES, 0.999));
}

int main(int argc, char **argv) {
  if (argc > 1) budget_ns = strtoull(argv[1], NULL, 10) * 1000000;
  int rounds = argc > 2 ? atoi(argv[2]) : 7;
  CHECK(rounds > 0 && rounds <= MAX_ROUNDS);
  open_wasmtime();
  process programs[] = {start_process(), start_process()};
  place a = open_place(SH_POLICY_WARM), b = open_place(SH_POLICY_WARM);
  measure_distance();
  printf("%5s  %11s  %9s  %15s  %11s\n", "pages", "one life", "2 threads", "a host each", "2 processes");
  static const int counts[] = {0, 16, 256};
  for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
    pages = counts[k];
    measure_lives(programs, &a, &b, rounds);
  }
  measure_distance();
  close_place(&a);
  close_place(&b);
  for (int k = 0; k < 2; k++) close(programs[k].ask);
  while (wait(NULL) > 0) continue;

  place closing = open_place(SH_POLICY_IMMEDIATE);
  measure_closes(&closing, "alone");
  pthread_t spawner;
  pthread_create(&spawner, NULL, spawn_and_close, &closing);
  measure_closes(&closing, "beside a thread that spawns");
  atomic_store(&stop, true);
  pthread_join(spawner, NULL);
  close_place(&closing);
}
