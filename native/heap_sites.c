/* Two tables with an index by hash each: open addressing, at most a quarter full. Nothing is ever taken out. */
#include "heap_sites.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

uint32_t shi_ticks_since(uint64_t from_ns) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  uint64_t ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
  return ns > from_ns ? (uint32_t)((ns - from_ns) >> SHI_TICK_SHIFT) : 0;
}

shi_sites *shi_sites_new(void) {
  shi_sites *sites = calloc(1, sizeof *sites); /* most of it is never touched */
  if (!sites) return NULL;
  sites->source_count = sites->site_count = 1;
  sites->sources[0].others = 1;
  return sites;
}

void shi_sites_free(shi_sites *sites) { free(sites); }

static uint32_t mixed(uint64_t key, uint32_t slots) {
  return (uint32_t)(key * 0x9e3779b97f4a7c15u >> 40) & (slots - 1);
}

/* ---- sources ---------------------------------------------------------------------------------------------------------- */

static uint64_t hash_of(const sh_source *source) { /* FNV-1a over the name; one step more for the rest */
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char *at = source->plugin; *at; at++) hash = (hash ^ (uint8_t)*at) * 0x100000001b3u;
  return (hash ^ source->tenant) * 0x100000001b3u + ((uint64_t)source->node << 2) + source->others + source->host;
}

static bool same_source(const sh_source *a, const sh_source *b) {
  return a->tenant == b->tenant && a->node == b->node && a->others == b->others && a->host == b->host &&
         strcmp(a->plugin, b->plugin) == 0;
}

static uint16_t *slot_of_source(shi_sites *sites, const sh_source *wanted) {
  uint32_t at = mixed(hash_of(wanted), SHI_SOURCE_SLOTS);
  while (sites->source_slots[at] && !same_source(&sites->sources[sites->source_slots[at]], wanted))
    at = (at + 1) & (SHI_SOURCE_SLOTS - 1);
  return &sites->source_slots[at];
}

static uint32_t plugins_of(const shi_sites *sites, uint32_t tenant) {
  uint32_t count = 0;
  for (uint32_t k = 1; k < sites->source_count; k++) count += sites->sources[k].tenant == tenant;
  return count;
}

/* 0: there is no room. */
static uint32_t enter_source(shi_sites *sites, const sh_source *source, bool bounded) {
  uint16_t *slot = slot_of_source(sites, source);
  if (*slot) return *slot;
  if (sites->source_count == SHI_SOURCES_MOST) return 0;
  if (bounded && plugins_of(sites, source->tenant) >= SHI_TENANT_PLUGINS_MOST) return 0;
  sites->sources[sites->source_count] = *source;
  return *slot = (uint16_t)sites->source_count++;
}

/* Names are paths, often. */
static void keep_end(char *to, size_t room, const char *name) {
  static const char ellipsis[] = "\u2026";
  size_t length = strlen(name), cut = sizeof ellipsis - 1;
  if (length < room) cut = 0;
  memcpy(to, ellipsis, cut);
  size_t kept = length < room ? length : room - 1 - cut;
  memcpy(to + cut, name + length - kept, kept);
}

uint32_t shi_source_of(shi_sites *sites, uint32_t tenant, const char *plugin, uint32_t node) {
  sh_source source = {.tenant = tenant, .node = node, .host = plugin == NULL};
  if (plugin) keep_end(source.plugin, sizeof source.plugin, plugin);
  uint32_t index = enter_source(sites, &source, true);
  if (index) return index;
  const sh_source others = {.tenant = tenant, .others = 1};
  return enter_source(sites, &others, false);
}

/* ---- sites ------------------------------------------------------------------------------------------------------------ */

/* 0: there is no room. */
static uint32_t enter_site(shi_sites *sites, uint32_t source, uint32_t kind, uint32_t label) {
  uint32_t at = mixed((uint64_t)label << 20 ^ (uint64_t)source << 8 ^ kind, SHI_SITE_SLOTS), index;
  for (; (index = sites->site_slots[at]) != 0; at = (at + 1) & (SHI_SITE_SLOTS - 1)) {
    const sh_site *site = &sites->sites[index];
    if (site->source == source && site->kind == kind && site->label == label) return index;
  }
  if (sites->site_count == SHI_SITES_MOST) return 0;
  index = sites->site_count++;
  sites->sites[index] = (sh_site){.source = source, .kind = kind, .label = label};
  sites->site_slots[at] = (uint16_t)index;
  return index;
}

uint32_t shi_site_of(shi_sites *sites, uint32_t source, uint32_t kind, uint32_t label) {
  uint32_t index = enter_site(sites, source, kind, label);
  return index || !label ? index : enter_site(sites, source, kind, 0);
}
