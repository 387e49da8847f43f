/* What led to each cell of a capture, along the shortest way from a root.
 *
 * A search in breadth from all roots at once. What it does not reach is held by memory that is scanned, or by nothing:
 * there we begin at cells that no other unreached cell refers to, and last, for what is left is circles, anywhere.
 *
 * Paths are told by what lies on them, not by which, so that a million cells have a few: a step that is like the one
 * before is no step, and where the table or PATH_STEPS ends, paths do.
 */
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "heap_capture.h"

enum { PATHS_MOST = 8192, PATH_SLOTS = 4 * PATHS_MOST, PATH_STEPS = 16 };
enum { UNREACHED = SH_ROOTS };

typedef struct {
  sh_capture *of;
  uint32_t count; /* cells */
  uint32_t *queue, head, tail;
  uint32_t *referred; /* by cell: by so many unreached ones */
  uint16_t *slots;    /* of paths, by hash; 0: free, as path 0 is a root */
  uint8_t *steps;     /* by path */
} search;

static uint32_t target_of(const search *in, uint64_t handle) {
  const sh_capture *capture = in->of;
  uint32_t index = shi_index_of(handle);
  if (!handle || index >= capture->end) return SH_NO_CELL;
  uint32_t cell = capture->cell_at[index];
  return cell != SH_NO_CELL && capture->cells[cell].handle == handle ? cell : SH_NO_CELL;
}

/* ---- paths ------------------------------------------------------------------------------------------------------------ */

static uint32_t mixed(uint64_t key, uint32_t mask) { return (uint32_t)(key * 0x9e3779b97f4a7c15u >> 32) & mask; }

/* The path to what a cell of `site` on the path `outer` refers to. */
static uint16_t step(search *in, uint16_t outer, uint16_t site) {
  sh_path *paths = in->of->paths;
  if ((outer >= SH_ROOTS && paths[outer].site == site) || in->steps[outer] == PATH_STEPS) return outer;
  uint32_t at = mixed((uint64_t)outer << 16 | site, PATH_SLOTS - 1);
  for (; in->slots[at]; at = (at + 1) & (PATH_SLOTS - 1))
    if (paths[in->slots[at]].outer == outer && paths[in->slots[at]].site == site) return in->slots[at];
  if (in->of->view.path_count == PATHS_MOST) return outer;
  uint16_t path = (uint16_t)in->of->view.path_count++;
  paths[path] = (sh_path){.outer = outer, .site = site};
  in->steps[path] = (uint8_t)(in->steps[outer] + 1);
  return in->slots[at] = path;
}

/* ---- the search ------------------------------------------------------------------------------------------------------- */

static void reach(search *in, uint32_t cell, uint32_t holder, uint8_t root, uint16_t path) {
  sh_capture *capture = in->of;
  if (capture->roots[cell] != UNREACHED) return;
  capture->roots[cell] = root;
  capture->holders[cell] = holder;
  capture->path_at[cell] = path;
  in->queue[in->tail++] = cell;
}

static void reach_root(search *in, uint32_t cell, uint8_t root) { reach(in, cell, SH_NO_CELL, root, root); }

static void follow(search *in) {
  const sh_capture *capture = in->of;
  while (in->head < in->tail) {
    uint32_t from = in->queue[in->head++];
    const sh_captured_cell *cell = &capture->cells[from];
    if (!cell->edge_count) continue;
    const uint64_t *edges = shi_captured_edges(capture, cell);
    uint16_t path = step(in, capture->path_at[from], cell->site);
    for (uint32_t k = 0; k < cell->edge_count; k++) {
      uint32_t to = target_of(in, edges[k]);
      if (to != SH_NO_CELL) reach(in, to, from, capture->roots[from], path);
    }
  }
}

static void reach_roots(search *in) {
  for (uint32_t k = 0; k < in->count; k++) {
    const sh_captured_cell *cell = &in->of->cells[k];
    if (cell->pins)
      reach_root(in, k, SH_ROOT_PIN);
    else if (cell->owners)
      reach_root(in, k, SH_ROOT_OWNED);
    else if (cell->flags & SH_CELL_IN_CALL)
      reach_root(in, k, SH_ROOT_IN_CALL);
  }
  follow(in);
}

static bool unreached(const search *in, uint32_t cell, uint8_t root) {
  bool scanned = in->of->cells[cell].flags & SH_CELL_SCANNED;
  return in->of->roots[cell] == UNREACHED && scanned == (root == SH_ROOT_MEMORY);
}

static void count_references(search *in) {
  const sh_capture *capture = in->of;
  for (uint32_t from = 0; from < in->count; from++) {
    const sh_captured_cell *cell = &capture->cells[from];
    if (capture->roots[from] != UNREACHED || !cell->edge_count) continue;
    const uint64_t *edges = shi_captured_edges(capture, cell);
    for (uint32_t k = 0; k < cell->edge_count; k++) {
      uint32_t to = target_of(in, edges[k]);
      if (to != SH_NO_CELL && to != from) in->referred[to]++;
    }
  }
}

static void reach_rest(search *in, uint8_t root) {
  for (uint32_t k = 0; k < in->count; k++)
    if (!in->referred[k] && unreached(in, k, root)) reach_root(in, k, root);
  follow(in);
  for (uint32_t k = 0; k < in->count; k++)
    if (unreached(in, k, root)) {
      reach_root(in, k, root);
      follow(in);
    }
}

/* ---- groups ----------------------------------------------------------------------------------------------------------- */

static uint32_t age_of(const sh_capture *capture, const sh_captured_cell *cell) {
  uint32_t ticks = capture->view.now > cell->born ? capture->view.now - cell->born : 0;
  return (uint32_t)(63 - __builtin_clzll((uint64_t)ticks + 1));
}

typedef struct {
  sh_capture *of;
  uint32_t capacity, slot_count;
  uint32_t *slots; /* 0: free, else a group's index + 1 */
} grouping;

static uint32_t *slot_of(const grouping *in, uint32_t site, uint32_t path, uint32_t age) {
  uint32_t at = mixed((uint64_t)site << 24 ^ (uint64_t)path << 6 ^ age, in->slot_count - 1);
  for (; in->slots[at]; at = (at + 1) & (in->slot_count - 1)) {
    const sh_group *group = &in->of->groups[in->slots[at] - 1];
    if (group->site == site && group->path == path && group->age == age) break;
  }
  return &in->slots[at];
}

static bool grow(grouping *in) {
  uint32_t capacity = in->capacity ? 2 * in->capacity : 1024;
  sh_group *groups = realloc(in->of->groups, capacity * sizeof *groups);
  if (!groups) return false;
  in->of->groups = groups;
  free(in->slots);
  in->slots = calloc(4 * capacity, sizeof *in->slots);
  if (!in->slots) return false;
  in->capacity = capacity;
  in->slot_count = 4 * capacity;
  for (uint32_t k = 0; k < in->of->view.group_count; k++)
    *slot_of(in, groups[k].site, groups[k].path, groups[k].age) = k + 1;
  return true;
}

static bool add_to_group(grouping *in, uint32_t cell) {
  sh_capture *capture = in->of;
  const sh_captured_cell *of = &capture->cells[cell];
  uint32_t age = age_of(capture, of), path = capture->path_at[cell];
  uint32_t *slot = in->capacity ? slot_of(in, of->site, path, age) : NULL;
  if (!slot || !*slot) {
    if (capture->view.group_count == in->capacity && !grow(in)) return false;
    slot = slot_of(in, of->site, path, age);
    capture->groups[capture->view.group_count] = (sh_group){.site = of->site, .path = path, .age = age, .oldest = cell};
    *slot = ++capture->view.group_count;
  }
  sh_group *group = &capture->groups[*slot - 1];
  if ((int32_t)(of->born - capture->cells[group->oldest].born) < 0) group->oldest = cell;
  group->cells++;
  group->bytes += of->size;
  return true;
}

static bool find_groups(sh_capture *capture, uint32_t count) {
  grouping in = {.of = capture};
  bool done = true;
  for (uint32_t k = 0; k < count && done; k++) done = add_to_group(&in, k);
  free(in.slots);
  return done;
}

/* ---- the whole -------------------------------------------------------------------------------------------------------- */

static bool make_room(search *in) {
  sh_capture *capture = in->of;
  size_t count = in->count ? in->count : 1, indices = capture->end ? capture->end : 1;
  capture->cell_at = malloc(indices * sizeof *capture->cell_at);
  capture->holders = malloc(count * sizeof *capture->holders);
  capture->roots = malloc(count * sizeof *capture->roots);
  capture->path_at = malloc(count * sizeof *capture->path_at);
  capture->paths = malloc(PATHS_MOST * sizeof *capture->paths);
  in->queue = malloc(count * sizeof *in->queue);
  in->referred = calloc(count, sizeof *in->referred);
  in->slots = calloc(PATH_SLOTS, sizeof *in->slots);
  in->steps = calloc(PATHS_MOST, sizeof *in->steps);
  return capture->cell_at && capture->holders && capture->roots && capture->path_at && capture->paths && in->queue &&
         in->referred && in->slots && in->steps;
}

static void run(search *in) {
  sh_capture *capture = in->of;
  memset(capture->cell_at, 0xff, capture->end * sizeof *capture->cell_at);
  memset(capture->roots, UNREACHED, in->count);
  for (uint32_t k = 0; k < in->count; k++) capture->cell_at[shi_index_of(capture->cells[k].handle)] = k;
  for (uint32_t k = 0; k < SH_ROOTS; k++) capture->paths[k] = (sh_path){.outer = k};
  capture->view.path_count = SH_ROOTS;
  reach_roots(in);
  count_references(in);
  reach_rest(in, SH_ROOT_MEMORY);
  reach_rest(in, SH_ROOT_NONE);
}

int shi_capture_paths(sh_capture *capture) {
  search in = {.of = capture, .count = (uint32_t)capture->view.cell_count};
  bool done = make_room(&in);
  if (done) run(&in);
  free(in.queue);
  free(in.referred);
  free(in.slots);
  free(in.steps);
  return done && find_groups(capture, in.count) ? SH_OK : shi_fail_no_memory();
}

uint32_t sh_capture_edges(const sh_capture *capture, uint64_t cell, uint32_t *cells, uint32_t room) {
  const search in = {.of = (sh_capture *)(uintptr_t)capture};
  const sh_captured_cell *from = &capture->cells[cell];
  uint32_t count = 0;
  if (!from->edge_count) return 0;
  const uint64_t *edges = shi_captured_edges(capture, from);
  for (uint32_t k = 0; k < from->edge_count; k++) {
    uint32_t to = target_of(&in, edges[k]);
    if (to == SH_NO_CELL) continue;
    if (count < room) cells[count] = to;
    count++;
  }
  return count;
}

uint32_t sh_capture_holder(const sh_capture *capture, uint64_t cell, uint32_t *root) {
  *root = capture->roots[cell];
  return capture->holders[cell];
}
