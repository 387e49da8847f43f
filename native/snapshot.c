/* Snapshots: taken from a guest, or put together from a file; read by Python to be saved. */
#include "snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "guest.h"
#include "os.h"

static sh_snapshot *new_snapshot(sh_plugin *plugin) {
  sh_snapshot *snapshot = calloc(1, sizeof *snapshot);
  if (!snapshot) {
    shi_fail_no_memory();
    return NULL;
  }
  snapshot->plugin = plugin;
  atomic_fetch_add_explicit(&plugin->references, 1, memory_order_relaxed);
  snapshot->references = 1;
  for (uint32_t k = 0; k < plugin->memory_count; k++) {
    snapshot->memories[k] = plugin->memories[k];
    snapshot->memories[k].image = NULL;
  }
  if (shi_state_new(&snapshot->state, &plugin->state) == SH_OK) return snapshot;
  shi_snapshot_release(snapshot);
  return NULL;
}

void shi_snapshot_release(sh_snapshot *snapshot) {
  if (!snapshot || atomic_fetch_sub(&snapshot->references, 1) != 1) return;
  sh_plugin *plugin = snapshot->plugin;
  for (uint32_t k = 0; k < plugin->memory_count; k++)
    if (snapshot->memories[k].image) shi_image_release(snapshot->memories[k].image);
  shi_state_free(&snapshot->state, &plugin->state);
  free(snapshot->wasi.bytes);
  free(snapshot);
  shi_plugin_release(plugin);
}

void sh_snapshot_release(sh_snapshot *snapshot) {
  if (atomic_load(&shi_forked)) return;
  atomic_store(&snapshot->unloaded, true);
  shi_guests_let_go_of(NULL, snapshot);
  shi_snapshot_release(snapshot);
}

/* ---- taken from a guest --------------------------------------------------------------------------------------------- */

/* The memories first: telling whether a segment was dropped writes to them, if only what was there. */
static int capture(shi_guest *guest, sh_snapshot *snapshot) {
  int status = guest->grant ? shi_wasi_capture(guest, &snapshot->wasi) : SH_OK; /* first: it is refused most */
  if (status != SH_OK) return status;
  for (uint32_t k = 0; k < guest->region_count; k++) {
    snapshot->memories[k].minimum = atomic_load(&guest->sizes[k]);
    int error = shi_region_capture(guest->regions[k], &snapshot->memories[k].image);
    if (error) return shi_fail_native(error);
  }
  return shi_state_capture(guest, &snapshot->state);
}

sh_snapshot *sh_snapshot_take(uint64_t id) {
  shi_guest *guest;
  if (shi_guest_enter(id, &guest) != SH_OK) return NULL;
  sh_snapshot *snapshot = NULL;
  if (guest->depth > 1)
    shi_fail(SH_BUSY, "the guest is in a call; a snapshot is taken between calls");
  else
    snapshot = new_snapshot(guest->plugin);
  if (snapshot && capture(guest, snapshot) != SH_OK) {
    shi_snapshot_release(snapshot);
    snapshot = NULL;
  }
  shi_guest_leave(guest);
  return snapshot;
}

/* ---- put together from a file --------------------------------------------------------------------------------------- */

sh_snapshot *sh_snapshot_new(sh_plugin *plugin) { return new_snapshot(plugin); }

static bool fits(const sh_snapshot *snapshot, uint32_t index, uint64_t size, uint64_t image_length) {
  const sh_plugin *plugin = snapshot->plugin;
  if (index >= plugin->memory_count || snapshot->memories[index].image) return false;
  const shi_memory_plan *memory = &plugin->memories[index];
  return size >= memory->minimum && size <= memory->maximum && size % memory->page_size == 0 && image_length <= size;
}

int sh_snapshot_set_memory(sh_snapshot *snapshot, uint32_t index, uint64_t size, uint64_t image_length,
                           const sh_image_part *parts, size_t part_count, int fd) {
  bool fitting = fits(snapshot, index, size, image_length);
  if (!fitting || !image_length) {
    if (fd >= 0) shi_os_file_close(fd);
    if (!fitting) return shi_fail(SH_ARGUMENT, "memory %u of the snapshot does not fit the module", index);
    snapshot->memories[index].minimum = size;
    return SH_OK;
  }
  shi_memory_plan *memory = &snapshot->memories[index];
  memory->minimum = size;
  const shi_image *module = snapshot->plugin->memories[index].image;
  int error = shi_image_compose(image_length, module, parts, part_count, fd, &memory->image);
  return error ? shi_fail_native(error) : SH_OK;
}

static bool is_reference(const shi_state_plan *plan, char letter, uint32_t function) {
  if (function == SH_NO_FUNCTION) return true;
  uint32_t low = 0, high = plan->function_count;
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    if (plan->functions[middle] < function)
      low = middle + 1;
    else
      high = middle;
  }
  return letter == 'F' && low < plan->function_count && plan->functions[low] == function;
}

int sh_snapshot_set_global(sh_snapshot *snapshot, uint32_t position, const sh_global *global) {
  const shi_state_plan *plan = &snapshot->plugin->state;
  if (position >= plan->globals.count || !is_reference(plan, plan->globals.items[position].letter, global->function))
    return shi_fail(SH_ARGUMENT, "global %u of the snapshot does not fit the module", position);
  snapshot->state.globals[position] = *global;
  return SH_OK;
}

int sh_snapshot_set_table(sh_snapshot *snapshot, uint32_t position, const uint32_t *functions, uint64_t size) {
  const shi_state_plan *plan = &snapshot->plugin->state;
  bool fitting = position < plan->tables.count && !snapshot->state.tables[position].functions;
  for (uint64_t k = 0; k < size && fitting; k++)
    fitting = is_reference(plan, plan->tables.items[position].letter, functions[k]);
  if (!fitting) return shi_fail(SH_ARGUMENT, "table %u of the snapshot does not fit the module", position);
  shi_table_state *table = &snapshot->state.tables[position];
  table->functions = malloc((size + 1) * sizeof *functions);
  if (!table->functions) return shi_fail_no_memory();
  if (size) memcpy(table->functions, functions, size * sizeof *functions);
  table->size = size;
  return SH_OK;
}

int sh_snapshot_set_dropped(sh_snapshot *snapshot, uint32_t position) {
  if (position >= snapshot->plugin->state.segments.count)
    return shi_fail(SH_ARGUMENT, "segment %u of the snapshot does not fit the module", position);
  snapshot->state.dropped[position] = 1;
  return SH_OK;
}

int sh_snapshot_set_wasi(sh_snapshot *snapshot, const uint8_t *bytes, size_t length) {
  if (!snapshot->plugin->wasi || snapshot->wasi.bytes || !shi_wasi_state_is_sound(bytes, length))
    return shi_fail(SH_ARGUMENT, "the table of files of the snapshot is damaged, or does not fit the module");
  snapshot->wasi.bytes = malloc(length);
  if (!snapshot->wasi.bytes) return shi_fail_no_memory();
  memcpy(snapshot->wasi.bytes, bytes, length);
  snapshot->wasi.length = length;
  return SH_OK;
}

/* ---- read ----------------------------------------------------------------------------------------------------------- */

const uint8_t *sh_snapshot_memory(const sh_snapshot *snapshot, uint32_t index, uint64_t *size, uint64_t *image_length) {
  const shi_memory_plan *memory = &snapshot->memories[index];
  *size = memory->minimum;
  *image_length = memory->image ? shi_image_length(memory->image) : 0;
  return memory->image ? shi_image_bytes(memory->image) : NULL;
}

const uint8_t *sh_plugin_image(const sh_plugin *plugin, uint32_t index, uint64_t *image_length) {
  const shi_image *image = plugin->memories[index].image;
  *image_length = image ? shi_image_length(image) : 0;
  return image ? shi_image_bytes(image) : NULL;
}

const sh_global *sh_snapshot_global(const sh_snapshot *snapshot, uint32_t position) {
  return &snapshot->state.globals[position];
}

const uint32_t *sh_snapshot_table(const sh_snapshot *snapshot, uint32_t position, uint64_t *size) {
  *size = snapshot->state.tables[position].size;
  return snapshot->state.tables[position].functions;
}

int sh_snapshot_dropped(const sh_snapshot *snapshot, uint32_t position) { return snapshot->state.dropped[position]; }

const uint8_t *sh_snapshot_wasi(const sh_snapshot *snapshot, size_t *length) {
  *length = snapshot->wasi.length;
  return snapshot->wasi.bytes;
}
