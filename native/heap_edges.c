/* What cells refer to: edges of the application's objects, and the containers that guests build.
 *
 * All of them are arrays of handles (shi_edges). The marker follows an array from its end to its start, so an entry may
 * be appended, taken off the end, or moved from the end to where another was, and it misses nothing. Where entries move
 * otherwise (a map that grows), it starts again.
 *
 *   list, record   to[0 .. count)
 *   map            to[0 .. capacity) with 0 where nothing is, then the keys: open addressing, linear probing
 */
#include "heap.h"

#include <stdlib.h>
#include <string.h>

#include "bridge.h"

/* What goes away while marking was in the snapshot. */
static void barrier_delete(shi_heap *heap, uint64_t handle) {
  if (heap->phase == SHI_HEAP_MARKING) shi_shade_handle(heap, handle);
}

static void refers_to(shi_heap *heap, uint64_t handle) {
  if (!handle) return;
  uint32_t index = shi_index_of(handle);
  heap->hot[index].linked = 1;
  shi_barrier_store(heap, index);
}

static uint64_t bytes_of(uint32_t kind, uint32_t capacity) {
  return sizeof(shi_edges) + (uint64_t)capacity * (kind == SHI_KIND_MAP ? 16 : 8);
}

static int too_many(void) {
  return shi_fail_limit(SH_HANDLE_LIMIT, SHI_EDGES_MOST + 1, SHI_EDGES_MOST, "a handle refers to at most %d others",
                        SHI_EDGES_MOST);
}

/* Containers are as large as their edges; an object of the application's is as large as it says. */
static bool is_container(uint32_t kind) { return kind < SHI_KIND_WEAK; }

/* Room for one more at the end. */
static int make_room(shi_heap *heap, uint64_t handle) {
  uint32_t index = shi_index_of(handle), kind = shi_kind_of(handle);
  shi_edges *edges = heap->hot[index].edged ? heap->cold[index].edges : NULL;
  if (edges && edges->count < edges->capacity) return SH_OK;
  if (edges && edges->count == SHI_EDGES_MOST) return too_many();
  uint32_t capacity = edges ? edges->capacity + edges->capacity / 2 + 2 : 4;
  if (capacity > SHI_EDGES_MOST) capacity = SHI_EDGES_MOST;
  uint64_t before = heap->hot[index].size;
  int status = is_container(kind) ? shi_cell_resize(heap, index, bytes_of(kind, capacity)) : SH_OK;
  if (status != SH_OK) return status;
  shi_edges *grown = realloc(edges, bytes_of(SHI_KIND_LIST, capacity));
  if (!grown) {
    if (is_container(kind)) shi_cell_resize(heap, index, before);
    return shi_fail_no_memory();
  }
  if (!edges) *grown = (shi_edges){0};
  grown->capacity = capacity;
  heap->cold[index].edges = grown;
  heap->hot[index].edged = 1;
  return SH_OK;
}

static int append(shi_heap *heap, uint64_t from, uint64_t to) {
  int status = make_room(heap, from);
  if (status != SH_OK) return status;
  shi_capture_before(heap, shi_index_of(from));
  shi_edges *edges = heap->cold[shi_index_of(from)].edges;
  edges->to[edges->count++] = to;
  refers_to(heap, to);
  return SH_OK;
}

/* ---- edges of objects ------------------------------------------------------------------------------------------------- */

int shi_link(shi_heap *heap, shi_holder *holder, uint64_t from, uint64_t to) {
  shi_heap_lock(heap);
  int status = SH_INVALID_HANDLE;
  if (shi_cell_find(heap, holder, from, 0) && shi_cell_find(heap, holder, to, 0))
    status = shi_kind_of(from) < SHI_KIND_FIRST ? shi_fail_handle(from, "is no object that can refer to others")
                                                : append(heap, from, to);
  shi_heap_unlock(heap);
  return status;
}

int shi_unlink(shi_heap *heap, shi_holder *holder, uint64_t from, uint64_t to) {
  shi_heap_lock(heap);
  shi_hot *cell = shi_cell_find(heap, holder, from, 0);
  int status = cell ? SH_OK : SH_INVALID_HANDLE;
  if (cell) {
    shi_edges *edges = cell->edged && shi_kind_of(from) >= SHI_KIND_FIRST ? heap->cold[shi_index_of(from)].edges : NULL;
    uint32_t k = 0, count = edges ? edges->count : 0;
    while (k < count && edges->to[k] != to) k++;
    if (k < count) {
      shi_capture_before(heap, shi_index_of(from));
      barrier_delete(heap, to);
      edges->to[k] = edges->to[--edges->count];
    } else {
      status = shi_fail(SH_ARGUMENT, "the one handle does not refer to the other");
    }
  }
  shi_heap_unlock(heap);
  return status;
}

/* ---- lists and records ------------------------------------------------------------------------------------------------ */

static int new_container(shi_holder *holder, uint32_t kind, uint32_t capacity, uint32_t count, uint64_t *out) {
  shi_edges *edges = calloc(1, bytes_of(kind, capacity));
  if (!edges) return shi_fail_no_memory();
  edges->capacity = capacity;
  edges->count = count;
  const shi_cell_request request = {.kind = kind, .object = SHI_NONE, .size = bytes_of(kind, capacity)};
  int status = shi_cell_new_with(holder, &request, edges, out);
  if (status != SH_OK) free(edges);
  return status;
}

int shi_list_new(shi_holder *holder, uint32_t fields, uint64_t *out) {
  if (fields > SHI_EDGES_MOST) return too_many();
  return new_container(holder, fields ? SHI_KIND_RECORD : SHI_KIND_LIST, fields ? fields : 4, fields, out);
}

/* A list or record of the holder's, or NULL. */
static shi_edges *entries_of(shi_heap *heap, shi_holder *holder, uint64_t list) {
  if (!shi_cell_find(heap, holder, list, 0)) return NULL;
  uint32_t kind = shi_kind_of(list);
  if (kind == SHI_KIND_LIST || kind == SHI_KIND_RECORD) return heap->cold[shi_index_of(list)].edges;
  shi_fail_handle(list, "is no list or record");
  return NULL;
}

static shi_edges *entry_of(shi_heap *heap, shi_holder *holder, uint64_t list, uint64_t at) {
  shi_edges *edges = entries_of(heap, holder, list);
  if (!edges || at < edges->count) return edges;
  shi_fail(SH_INVALID_HANDLE, "entry %llu of a list or record of %u", (unsigned long long)at, edges->count);
  return NULL;
}

/* What is read becomes the holder's own once more. What is not his, or is gone, reads as 0. */
static int hand_out(shi_heap *heap, shi_holder *holder, uint64_t handle, uint64_t *out) {
  *out = 0;
  if (!handle) return SH_OK;
  if (!shi_cell_find(heap, holder, handle, 0)) {
    shi_error_forget();
    return SH_OK;
  }
  int status = shi_cell_own(heap, handle);
  if (status == SH_OK) *out = handle;
  return status;
}

static int status_of(const void *found) { return found ? SH_OK : SH_INVALID_HANDLE; }

static bool may_store(shi_heap *heap, shi_holder *holder, uint64_t entry) {
  return entry == 0 || shi_cell_find(heap, holder, entry, 0);
}

int shi_list_push(shi_heap *heap, shi_holder *holder, uint64_t list, uint64_t entry) {
  shi_heap_lock(heap);
  int status = SH_INVALID_HANDLE;
  if (shi_cell_find(heap, holder, list, SHI_KIND_LIST) && may_store(heap, holder, entry))
    status = append(heap, list, entry);
  shi_heap_unlock(heap);
  return status;
}

int shi_list_pop(shi_heap *heap, shi_holder *holder, uint64_t list, uint64_t *out) {
  shi_heap_lock(heap);
  shi_edges *edges = shi_cell_find(heap, holder, list, SHI_KIND_LIST) ? entries_of(heap, holder, list) : NULL;
  int status = status_of(edges);
  if (edges && edges->count == 0) status = shi_fail(SH_INVALID_HANDLE, "an empty list has no last entry");
  if (status == SH_OK) status = hand_out(heap, holder, edges->to[edges->count - 1], out);
  if (status == SH_OK) shi_capture_before(heap, shi_index_of(list));
  if (status == SH_OK) barrier_delete(heap, edges->to[--edges->count]);
  shi_heap_unlock(heap);
  return status;
}

int shi_list_get(shi_heap *heap, shi_holder *holder, uint64_t list, uint64_t at, uint64_t *out) {
  shi_heap_lock(heap);
  const shi_edges *edges = entry_of(heap, holder, list, at);
  int status = edges ? hand_out(heap, holder, edges->to[at], out) : SH_INVALID_HANDLE;
  shi_heap_unlock(heap);
  return status;
}

int shi_list_set(shi_heap *heap, shi_holder *holder, uint64_t list, uint64_t at, uint64_t entry) {
  shi_heap_lock(heap);
  shi_edges *edges = may_store(heap, holder, entry) ? entry_of(heap, holder, list, at) : NULL;
  if (edges) {
    shi_capture_before(heap, shi_index_of(list));
    barrier_delete(heap, edges->to[at]);
    edges->to[at] = entry;
    refers_to(heap, entry);
  }
  shi_heap_unlock(heap);
  return status_of(edges);
}

/* ---- maps ------------------------------------------------------------------------------------------------------------ */

static uint64_t *keys_of(const shi_edges *edges) { return (uint64_t *)edges->to + edges->capacity; }

/* Fibonacci hashing; capacities are powers of two. */
static uint32_t home_of(uint64_t key, uint32_t capacity) {
  return (uint32_t)(key * 0x9e3779b97f4a7c15u >> 32) & (capacity - 1);
}

/* Where the key is, or the hole where it would be: a map is never full. */
static uint32_t place_of(const shi_edges *edges, uint64_t key) {
  uint32_t at = home_of(key, edges->capacity);
  while (edges->to[at] && keys_of(edges)[at] != key) at = (at + 1) & (edges->capacity - 1);
  return at;
}

int shi_map_new(shi_holder *holder, uint64_t *out) { return new_container(holder, SHI_KIND_MAP, 8, 8, out); }

static shi_edges *map_of(shi_heap *heap, shi_holder *holder, uint64_t map) {
  return shi_cell_find(heap, holder, map, SHI_KIND_MAP) ? heap->cold[shi_index_of(map)].edges : NULL;
}

static void start_again(shi_heap *heap, uint32_t index) {
  if (heap->phase == SHI_HEAP_MARKING && heap->partial == index && heap->partial_left)
    heap->partial_left = heap->cold[index].edges->count;
}

/* At most 3/4 full, so that probing stays short. */
static int grow_map(shi_heap *heap, uint64_t map) {
  uint32_t index = shi_index_of(map);
  const shi_edges *edges = heap->cold[index].edges;
  if (edges->used + 1 <= edges->capacity / 4 * 3) return SH_OK;
  uint32_t capacity = 2 * edges->capacity;
  if (capacity > SHI_EDGES_MOST) return too_many();
  uint64_t before = heap->hot[index].size;
  int status = shi_cell_resize(heap, index, bytes_of(SHI_KIND_MAP, capacity));
  if (status != SH_OK) return status;
  shi_edges *grown = calloc(1, bytes_of(SHI_KIND_MAP, capacity));
  if (!grown) {
    shi_cell_resize(heap, index, before);
    return shi_fail_no_memory();
  }
  *grown = (shi_edges){.count = capacity, .capacity = capacity, .used = edges->used};
  for (uint32_t k = 0; k < edges->capacity; k++) {
    if (!edges->to[k]) continue;
    uint32_t at = place_of(grown, keys_of(edges)[k]);
    grown->to[at] = edges->to[k];
    keys_of(grown)[at] = keys_of(edges)[k];
  }
  free(heap->cold[index].edges);
  heap->cold[index].edges = grown;
  start_again(heap, index);
  return SH_OK;
}

/* Closes the hole at `at`: what was pushed past it by its own home comes back (Knuth's algorithm R). */
static void take_out(shi_edges *edges, uint32_t at) {
  uint32_t mask = edges->capacity - 1, hole = at;
  for (uint32_t next = (at + 1) & mask; edges->to[next]; next = (next + 1) & mask) {
    uint32_t home = home_of(keys_of(edges)[next], edges->capacity);
    if (((next - home) & mask) < ((next - hole) & mask)) continue; /* its home is behind the hole */
    edges->to[hole] = edges->to[next];
    keys_of(edges)[hole] = keys_of(edges)[next];
    hole = next;
  }
  edges->to[hole] = 0;
  edges->used--;
}

int shi_map_get(shi_heap *heap, shi_holder *holder, uint64_t map, uint64_t key, uint64_t *out) {
  shi_heap_lock(heap);
  const shi_edges *edges = map_of(heap, holder, map);
  int status = edges ? hand_out(heap, holder, edges->to[place_of(edges, key)], out) : SH_INVALID_HANDLE;
  shi_heap_unlock(heap);
  return status;
}

int shi_map_put(shi_heap *heap, shi_holder *holder, uint64_t map, uint64_t key, uint64_t entry) {
  shi_heap_lock(heap);
  int status = map_of(heap, holder, map) && may_store(heap, holder, entry) ? SH_OK : SH_INVALID_HANDLE;
  if (status == SH_OK) shi_capture_before(heap, shi_index_of(map)); /* before its entries move */
  if (status == SH_OK && entry) status = grow_map(heap, map);
  if (status == SH_OK) {
    shi_edges *edges = map_of(heap, holder, map);
    uint32_t at = place_of(edges, key);
    barrier_delete(heap, edges->to[at]);
    if (entry) {
      edges->used += edges->to[at] == 0;
      edges->to[at] = entry;
      keys_of(edges)[at] = key;
      refers_to(heap, entry);
    } else if (edges->to[at]) {
      take_out(edges, at);
      start_again(heap, shi_index_of(map));
    }
  }
  shi_heap_unlock(heap);
  return status;
}

int shi_container_length(shi_heap *heap, shi_holder *holder, uint64_t container, uint64_t *out) {
  shi_heap_lock(heap);
  shi_hot *cell = shi_cell_find(heap, holder, container, 0);
  int status = status_of(cell);
  if (cell && !is_container(shi_kind_of(container))) status = shi_fail_handle(container, "is no container");
  if (status == SH_OK) {
    const shi_edges *edges = heap->cold[shi_index_of(container)].edges;
    *out = shi_kind_of(container) == SHI_KIND_MAP ? edges->used : edges->count;
  }
  shi_heap_unlock(heap);
  return status;
}
