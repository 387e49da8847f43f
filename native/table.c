/* The table of guests: chunks of structs that are never freed, and who gets which.
 *
 *   stripe (one for each copy of counters.h, so mostly one thread's)
 *     last  ─► the guest that ended here last; it still holds its plugin and its snapshot, for the next of the same
 *     free  ─► [ ] ─► [ ] ─► ...                                    these hold nothing
 *
 * So a thread that spawns and ends guests of one plugin meets the same struct again, warm in its cache, and writes to no
 * word of others: not the list, not the counts of references. A plugin that is let go of is taken from all `last`.
 */
#include <stdlib.h>

#include "snapshot.h"

enum { CHUNK = 1024, CHUNKS = 4096 }; /* 2^22 guests: an index is a region's owner, of 24 bits */
static shi_guest *_Atomic chunks[CHUNKS];
static uint32_t table_size; /* structs handed out so far; under `growth` */
static pthread_mutex_t growth = PTHREAD_MUTEX_INITIALIZER;

typedef struct {
  pthread_mutex_t lock;
  shi_guest *last, *free;
  uint8_t apart[SHI_APART];
} stripe;

#define STRIPE {.lock = PTHREAD_MUTEX_INITIALIZER}
#define FOUR_STRIPES STRIPE, STRIPE, STRIPE, STRIPE
static stripe stripes[] = {FOUR_STRIPES, FOUR_STRIPES, FOUR_STRIPES, FOUR_STRIPES};
_Static_assert(sizeof stripes / sizeof *stripes == SHI_COPIES, "a stripe for each copy");

shi_guest *shi_guest_at(uint32_t index) {
  shi_guest *chunk = index / CHUNK < CHUNKS ? atomic_load_explicit(&chunks[index / CHUNK], memory_order_acquire) : NULL;
  return chunk ? &chunk[index % CHUNK] : NULL;
}

uint32_t shi_guest_table_size(void) {
  pthread_mutex_lock(&growth);
  uint32_t size = table_size;
  pthread_mutex_unlock(&growth);
  return size;
}

/* ---- what a guest holds ------------------------------------------------------------------------------------------ */

typedef struct {
  sh_plugin *plugin;
  sh_snapshot *snapshot;
} origin; /* a reference to each */

static void hold(shi_guest *guest, sh_plugin *plugin, sh_snapshot *snapshot) {
  atomic_fetch_add_explicit(&plugin->references, 1, memory_order_relaxed);
  if (snapshot) atomic_fetch_add_explicit(&snapshot->references, 1, memory_order_relaxed);
  guest->plugin = plugin;
  guest->snapshot = snapshot;
}

static origin strip(shi_guest *guest) {
  origin held = {.plugin = guest->plugin, .snapshot = guest->snapshot};
  guest->plugin = NULL;
  guest->snapshot = NULL;
  return held;
}

/* Under no lock: it may be the end of a plugin. */
static void let_go(origin held) {
  shi_snapshot_release(held.snapshot);
  if (held.plugin) shi_plugin_release(held.plugin);
}

/* ---- taking and putting ------------------------------------------------------------------------------------------ */

static void push(stripe *in, shi_guest *guest) {
  guest->next_free = in->free;
  in->free = guest;
}

static shi_guest *pop(stripe *from) {
  pthread_mutex_lock(&from->lock);
  shi_guest *guest = from->last;
  if (guest) {
    from->last = NULL;
  } else if ((guest = from->free)) {
    from->free = guest->next_free;
  }
  pthread_mutex_unlock(&from->lock);
  return guest;
}

static shi_guest *grow(void) {
  shi_guest *guest = NULL;
  pthread_mutex_lock(&growth);
  if (table_size < CHUNK * CHUNKS) {
    uint32_t index = table_size;
    if (index % CHUNK == 0)
      atomic_store_explicit(&chunks[index / CHUNK], calloc(CHUNK, sizeof(shi_guest)), memory_order_release);
    guest = shi_guest_at(index);
    if (guest) {
      guest->index = index;
      pthread_mutex_init(&guest->mutex, NULL);
      atomic_store(&guest->state, (uint64_t)1 << 32 | SHI_FREE);
      table_size++;
    }
  }
  pthread_mutex_unlock(&growth);
  return guest;
}

shi_guest *shi_guest_take(sh_plugin *plugin, sh_snapshot *snapshot) {
  shi_guest *guest = NULL;
  uint32_t own = shi_copy();
  for (uint32_t k = 0; !guest && k < SHI_COPIES; k++) guest = pop(&stripes[(own + k) % SHI_COPIES]);
  if (!guest) guest = grow();
  if (!guest || (guest->plugin == plugin && guest->snapshot == snapshot)) return guest;
  let_go(strip(guest));
  hold(guest, plugin, snapshot);
  return guest;
}

static bool unloaded(const shi_guest *guest) {
  return atomic_load(&guest->plugin->unloaded) || (guest->snapshot && atomic_load(&guest->snapshot->unloaded));
}

void shi_guest_put(shi_guest *guest) {
  uint64_t generation = (atomic_load(&guest->state) >> 32) + 1;
  atomic_store(&guest->state, generation << 32 | SHI_FREE);
  if (generation == UINT32_MAX) { /* never used again */
    let_go(strip(guest));
    return;
  }
  stripe *in = &stripes[shi_copy()];
  pthread_mutex_lock(&in->lock);
  shi_guest *freed = guest; /* the one that is to hold nothing */
  if (!unloaded(guest)) {   /* asked under the lock: it is set before the lock is taken to look for the plugin here */
    freed = in->last;
    in->last = guest;
  }
  origin held = {0};
  if (freed) {
    held = strip(freed);
    push(in, freed);
  }
  pthread_mutex_unlock(&in->lock);
  let_go(held);
}

void shi_guests_let_go_of(const sh_plugin *plugin, const sh_snapshot *snapshot) {
  for (uint32_t k = 0; k < SHI_COPIES; k++) {
    stripe *at = &stripes[k];
    origin held = {0};
    pthread_mutex_lock(&at->lock);
    if (at->last && (at->last->plugin == plugin || (snapshot && at->last->snapshot == snapshot))) {
      held = strip(at->last);
      push(at, at->last);
      at->last = NULL;
    }
    pthread_mutex_unlock(&at->lock);
    let_go(held);
  }
}

void shi_guests_forget(void) {
  for (uint32_t index = 0; index < table_size; index++) {
    shi_guest *guest = shi_guest_at(index);
    for (uint32_t k = 0; k < SHI_MEMORIES_MAX; k++) atomic_store_explicit(&guest->sizes[k], 0, memory_order_relaxed);
  }
}
