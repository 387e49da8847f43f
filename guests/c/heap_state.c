/* heap_state: a reactor whose state is everywhere C keeps it: statics, the heap, a constructor's work, stdio's buffers.
 *
 * A fork of it must go on where it stands, and must not construct it again.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))

typedef struct entry {
  struct entry *next;
  uint32_t key, value;
} entry_t;

static entry_t *entries;   /* on the heap */
static uint32_t count = 7; /* in .data: starts with 7 */
static uint32_t constructed;
static char *greeting; /* made by the constructor */

__attribute__((constructor)) static void construct(void) {
  constructed++;
  greeting = malloc(32);
  if (greeting == NULL) abort();
  strcpy(greeting, "constructed once");
  setvbuf(stdout, NULL, _IOFBF, 4096); /* so that text stays in the buffer between calls */
}

EXPORT("times_constructed") uint32_t times_constructed(void) { return constructed; }

/* Sets the value of a key; returns how many keys there are, counted from 7. 0: no memory. */
EXPORT("put") uint32_t put(uint32_t key, uint32_t value) {
  for (entry_t *entry = entries; entry != NULL; entry = entry->next)
    if (entry->key == key) {
      entry->value = value;
      return count;
    }
  entry_t *entry = malloc(sizeof *entry);
  if (entry == NULL) return 0;
  *entry = (entry_t){entries, key, value};
  entries = entry;
  return ++count;
}

/* The value of a key; 0 where there is none. */
EXPORT("get") uint32_t get(uint32_t key) {
  for (const entry_t *entry = entries; entry != NULL; entry = entry->next)
    if (entry->key == key) return entry->value;
  return 0;
}

/* Forgets a key, and frees its entry. */
EXPORT("drop") uint32_t drop(uint32_t key) {
  for (entry_t **at = &entries; *at != NULL; at = &(*at)->next)
    if ((*at)->key == key) {
      entry_t *entry = *at;
      *at = entry->next;
      free(entry);
      return --count;
    }
  return count;
}

/* Prints a line into stdio's buffer. It comes out with flush(). */
EXPORT("print") void print(uint32_t number) { printf("%s: %u\n", greeting, number); }

EXPORT("flush") void flush(void) { fflush(stdout); }
