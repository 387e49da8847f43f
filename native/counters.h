/* Counters that many threads add to, and what else each thread has a copy of.
 *
 *   thread 1, 17 ...  ──►  |  apart  | spawns | calls | ... |
 *   thread 2, 18 ...  ──►  |  apart  | spawns | calls | ... |      the sum is the counter
 *
 * A counter in one place is a cache line that every thread has to take away from the last one: 50 to 100 ns each, and a
 * guest's life has some thirty of them. Copies lie apart, and only who reads looks at all of them.
 */
#ifndef SANDHOST_COUNTERS_H
#define SANDHOST_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

/* Sixteen: with more threads than that two share a copy, which costs time and nothing else. */
enum { SHI_COPIES = 16 };
/* What many threads read, or others write, lies this far from what one writes: two lines, since processors fetch lines
 * in pairs. */
enum { SHI_APART = 128 };

/* 1 to SHI_COPIES; 0: none yet. */
extern _Thread_local uint32_t shi_own_copy __attribute__((tls_model("initial-exec")));
uint32_t shi_copy_assign(void);

/* The copy of the calling thread: [0, SHI_COPIES). */
static inline uint32_t shi_copy(void) { return (shi_own_copy ? shi_own_copy : shi_copy_assign()) - 1; }

enum { SHI_COUNTERS = 16 };
typedef struct {
  struct {
    uint8_t apart[SHI_APART];
    _Atomic uint64_t counts[SHI_COUNTERS];
  } copies[SHI_COPIES];
  uint8_t apart[SHI_APART];
} shi_counters;

static inline void shi_count(shi_counters *counters, uint32_t which, uint64_t by) {
  atomic_fetch_add_explicit(&counters->copies[shi_copy()].counts[which], by, memory_order_release);
}
static inline void shi_uncount(shi_counters *counters, uint32_t which, uint64_t by) {
  shi_count(counters, which, -by); /* a copy may wrap; the sum does not */
}

/* Exact when nothing moves. While it does: what is read first is not ahead of what is read later, so read ends before
 * beginnings. */
uint64_t shi_counted(const shi_counters *counters, uint32_t which);

#endif
