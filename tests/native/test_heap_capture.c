/* Captures: what they show was so at one instant, adds up to the counters, and names what leads to each cell. */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "bridge.h"
#include "check.h"
#include "heap.h"
#include "heap_capture.h"

enum { KIND = SHI_KIND_FIRST };
static const uint64_t no_limit = UINT64_MAX;

static shi_account host_handles = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_HOST};
static shi_account host_bytes = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_HOST};
static sh_host host; /* as much of one as a capture uses */
static shi_heap *heap;
static shi_holder *holder;

static shi_holder *new_holder(uint64_t guest, uint32_t tenant, const char *plugin, bool scans) {
  const shi_holder_request request = {.guest = guest,
                                      .tenant = tenant,
                                      .plugin_name = plugin,
                                      .scans = scans,
                                      .handles_limit = no_limit,
                                      .bytes_limit = no_limit};
  shi_holder *made = shi_holder_new(heap, &request);
  CHECK(made);
  return made;
}

static void open_heap(void) {
  CHECK_EQ(shi_heap_create(&host_handles, &host_bytes, &heap), SH_OK);
  pthread_mutex_init(&host.mutex, NULL);
  pthread_mutex_init(&host.captures, NULL);
  host.heap = heap;
  holder = new_holder(7, 1, "plugin", false);
}

static void close_heap(void) {
  shi_heap_lock(heap);
  shi_heap_check(heap);
  shi_heap_unlock(heap);
  shi_holder_close(holder);
  CHECK_EQ(heap->live_cells, 0);
  shi_heap_destroy(heap);
}

static uint64_t cell_of(shi_holder *of, uint32_t label) {
  const shi_cell_request request = {.kind = KIND, .size = 16, .object = SHI_NONE, .label = label};
  uint64_t handle;
  CHECK_EQ(shi_cell_new(of, &request, &handle), SH_OK);
  return handle;
}
static uint64_t cell(void) { return cell_of(holder, 0); }

static uint64_t list(void) {
  uint64_t handle;
  CHECK_EQ(shi_list_new(holder, 0, &handle), SH_OK);
  return handle;
}

static void push(uint64_t to, uint64_t entry) { CHECK_EQ(shi_list_push(heap, holder, to, entry), SH_OK); }
static void release(uint64_t handle) {
  uint32_t left;
  CHECK_EQ(shi_cell_release(heap, holder, handle, &left), SH_OK);
}
static void retain(uint64_t handle) {
  uint64_t out;
  CHECK_EQ(shi_cell_retain(heap, holder, handle, &out), SH_OK);
}

/* ---- what is checked of every capture ------------------------------------------------------------------------------- */

static sh_capture_view view;

static sh_capture *take(void) {
  sh_capture *capture = sh_capture_take(&host);
  CHECK(capture);
  sh_capture_view_of(capture, &view);
  return capture;
}

static void check_sums(void) {
  static uint64_t cells[SHI_SITES_MOST], bytes[SHI_SITES_MOST];
  memset(cells, 0, sizeof cells);
  memset(bytes, 0, sizeof bytes);
  uint64_t all = 0, grouped = 0;
  for (uint64_t k = 0; k < view.cell_count; k++) {
    cells[view.cells[k].site]++;
    bytes[view.cells[k].site] += view.cells[k].size;
    all += view.cells[k].size;
  }
  for (uint32_t k = 0; k < view.site_count; k++) {
    const sh_site *site = &view.sites[k];
    CHECK_EQ(cells[k], site->allocs - site->frees);
    CHECK_EQ(bytes[k], site->alloc_bytes - site->free_bytes);
  }
  for (uint32_t k = 0; k < view.group_count; k++) grouped += view.groups[k].cells;
  CHECK_EQ(all, view.figures[0]);
  CHECK_EQ(view.cell_count, view.figures[1]);
  CHECK_EQ(grouped, view.cell_count);
}

static uint32_t find(uint64_t handle) {
  for (uint32_t k = 0; k < view.cell_count; k++)
    if (view.cells[k].handle == handle) return k;
  return SH_NO_CELL;
}

/* ---- tests ---------------------------------------------------------------------------------------------------------- */

static void roots_and_holders_are_named(void) {
  open_heap();
  shi_holder *scanned = new_holder(8, 1, "other", true);
  uint64_t pinned = list(), held = cell(), deep = list(), deepest = cell(), owned = cell(), garbage = list(), weak;
  push(pinned, held);
  push(pinned, deep);
  push(deep, deepest);
  push(garbage, garbage);
  uint64_t in_memory = cell_of(scanned, 0), in_call = cell_of(scanned, 0);
  CHECK_EQ(shi_cell_pin(heap, pinned, 1), SH_OK);
  CHECK_EQ(shi_cell_weak(heap, holder, garbage, &weak), SH_OK);
  release(pinned), release(held), release(deep), release(deepest), release(garbage);
  scanned->flight_count = 1; /* as if only the first was lent to a call that is over */
  shi_holder_call_begins(scanned);
  shi_holder_call_ends(scanned);
  scanned->flight[0] = shi_index_of(in_call);
  scanned->flight_count = 1;
  sh_capture *capture = take();
  check_sums();
  CHECK_EQ(view.cell_count, 9);
  const struct {
    uint64_t handle, by;
    uint32_t root;
  } wanted[] = {
      {pinned, 0, SH_ROOT_PIN},     {held, pinned, SH_ROOT_PIN},   {deep, pinned, SH_ROOT_PIN},
      {deepest, deep, SH_ROOT_PIN}, {owned, 0, SH_ROOT_OWNED},     {garbage, 0, SH_ROOT_NONE},
      {weak, 0, SH_ROOT_OWNED},     {in_call, 0, SH_ROOT_IN_CALL}, {in_memory, 0, SH_ROOT_MEMORY},
  };
  for (size_t k = 0; k < sizeof wanted / sizeof wanted[0]; k++) {
    uint32_t root, found = find(wanted[k].handle);
    CHECK(found != SH_NO_CELL);
    uint32_t by = sh_capture_holder(capture, found, &root);
    CHECK_EQ(root, wanted[k].root);
    CHECK_EQ(by == SH_NO_CELL ? 0 : view.cells[by].handle, wanted[k].by);
    CHECK_EQ(view.cells[found].guest, wanted[k].root == SH_ROOT_IN_CALL || wanted[k].root == SH_ROOT_MEMORY ? 8 : 7);
  }
  uint32_t to[4];
  CHECK_EQ(sh_capture_edges(capture, find(pinned), to, 4), 2);
  CHECK_EQ(view.cells[to[1]].handle, deep);
  sh_capture_free(capture);
  scanned->flight_count = 0;
  shi_holder_close(scanned);
  close_heap();
}

/* A chain of a million equal cells is one path, and so is a tree without end. */
static void paths_are_few_however_long_the_way(void) {
  open_heap();
  uint64_t first = list(), last = first;
  for (int k = 0; k < 100000; k++) {
    uint64_t next = list();
    push(last, next);
    release(next);
    last = next;
  }
  uint64_t node = cell_of(holder, 1);
  push(last, node);
  for (uint32_t k = 2; k < 12000; k++) { /* a chain of which no two are alike */
    uint64_t next = cell_of(holder, k);
    CHECK_EQ(shi_link(heap, holder, node, next), SH_OK);
    release(next);
    node = next;
  }
  sh_capture *capture = take();
  check_sums();
  CHECK(view.path_count < 100);
  CHECK_EQ(view.site_count, SHI_SITES_MOST); /* labels come without end as well */
  sh_capture_free(capture);
  close_heap();
}

static void names_without_end_are_counted_under_others(void) {
  open_heap();
  char name[200];
  enum { TENANTS = 40, PLUGINS = 100 };
  uint64_t per_tenant[TENANTS + 2] = {0};
  for (uint32_t tenant = 2; tenant < TENANTS + 2; tenant++)
    for (int k = 0; k < PLUGINS; k++) {
      snprintf(name, sizeof name, "plugin %d %0150d", k, k);
      shi_holder *one = new_holder(9, tenant, name, false);
      cell_of(one, 0);
      shi_holder_close(one);
    }
  sh_capture *capture = take();
  check_sums();
  CHECK_EQ(view.source_count, SHI_SOURCES_MOST);
  uint64_t allocs = 0;
  for (uint32_t k = 0; k < view.site_count; k++) {
    const sh_source *source = &view.sources[view.sites[k].source];
    CHECK(memchr(source->plugin, 0, sizeof source->plugin));
    allocs += view.sites[k].allocs;
    if (source->tenant > 1) per_tenant[source->tenant] += view.sites[k].allocs;
  }
  CHECK_EQ(allocs, TENANTS * PLUGINS);
  uint32_t own = 0;
  for (uint32_t k = 0; k < view.source_count; k++) own += view.sources[k].tenant == 2 && !view.sources[k].others;
  CHECK_EQ(own, SHI_TENANT_PLUGINS_MOST);
  CHECK_EQ(per_tenant[2], PLUGINS); /* the first come is counted in full, what there was no room for as others */
  CHECK(view.sites[0].allocs > 0 || view.sources[0].others);
  sh_capture_free(capture);
  close_heap();
}

static void a_capture_without_handles_is_empty(void) {
  open_heap();
  sh_capture *capture = take();
  check_sums();
  CHECK_EQ(view.cell_count, 0);
  CHECK_EQ(view.group_count, 0);
  sh_capture_free(capture);
  host.heap = NULL;
  capture = take();
  CHECK_EQ(view.cell_count, 0);
  CHECK(view.instant_ns > 0);
  sh_capture_free(capture);
  close_heap();
}

static void a_sweep_under_way_is_finished_first(void) {
  open_heap();
  uint64_t dead = list(), kept = list();
  push(dead, dead);
  release(dead);
  CHECK_EQ(shi_mark_begin(heap), SH_OK);
  while (!shi_mark(heap, 4096)) {
  }
  CHECK_EQ(shi_mark_finish(heap), SH_OK);
  sh_capture *capture = take();
  check_sums();
  CHECK(find(dead) == SH_NO_CELL && find(kept) != SH_NO_CELL);
  sh_capture_free(capture);
  close_heap();
}

/* ---- one instant ---------------------------------------------------------------------------------------------------- */

enum { PAIRS = 16, BETWEEN = 10000, ENTRIES = 50 };
static uint64_t low[PAIRS], high[PAIRS], from_list, to_list;
static _Atomic bool stop;
static _Atomic uint64_t turns;

/* At every instant the one at the start of the table is owned as often as the one at its end, or once more. */
static void *count_up_and_down(void *unused) {
  (void)unused;
  for (int k = 0; !atomic_load(&stop); k = (k + 1) % PAIRS) {
    retain(low[k]);
    retain(high[k]);
    release(cell_of(holder, 1));
    release(high[k]);
    release(low[k]);
    atomic_fetch_add(&turns, 1);
  }
  return NULL;
}

/* At every instant both lists together have all entries, or one less. */
static void *move_entries(void *unused) {
  (void)unused;
  uint64_t from = from_list, to = to_list, entry;
  while (!atomic_load(&stop)) {
    for (int k = 0; k < ENTRIES; k++) {
      CHECK_EQ(shi_list_pop(heap, holder, from, &entry), SH_OK);
      push(to, entry);
      release(entry);
      release(cell());
    }
    uint64_t ring = list(); /* for the collector */
    push(ring, ring);
    release(ring);
    uint64_t turn = from;
    from = to;
    to = turn;
    atomic_fetch_add(&turns, 1);
  }
  return NULL;
}

static void *collect(void *unused) {
  (void)unused;
  while (!atomic_load(&stop)) {
    if (shi_cycle_start(heap) != SH_OK) shi_error_forget();
    shi_cycle_wait(heap, 1000000000);
  }
  return NULL;
}

static void what_is_captured_was_so_at_one_instant(void) {
  open_heap();
  from_list = list();
  for (int k = 0; k < PAIRS; k++) low[k] = cell();
  uint64_t many = list();
  for (int k = 0; k < BETWEEN; k++) {
    uint64_t one = cell();
    push(many, one);
    release(one);
  }
  for (int k = 0; k < PAIRS; k++) high[k] = cell();
  to_list = list();
  for (int k = 0; k < ENTRIES; k++) {
    uint64_t entry = cell();
    push(from_list, entry);
    release(entry);
  }
  atomic_store(&stop, false);
  pthread_t threads[3];
  CHECK_EQ(pthread_create(&threads[0], NULL, count_up_and_down, NULL), 0);
  CHECK_EQ(pthread_create(&threads[1], NULL, move_entries, NULL), 0);
  CHECK_EQ(pthread_create(&threads[2], NULL, collect, NULL), 0);
  uint64_t cycle = 0, cycles = 0;
  for (int round = 0; round < 60 || ((atomic_load(&turns) < 1000 || cycles < 2) && round < 5000); round++) {
    sh_capture *capture = take();
    check_sums();
    for (int k = 0; k < PAIRS; k++) {
      uint32_t more = view.cells[find(low[k])].owners - view.cells[find(high[k])].owners;
      CHECK(more <= 1);
    }
    uint32_t none[1], entries = sh_capture_edges(capture, find(from_list), none, 0);
    entries += sh_capture_edges(capture, find(to_list), none, 0);
    CHECK(entries == ENTRIES || entries == ENTRIES - 1);
    CHECK_EQ(sh_capture_edges(capture, find(many), none, 0), BETWEEN);
    cycles += view.cycle != cycle;
    cycle = view.cycle;
    sh_capture_free(capture);
  }
  atomic_store(&stop, true);
  for (int k = 0; k < 3; k++) pthread_join(threads[k], NULL);
  CHECK(cycles > 1);
  CHECK(heap->capture == NULL);
  close_heap();
}

int main(void) {
  RUN(roots_and_holders_are_named);
  RUN(paths_are_few_however_long_the_way);
  RUN(names_without_end_are_counted_under_others);
  RUN(a_capture_without_handles_is_empty);
  RUN(a_sweep_under_way_is_finished_first);
  RUN(what_is_captured_was_so_at_one_instant);
  return 0;
}
