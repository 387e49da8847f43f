/* What acquire and release cost by the number of OS pages that a guest dirtied: median and 99th percentile in µs.
 *
 *   bench_region [rounds]
 *
 * One thread, and at the end the throughput of several. "touch" is the guest's own writing of one byte a page, with the
 * faults it takes; the columns before and after it are the allocator's. The image is 64 KiB, the memory 17 wasm pages
 * (1.1 MiB) or as large as it takes. */
#include <stdlib.h>
#include <string.h>

#include "fixture.h"

static int compare(const void *a, const void *b) {
  uint64_t left = *(const uint64_t *)a;
  uint64_t right = *(const uint64_t *)b;
  return (left > right) - (left < right);
}

typedef struct {
  uint64_t *ns;
  size_t count;
} series;

static double at(series *samples, double part) {
  qsort(samples->ns, samples->count, sizeof *samples->ns, compare);
  return (double)samples->ns[(size_t)(part * (double)(samples->count - 1))] / 1000.0;
}

static void measure(const char *name, const shi_pool_options *options, int policy, uint64_t pages, size_t rounds) {
  pool_fixture f;
  fixture_open(&f, options);
  shi_image *image = make_image(64 * KIB, 7);
  uint64_t initial = 17 * 64 * KIB;
  initial = initial < pages * OS_PAGE ? pages * OS_PAGE : initial;
  series acquires = {calloc(rounds, sizeof(uint64_t)), rounds};
  series touches = {calloc(rounds, sizeof(uint64_t)), rounds};
  series releases = {calloc(rounds, sizeof(uint64_t)), rounds};
  for (size_t i = 0; i < rounds; i++) {
    uint64_t t0 = shi_os_now_ns();
    shi_region *region = acquire(&f, image, 1, initial);
    uint64_t t1 = shi_os_now_ns();
    for (uint64_t page = 0; page < pages; page++) {
      region->base[page * OS_PAGE] = 1;
    }
    uint64_t t2 = shi_os_now_ns();
    release(&f, region, policy);
    releases.ns[i] = shi_os_now_ns() - t2;
    touches.ns[i] = t2 - t1;
    acquires.ns[i] = t1 - t0;
  }
  printf("%-22s %5lu  %8.2f %8.2f  %8.2f %8.2f  %8.2f %8.2f\n", name, (unsigned long)pages, at(&acquires, 0.5),
         at(&acquires, 0.99), at(&touches, 0.5), at(&touches, 0.99), at(&releases, 0.5), at(&releases, 0.99));
  free(acquires.ns);
  free(touches.ns);
  free(releases.ns);
  shi_image_release(image);
  fixture_close(&f);
}

/* ---- several threads on one pool -------------------------------------------------------------------------------- */

enum { CYCLES = 100000, CYCLE_PAGES = 16 };

static pool_fixture shared;

static void *cycle(void *image) {
  shi_account guest = {.parent = &shared.tenant, .limit = UINT64_MAX, .level = SHI_ACCOUNT_GUEST};
  shi_region_request request = {.account = &guest, .image = image, .initial = 17 * 64 * KIB, .maximum = MIB * 4};
  for (int i = 0; i < CYCLES; i++) {
    shi_region *region;
    sh_reclaim reclaim = {0};
    CHECK_EQ(shi_region_acquire(shared.pool, &request, &region, NULL), 0);
    for (uint64_t page = 0; page < CYCLE_PAGES; page++) {
      region->base[page * OS_PAGE] = 1;
    }
    CHECK_EQ(shi_region_release(shared.pool, region, SH_POLICY_WARM, &reclaim), 0);
  }
  return NULL;
}

static void measure_threads(const shi_pool_options *options, int count) {
  pthread_t threads[16];
  fixture_open(&shared, options);
  shi_image *image = make_image(64 * KIB, 7);
  uint64_t started_ns = shi_os_now_ns();
  for (int i = 0; i < count; i++) {
    pthread_create(&threads[i], NULL, cycle, image);
  }
  for (int i = 0; i < count; i++) {
    pthread_join(threads[i], NULL);
  }
  double seconds = (double)(shi_os_now_ns() - started_ns) / 1e9;
  printf("%d threads, %d pages: %.0f cycles a second\n", count, CYCLE_PAGES, count * CYCLES / seconds);
  shi_image_release(image);
  fixture_close(&shared);
}

int main(int argc, char **argv) {
  static const uint64_t pages[] = {0, 1, 16, 64, 128, 256, 1024};
  size_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 3000;
  shi_pool_options keep = default_options();
  keep.slot_capacity = UINT64_C(4) << 30;
  keep.slot_guard = 32 * MIB;
  keep.resident_per_slot = 8 * MIB;
  keep.queue_ns = 1000000;
  keep.decay_ns = UINT64_C(1000000000);
  shi_pool_options at_once = keep;
  at_once.resident_per_slot = 0;
  at_once.queue_bytes = 0;
  shi_pool_options queue = keep;
  queue.resident_per_slot = 0;
  printf("%-22s %5s  %17s  %17s  %17s\n", "", "pages", "acquire p50   p99", "touch p50     p99", "release p50   p99");
  for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
    measure("warm, in budget", &keep, SH_POLICY_WARM, pages[i], rounds);
    measure("warm, no budget", &at_once, SH_POLICY_WARM, pages[i], rounds);
    measure("warm, queued", &queue, SH_POLICY_WARM, pages[i], rounds);
    measure("immediate", &keep, SH_POLICY_IMMEDIATE, pages[i], rounds);
    measure("lazy", &keep, SH_POLICY_LAZY, pages[i], rounds);
  }
  for (int count = 1; count <= 4; count *= 2) {
    measure_threads(&keep, count);
  }
}
