/* Figures of each NUMA node: what its slots hold, and on which node the kernel has put their pages.
 *
 * Nobody is stopped. What is live is read from words that are atomic anyway; where pages lie the kernel says: pagemap
 * which there are, in one walk over each arena, and move_pages(2), asked and not told, on which node a sample of them is.
 */
#include <stdlib.h>

#include "pool.h"

enum { SAMPLE_PAGES = 4096, RUNS = 256 }; /* one call for each 4,096 pages; a page takes it 0.1 us or so */

/* What a walk over a node's pages does with them. */
typedef struct {
  uint64_t pages;  /* seen so far */
  uint64_t stride; /* every so-manieth is sampled; 0: none, they are counted */
  void **sample;
  size_t sampled;
} page_walk;

static void visit(page_walk *walk, uint64_t start, uint64_t end, uint64_t os_page) {
  for (uint64_t at = start; walk->stride > 0 && at < end && walk->sampled < SAMPLE_PAGES; at += os_page) {
    if ((walk->pages + (at - start) / os_page) % walk->stride == 0) {
      walk->sample[walk->sampled++] = (void *)(uintptr_t)at;
    }
  }
  walk->pages += (end - start) / os_page;
}

/* Private pages in RAM of all the node's slots that were ever used. 0 or a negative errno. */
static int walk_node(const shi_pool *pool, uint32_t node, page_walk *walk) {
  shi_os_run runs[RUNS];
  for (const shi_arena *arena = atomic_load(&pool->arenas); arena != NULL; arena = arena->next) {
    if (arena->node != node) {
      continue;
    }
    uint64_t at = (uint64_t)(uintptr_t)arena->base;
    uint64_t end = at + shi_layout_slot_offset(&arena->layout, atomic_load(&arena->opened));
    while (at < end) {
      int count = shi_os_pages(&pool->pagemap, at, end, SHI_OS_PRIVATE, 0, runs, RUNS, &at);
      if (count < 0) {
        return count;
      }
      for (int i = 0; i < count; i++) {
        if (!(runs[i].categories & (SHI_OS_SWAPPED | SHI_OS_ZERO_PAGE))) {
          visit(walk, runs[i].start, runs[i].end, pool->os_page);
        }
      }
    }
  }
  return 0;
}

/* How many of the sample lie on the node; -1: the kernel does not say. */
static int64_t sample_on(void **sample, size_t count, uint32_t node) {
  static const int nowhere = -1; /* gone meanwhile: the kernel writes a negative errno */
  int *nodes = malloc((count ? count : 1) * sizeof *nodes);
  if (nodes == NULL) {
    return -1;
  }
  for (size_t i = 0; i < count; i++) {
    nodes[i] = nowhere;
  }
  int64_t here = 0;
  if (shi_os_nodes_of(sample, count, nodes) != 0) {
    here = -1;
  }
  for (size_t i = 0; here >= 0 && i < count; i++) {
    here += nodes[i] == (int)node;
  }
  free(nodes);
  return here;
}

static void find_pages(const shi_pool *pool, uint32_t node, sh_node_stats *out) {
  out->resident_bytes = out->local_bytes = SH_UNKNOWN;
  if (!pool->pagemap.can_scan) {
    return; /* to read entries of terabytes one by one would take minutes */
  }
  page_walk counting = {0};
  if (walk_node(pool, node, &counting) != 0) {
    return;
  }
  out->resident_bytes = counting.pages * pool->os_page;
  void **sample = malloc(SAMPLE_PAGES * sizeof *sample);
  page_walk sampling = {.stride = counting.pages / SAMPLE_PAGES + 1, .sample = sample};
  if (sample != NULL && walk_node(pool, node, &sampling) == 0) {
    int64_t here = sample_on(sample, sampling.sampled, pool->numa.ids[node]);
    if (here >= 0) {
      out->local_bytes = sampling.sampled == 0 ? 0 : counting.pages * (uint64_t)here / sampling.sampled * pool->os_page;
    }
  }
  free(sample);
}

static void count_slots(const shi_pool *pool, uint32_t node, sh_node_stats *out) {
  for (const shi_arena *arena = atomic_load(&pool->arenas); arena != NULL; arena = arena->next) {
    uint32_t opened = arena->node == node ? atomic_load(&arena->opened) : 0;
    for (uint32_t i = 0; i < opened; i++) {
      const shi_slot *slot = &arena->slots[i];
      if (atomic_load(&slot->pins) != SHI_PINS_CLOSED) {
        uint64_t size = atomic_load_explicit(&slot->region.size, memory_order_acquire);
        out->slots_live++;
        out->committed_bytes += (size + pool->os_page - 1) / pool->os_page * pool->os_page;
      }
    }
  }
  for (uint32_t s = 0; s < pool->nodes[node].shard_count; s++) {
    shi_shard_count_warm(&pool->nodes[node].shards[s], &out->slots_warm, &out->warm_bytes);
  }
}

uint32_t shi_pool_node_stats(shi_pool *pool, sh_node_stats *out, uint32_t room) {
  uint32_t count = atomic_load(&pool->forked) ? 0 : pool->numa.count;
  for (uint32_t node = 0; node < count && node < room; node++) {
    out[node] = (sh_node_stats){.node = pool->numa.ids[node], .cpus = pool->numa.cpu_count[node]};
    count_slots(pool, node, &out[node]);
    find_pages(pool, node, &out[node]);
  }
  return count;
}
