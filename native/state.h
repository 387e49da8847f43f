/* The state of an instance beside its memories: mutable globals, tables, dropped segments. The rewrite exports all of
 * it under names of ours; see sandhost/modules/state.py. */
#ifndef SANDHOST_STATE_H
#define SANDHOST_STATE_H

#include <pthread.h>
#include <stdbool.h>

#include "sandhost.h"

typedef struct shi_guest shi_guest;

typedef struct {
  uint32_t index;  /* in the module */
  uint32_t target; /* segments: the memory or table that the probe writes to */
  char letter;     /* globals and tables: i l f d v numbers, F function, E external, X exception references.
                      segments: D data, T elements */
} shi_state_item;

typedef struct {
  shi_state_item *items;
  uint32_t count;
} shi_state_items;

/* What a plugin's instances have, fixed once it is linked. */
typedef struct {
  shi_state_items globals, tables, segments;
  uint32_t *functions; /* indices in the module of those that tables and globals may refer to, ascending */
  uint32_t function_count;
  bool start; /* there is a start function: a spawn calls it, a fork does not */
} shi_state_plan;

typedef struct {
  uint64_t size;
  uint32_t *functions; /* per element: an index in the module, or SH_NO_FUNCTION */
} shi_table_state;

typedef struct {
  uint32_t table;
  uint32_t function;
  uint64_t element;
} shi_table_change;

/* What a snapshot holds of it: arrays as long as the plan's. What differs from a fresh instance is found out by the
 * first fork, as only a fresh instance knows what it starts with. */
typedef struct {
  sh_global *globals;
  shi_table_state *tables;
  uint8_t *dropped;

  pthread_mutex_t mutex; /* of what follows, until `compared` */
  _Atomic bool compared;
  uint32_t *changed_globals;
  uint32_t changed_global_count;
  shi_table_change *changes;
  size_t change_count;
} shi_state;

int shi_state_new(shi_state *state, const shi_state_plan *plan); /* of zeros and empty tables */
void shi_state_free(shi_state *state, const shi_state_plan *plan);
void shi_state_plan_free(shi_state_plan *plan);

/* Of a guest that the caller is inside of, between calls. Fails by name where something cannot be captured. */
int shi_state_capture(shi_guest *guest, shi_state *state);
/* The value of an i64 global, by its index in the module. */
uint64_t shi_state_integer(shi_guest *guest, uint32_t index);
/* Makes a fresh instance, in the middle of its spawn, what was captured. */
int shi_state_restore(shi_guest *guest, shi_state *state);
/* Calls the start function of a fresh instance. */
int shi_state_start(shi_guest *guest);
/* The most elements that one of the tables has. */
uint64_t shi_state_largest_table(const shi_state *state, const shi_state_plan *plan);

#endif
