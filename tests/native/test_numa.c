/* NUMA with made-up machines: a directory that looks like sysfs's, whatever this machine has. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>

#include "fixture.h"

static char directory[] = "/tmp/sandhost-nodes-XXXXXX";

static void put(const char *name, const char *text) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  FILE *file = fopen(path, "we");
  CHECK(file != NULL);
  fputs(text, file);
  fclose(file);
}

static void put_node(int id, const char *cpus) {
  char name[64];
  snprintf(name, sizeof name, "%s/node%d", directory, id);
  mkdir(name, 0700);
  snprintf(name, sizeof name, "node%d/cpulist", id);
  put(name, cpus);
}

static void remove_all(void) {
  static const char *const names[] = {"online", "node0/cpulist", "node1/cpulist", "node3/cpulist", "node5/cpulist",
                                      "node0",  "node1",         "node3",         "node5",         ""};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, names[i]);
    remove(path);
  }
}

static void run_on_cpu(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)cpu, &set);
  CHECK_EQ(sched_setaffinity(0, sizeof set, &set), 0);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static void four_nodes_with_gaps_are_read(void) {
  static shi_numa numa;
  put("online", "0-1,3,5\n");
  put_node(0, "0-2,8\n");
  put_node(1, "3,9-10\n");
  put_node(3, "\n"); /* memory without CPUs */
  put_node(5, "4-7");
  shi_numa_read(&numa, directory);
  CHECK_EQ(numa.count, 4);
  CHECK(numa.ids[0] == 0 && numa.ids[1] == 1 && numa.ids[2] == 3 && numa.ids[3] == 5);
  CHECK(numa.cpu_count[0] == 4 && numa.cpu_count[1] == 3 && numa.cpu_count[2] == 0 && numa.cpu_count[3] == 4);
  CHECK(numa.cpus[8].node == 0 && numa.cpus[8].order == 3);
  CHECK(numa.cpus[10].node == 1 && numa.cpus[10].order == 2);
  CHECK(numa.cpus[7].node == 3 && numa.cpus[7].order == 3);
}

static void what_can_not_be_read_makes_one_node(void) {
  static shi_numa numa;
  static const char *const texts[] = {"", "nonsense", "0-", "7", "0-4000000000", "9999999999999999999999"};
  put_node(0, "0");
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    put("online", texts[i]);
    shi_numa_read(&numa, directory);
    CHECK_EQ(numa.count, 1);
    CHECK_EQ(numa.ids[0], 0);
  }
  shi_numa_read(&numa, "/nonexistent");
  CHECK_EQ(numa.count, 1);
  CHECK(numa.cpu_count[0] >= 1);
}

/* ---- pools ------------------------------------------------------------------------------------------------------ */

static void a_region_comes_from_the_node_of_its_thread(void) {
  put("online", "0-1");
  put_node(0, "0");
  put_node(1, "1");
  shi_pool_options options = default_options();
  options.sysfs_node = directory;
  options.max_regions = 4;
  options.arena_slots = 2;
  for (int bind = 0; bind <= 1; bind++) {
    pool_fixture f;
    options.numa_bind = bind;
    fixture_open(&f, &options);
    CHECK_EQ(stats(&f).nodes, 2);
    run_on_cpu(0);
    shi_region *a = acquire(&f, NULL, 1, 64 * KIB);
    CHECK_EQ(shi_slot_of(a)->arena->node, 0);
    run_on_cpu(1);
    shi_region *b = acquire(&f, NULL, 1, 64 * KIB);
    CHECK_EQ(shi_slot_of(b)->arena->node, 1);
    b->base[0] = 1; /* also where the machine has no such node */
    shi_region *c = acquire(&f, NULL, 1, 64 * KIB);
    shi_region *d = acquire(&f, NULL, 1, 64 * KIB); /* node 1 is full, and no arena can be added: from node 0 */
    CHECK_EQ(shi_slot_of(c)->arena->node, 1);
    CHECK_EQ(shi_slot_of(d)->arena->node, 0);
    release(&f, a, -1);
    release(&f, b, -1);
    release(&f, c, -1);
    release(&f, d, -1);
    CHECK_EQ(shi_slot_of(acquire(&f, NULL, 1, 64 * KIB))->arena->node, 1);
    release(&f, c, -1);
    fixture_close(&f);
  }
}

static void a_slot_goes_back_to_its_node_from_wherever_it_is_released(void) {
  put("online", "0-1");
  put_node(0, "0");
  put_node(1, "1");
  shi_pool_options options = default_options();
  options.sysfs_node = directory;
  options.max_regions = options.arena_slots = 2;
  pool_fixture f;
  fixture_open(&f, &options);
  run_on_cpu(1);
  shi_region *far = acquire(&f, NULL, 1, 64 * KIB);
  memset(far->base, 7, 64 * KIB);
  run_on_cpu(0);
  release(&f, far, -1);
  sh_node_stats nodes[2];
  CHECK_EQ(shi_pool_node_stats(f.pool, nodes, 2), 2);
  CHECK_EQ(nodes[0].warm_bytes, 0);
  CHECK_EQ(nodes[1].warm_bytes, 64 * KIB);
  run_on_cpu(1);
  CHECK(acquire(&f, NULL, 1, 64 * KIB) == far);
  CHECK(is_all(far->base, 64 * KIB, 0));
  release(&f, far, -1);
  fixture_close(&f);
}

/* ---- figures ---------------------------------------------------------------------------------------------------- */

static bool one_real_node(void) {
  static shi_numa real;
  shi_numa_read(&real, NULL);
  return real.count == 1 && real.ids[0] == 0;
}

static void figures_tell_what_each_node_holds(void) {
  put("online", "0-1,3,5\n");
  put_node(0, "0");
  put_node(1, "1");
  put_node(3, "\n");
  put_node(5, "2-7");
  shi_pool_options options = default_options();
  options.sysfs_node = directory;
  pool_fixture f;
  fixture_open(&f, &options);
  shi_image *image = make_image(64 * KIB, 1);
  run_on_cpu(0);
  shi_region *a = acquire(&f, image, 1, 256 * KIB);
  memset(a->base, 7, 3 * OS_PAGE);
  uint8_t last = a->base[255 * KIB]; /* the zero page, and a page of the image: nobody's own */
  last = (uint8_t)(last | a->base[32 * KIB]);
  CHECK_EQ(last, 1);
  run_on_cpu(1);
  shi_region *b = acquire(&f, NULL, 1, 128 * KIB), *c = acquire(&f, NULL, 1, 64 * KIB);
  memset(b->base, 7, 16 * OS_PAGE);
  memset(c->base, 7, 2 * OS_PAGE);
  release(&f, c, SH_POLICY_WARM);

  sh_node_stats nodes[4];
  CHECK_EQ(shi_pool_node_stats(f.pool, nodes, 1), 4); /* as many as there is room for */
  CHECK_EQ(shi_pool_node_stats(f.pool, nodes, 4), 4);
  static const uint64_t ids[] = {0, 1, 3, 5}, cpus[] = {1, 1, 0, 6}, live[] = {1, 1, 0, 0}, warm[] = {0, 1, 0, 0};
  static const uint64_t committed[] = {256 * KIB, 128 * KIB, 0, 0};
  for (int k = 0; k < 4; k++) {
    CHECK_EQ(nodes[k].node, ids[k]);
    CHECK_EQ(nodes[k].cpus, cpus[k]);
    CHECK_EQ(nodes[k].slots_live, live[k]);
    CHECK_EQ(nodes[k].slots_warm, warm[k]);
    CHECK_EQ(nodes[k].committed_bytes, committed[k]);
    CHECK_EQ(nodes[k].warm_bytes, warm[k] * 2 * OS_PAGE);
  }
  if (f.pool->pagemap.can_scan) {
    static const uint64_t resident[] = {3, 16 + 2, 0, 0};
    for (int k = 0; k < 4; k++) {
      CHECK_EQ(nodes[k].resident_bytes, resident[k] * OS_PAGE);
    }
    if (one_real_node()) { /* all pages lie on node 0, also those that should not */
      CHECK_EQ(nodes[0].local_bytes, 3 * OS_PAGE);
      CHECK_EQ(nodes[1].local_bytes, 0);
    }
    sh_fault_inject(SH_OS_MOVE_PAGES, 0, 4, ENOSYS);
    shi_pool_node_stats(f.pool, nodes, 4);
    CHECK_EQ(nodes[0].resident_bytes, 3 * OS_PAGE);
    CHECK(nodes[0].local_bytes == SH_UNKNOWN);
    sh_fault_inject(SH_OS_MOVE_PAGES, 0, 0, 0);
    sh_fault_inject(SH_OS_PAGEMAP_SCAN, 0, 4, EIO);
    shi_pool_node_stats(f.pool, nodes, 4);
    CHECK(nodes[0].resident_bytes == SH_UNKNOWN && nodes[0].local_bytes == SH_UNKNOWN);
    CHECK_EQ(nodes[0].slots_live, 1);
    sh_fault_inject(SH_OS_PAGEMAP_SCAN, 0, 0, 0);
  }
  release(&f, a, -1);
  release(&f, b, -1);
  shi_image_release(image);
  fixture_close(&f);
}

static void a_large_node_is_estimated_from_a_sample(void) {
  enum { PAGES = 3 * 4096 + 100 };
  shi_pool_options options = default_options();
  options.slot_capacity = (uint64_t)PAGES * OS_PAGE;
  options.max_regions = options.arena_slots = 1;
  pool_fixture f;
  fixture_open(&f, &options);
  shi_region *region = acquire(&f, NULL, 1, (uint64_t)PAGES * OS_PAGE);
  memset(region->base, 7, (uint64_t)PAGES * OS_PAGE);
  sh_node_stats node;
  shi_pool_node_stats(f.pool, &node, 1);
  if (f.pool->pagemap.can_scan) {
    CHECK_EQ(node.resident_bytes, (uint64_t)PAGES * OS_PAGE);
    if (one_real_node()) {
      CHECK_EQ(node.local_bytes, (uint64_t)PAGES * OS_PAGE);
    }
  }
  release(&f, region, -1);
  fixture_close(&f);
}

static bool has_policy(const uint8_t *at, const char *policy) {
  FILE *maps = fopen("/proc/self/numa_maps", "re");
  char line[1024];
  char wanted[64];
  snprintf(wanted, sizeof wanted, "%lx %s", (unsigned long)(uintptr_t)at, policy);
  bool found = false;
  while (maps != NULL && !found && fgets(line, sizeof line, maps) != NULL) {
    found = strncmp(line, wanted, strlen(wanted)) == 0;
  }
  if (maps != NULL) {
    fclose(maps);
  }
  return found;
}

static void the_kernel_knows_the_policy_of_a_region(void) {
  for (int bind = 0; bind <= 1; bind++) {
    shi_pool_options options = default_options();
    options.numa_bind = bind;
    options.max_regions = options.arena_slots = 1;
    pool_fixture f;
    fixture_open(&f, &options);
    shi_image *image = make_image(64 * KIB, 1);
    release(&f, acquire(&f, image, 1, 128 * KIB), -1);
    shi_region *region = acquire(&f, NULL, 1, 128 * KIB); /* mapped over the image: a new mapping */
    CHECK_EQ(stats(&f).numa_refused, 0);
    CHECK(has_policy(region->base, bind ? "bind:0" : "prefer:0"));
    release(&f, region, -1);
    shi_image_release(image);
    fixture_close(&f);
  }
}

static void a_node_that_the_kernel_refuses_is_counted_and_does_no_harm(void) {
  shi_pool_options options = default_options();
  pool_fixture f;
  fixture_open(&f, &options);
  sh_fault_inject(SH_OS_MBIND, 0, 1, EINVAL);
  shi_region *region = acquire(&f, NULL, 1, 64 * KIB);
  region->base[0] = 1;
  CHECK_EQ(stats(&f).numa_refused, 1);
  release(&f, region, -1);
  fixture_close(&f);
}

int main(void) {
  CHECK(mkdtemp(directory) != NULL);
  RUN(four_nodes_with_gaps_are_read);
  RUN(what_can_not_be_read_makes_one_node);
  if (sysconf(_SC_NPROCESSORS_ONLN) > 1) {
    RUN(a_region_comes_from_the_node_of_its_thread);
    RUN(a_slot_goes_back_to_its_node_from_wherever_it_is_released);
    RUN(figures_tell_what_each_node_holds);
  }
  RUN(a_large_node_is_estimated_from_a_sample);
  if (access("/proc/self/numa_maps", R_OK) == 0) {
    RUN(the_kernel_knows_the_policy_of_a_region);
  }
  RUN(a_node_that_the_kernel_refuses_is_counted_and_does_no_harm);
  remove_all();
}
