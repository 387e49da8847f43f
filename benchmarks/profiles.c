/* What a capture takes, and what it keeps a guest waiting: the handle heap by itself, without wasmtime and Python.
 * Prints JSON.
 *
 *   profiles CELLS SECONDS     with so many live handles; for so long alone, and again while captures are taken
 *
 * A guest makes handles, lets them go, and moves others out of and into a list of 65,000 entries, of which whoever
 * changes it first after an instant has to save all. Each of its operations is timed by the clock: on a busy
 * machine the longest are the scheduler's, so they are counted with and without captures.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bridge.h"
#include "heap.h"
#include "heap_capture.h"

enum { LONG_LIST = 65000, OPERATIONS_MOST = 50000000 };

static shi_account handles = {.limit = UINT64_MAX}, bytes = {.limit = UINT64_MAX};
static sh_host host; /* as much of one as a capture uses */
static shi_heap *heap;
static shi_holder *holder;
static uint64_t long_list;
static _Atomic bool over;

static void must(int status) {
  if (status != SH_OK) abort();
}

static uint64_t new_cell(void) {
  const shi_cell_request request = {.kind = SHI_KIND_FIRST, .size = 64, .object = SHI_NONE};
  uint64_t handle = 0;
  must(shi_cell_new(holder, &request, &handle));
  return handle;
}

static uint64_t new_list(void) {
  uint64_t list = 0;
  must(shi_list_new(holder, 0, &list));
  return list;
}

static void release(uint64_t handle) {
  uint32_t left;
  must(shi_cell_release(heap, holder, handle, &left));
}

static void push_new(uint64_t list) {
  uint64_t cell = new_cell();
  must(shi_list_push(heap, holder, list, cell));
  release(cell);
}

typedef struct {
  uint64_t count, most_ns, over_1ms, *ns;
} times;

static void note(times *of, uint64_t ns) {
  if (of->count < OPERATIONS_MOST) of->ns[of->count++] = ns;
  if (ns > of->most_ns) of->most_ns = ns;
  of->over_1ms += ns > 1000000;
}

static void move(uint64_t from, uint64_t to) {
  uint64_t entry;
  must(shi_list_pop(heap, holder, from, &entry));
  must(shi_list_push(heap, holder, to, entry));
  release(entry);
}

static void *mutate(void *argument) {
  times *of = argument;
  uint64_t own = new_list();
  for (uint64_t k = 0; !atomic_load_explicit(&over, memory_order_relaxed); k++) {
    uint64_t begun = shi_now_ns();
    if (k % 3 == 0)
      move(long_list, own);
    else if (k % 3 == 1)
      move(own, long_list);
    else
      release(new_cell());
    note(of, shi_now_ns() - begun);
  }
  release(own);
  return NULL;
}

static int by_value(const void *a, const void *b) {
  uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
  return left < right ? -1 : left > right;
}

static void print_times(const char *title, times *of, uint64_t stop_ns) {
  qsort(of->ns, of->count, sizeof *of->ns, by_value);
  printf("  \"%s\": {\"operations\": %llu, \"p50_ns\": %llu, \"p999_ns\": %llu, \"p99999_ns\": %llu, \"max_ns\": %llu, "
         "\"over_1ms\": %llu, \"longest_wait_for_the_lock_ns\": %llu},\n",
         title, (unsigned long long)of->count, (unsigned long long)of->ns[of->count / 2],
         (unsigned long long)of->ns[of->count * 999 / 1000], (unsigned long long)of->ns[of->count * 99999 / 100000],
         (unsigned long long)of->most_ns, (unsigned long long)of->over_1ms, (unsigned long long)stop_ns);
}

static uint64_t took[100000], cpu[100000], longest_hold_ns;

static int run(const char *title, uint64_t seconds, bool captures) {
  times of = {.ns = malloc(OPERATIONS_MOST * sizeof *of.ns)};
  pthread_t thread;
  int count = 0;
  atomic_store(&over, false);
  atomic_store(&heap->longest_stop_ns, 0);
  pthread_create(&thread, NULL, mutate, &of);
  for (uint64_t until = shi_now_ns() + seconds * 1000000000u; shi_now_ns() < until;) {
    if (captures) {
      sh_capture *capture = sh_capture_take(&host);
      if (!capture) abort();
      cpu[count] = capture->view.cpu_ns;
      took[count++] = capture->view.took_ns;
      if (capture->view.longest_hold_ns > longest_hold_ns) longest_hold_ns = capture->view.longest_hold_ns;
      sh_capture_free(capture);
    }
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  atomic_store(&over, true);
  pthread_join(thread, NULL);
  print_times(title, &of, atomic_load(&heap->longest_stop_ns));
  free(of.ns);
  return count;
}

int main(int argc, char **argv) {
  uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000,
           seconds = argc > 2 ? strtoull(argv[2], NULL, 10) : 5;
  must(shi_heap_create(&handles, &bytes, &heap));
  pthread_mutex_init(&host.mutex, NULL);
  pthread_mutex_init(&host.captures, NULL);
  host.heap = heap;
  const shi_holder_request request = {
      .guest = 1, .plugin_name = "plugin", .handles_limit = UINT64_MAX, .bytes_limit = UINT64_MAX};
  holder = shi_holder_new(heap, &request);
  long_list = new_list();
  for (int k = 0; k < LONG_LIST; k++) push_new(long_list);
  for (uint64_t list = 0, k = LONG_LIST; k < count; k++) { /* the rest in lists of a hundred */
    if (k % 100 == 0 || !list) list = new_list();
    push_new(list);
  }
  printf("{\n  \"cells\": %llu,\n", (unsigned long long)heap->live_cells);
  run("alone", seconds, false);
  int captures = run("while_captured", seconds, true);
  qsort(took, (size_t)captures, sizeof *took, by_value);
  qsort(cpu, (size_t)captures, sizeof *cpu, by_value);
  printf("  \"captures\": %d,\n  \"capture_ns\": {\"p50\": %llu, \"max\": %llu, \"cpu_p50\": %llu},\n"
         "  \"longest_hold_cpu_ns\": %llu\n}\n",
         captures, (unsigned long long)took[captures / 2], (unsigned long long)took[captures - 1],
         (unsigned long long)cpu[captures / 2], (unsigned long long)longest_hold_ns);
}
