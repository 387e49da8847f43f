/* The table of the handle heap: handles that are stale, foreign, forged or released twice reach nothing. */
#include <errno.h>

#include "bridge.h"
#include "check.h"
#include "heap.h"

static const uint64_t no_limit = UINT64_MAX;

static shi_account host_handles, host_bytes; /* the host's */

static shi_heap *open_heap_within(uint64_t handles_limit, uint64_t bytes_limit) {
  shi_heap *heap;
  host_handles = (shi_account){.limit = handles_limit, .level = SHI_ACCOUNT_HOST};
  host_bytes = (shi_account){.limit = bytes_limit, .level = SHI_ACCOUNT_HOST};
  CHECK_EQ(shi_heap_create(&host_handles, &host_bytes, &heap), SH_OK);
  return heap;
}

static shi_heap *open_heap(void) { return open_heap_within(no_limit, no_limit); }

static void close_heap(shi_heap *heap) {
  shi_heap_check(heap);
  shi_heap_destroy(heap);
}

static shi_holder *holder_of(shi_heap *heap, uint64_t handles_limit, uint64_t bytes_limit) {
  const shi_holder_request request = {.handles_limit = handles_limit, .bytes_limit = bytes_limit};
  shi_holder *holder = shi_holder_new(heap, &request);
  CHECK(holder);
  return holder;
}

enum { KIND = SHI_KIND_FIRST };

static int new_cell(shi_holder *holder, uint64_t size, uint32_t object, uint64_t *handle) {
  const shi_cell_request request = {.kind = KIND, .size = size, .object = object};
  return shi_cell_new(holder, &request, handle);
}

static uint64_t cell(shi_holder *holder) {
  uint64_t handle;
  CHECK_EQ(new_cell(holder, 10, SHI_NONE, &handle), SH_OK);
  return handle;
}

static int release(shi_heap *heap, shi_holder *holder, uint64_t handle) {
  uint32_t left;
  return shi_cell_release(heap, holder, handle, &left);
}

/* No use of it reaches a cell. */
static void is_refused(shi_heap *heap, shi_holder *holder, uint64_t handle) {
  uint32_t object = 12345;
  uint64_t out;
  CHECK_EQ(shi_cell_object(heap, holder, handle, 0, &object), SH_INVALID_HANDLE);
  CHECK_EQ(object, 12345);
  CHECK_EQ(shi_cell_size(heap, holder, handle, &out), SH_INVALID_HANDLE);
  CHECK_EQ(shi_cell_retain(heap, holder, handle, &out), SH_INVALID_HANDLE);
  CHECK_EQ(release(heap, holder, handle), SH_INVALID_HANDLE);
  CHECK_EQ(shi_cell_weak(heap, holder, handle, &out), SH_INVALID_HANDLE);
  CHECK_EQ(shi_list_push(heap, holder, handle, 0), SH_INVALID_HANDLE);
  CHECK_EQ(shi_map_put(heap, holder, handle, 0, 0), SH_INVALID_HANDLE);
  shi_error_forget();
}

static void a_handle_finds_its_object(void) {
  shi_heap *heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, no_limit);
  uint64_t handle;
  uint32_t object;
  CHECK_EQ(new_cell(holder, 100, 7, &handle), SH_OK);
  CHECK((int64_t)handle > 0);
  CHECK_EQ(shi_kind_of(handle), KIND);
  CHECK_EQ(shi_cell_object(heap, holder, handle, KIND, &object), SH_OK);
  CHECK_EQ(object, 7);
  CHECK_EQ(shi_cell_object(heap, holder, handle, KIND + 1, &object), SH_INVALID_HANDLE);
  CHECK_EQ(heap->live_bytes, 100);
  shi_holder_close(holder);
  CHECK_EQ(heap->live_cells, 0);
  CHECK_EQ(heap->dropped_count, 1);
  CHECK_EQ(heap->dropped[0], 7);
  close_heap(heap);
}

static void a_released_handle_never_reaches_the_cell_that_follows(void) {
  shi_heap *heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, no_limit);
  uint64_t stale = cell(holder), reused = 0;
  CHECK_EQ(release(heap, holder, stale), SH_OK);
  is_refused(heap, holder, stale);
  for (int k = 0; k < 3 * SHI_QUARANTINE && !reused; k++) {
    uint64_t next = cell(holder);
    if (shi_index_of(next) == shi_index_of(stale)) reused = next;
    CHECK_EQ(release(heap, holder, next), SH_OK);
    is_refused(heap, holder, stale);
  }
  CHECK(reused);
  CHECK(reused != stale);
  close_heap(heap);
}

static void freed_cells_wait_in_line(void) {
  shi_heap *heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, no_limit);
  uint64_t handles[SHI_QUARANTINE + 2];
  for (int k = 0; k < SHI_QUARANTINE + 2; k++) handles[k] = cell(holder);
  for (int k = 0; k < SHI_QUARANTINE; k++) CHECK_EQ(release(heap, holder, handles[k]), SH_OK);
  CHECK_EQ(shi_index_of(cell(holder)), SHI_QUARANTINE + 2); /* not yet used again */
  CHECK_EQ(release(heap, holder, handles[SHI_QUARANTINE]), SH_OK);
  CHECK_EQ(shi_index_of(cell(holder)), 0); /* the one that waited longest */
  close_heap(heap);
}

static void a_cell_is_retired_before_its_generation_comes_again(void) {
  shi_heap *heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, no_limit);
  uint64_t first = cell(holder);
  uint32_t index = shi_index_of(first);
  heap->hot[index].tag = KIND << 24 | (SHI_GENERATIONS - 1);
  uint64_t last = (uint64_t)heap->hot[index].tag << 32 | index;
  CHECK_EQ(release(heap, holder, last), SH_OK);
  CHECK_EQ(heap->retired, 1);
  CHECK_EQ(heap->free_count, 0);
  is_refused(heap, holder, first);
  is_refused(heap, holder, last);
  is_refused(heap, holder, index);
  close_heap(heap);
}

static void what_was_never_given_out_is_refused(void) {
  shi_heap *heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, no_limit);
  uint64_t handle = cell(holder);
  is_refused(heap, holder, 0);
  is_refused(heap, holder, UINT64_MAX);
  is_refused(heap, holder, shi_index_of(handle));          /* no kind, no generation */
  is_refused(heap, holder, handle + 1);                    /* an index past the last */
  is_refused(heap, holder, handle | SHI_CELLS_MOST);       /* past the table */
  is_refused(heap, holder, handle + (UINT64_C(1) << 32));  /* a generation that is yet to come */
  is_refused(heap, holder, handle + (UINT64_C(1) << 56));  /* another kind */
  is_refused(heap, holder, handle | (UINT64_C(1) << 63));
  uint64_t seed = 42;
  for (int k = 0; k < 100000; k++) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    if (seed != handle) CHECK(release(heap, holder, seed) == SH_INVALID_HANDLE);
  }
  CHECK_EQ(heap->live_cells, 1);
  close_heap(heap);
}

static void a_handle_of_another_guest_is_refused(void) {
  shi_heap *heap = open_heap();
  shi_holder *mine = holder_of(heap, no_limit, no_limit), *other = holder_of(heap, no_limit, no_limit);
  uint64_t handle = cell(mine), list, out;
  is_refused(heap, other, handle);
  CHECK_EQ(shi_list_new(other, 0, &list), SH_OK);
  CHECK_EQ(shi_list_push(heap, other, list, handle), SH_INVALID_HANDLE);
  CHECK_EQ(shi_container_length(heap, other, list, &out), SH_OK);
  CHECK_EQ(out, 0);
  close_heap(heap);
}

static void a_handle_is_released_as_often_as_it_is_owned(void) {
  shi_heap *heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, no_limit);
  uint64_t handle = cell(holder), out;
  CHECK_EQ(shi_cell_retain(heap, holder, handle, &out), SH_OK);
  CHECK_EQ(out, handle);
  CHECK_EQ(release(heap, holder, handle), SH_OK);
  CHECK_EQ(shi_cell_size(heap, holder, handle, &out), SH_OK);
  CHECK_EQ(release(heap, holder, handle), SH_OK);
  is_refused(heap, holder, handle);
  CHECK_EQ(heap->frees, 1);
  close_heap(heap);
}

static void a_cell_that_a_list_refers_to_outlives_its_release(void) {
  shi_heap *heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, no_limit);
  uint64_t handle = cell(holder), list, out;
  CHECK_EQ(shi_list_new(holder, 0, &list), SH_OK);
  CHECK_EQ(shi_list_push(heap, holder, list, handle), SH_OK);
  CHECK_EQ(release(heap, holder, handle), SH_OK);
  CHECK_EQ(release(heap, holder, handle), SH_INVALID_HANDLE); /* twice: nobody loses anything */
  CHECK_EQ(shi_list_get(heap, holder, list, 0, &out), SH_OK);
  CHECK_EQ(out, handle);
  CHECK_EQ(release(heap, holder, handle), SH_OK); /* what was read is owned */
  CHECK_EQ(shi_list_get(heap, holder, list, 1, &out), SH_INVALID_HANDLE);
  close_heap(heap);
}

static void limits_hold_for_guest_tenant_and_host(void) {
  shi_heap *heap = open_heap_within(5, 1000);
  shi_account of_tenant = {.parent = &host_handles, .limit = 4, .level = SHI_ACCOUNT_TENANT};
  shi_account bytes_of_tenant = {.parent = &host_bytes, .limit = 500, .level = SHI_ACCOUNT_TENANT};
  const shi_holder_request request = {
      .handles = &of_tenant, .bytes = &bytes_of_tenant, .handles_limit = 3, .bytes_limit = 300};
  shi_holder *a = shi_holder_new(heap, &request), *b = shi_holder_new(heap, &request);
  shi_holder *c = holder_of(heap, no_limit, no_limit);
  uint64_t handle, first = cell(a);
  CHECK_EQ(new_cell(a, 291, SHI_NONE, &handle), SH_OUT_OF_MEMORY);
  CHECK_EQ(shi_error()->level, SH_LEVEL_GUEST);
  cell(a), cell(a);
  CHECK_EQ(new_cell(a, 0, SHI_NONE, &handle), SH_HANDLE_LIMIT);
  CHECK_EQ(shi_error()->limit, 3);
  cell(b);
  CHECK_EQ(new_cell(b, 0, SHI_NONE, &handle), SH_HANDLE_LIMIT);
  CHECK_EQ(shi_error()->limit, 4);
  CHECK_EQ(new_cell(c, 961, SHI_NONE, &handle), SH_OUT_OF_MEMORY);
  CHECK_EQ(shi_error()->level, SH_LEVEL_HOST);
  cell(c);
  CHECK_EQ(new_cell(c, 0, SHI_NONE, &handle), SH_HANDLE_LIMIT);
  CHECK_EQ(shi_error()->limit, 5);
  CHECK_EQ(release(heap, a, first), SH_OK);
  cell(c); /* what one gives back another may take */
  shi_holder_close(a);
  shi_holder_close(b);
  CHECK_EQ(of_tenant.used, 0);
  CHECK_EQ(bytes_of_tenant.used, 0);
  close_heap(heap);
}

static void containers_are_as_large_as_what_they_hold(void) {
  shi_heap *heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, 4096);
  uint64_t list, map, size, entry = cell(holder);
  CHECK_EQ(shi_list_new(holder, 0, &list), SH_OK);
  int status = SH_OK, pushed = 0;
  for (; status == SH_OK; pushed += status == SH_OK) status = shi_list_push(heap, holder, list, entry);
  CHECK_EQ(status, SH_OUT_OF_MEMORY);
  CHECK_EQ(shi_cell_size(heap, holder, list, &size), SH_OK);
  CHECK(size >= (uint64_t)pushed * 8 && size <= 4096);
  CHECK_EQ(release(heap, holder, list), SH_OK);
  CHECK_EQ(holder->bytes.used, 10);
  CHECK_EQ(shi_map_new(holder, &map), SH_OK);
  status = SH_OK;
  for (uint64_t key = 0; status == SH_OK; key++) status = shi_map_put(heap, holder, map, key << 40, entry);
  CHECK_EQ(status, SH_OUT_OF_MEMORY);
  close_heap(heap);
}

static void a_map_keeps_what_was_put_last(void) {
  enum { KEYS = 64, STEPS = 20000 };
  shi_heap *heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, no_limit);
  uint64_t map, entries[8], model[KEYS] = {0}, seed = 7, out, used = 0;
  for (int k = 0; k < 8; k++) entries[k] = cell(holder);
  CHECK_EQ(shi_map_new(holder, &map), SH_OK);
  for (int step = 0; step < STEPS; step++) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    uint64_t key = seed % KEYS, entry = seed >> 20 & 1 ? entries[seed >> 30 & 7] : 0;
    uint64_t spread = key * UINT64_C(0x9e3779b97f4a7c15); /* also keys that share a home */
    CHECK_EQ(shi_map_put(heap, holder, map, key % 2 ? key : spread, entry), SH_OK);
    used += (entry != 0) - (uint64_t)(model[key] != 0);
    model[key] = entry;
    key = seed >> 40 & (KEYS - 1);
    CHECK_EQ(shi_map_get(heap, holder, map, key % 2 ? key : key * UINT64_C(0x9e3779b97f4a7c15), &out), SH_OK);
    CHECK_EQ(out, model[key]);
    CHECK_EQ(shi_container_length(heap, holder, map, &out), SH_OK);
    CHECK_EQ(out, used);
  }
  close_heap(heap);
}

static void what_the_os_refuses_changes_nothing(void) {
  shi_heap *heap = NULL;
  for (uint32_t skip = 0; skip < 2; skip++) {
    sh_fault_inject(SH_OS_MMAP, skip, 1, ENOMEM);
    CHECK_EQ(shi_heap_create(&host_handles, &host_bytes, &heap), SH_NATIVE);
  }
  sh_fault_inject(SH_OS_MMAP, 0, 0, 0);
  heap = open_heap();
  shi_holder *holder = holder_of(heap, no_limit, no_limit);
  uint64_t handle;
  for (uint32_t skip = 0; skip < 2; skip++) {
    sh_fault_inject(SH_OS_MPROTECT, skip, 1, ENOMEM);
    CHECK_EQ(new_cell(holder, 10, 3, &handle), SH_NATIVE);
    shi_heap_check(heap);
    CHECK_EQ(holder->bytes.used, 0);
  }
  sh_fault_inject(SH_OS_MPROTECT, 0, 0, 0);
  CHECK_EQ(new_cell(holder, 10, 3, &handle), SH_OK);
  sh_fault_inject(SH_OS_THREAD, 0, 1, EAGAIN);
  CHECK_EQ(shi_cycle_start(heap), SH_NATIVE);
  sh_fault_inject(SH_OS_THREAD, 0, 0, 0);
  CHECK_EQ(shi_cycle_start(heap), SH_OK);
  CHECK(shi_cycle_wait(heap, UINT64_C(60000000000)));
  close_heap(heap);
}

int main(void) {
  RUN(a_handle_finds_its_object);
  RUN(a_released_handle_never_reaches_the_cell_that_follows);
  RUN(freed_cells_wait_in_line);
  RUN(a_cell_is_retired_before_its_generation_comes_again);
  RUN(what_was_never_given_out_is_refused);
  RUN(a_handle_of_another_guest_is_refused);
  RUN(a_handle_is_released_as_often_as_it_is_owned);
  RUN(a_cell_that_a_list_refers_to_outlives_its_release);
  RUN(limits_hold_for_guest_tenant_and_host);
  RUN(containers_are_as_large_as_what_they_hold);
  RUN(a_map_keeps_what_was_put_last);
  RUN(what_the_os_refuses_changes_nothing);
}
