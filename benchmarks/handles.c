/* The handle heap by itself, without wasmtime and Python: what handles.py cannot measure from outside. Prints JSON.
 *
 *   handles CELLS     marking, scanning, and the waits of a guest while cycles run, with so many live cells
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "bridge.h"
#include "heap.h"

enum { EDGES = 4, OPERATIONS = 2000000 };

static shi_account handles = {.limit = UINT64_MAX}, bytes = {.limit = UINT64_MAX};
static shi_heap *heap;
static _Atomic bool over;

static uint64_t next_random(uint64_t *seed) {
  *seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17;
  return *seed;
}

/* Of this thread: the machine may be busy with others. */
static uint64_t cpu_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static shi_holder *new_holder(void) {
  const shi_holder_request request = {.handles_limit = UINT64_MAX, .bytes_limit = UINT64_MAX};
  return shi_holder_new(heap, &request);
}

static uint64_t new_cell(shi_holder *holder) {
  const shi_cell_request request = {.kind = SHI_KIND_FIRST, .size = 64, .object = SHI_NONE};
  uint64_t handle = 0;
  if (shi_cell_new(holder, &request, &handle) != SH_OK) abort();
  return handle;
}

static void must(int status) {
  if (status != SH_OK) abort();
}

static uint64_t resident(void) {
  unsigned long total, pages;
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%lu %lu", &total, &pages) != 2) abort();
  fclose(file);
  return pages * shi_os_page();
}

static int by_value(const void *a, const void *b) {
  uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
  return left < right ? -1 : left > right;
}

/* A graph in which each cell refers to EDGES others: at random, or to those made before and after it. */
static double mark_rate(uint64_t *cells, uint64_t count, shi_holder *holder, bool random) {
  uint64_t seed = 1, best = UINT64_MAX;
  for (uint64_t k = 0; k < count; k++)
    for (int e = 0; e < EDGES; e++)
      must(
          shi_link(heap, holder, cells[k], cells[random ? next_random(&seed) % count : (k + 1 + (uint64_t)e) % count]));
  for (int round = 0; round < 5; round++) {
    must(shi_mark_begin(heap));
    uint64_t begun = cpu_ns();
    while (!shi_mark(heap, UINT64_MAX)) {
    }
    uint64_t ns = cpu_ns() - begun;
    if (ns < best) best = ns;
    must(shi_mark_finish(heap));
    while (!shi_sweep(heap, UINT64_MAX)) {
    }
  }
  for (uint64_t k = 0; k < count; k++) {
    shi_edges *edges = heap->cold[shi_index_of(cells[k])].edges;
    edges->count = 0; /* nobody looks */
  }
  return (double)(count * EDGES) * 1e9 / (double)best;
}

static double scan_rate(const char *what) {
  static const uint64_t length = 64 << 20, found_most = 512;
  uint64_t *words = aligned_alloc(4096, length), seed = 3, found[512], best = UINT64_MAX;
  for (uint64_t k = 0; k < length / 8; k++) {
    uint64_t random = next_random(&seed);
    words[k] = strcmp(what, "zeros") == 0 ? 0 : strcmp(what, "text") == 0 ? 0x2020202020202020 | random : random;
  }
  for (int round = 0; round < 5; round++) {
    uint64_t begun = cpu_ns();
    for (uint64_t at = 0; at < length;) {
      uint32_t count;
      at += shi_scan_words((const uint8_t *)words + at, length - at, heap->count, found, (uint32_t)found_most, &count);
    }
    uint64_t ns = cpu_ns() - begun;
    if (ns < best) best = ns;
  }
  free(words);
  return (double)length / (double)best;
}

static void *run_cycles(void *unused) {
  (void)unused;
  while (!atomic_load(&over)) {
    if (shi_cycle_start(heap) != SH_OK) shi_error_forget(); /* its end was told before all of it was done */
    shi_cycle_wait(heap, UINT64_MAX / 2);
  }
  return NULL;
}

/* ---- where a long operation was ---------------------------------------------------------------------------------------- */

/* Of an operation longer than LONG_NS: what the thread waited for a processor though it was ready (the scheduler's), what it
 * computed (ours), and the rest, in which it slept for the heap's lock: who has that is the marker, which may itself wait
 * for a processor. Looked at every WINDOW operations, and after each long one. */
enum { LONG_NS = 200000, WINDOW = 64, LISTED = 32 };
typedef struct {
  uint64_t cpu, delay, marker_delay; /* ns */
  long involuntary, voluntary;
} sight;

static int own_schedstat, marker_schedstat;

static int open_schedstat(const char *thread) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%s/schedstat", thread);
  return open(path, O_RDONLY);
}

static int open_marker(void) {
  DIR *tasks = opendir("/proc/self/task");
  int found = -1;
  for (struct dirent *task; tasks && (task = readdir(tasks));) {
    char path[300], name[32] = "";
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
    FILE *file = fopen(path, "r");
    if (!file) continue;
    if (fgets(name, sizeof name, file) && strncmp(name, "sandhost-marker", 15) == 0) {
      snprintf(path, sizeof path, "self/task/%.20s", task->d_name);
      found = open_schedstat(path);
    }
    fclose(file);
  }
  if (tasks) closedir(tasks);
  return found;
}

static uint64_t delay_of(int schedstat) {
  char text[96] = "";
  unsigned long long run = 0, delay = 0;
  if (schedstat < 0 || pread(schedstat, text, sizeof text - 1, 0) <= 0) return 0;
  return sscanf(text, "%llu %llu", &run, &delay) == 2 ? delay : 0;
}

static sight look(void) {
  struct rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return (sight){.cpu = cpu_ns(),
                 .delay = delay_of(own_schedstat),
                 .marker_delay = delay_of(marker_schedstat),
                 .involuntary = usage.ru_nivcsw,
                 .voluntary = usage.ru_nvcsw};
}

typedef struct {
  uint64_t count, scheduler, lock, lock_of_waiting_marker, computing; /* by what most of it was */
  uint64_t most_computed_ns, most_slept_ns, listed;
  char list[LISTED * 160];
} long_ones;

static void attribute(long_ones *all, uint64_t ns, const sight *before, const sight *after, uint64_t others_ns) {
  uint64_t delay = after->delay - before->delay, cpu = after->cpu - before->cpu;
  uint64_t marker = after->marker_delay - before->marker_delay;
  if (delay > ns) delay = ns;
  cpu = cpu > others_ns ? cpu - others_ns : 0;
  if (cpu > ns - delay) cpu = ns - delay;
  uint64_t slept = ns - delay - cpu;
  all->count++;
  if (delay >= cpu && delay >= slept)
    all->scheduler++;
  else if (cpu > slept)
    all->computing++;
  else if (marker >= slept / 2)
    all->lock_of_waiting_marker++;
  else
    all->lock++;
  if (cpu > all->most_computed_ns) all->most_computed_ns = cpu;
  if (slept > all->most_slept_ns) all->most_slept_ns = slept;
  if (all->listed == LISTED) return;
  size_t at = strlen(all->list);
  snprintf(all->list + at, sizeof all->list - at,
           "%s{\"us\": %.0f, \"ready_us\": %.0f, \"computed_us\": %.0f, \"slept_us\": %.0f, \"marker_ready_us\": %.0f, "
           "\"switches\": [%ld, %ld]}",
           all->listed++ ? ", " : "", (double)ns / 1e3, (double)delay / 1e3, (double)cpu / 1e3, (double)slept / 1e3,
           (double)marker / 1e3, after->involuntary - before->involuntary, after->voluntary - before->voluntary);
}

static void print_long_ones(const long_ones *all) {
  printf("\"over_200_us\": {\"count\": %llu, \"ready_without_a_processor\": %llu, "
         "\"lock_of_a_marker_without_a_processor\": %llu, \"lock\": %llu, \"computing\": %llu, "
         "\"most_computed_us\": %.0f, \"most_slept_us\": %.0f, \"first\": [%s]}",
         (unsigned long long)all->count, (unsigned long long)all->scheduler,
         (unsigned long long)all->lock_of_waiting_marker, (unsigned long long)all->lock,
         (unsigned long long)all->computing, (double)all->most_computed_ns / 1e3, (double)all->most_slept_ns / 1e3,
         all->list);
}

/* How long single operations of a guest take while cycles run back to back, or none does. */
static void waits(shi_holder *holder, const uint64_t *cells, uint64_t count, bool cycles, const char *title) {
  uint64_t *ns = malloc(OPERATIONS * sizeof *ns), seed = 9, size;
  pthread_t thread;
  atomic_store(&over, false);
  must(shi_cycle_start(heap)); /* so that there is the thread */
  while (!shi_cycle_wait(heap, UINT64_MAX / 2)) {
  }
  own_schedstat = open_schedstat("thread-self");
  marker_schedstat = open_marker();
  if (cycles) pthread_create(&thread, NULL, run_cycles, NULL);
  uint64_t before = heap->cycles, others_ns = 0;
  static long_ones all;
  all = (long_ones){0};
  sight last = look();
  for (int k = 0; k < OPERATIONS; k++) {
    if (k % WINDOW == 0) last = look(), others_ns = 0;
    uint64_t begun = shi_now_ns();
    if (k % 2) {
      must(shi_cell_size(heap, holder, cells[next_random(&seed) % count], &size));
    } else {
      uint32_t left;
      must(shi_cell_release(heap, holder, new_cell(holder), &left));
    }
    ns[k] = shi_now_ns() - begun;
    if (ns[k] > LONG_NS) {
      sight now = look();
      attribute(&all, ns[k], &last, &now, others_ns);
      last = look(), others_ns = 0;
    } else {
      others_ns += ns[k];
    }
  }
  atomic_store(&over, true);
  if (cycles) pthread_join(thread, NULL);
  close(own_schedstat);
  close(marker_schedstat);
  qsort(ns, OPERATIONS, sizeof *ns, by_value);
  printf("  \"%s\": {\"p50_ns\": %llu, \"p99_ns\": %llu, \"p999_ns\": %llu, \"p99999_ns\": %llu, \"max_ns\": %llu, "
         "\"cycles\": %llu, ",
         title, (unsigned long long)ns[OPERATIONS / 2], (unsigned long long)ns[OPERATIONS / 100 * 99],
         (unsigned long long)ns[OPERATIONS / 1000 * 999], (unsigned long long)ns[OPERATIONS / 100000 * 99999],
         (unsigned long long)ns[OPERATIONS - 1], (unsigned long long)(heap->cycles - before));
  print_long_ones(&all);
  printf("},\n");
  free(ns);
}

int main(int argc, char **argv) {
  uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
  must(shi_heap_create(&handles, &bytes, &heap));
  shi_holder *holder = new_holder();
  uint64_t *cells = malloc(count * sizeof *cells);
  memset(cells, 1, count * sizeof *cells);
  uint64_t before = resident();
  for (uint64_t k = 0; k < count; k++) cells[k] = new_cell(holder);
  double each = (double)(resident() - before) / (double)count;
  uint64_t begun = cpu_ns();
  for (int k = 0; k < OPERATIONS; k++) {
    uint32_t left;
    must(shi_cell_release(heap, holder, new_cell(holder), &left));
  }
  double pair_ns = (double)(cpu_ns() - begun) / OPERATIONS;
  printf("{\n  \"cells\": %llu,\n  \"bytes_per_handle\": %.1f,\n  \"new_release_ns\": %.1f,\n",
         (unsigned long long)count, each, pair_ns);
  printf("  \"mark_edges_per_s\": {\"in_order\": %.0f,", mark_rate(cells, count, holder, false));
  printf(" \"random\": %.0f},\n", mark_rate(cells, count, holder, true));
  printf("  \"scan_bytes_per_ns\": {\"zeros\": %.2f, \"text\": %.2f, \"random\": %.2f},\n", scan_rate("zeros"),
         scan_rate("text"), scan_rate("random"));
  waits(holder, cells, count, false, "operations_alone");
  waits(holder, cells, count, true, "operations_while_cycles_run");
  printf("  \"longest_stop_ns\": %llu\n}\n", (unsigned long long)atomic_load(&heap->longest_stop_ns));
}
