/* What handles are counted under: exact counters that outlive the guests they are about.
 *
 *   source   tenant x plugin x node                 once for each holder
 *   site     source x kind x label                  once for each cell
 *
 * Names of plugins and labels are other people's, and there is no end of them, so both tables are: who comes when there is
 * no room is counted under less. A cell remembers its site, so what is in use is allocs - frees at each of them, exactly.
 *
 *   a source   its own ──► its tenant's "others" (a tenant may name so many plugins) ──► source 0, everybody's
 *   a site     its own ──► the same without the label                               ──► site 0, anything of anybody's
 */
#ifndef SANDHOST_HEAP_SITES_H
#define SANDHOST_HEAP_SITES_H

#include <stdbool.h>
#include <stdint.h>

#include "sandhost.h"

/* All arbitrary. A slot of the index is a uint16_t. */
enum { SHI_SOURCES_MOST = 1024, SHI_TENANT_PLUGINS_MOST = 64, SHI_SITES_MOST = 4096 };
enum { SHI_SITE_SLOTS = 4 * SHI_SITES_MOST, SHI_SOURCE_SLOTS = 4 * SHI_SOURCES_MOST };

/* Entries are appended and never moved; a source never changes, a site counts. Entry 0 of both is everything else's. */
typedef struct {
  sh_site sites[SHI_SITES_MOST];
  sh_source sources[SHI_SOURCES_MOST];
  uint32_t site_count, source_count;
  uint16_t site_slots[SHI_SITE_SLOTS], source_slots[SHI_SOURCE_SLOTS]; /* 0: free */
} shi_sites;

/* What the heap keeps of each cell beside hot and cold (heap.h): written at its birth, read by captures and at its end. */
typedef struct {
  uint32_t born; /* ticks of the heap's clock */
  uint32_t site;
} shi_origin;

/* A tick is 2^23 ns, 8.4 ms: after 417 days a clock begins anew, and who is older than that looks younger. */
enum { SHI_TICK_SHIFT = 23 };
/* Ticks since `from_ns`, read from a clock that costs 5 ns and is some ms late. */
uint32_t shi_ticks_since(uint64_t from_ns);

shi_sites *shi_sites_new(void); /* NULL: no memory */
void shi_sites_free(shi_sites *sites);
/* The index of a source. `plugin`: its name, of which the end is kept; NULL: the host itself. */
uint32_t shi_source_of(shi_sites *sites, uint32_t tenant, const char *plugin, uint32_t node);
uint32_t shi_site_of(shi_sites *sites, uint32_t source, uint32_t kind, uint32_t label);

static inline void shi_site_allocates(shi_sites *sites, uint32_t site, uint64_t cells, uint64_t bytes) {
  sites->sites[site].allocs += cells;
  sites->sites[site].alloc_bytes += bytes;
}
static inline void shi_site_frees(shi_sites *sites, uint32_t site, uint64_t cells, uint64_t bytes) {
  sites->sites[site].frees += cells;
  sites->sites[site].free_bytes += bytes;
}

#endif
