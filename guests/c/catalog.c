/* catalog: a reactor that keeps host objects by key, in lists in a map, all of it on the host's side.
 *
 * It releases by hand: after each call it owns the map, and nothing else.
 */
#include <sandhost_guest.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define HOST(name) __attribute__((import_module("env"), import_name(name))) extern

HOST("open") sandhost_handle open_object(uint32_t number);
HOST("read") uint32_t read_object(sandhost_handle object);

static sandhost_handle catalog;

static sandhost_handle list_of(uint64_t key) {
  if (catalog == 0) catalog = sandhost_map_new();
  sandhost_handle list = sandhost_map_get(catalog, key);
  if (list == 0) {
    list = sandhost_list_new();
    sandhost_map_put(catalog, key, list);
  }
  return list;
}

/* Opens an object and puts it under a key. */
EXPORT("add") void add(uint64_t key, uint32_t number) {
  sandhost_handle list = list_of(key), object = open_object(number);
  sandhost_list_push(list, object);
  sandhost_release(object);
  sandhost_release(list);
}

/* How many objects there are under a key. */
EXPORT("count") uint32_t count(uint64_t key) {
  sandhost_handle list = list_of(key);
  uint32_t length = sandhost_length(list);
  sandhost_release(list);
  return length;
}

/* The sum of what they read. */
EXPORT("total") uint32_t total(uint64_t key) {
  sandhost_handle list = list_of(key);
  uint32_t sum = 0, length = sandhost_length(list);
  for (uint32_t k = 0; k < length; k++) {
    sandhost_handle object = sandhost_list_get(list, k);
    sum += read_object(object);
    sandhost_release(object);
  }
  sandhost_release(list);
  return sum;
}

/* Takes a key out, with all that is under it. */
EXPORT("drop") void drop(uint64_t key) {
  if (catalog) sandhost_map_put(catalog, key, 0);
}
