/* What the forks of a snapshot do first: which pages all of them dirty.
 *
 * A cold slot faults these in one by one, 3 us each on a virtual machine; populated in runs they take 1 us. Learned from
 * the first two cold forks that were called, as what both have dirtied, and followed before the first call of each cold
 * fork after them. What only some dirty is left to faults: nobody pays for another's pages.
 */
#ifndef SANDHOST_HABIT_H
#define SANDHOST_HABIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct shi_pool;
struct shi_slot;

typedef struct {
  size_t count;
  struct {
    uint64_t start, end; /* offsets in the slot; ascending */
  } runs[];
} shi_habit;

/* One in each image. */
typedef struct {
  _Atomic(shi_habit *) known; /* fixed once it is there */
  shi_habit *sample;          /* under a lock, as `samples` */
  uint32_t samples;
} shi_habits;

void shi_habits_free(shi_habits *habits);
/* Before the reset of a slot that was cold, and whose guest was called. */
void shi_habit_learn(struct shi_pool *pool, const struct shi_slot *slot);
/* Before the first call. What fails is left to faults. */
void shi_habit_follow(const struct shi_slot *slot);

#endif
