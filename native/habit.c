#include "habit.h"

#include <stdlib.h>

#include "image.h"
#include "pool.h"

enum { SAMPLES = 2, RUNS_MOST = 256 };
enum { PAGES_LEAST = 16, PAGES_MOST = 1024 }; /* below, it saves next to nothing; above, it is 4 MiB. Arbitrary */
enum { NEAR_PAGES = 2 };                      /* populating a page costs less than another call */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static shi_habit *new_habit(size_t capacity) { return calloc(1, sizeof(shi_habit) + capacity * 2 * sizeof(uint64_t)); }

static shi_habit *found_in(struct shi_pool *pool, const shi_slot *slot) {
  shi_os_run found[RUNS_MOST];
  uint64_t base = (uint64_t)(uintptr_t)slot->region.base, next;
  int count = shi_os_pages(&pool->pagemap, base, base + slot->initial, SHI_OS_PRIVATE, 0, found, RUNS_MOST, &next);
  shi_habit *habit = count < 0 ? NULL : new_habit((size_t)count);
  for (int i = 0; i < count && habit != NULL; i++) {
    if (!(found[i].categories & SHI_OS_ZERO_PAGE)) {
      habit->runs[habit->count].start = found[i].start - base;
      habit->runs[habit->count++].end = found[i].end - base;
    }
  }
  return habit;
}

/* What lies in both. */
static shi_habit *common(const shi_habit *a, const shi_habit *b) {
  shi_habit *out = new_habit(a->count + b->count);
  for (size_t i = 0, j = 0; out != NULL && i < a->count && j < b->count;) {
    uint64_t start = a->runs[i].start > b->runs[j].start ? a->runs[i].start : b->runs[j].start;
    uint64_t end = a->runs[i].end < b->runs[j].end ? a->runs[i].end : b->runs[j].end;
    if (start < end) {
      out->runs[out->count].start = start;
      out->runs[out->count++].end = end;
    }
    if (a->runs[i].end < b->runs[j].end) {
      i++;
    } else {
      j++;
    }
  }
  return out;
}

static void join_near(shi_habit *habit, uint64_t near) {
  size_t kept = 0;
  for (size_t i = 1; i < habit->count; i++) {
    if (habit->runs[i].start - habit->runs[kept].end <= near) {
      habit->runs[kept].end = habit->runs[i].end;
    } else {
      habit->runs[++kept] = habit->runs[i];
    }
  }
  habit->count = habit->count == 0 ? 0 : kept + 1;
}

static bool pays(const shi_habit *habit, uint64_t page) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < habit->count; i++) {
    bytes += habit->runs[i].end - habit->runs[i].start;
  }
  return bytes >= PAGES_LEAST * page && bytes <= PAGES_MOST * page;
}

/* Takes `habit`. */
static void add_sample(shi_habits *habits, shi_habit *habit, uint64_t page) {
  if (habits->samples == SAMPLES) {
    free(habit);
    return;
  }
  if (habits->sample != NULL) {
    shi_habit *both = common(habits->sample, habit);
    free(habit);
    free(habits->sample);
    habit = both;
  }
  habits->sample = habit;
  if (habit == NULL || ++habits->samples < SAMPLES) {
    return;
  }
  join_near(habit, NEAR_PAGES * page);
  if (pays(habit, page)) {
    habits->sample = NULL;
    atomic_store_explicit(&habits->known, habit, memory_order_release);
  }
}

void shi_habit_learn(struct shi_pool *pool, const shi_slot *slot) {
  shi_habits *habits = shi_image_habits(slot->image);
  if (atomic_load_explicit(&habits->known, memory_order_relaxed) != NULL) {
    return;
  }
  pthread_mutex_lock(&mutex);
  bool wanted = habits->samples < SAMPLES;
  pthread_mutex_unlock(&mutex);
  shi_habit *habit = wanted ? found_in(pool, slot) : NULL;
  if (habit == NULL) {
    return;
  }
  pthread_mutex_lock(&mutex);
  add_sample(habits, habit, pool->os_page);
  pthread_mutex_unlock(&mutex);
}

void shi_habit_follow(const shi_slot *slot) {
  const shi_habit *habit = atomic_load_explicit(&shi_image_habits(slot->image)->known, memory_order_acquire);
  for (size_t i = 0; habit != NULL && i < habit->count; i++) {
    uint64_t start = habit->runs[i].start, end = habit->runs[i].end;
    if (end > slot->region.committed || shi_os_populate(slot->region.base + start, end - start) != 0) {
      return;
    }
  }
}

void shi_habits_free(shi_habits *habits) {
  free(atomic_load(&habits->known));
  free(habits->sample);
}
