/* A hundred million operations on handles by two threads, collections beside them, and nothing left at the end. Not run
 * with the others: `./run test slow`, or `tests/native/run plain soak`. */
#include <stdatomic.h>

#include "bridge.h"
#include "check.h"
#include "heap.h"

enum { THREADS = 2, SLOTS = 4096, KIND = SHI_KIND_FIRST, LIVES = 1000 };
static const uint64_t operations = 100000000;
static const uint64_t no_limit = UINT64_MAX;

static shi_account host_handles = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_HOST};
static shi_account host_bytes = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_HOST};
static shi_heap *heap;
static _Atomic uint64_t done, objects, refused;
static _Atomic int running = THREADS;

static uint64_t made(shi_holder *holder, bool object) {
  const shi_cell_request request = {.kind = KIND, .size = 16, .object = object ? 1 : SHI_NONE};
  uint64_t handle;
  CHECK_EQ(shi_cell_new(holder, &request, &handle), SH_OK);
  if (object) atomic_fetch_add(&objects, 1);
  return handle;
}

static void release(shi_holder *holder, uint64_t handle) {
  uint32_t left;
  CHECK_EQ(shi_cell_release(heap, holder, handle, &left), SH_OK);
}

static void must_be_refused(shi_holder *holder, uint64_t handle) {
  uint64_t size;
  CHECK_EQ(shi_cell_size(heap, holder, handle, &size), SH_INVALID_HANDLE);
  shi_error_forget();
  atomic_fetch_add_explicit(&refused, 1, memory_order_relaxed);
}

static uint64_t made_list(shi_holder *holder) {
  uint64_t list;
  CHECK_EQ(shi_list_new(holder, 0, &list), SH_OK);
  return list;
}

/* Slots hold handles that are owned once each, lists at even places. Returns how many operations it was. */
static uint64_t act(shi_holder *holder, uint64_t *slots, uint64_t random) {
  uint32_t at = (uint32_t)(random >> 8) % SLOTS, other = (uint32_t)(random >> 32) % SLOTS;
  uint64_t *slot = &slots[at], *list = &slots[other & ~1u], out, size;
  if (!*slot) {
    *slot = at % 2 ? made(holder, random & 1) : made_list(holder);
    return 1;
  }
  switch (random & 7) {
  case 0:
  case 1: { /* lists refer to each other, in circles too */
    if (!*list) return 0;
    CHECK_EQ(shi_list_push(heap, holder, *list, *slot), SH_OK);
    CHECK_EQ(shi_container_length(heap, holder, *list, &size), SH_OK);
    if (size < 8) return 2;
    CHECK_EQ(shi_list_pop(heap, holder, *list, &out), SH_OK);
    release(holder, out);
    return 4;
  }
  case 2:
    CHECK_EQ(shi_cell_weak(heap, holder, *slot, &out), SH_OK);
    CHECK_EQ(shi_cell_retain(heap, holder, out, &size), SH_OK);
    CHECK_EQ(size, *slot);
    release(holder, size);
    release(holder, out);
    must_be_refused(holder, out);
    return 5;
  case 3:
    CHECK_EQ(shi_cell_pin(heap, *slot, 1), SH_OK);
    CHECK_EQ(shi_cell_pin(heap, *slot, -1), SH_OK);
    return 2;
  case 4:
    CHECK_EQ(shi_cell_size(heap, holder, *slot, &size), SH_OK);
    must_be_refused(heap->holders[0], *slot);
    return 2;
  default:
    release(holder, *slot); /* a list may still have it */
    *slot = 0;
    return 1;
  }
}

static void *mutate(void *argument) {
  uint64_t seed = (uint64_t)(uintptr_t)argument, mine = 0;
  const shi_holder_request request = {.handles_limit = no_limit, .bytes_limit = no_limit};
  for (int life = 0; life < LIVES; life++) {
    shi_holder *holder = shi_holder_new(heap, &request);
    CHECK(holder);
    uint64_t slots[SLOTS] = {0}, in_life = 0;
    while (in_life < operations / THREADS / LIVES) {
      seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
      in_life += act(holder, slots, seed);
    }
    mine += in_life;
    shi_holder_close(holder);
  }
  atomic_fetch_add(&done, mine);
  atomic_fetch_sub(&running, 1);
  return NULL;
}

static uint64_t take_dropped(void) {
  uint32_t places[1024], count;
  uint64_t taken = 0;
  while ((count = sh_heap_dropped(heap, places, 1024)) != 0) taken += count;
  return taken;
}

static void a_hundred_million_operations_leave_nothing(void) {
  CHECK_EQ(shi_heap_create(&host_handles, &host_bytes, &heap), SH_OK);
  pthread_t threads[THREADS];
  for (uintptr_t k = 0; k < THREADS; k++) CHECK_EQ(pthread_create(&threads[k], NULL, mutate, (void *)(k + 1)), 0);
  uint64_t taken = 0, checks = 0;
  while (atomic_load(&running)) {
    CHECK_EQ(shi_cycle_start(heap), SH_OK);
    CHECK(shi_cycle_wait(heap, UINT64_C(60000000000)));
    taken += take_dropped();
    if (heap->cycles % 64) continue;
    shi_heap_lock(heap);
    shi_heap_check(heap);
    shi_heap_unlock(heap);
    checks++;
  }
  for (int k = 0; k < THREADS; k++) pthread_join(threads[k], NULL);
  CHECK_EQ(shi_cycle_start(heap), SH_OK);
  CHECK(shi_cycle_wait(heap, UINT64_C(60000000000)));
  taken += take_dropped();
  CHECK(atomic_load(&done) >= operations);
  CHECK(atomic_load(&refused) > operations / 100 && checks > 0);
  CHECK_EQ(taken, atomic_load(&objects));
  CHECK_EQ(heap->live_cells, 0);
  CHECK_EQ(heap->live_bytes, 0);
  CHECK_EQ(heap->allocs, heap->frees);
  CHECK_EQ(heap->alloc_bytes, heap->free_bytes);
  CHECK_EQ(heap->objects + heap->dropped_count, 0);
  CHECK_EQ(heap->free_count + heap->retired, heap->count);
  CHECK_EQ(atomic_load(&host_handles.used), 0);
  CHECK_EQ(atomic_load(&host_bytes.used), 0);
  CHECK(heap->holder_count <= THREADS + 1);
  printf("%llu operations, %llu handles, %llu cycles, %llu refused\n", (unsigned long long)atomic_load(&done),
         (unsigned long long)heap->allocs, (unsigned long long)heap->cycles, (unsigned long long)atomic_load(&refused));
  shi_heap_destroy(heap);
}

int main(void) { RUN(a_hundred_million_operations_leave_nothing); }
