/* Handles for guests in C: what sandhost offers under the module name "sandhost". Only what is used is imported.
 *
 * A handle stands for an object of the host's. What a call returns is owned by the guest; what is passed is borrowed. A
 * guest that calls sandhost_release anywhere owns until it releases, once for each time it was given or retained the
 * handle. For a guest that never does, the host looks for handles in its memory between calls, in words aligned to 8
 * bytes: there, a handle lives as long as it can be found, and what it refers to.
 *
 * A handle that is not the guest's, or no more, ends the call with InvalidHandle on the host's side.
 */
#ifndef SANDHOST_GUEST_H
#define SANDHOST_GUEST_H

#include <stdint.h>

typedef uint64_t sandhost_handle; /* 0: none */

#define SANDHOST_IMPORT(name) __attribute__((import_module("sandhost"), import_name(name))) extern

/* Owns it once more. Of a weak handle: owns what it stands for, and returns that; 0 if it is gone. */
SANDHOST_IMPORT("retain") sandhost_handle sandhost_retain(sandhost_handle handle);
/* Owns it once less; returns how often it is still owned. */
SANDHOST_IMPORT("release") uint32_t sandhost_release(sandhost_handle handle);
/* A new handle that does not keep the other alive. */
SANDHOST_IMPORT("weak") sandhost_handle sandhost_weak(sandhost_handle handle);

enum { SANDHOST_LIST = 1, SANDHOST_MAP = 2, SANDHOST_RECORD = 3, SANDHOST_WEAK = 4 };
SANDHOST_IMPORT("kind") uint32_t sandhost_kind(sandhost_handle handle); /* one of these, or from 8 on the host's own */
SANDHOST_IMPORT("size") uint64_t sandhost_size(sandhost_handle handle); /* bytes that it counts for */

/* Containers of handles, or 0, on the host's side: 65,536 entries at most. They keep their entries alive. What is read is
 * owned, as every result. */
SANDHOST_IMPORT("length") uint32_t sandhost_length(sandhost_handle container);
SANDHOST_IMPORT("list_new") sandhost_handle sandhost_list_new(void);
SANDHOST_IMPORT("list_push") void sandhost_list_push(sandhost_handle list, sandhost_handle entry);
SANDHOST_IMPORT("list_pop") sandhost_handle sandhost_list_pop(sandhost_handle list);
SANDHOST_IMPORT("list_get") sandhost_handle sandhost_list_get(sandhost_handle list, uint32_t index);
SANDHOST_IMPORT("list_set") void sandhost_list_set(sandhost_handle list, uint32_t index, sandhost_handle entry);
SANDHOST_IMPORT("record_new") sandhost_handle sandhost_record_new(uint32_t fields); /* at least one, all 0 */
SANDHOST_IMPORT("record_get") sandhost_handle sandhost_record_get(sandhost_handle record, uint32_t field);
SANDHOST_IMPORT("record_set") void sandhost_record_set(sandhost_handle record, uint32_t field, sandhost_handle entry);
SANDHOST_IMPORT("map_new") sandhost_handle sandhost_map_new(void);
SANDHOST_IMPORT("map_get") sandhost_handle sandhost_map_get(sandhost_handle map, uint64_t key); /* 0: no such key */
SANDHOST_IMPORT("map_put") void sandhost_map_put(sandhost_handle map, uint64_t key, sandhost_handle entry); /* 0: removes */

#endif
