/* A capture: all cells of the heap, and all guests, as they were at one instant, while everybody goes on.
 *
 * The instant is a moment under the heap's lock. Then the table is walked a slice at a time, and who is about to change a
 * cell that the walk has not reached saves it first, as it still is: so each cell is saved once, as it was at the instant,
 * by whoever comes first. What is born later is not saved.
 *
 *   cell     0 ........... cursor ................. end ............
 *            | saved by the  | saved if its bit is  | born later, or
 *            | walk, or by   | set; else the walk   | not there yet
 *            | who changed it| is yet to come       |
 *
 * Nobody waits for the walk longer than for a turn of it, 0.2 ms, and the edges of one cell, 65,536 at most. Counters
 * are copied at the instant; so what was saved adds up to them, exactly, at each site.
 *
 * No capture begins while a sweep is under way, which it finishes first: it would show what is dead already.
 *
 * Guests are listed right after the instant, those born after it left out; who ends one meanwhile lists it first. What a
 * guest does and has committed may so be newer than the instant, by as long as the list takes; who there was, and what
 * handles they had, is exact.
 */
#ifndef SANDHOST_HEAP_CAPTURE_H
#define SANDHOST_HEAP_CAPTURE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "bridge.h"

enum { SHI_CHUNK_EDGES = 1 << 16 }; /* those of a cell lie in one chunk: as many as a cell may have */

/* Invariant, at the end: cell_count == figures' live cells, and at each site what its cells add up to == allocs - frees. */
struct sh_capture {
  sh_capture_view view;
  sh_captured_cell *cells;
  uint64_t capacity; /* of cells: live ones at the instant */
  uint8_t *saved; /* a bit for each index below `end` */
  uint32_t end, cursor;
  uint64_t **chunks; /* of edges: handles, 0: none */
  uint32_t chunk_count, chunk_capacity, chunk_used; /* used of the last one */
  _Atomic bool failed; /* there was no memory: nobody waits for it, the capture is none */
  _Atomic uint64_t instant_ns; /* 0: it is yet to come */
  sh_site *sites;
  sh_source *sources;
  sh_guest_row *guests;
  uint32_t guest_capacity;

  /* heap_paths.c */
  uint32_t *cell_at; /* by index in the heap; SH_NO_CELL: it was free */
  uint32_t *holders; /* by cell: the one before it on its path */
  uint8_t *roots; /* by cell: enum sh_root, of the first on its path */
  uint16_t *path_at; /* by cell: what led to it */
  sh_path *paths;
  sh_group *groups;
};

static inline const uint64_t *shi_captured_edges(const sh_capture *capture, const sh_captured_cell *cell) {
  return capture->chunks[cell->edges / SHI_CHUNK_EDGES] + cell->edges % SHI_CHUNK_EDGES;
}

/* Finds holders, paths and groups, on what was captured: no lock is held. SH_OK, or out of memory. */
int shi_capture_paths(sh_capture *capture);

/* A guest that is held begins to end. */
struct shi_guest;
void shi_capture_guest_ends(struct shi_guest *guest, uint64_t id);

#endif
