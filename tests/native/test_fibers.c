/* Calls that can wait, without Python: begun, answered, stopped, abandoned, by many threads, on workers and in place.
 *
 * Function 1 of the host answers at once (x + 1), function 2 later.
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bridge_fixture.h"
#include "guest.h"

enum { THREADS = 4 };

static const char wat[] =
    "(module (import \"env\" \"now\" (func $now (param i32) (result i32)))"
    " (import \"env\" \"later\" (func $later (param i32) (result i32)))"
    " (memory (export \"memory\") 1 16)"
    " (func (export \"add\") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))"
    " (func (export \"wait\") (param i32) (result i32) (i32.add (call $later (local.get 0)) (i32.const 100)))"
    " (func (export \"ask\") (param i32) (result i32) (call $now (local.get 0)))"
    " (func (export \"spin\") (loop (br 0)))"
    " (func (export \"trap\") unreachable)"
    " (func (export \"count\") (param i32) (result i32)"
    "  (loop (drop (call $now (i32.const 1))) (drop (call $later (local.get 0)))"
    "   (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0))) (i32.const 7))"
    " (func $deep (export \"deep\") (param i32) (result i32)"
    "  (if (result i32) (i32.eqz (local.get 0)) (then (call $later (i32.const 1)))"
    "   (else (i32.add (call $deep (i32.sub (local.get 0) (i32.const 1))) (i32.const 1)))))"
    " (func $work (export \"work\") (param i32) (result i32)"
    "  (loop (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0))) (i32.const 7))"
    " (func (export \"twice\") (param i32) (result i32) (drop (call $work (local.get 0)))"
    "  (drop (call $later (i32.const 1))) (call $work (local.get 0))))";
enum { ADD, WAIT, ASK, SPIN, TRAP, COUNT, DEEP, WORK, TWICE };
static const export_row exports[] = {{"add", "ii", "i"}, {"wait", "i", "i"}, {"ask", "i", "i"},
                                     {"spin", "", ""},   {"trap", "", ""},   {"count", "i", "i"},
                                     {"deep", "i", "i"}, {"work", "i", "i"}, {"twice", "i", "i"}};

static _Atomic(pthread_t) driver; /* in tests with one; 0: any thread may be called */
static uint64_t nested_in;        /* function 1 calls this guest again; 0: it does not */

static int hostcall(uint64_t guest, uint32_t id, int64_t *cells) {
  if (atomic_load(&driver)) CHECK_EQ(pthread_self(), atomic_load(&driver));
  if (id == 2) return SH_SAID_LATER;
  if (nested_in == guest) {
    CHECK_EQ(sh_call_ints(guest, ADD, cells[0], 20, 0, 0), cells[0] + 20);
    CHECK_EQ(sh_call_ints(guest, WAIT, 1, 0, 0, 0), SH_CALL_FAILED); /* this thread cannot wait */
    CHECK_EQ(sh_last_error()->status, SH_WAITS);
    CHECK(strstr(sh_last_error()->message, "env.later"));
    sh_error taken;
    sh_take_error(&taken);
  }
  cells[0]++;
  return SH_SAID;
}

/* The answer is an address that stands for itself. */
static int answer(uint64_t guest, uint32_t id, void *said, int64_t *cells) {
  (void)guest;
  CHECK_EQ(id, 2);
  cells[0] = (int64_t)(intptr_t)said;
  return SH_SAID;
}

static int signals(void) { return 0; }

static sh_host *new_host(uint32_t workers) {
  sh_host_options options = host_options();
  options.max_regions = 256;
  options.workers = workers;
  return open_host(&options);
}

static sh_plugin *new_plugin(sh_host *host) {
  sh_plugin *plugin = compile(host, wat);
  CHECK_EQ(sh_plugin_import(plugin, "env", "now", "i", "i", 1, 0), SH_OK);
  CHECK_EQ(sh_plugin_import(plugin, "env", "later", "i", "i", 2, 1), SH_OK);
  add_memory(plugin, 1, 16);
  ADD_EXPORTS(plugin, exports);
  CHECK_EQ(sh_plugin_link(plugin), SH_OK);
  return plugin;
}

static void end(sh_host *host, sh_plugin *plugin) {
  check_empty(host);
  end_host(host, plugin);
}

static void wait_for(sh_port *port) {
  struct pollfd file = {.fd = sh_port_fd(port), .events = POLLIN};
  CHECK_EQ(poll(&file, 1, 20000), 1);
}

/* Until the guest has come back. */
static int come_back(sh_port *port, uint64_t guest, uint32_t level, int64_t *cells) {
  int step = SH_STEP_AWAY;
  while (step == SH_STEP_AWAY) {
    uint64_t who;
    wait_for(port);
    if (sh_port_take(port, &who, 1) == 0) continue;
    CHECK_EQ(who, guest);
    step = sh_fiber_go_on(guest, level, cells);
  }
  return step;
}

/* A call may be with a worker, or have yielded, because the machine has interrupted it: until it is not. */
static int settle(int step, uint64_t guest, uint32_t level, int64_t *cells, sh_port *port) {
  if (step == SH_STEP_AWAY) step = come_back(port, guest, level, cells);
  while (step == SH_STEP_YIELD) step = sh_fiber_go_on(guest, level, cells);
  return step;
}

static int begin(uint64_t guest, uint32_t level, uint32_t index, int64_t *cells, sh_port *port) {
  return settle(sh_fiber_begin(guest, level, index, cells, port), guest, level, cells, port);
}

static int respond(uint64_t guest, uint32_t level, void *said, int64_t *cells, sh_port *port) {
  return settle(sh_fiber_answer(guest, level, said, cells), guest, level, cells, port);
}

static int status_of_failure(void) {
  sh_error error;
  sh_take_error(&error);
  return error.status;
}

static void close_it(uint64_t guest) {
  sh_reclaim reclaim;
  CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
}

#define ANSWER(number) ((void *)(intptr_t)(number))

/* ---- one driver ----------------------------------------------------------------------------------------------------- */

static void a_call_waits_for_its_answer(void) {
  sh_host *host = new_host(2);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  atomic_store(&driver, pthread_self());
  uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
  int64_t cells[4] = {2, 0, 3};
  CHECK_EQ(begin(guest, 1, ADD, cells, port), SH_STEP_DONE);
  CHECK_EQ(cells[0], 5);
  for (int k = 0; k < 100; k++) {
    cells[0] = 1;
    CHECK_EQ(begin(guest, 1, WAIT, cells, port), SH_STEP_AWAIT);
    CHECK_EQ(sh_call_ints(guest, ADD, 1, 1, 0, 0), SH_CALL_FAILED); /* nobody else gets in */
    CHECK_EQ(status_of_failure(), SH_BUSY);
    sh_reclaim reclaim;
    CHECK_EQ(sh_close(guest, -1, &reclaim), SH_BUSY);
    CHECK_EQ(status_of_failure(), SH_BUSY);
    CHECK_EQ(sh_guest_running(guest), 1);
    CHECK_EQ(sh_fiber_go_on(guest, 1, cells), SH_STEP_FAILED); /* there is no answer yet */
    CHECK_EQ(status_of_failure(), SH_ARGUMENT);
    CHECK_EQ(respond(guest, 1, ANSWER(k + 1), cells, port), SH_STEP_DONE);
    CHECK_EQ(cells[0], 101 + k);
    CHECK_EQ(sh_call_ints(guest, ADD, 1, 1, 0, 0), 2); /* calls of both kinds take turns */
  }
  cells[0] = 7;
  CHECK_EQ(begin(guest, 1, ASK, cells, port), SH_STEP_DONE);
  CHECK_EQ(cells[0], 8);
  CHECK_EQ(begin(guest, 1, TRAP, cells, port), SH_STEP_FAILED);
  CHECK_EQ(status_of_failure(), SH_TRAP);
  close_it(guest);
  sh_port_release(port);
  end(host, plugin);
}

static void calls_nest_on_the_fiber(void) {
  sh_host *host = new_host(2);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  uint64_t guest = nested_in = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
  int64_t outer[4] = {1}, inner[4] = {5, 0, 6}, third[4] = {0};
  CHECK_EQ(begin(guest, 1, ASK, outer, port), SH_STEP_DONE); /* function 1 calls the guest again */
  CHECK_EQ(outer[0], 2);
  CHECK_EQ(begin(guest, 1, WAIT, outer, port), SH_STEP_AWAIT);
  CHECK_EQ(begin(guest, 2, ADD, inner, port), SH_STEP_DONE);
  CHECK_EQ(inner[0], 11);
  CHECK_EQ(begin(guest, 2, TRAP, inner, port), SH_STEP_FAILED); /* ends itself, not the outer one */
  CHECK_EQ(status_of_failure(), SH_TRAP);
  CHECK_EQ(begin(guest, 2, WAIT, inner, port), SH_STEP_AWAIT);
  CHECK_EQ(begin(guest, 2, ADD, third, port), SH_STEP_FAILED); /* the second level is taken */
  CHECK_EQ(status_of_failure(), SH_ARGUMENT);
  CHECK_EQ(respond(guest, 1, ANSWER(1), outer, port), SH_STEP_FAILED); /* not its turn */
  CHECK_EQ(status_of_failure(), SH_ARGUMENT);
  CHECK_EQ(sh_fiber_stop(guest, 2, SH_CANCELLED, inner), SH_STEP_FAILED);
  CHECK_EQ(status_of_failure(), SH_CANCELLED);
  CHECK_EQ(respond(guest, 1, ANSWER(5), outer, port), SH_STEP_DONE);
  CHECK_EQ(outer[0], 105);
  nested_in = 0;
  close_it(guest);
  sh_port_release(port);
  end(host, plugin);
}

static void a_deep_guest_waits_on_a_stack_of_its_own(void) {
  sh_host *host = new_host(0);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
  int64_t cells[4] = {2000};
  CHECK_EQ(begin(guest, 1, DEEP, cells, port), SH_STEP_AWAIT);
  CHECK_EQ(respond(guest, 1, ANSWER(1), cells, port), SH_STEP_DONE);
  CHECK_EQ(cells[0], 2001);
  cells[0] = 10000000; /* deeper than any stack */
  CHECK_EQ(begin(guest, 1, DEEP, cells, port), SH_STEP_FAILED);
  CHECK_EQ(sh_last_error()->trap_code, 0);
  CHECK_EQ(status_of_failure(), SH_TRAP);
  close_it(guest);
  sh_port_release(port);
  end(host, plugin);
}

static void what_computes_goes_to_a_worker_and_comes_back(void) {
  sh_host *host = new_host(2);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
  int64_t cells[4] = {200000000};
  CHECK_EQ(sh_fiber_begin(guest, 1, WORK, cells, port), SH_STEP_AWAY);
  CHECK_EQ(come_back(port, guest, 1, cells), SH_STEP_DONE);
  CHECK_EQ(cells[0], 7);
  cells[0] = 1; /* its export is known to be long now, and its host functions are still asked here */
  CHECK_EQ(sh_fiber_begin(guest, 1, WORK, cells, port), SH_STEP_AWAY);
  CHECK_EQ(come_back(port, guest, 1, cells), SH_STEP_DONE);
  CHECK_EQ(sh_fiber_begin(guest, 1, SPIN, cells, port), SH_STEP_AWAY);
  CHECK_EQ(sh_fiber_stop(guest, 1, SH_CANCELLED, cells), SH_STEP_AWAY);
  CHECK_EQ(come_back(port, guest, 1, cells), SH_STEP_FAILED);
  CHECK_EQ(status_of_failure(), SH_CANCELLED);
  close_it(guest);
  sh_limits limits = no_limits;
  limits.deadline_ns = 20000000;
  guest = sh_spawn(plugin, NULL, NULL, &limits, NULL);
  CHECK_EQ(sh_fiber_begin(guest, 1, SPIN, cells, port), SH_STEP_AWAY);
  CHECK_EQ(come_back(port, guest, 1, cells), SH_STEP_FAILED);
  CHECK_EQ(status_of_failure(), SH_DEADLINE);
  close_it(guest);
  sh_port_release(port);
  end(host, plugin);
}

static void a_guest_may_come_back_twice_before_it_is_taken(void) {
  sh_host *host = new_host(2);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL), taken;
  int64_t cells[4] = {200000000}; /* some hundred ms: a ticker that is kept waiting comes in time all the same */
  int step = sh_fiber_begin(guest, 1, TWICE, cells, port);
  CHECK_EQ(step, SH_STEP_AWAY);
  while (step == SH_STEP_AWAY) step = sh_fiber_go_on(guest, 1, cells);
  CHECK_EQ(step, SH_STEP_AWAIT);
  step = sh_fiber_answer(guest, 1, ANSWER(1), cells);
  CHECK_EQ(step, SH_STEP_AWAY);
  while (step == SH_STEP_AWAY) step = sh_fiber_go_on(guest, 1, cells);
  CHECK_EQ(step, SH_STEP_DONE);
  CHECK_EQ(sh_port_take(port, &taken, 1), 0);
  close_it(guest);
  sh_port_release(port);
  end(host, plugin);
}

static void a_host_closes_with_guests_that_wait_and_compute(void) {
  sh_host *host = new_host(2);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  uint64_t guests[20];
  int64_t cells[20][4] = {0};
  for (int k = 0; k < 20; k++) {
    guests[k] = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
    if (k < 10)
      CHECK_EQ(begin(guests[k], 1, WAIT, cells[k], port), SH_STEP_AWAIT);
    else
      CHECK_EQ(sh_fiber_begin(guests[k], 1, SPIN, cells[k], port), SH_STEP_AWAY);
  }
  CHECK_EQ(sh_host_close(host), SH_OK);
  for (int k = 0; k < 20; k++) {
    CHECK_EQ(sh_fiber_answer(guests[k], 1, ANSWER(1), cells[k]), SH_STEP_FAILED);
    CHECK_EQ(status_of_failure(), SH_CLOSED);
  }
  sh_port_release(port);
  end(host, plugin);
}

static void what_nobody_drives_ends(void) {
  sh_host *host = new_host(1);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  for (int k = 0; k < 30; k++) {
    int64_t cells[4] = {0}, inner[4] = {0};
    uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
    int step = k % 3 ? begin(guest, 1, WAIT, cells, port) : sh_fiber_begin(guest, 1, SPIN, cells, port);
    if (k % 3 == 2) CHECK_EQ(begin(guest, 2, WAIT, inner, port), SH_STEP_AWAIT);
    sh_fiber_abandon(guest);
    sh_reclaim reclaim;
    while (sh_close(guest, -1, &reclaim) == SH_BUSY) { /* a worker has it, and lets go at the next tick */
      CHECK_EQ(step, SH_STEP_AWAY);
      status_of_failure();
      nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
  }
  sh_port_release(port);
  end(host, plugin);
}

static void a_failure_of_the_system_ends_the_call_and_nothing_else(void) {
  static const int calls[] = {SH_OS_MMAP, SH_OS_MPROTECT, SH_OS_THREAD};
  for (int skip = 0; skip < 6; skip++) {
    for (size_t which = 0; which < sizeof calls / sizeof *calls; which++) {
      sh_host *host = new_host(2);
      sh_plugin *plugin = new_plugin(host);
      sh_port *port = sh_port_new();
      uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
      int64_t cells[4] = {1};
      sh_fault_inject(calls[which], (uint32_t)skip, 1000, 12);
      int step = begin(guest, 1, WAIT, cells, port);
      sh_fault_inject(calls[which], 0, 0, 0);
      if (step == SH_STEP_FAILED) {
        CHECK_EQ(status_of_failure(), SH_NATIVE);
        step = begin(guest, 1, WAIT, cells, port); /* nothing is left of it */
      }
      CHECK_EQ(step, SH_STEP_AWAIT);
      CHECK_EQ(respond(guest, 1, ANSWER(1), cells, port), SH_STEP_DONE);
      close_it(guest);
      sh_port_release(port);
      end(host, plugin);
    }
  }
}

static uint64_t used(const sh_tenant *tenant) {
  sh_tenant_stats stats;
  sh_tenant_get_stats(tenant, &stats);
  return stats.memory_bytes;
}

static void a_stack_counts_for_the_tenant(void) {
  sh_host *host = new_host(0);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  sh_tenant *tenant = sh_tenant_new(host, &(sh_tenant_limits){.memory = 2 * WASM_PAGE, .guests = UINT64_MAX});
  uint64_t guest = sh_spawn(plugin, NULL, tenant, &no_limits, NULL);
  int64_t cells[4] = {1};
  CHECK_EQ(begin(guest, 1, WAIT, cells, port), SH_STEP_FAILED);
  CHECK_EQ(sh_last_error()->level, SH_LEVEL_TENANT);
  CHECK_EQ(status_of_failure(), SH_OUT_OF_MEMORY);
  CHECK_EQ(used(tenant), WASM_PAGE);
  close_it(guest);
  CHECK_EQ(used(tenant), 0);
  sh_port_release(port);
  end(host, plugin);
}

/* ---- many drivers, on one host --------------------------------------------------------------------------------------- */

static uint64_t random_next(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * 0x2545f4914f6cdd1d;
}

enum { EACH = 12, LIVES = UNDER_TSAN ? 150 : 600 };

typedef struct {
  uint64_t guest;
  int64_t cells[4];
  int step;
} life;

static void begin_life(life *one, sh_plugin *plugin, sh_port *port, uint64_t *chance) {
  static const uint32_t functions[] = {WAIT, COUNT, WORK, SPIN, ADD, TRAP};
  one->guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
  CHECK(one->guest);
  uint32_t index = functions[random_next(chance) % 6];
  one->cells[0] = index == WORK ? 20000000 : 3;
  one->step = sh_fiber_begin(one->guest, 1, index, one->cells, port);
}

static void push_on(life *one, uint64_t *chance) {
  switch (random_next(chance) % 8) {
  case 0:
    one->step = sh_fiber_stop(one->guest, 1, SH_CANCELLED, one->cells);
    break;
  case 1:
    sh_cancel(one->guest);
    break;
  case 2:
    sh_fiber_abandon(one->guest);
    one->step = SH_STEP_DONE;
    break;
  default:
    if (one->step == SH_STEP_AWAIT)
      one->step = sh_fiber_answer(one->guest, 1, ANSWER(1), one->cells);
    else
      one->step = sh_fiber_go_on(one->guest, 1, one->cells); /* also before it has come back */
  }
}

static void *drive_many(void *argument) {
  sh_plugin *plugin = argument;
  sh_port *port = sh_port_new();
  uint64_t chance = (uint64_t)(uintptr_t)&plugin | 1, taken[8];
  life lives[EACH] = {0};
  for (int begun = 0, alive = 0; begun < LIVES || alive;) {
    for (int k = 0; k < EACH; k++) {
      life *one = &lives[k];
      if (!one->guest && begun < LIVES) {
        begin_life(one, plugin, port, &chance);
        begun++;
        alive++;
      } else if (one->guest && (one->step == SH_STEP_DONE || one->step == SH_STEP_FAILED)) {
        if (one->step == SH_STEP_FAILED) status_of_failure();
        one->step = SH_STEP_DONE;
        sh_reclaim reclaim;
        if (sh_close(one->guest, -1, &reclaim) == SH_OK) {
          one->guest = 0;
          alive--;
        } else {
          CHECK_EQ(status_of_failure(), SH_BUSY); /* abandoned, and not yet back */
        }
      } else if (one->guest) {
        push_on(one, &chance);
      }
    }
    sh_port_take(port, taken, 8);
  }
  sh_port_release(port);
  return NULL;
}

/* Somebody who looks at all stacks, again and again. */
typedef struct {
  sh_host *host;
  pthread_t thread;
  _Atomic bool over;
  uint64_t told;
} onlooker;

static uint64_t stacks_told(sh_host *host) {
  sh_stacks *stacks = sh_stacks_take(host, 0);
  CHECK(stacks);
  const uint8_t *json;
  const uint64_t *guests;
  size_t length;
  uint32_t count;
  uint64_t told = 0;
  for (uint32_t k = 0; sh_stacks_of(stacks, k, &json, &length, &guests, &count); k++) told += count;
  sh_stacks_free(stacks);
  return told;
}

static void *look_on(void *argument) {
  onlooker *self = argument;
  while (!atomic_load(&self->over)) {
    self->told += stacks_told(self->host);
    sched_yield();
  }
  return NULL;
}

static void begin_looking(onlooker *self, sh_host *host) {
  *self = (onlooker){.host = host};
  CHECK_EQ(pthread_create(&self->thread, NULL, look_on, self), 0);
}

static uint64_t end_looking(onlooker *self) {
  atomic_store(&self->over, true);
  CHECK_EQ(pthread_join(self->thread, NULL), 0);
  return self->told;
}

static void a_call_that_waits_tells_its_stack_and_waits_on(void) {
  sh_host *host = new_host(0);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
  int64_t outer[4] = {1}, inner[4] = {1};
  CHECK_EQ(stacks_told(host), 0);
  CHECK_EQ(begin(guest, 1, WAIT, outer, port), SH_STEP_AWAIT);
  CHECK_EQ(stacks_told(host), 1);
  CHECK_EQ(stacks_told(host), 1);
  CHECK_EQ(begin(guest, 2, WAIT, inner, port), SH_STEP_AWAIT);
  CHECK_EQ(stacks_told(host), 1);
  CHECK_EQ(respond(guest, 2, ANSWER(1), inner, port), SH_STEP_DONE);
  CHECK_EQ(inner[0], 101);
  CHECK_EQ(stacks_told(host), 1);
  CHECK_EQ(respond(guest, 1, ANSWER(2), outer, port), SH_STEP_DONE);
  CHECK_EQ(outer[0], 102);
  CHECK_EQ(stacks_told(host), 0);
  outer[0] = 1;
  CHECK_EQ(begin(guest, 1, WAIT, outer, port), SH_STEP_AWAIT);
  sh_cancel(guest); /* is not forgotten for being looked at */
  CHECK_EQ(stacks_told(host), 1);
  CHECK_EQ(respond(guest, 1, ANSWER(3), outer, port), SH_STEP_FAILED);
  CHECK_EQ(status_of_failure(), SH_CANCELLED);
  close_it(guest);
  sh_port_release(port);
  end(host, plugin);
}

static void drivers_meet_on_one_host(void) {
  atomic_store(&driver, 0);
  sh_host *host = new_host(3);
  sh_plugin *plugin = new_plugin(host);
  pthread_t threads[THREADS];
  onlooker looker;
  begin_looking(&looker, host);
  for (int k = 0; k < THREADS; k++) CHECK_EQ(pthread_create(&threads[k], NULL, drive_many, plugin), 0);
  for (int k = 0; k < THREADS; k++) CHECK_EQ(pthread_join(threads[k], NULL), 0);
  CHECK(end_looking(&looker) > 0);
  end(host, plugin);
}

/* Every suspension is woken once, whoever polls, and whoever looks: none is lost, none comes twice. */
static void no_wake_up_is_lost(void) {
  enum { GUESTS = 64, ROUNDS = UNDER_TSAN || UNDER_ASAN ? 200 : 2000 };
  sh_host *host = new_host(2);
  sh_plugin *plugin = new_plugin(host);
  sh_port *port = sh_port_new();
  life lives[GUESTS] = {0};
  onlooker looker;
  begin_looking(&looker, host);
  int done = 0, answers = 0;
  for (int k = 0; k < GUESTS; k++) {
    lives[k].guest = sh_spawn(plugin, NULL, NULL, &no_limits, NULL);
    lives[k].cells[0] = ROUNDS;
    lives[k].step = sh_fiber_begin(lives[k].guest, 1, COUNT, lives[k].cells, port);
  }
  while (done < GUESTS) {
    bool moved = false;
    for (int k = 0; k < GUESTS; k++) {
      life *one = &lives[k];
      if (one->step == SH_STEP_AWAIT) {
        one->step = sh_fiber_answer(one->guest, 1, ANSWER(1), one->cells);
        answers++;
        moved = true;
      }
      if (one->step == SH_STEP_DONE && one->guest) {
        CHECK_EQ(one->cells[0], 7);
        close_it(one->guest);
        one->guest = 0;
        done++;
      }
    }
    uint64_t taken[8];
    if (!moved && done < GUESTS) wait_for(port);
    uint32_t count = sh_port_take(port, taken, 8);
    for (uint32_t each = 0; each < count; each++)
      for (int k = 0; k < GUESTS; k++)
        if (lives[k].guest == taken[each]) lives[k].step = sh_fiber_go_on(taken[each], 1, lives[k].cells);
  }
  CHECK_EQ(answers, GUESTS * ROUNDS);
  CHECK(end_looking(&looker) > 0);
  sh_port_release(port);
  end(host, plugin);
}

/* What is long is ended, nothing is left to take, and the export is not tried again until its calls are short. */
static void a_whole_life_on_a_loop_is_short_or_is_not_there(void) {
  sh_host *host = new_host(1);
  sh_plugin *plugin = new_plugin(host);
  wasmtime_val_raw_t cells[2] = {{.i64 = 2}, {.i64 = 3}};
  CHECK_EQ(shi_live_here(plugin, NULL, NULL, &no_limits, ADD, cells), SH_OK);
  CHECK_EQ(cells[0].i64, 5);
  CHECK_EQ(shi_live_here(plugin, NULL, NULL, &no_limits, TRAP, cells), SH_TRAP);
  CHECK_EQ(sh_last_error()->status, SH_TRAP);
  CHECK_EQ(shi_live_here(plugin, NULL, NULL, &no_limits, SPIN, cells), SH_LONG);
  check_empty(host);
  sh_plugin_stats before, after;
  sh_plugin_get_stats(plugin, &before);
  CHECK_EQ(shi_live_here(plugin, NULL, NULL, &no_limits, SPIN, cells), SH_LONG);
  sh_plugin_get_stats(plugin, &after);
  CHECK_EQ(after.spawns, before.spawns);
  CHECK(shi_live_here(plugin, NULL, NULL, &no_limits, 99, cells) != SH_OK);

  /* Of a tenant that may have no guest now it is refused there and then. */
  sh_tenant *tenant = sh_tenant_new(host, &(sh_tenant_limits){.memory = UINT64_MAX, .guests = 1});
  CHECK_EQ(shi_live_here(plugin, NULL, tenant, &no_limits, SPIN, cells), SH_LONG);
  uint64_t guest = sh_spawn(plugin, NULL, tenant, &no_limits, NULL);
  CHECK(guest != 0);
  CHECK_EQ(shi_live_here(plugin, NULL, tenant, &no_limits, SPIN, cells), SH_CLOSED);
  CHECK_EQ(sh_last_error()->status, SH_QUOTA);
  CHECK_EQ(sh_spawn(plugin, NULL, tenant, &no_limits, NULL), 0);
  sh_host_stats stats;
  sh_host_get_stats(host, &stats);
  CHECK_EQ(stats.quota_refusals, 2);
  sh_reclaim reclaim;
  CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
  CHECK_EQ(shi_live_here(plugin, NULL, tenant, &no_limits, SPIN, cells), SH_LONG);
  sh_tenant_refuse(tenant, 1000, UINT64_MAX);
  CHECK_EQ(shi_live_here(plugin, NULL, tenant, &no_limits, SPIN, cells), SH_CLOSED);
  CHECK_EQ(sh_last_error()->status, SH_REFUSED);
  end(host, plugin);
}

int main(void) {
  open_wasmtime();
  sh_set_callbacks(&(sh_callbacks){.hostcall = hostcall, .answer = answer, .signals = signals});
  RUN(a_call_waits_for_its_answer);
  RUN(calls_nest_on_the_fiber);
  RUN(a_deep_guest_waits_on_a_stack_of_its_own);
  RUN(what_computes_goes_to_a_worker_and_comes_back);
  RUN(a_guest_may_come_back_twice_before_it_is_taken);
  RUN(a_host_closes_with_guests_that_wait_and_compute);
  RUN(what_nobody_drives_ends);
  RUN(a_failure_of_the_system_ends_the_call_and_nothing_else);
  RUN(a_stack_counts_for_the_tenant);
  RUN(a_whole_life_on_a_loop_is_short_or_is_not_there);
  RUN(a_call_that_waits_tells_its_stack_and_waits_on);
  RUN(drivers_meet_on_one_host);
  RUN(no_wake_up_is_lost);
  return 0;
}
