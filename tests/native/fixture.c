#include "fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "image.h"

shi_pool_options default_options(void) {
  return (shi_pool_options){.slot_capacity = 16 * MIB,
                            .slot_guard = 64 * KIB,
                            .max_regions = 64,
                            .arena_slots = 16,
                            .policy = SH_POLICY_WARM,
                            .resident_per_slot = 256 * KIB,
                            .resident_total = 64 * MIB,
                            .decay_ns = UINT64_MAX,
                            .queue_bytes = 256 * MIB,
                            .queue_ns = UINT64_C(60000000000)};
}

void fixture_open(pool_fixture *fixture, const shi_pool_options *options) {
  *fixture = (pool_fixture){.host = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_HOST},
                            .tenant = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_TENANT},
                            .guest = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_GUEST},
                            .files_before = open_files()};
  fixture->tenant.parent = &fixture->host;
  fixture->guest.parent = &fixture->tenant;
  CHECK_EQ(shi_pool_create(options, &fixture->pool), 0);
}

/* Anything at all, accessible or not, in [from, from + bytes). */
static bool is_mapped(const uint8_t *from, uint64_t bytes) {
  FILE *maps = fopen("/proc/self/maps", "re");
  char line[512];
  bool found = false;
  while (!found && fgets(line, sizeof line, maps) != NULL) {
    unsigned long start;
    unsigned long end;
    found = sscanf(line, "%lx-%lx", &start, &end) == 2 && start < (uintptr_t)from + bytes && end > (uintptr_t)from;
  }
  fclose(maps);
  return found;
}

void fixture_close(pool_fixture *fixture) {
  enum { MOST = 64 };
  struct {
    uint8_t *base;
    uint64_t bytes;
  } arenas[MOST];
  size_t count = 0;
  for (shi_arena *arena = fixture->pool->arenas; arena != NULL && count < MOST; arena = arena->next) {
    arenas[count].base = arena->base;
    arenas[count++].bytes = arena->layout.arena_bytes;
  }
  no_faults();
  shi_pool_trim(fixture->pool, UINT64_MAX); /* so that nothing moves while it is checked */
  pthread_mutex_lock(&fixture->pool->upkeep); /* its thread may be about to look for what decays */
  CHECK(shi_pool_check(fixture->pool));
  pthread_mutex_unlock(&fixture->pool->upkeep);
  CHECK_EQ(stats(fixture).regions_live, 0);
  CHECK_EQ(stats(fixture).committed_bytes, 0);
  CHECK_EQ(stats(fixture).queued_bytes, 0);
  CHECK_EQ(fixture->guest.used, 0);
  CHECK_EQ(fixture->tenant.used, 0);
  shi_pool_destroy(fixture->pool);
  CHECK_EQ(fixture->host.used, 0);
  for (size_t i = 0; i < count; i++) {
    CHECK(!is_mapped(arenas[i].base, arenas[i].bytes));
  }
  uint64_t images;
  uint64_t image_bytes;
  shi_image_totals(&images, &image_bytes);
  CHECK_EQ(images, 0);
  CHECK_EQ(image_bytes, 0);
  CHECK_EQ(open_files(), fixture->files_before);
}

shi_region *acquire(pool_fixture *fixture, shi_image *image, uint64_t affinity, uint64_t initial) {
  shi_region_request request = {.account = &fixture->guest,
                                .image = image,
                                .affinity = affinity,
                                .initial = initial,
                                .maximum = fixture->pool->options.slot_capacity};
  shi_region *region;
  CHECK_EQ(shi_region_acquire(fixture->pool, &request, &region, NULL), 0);
  return region;
}

sh_reclaim release(pool_fixture *fixture, shi_region *region, int policy) {
  sh_reclaim reclaim = {0};
  CHECK_EQ(shi_region_release(fixture->pool, region, policy, &reclaim), 0);
  return reclaim;
}

sh_pool_stats stats(pool_fixture *fixture) {
  sh_pool_stats stats;
  shi_pool_stats(fixture->pool, &stats);
  return stats;
}

shi_image *make_image(uint64_t length, uint8_t fill) {
  uint8_t *bytes = malloc(length);
  memset(bytes, fill, length);
  shi_image_run run = {.bytes = bytes, .length = length};
  shi_image *image;
  CHECK_EQ(shi_image_create(length, &run, 1, &image), 0);
  free(bytes);
  return image;
}

bool is_all(const uint8_t *bytes, uint64_t length, uint8_t value) {
  return length == 0 || (bytes[0] == value && memcmp(bytes, bytes + 1, length - 1) == 0);
}

bool reads_as(const shi_region *region, uint64_t length, uint8_t fill) {
  return is_all(region->base, length, fill) && is_all(region->base + length, region->committed - length, 0);
}

bool is_readable(const uint8_t *at) {
  int pipe_ends[2];
  CHECK_EQ(pipe2(pipe_ends, O_CLOEXEC), 0);
  ssize_t written = write(pipe_ends[1], at, 1);
  CHECK(written == 1 || errno == EFAULT);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  return written == 1;
}

uint64_t resident_bytes(const uint8_t *at, uint64_t bytes) {
  int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  uint64_t resident = 0;
  for (uint64_t offset = 0; offset < bytes; offset += OS_PAGE) {
    uint64_t entry;
    CHECK_EQ(pread(fd, &entry, sizeof entry, (off_t)(((uintptr_t)at + offset) / OS_PAGE * sizeof entry)), sizeof entry);
    resident += entry >> 63 ? OS_PAGE : 0;
  }
  close(fd);
  return resident;
}

uint64_t process_resident_bytes(void) {
  FILE *statm = fopen("/proc/self/statm", "re");
  unsigned long total;
  unsigned long resident;
  CHECK_EQ(fscanf(statm, "%lu %lu", &total, &resident), 2);
  fclose(statm);
  return resident * UINT64_C(4096);
}

int open_files(void) {
  DIR *directory = opendir("/proc/self/fd");
  int count = -1; /* its own */
  for (struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
    count += entry->d_name[0] != '.';
  }
  closedir(directory);
  return count;
}

int count_mappings(const uint8_t *from, uint64_t bytes) {
  FILE *maps = fopen("/proc/self/maps", "re");
  int count = 0;
  for (char line[4352]; fgets(line, sizeof line, maps);) {
    uintptr_t begin, end;
    count += sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &begin, &end) == 2 && end > (uintptr_t)from &&
             begin - (uintptr_t)from < bytes;
  }
  fclose(maps);
  return count;
}

uint64_t random_next(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C(0x2545F4914F6CDD1D);
}

void no_faults(void) {
  for (int call = 0; call < SH_OS_CALLS; call++) {
    sh_fault_inject(call, 0, 0, 0);
  }
}
