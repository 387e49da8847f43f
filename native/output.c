/* What a guest writes to stdout and stderr: kept for Python to read, or handed to Python's callbacks.
 *
 * It is written on the guest's own thread, in the middle of its fd_write, so nothing here needs a lock, and a callback
 * is called before the guest goes on. A callback that raises ends the guest's call.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fiber.h"
#include "wasi.h"

/* A callback gets so much at once: what the host must hold for a guest at a time. Arbitrary. */
enum { PIECE_BYTES = 64 << 10 };

static bool make_room(shi_stream *stream, uint64_t more) {
  if (more <= stream->capacity - stream->length) return true;
  uint64_t capacity = stream->capacity ? stream->capacity * 2 : 512;
  while (capacity - stream->length < more) capacity *= 2;
  uint8_t *grown = realloc(stream->bytes, capacity);
  if (!grown) return false;
  stream->bytes = grown;
  stream->capacity = capacity;
  return true;
}

/* Beyond the limit the guest is not told: its own limit is no reason for it to fail half-way. */
static void keep(shi_guest *guest, int number, const uint8_t *bytes, uint64_t length) {
  shi_stream *stream = &guest->streams[number];
  uint64_t room = guest->grant->output_limit - stream->length;
  uint64_t kept = length < room ? length : room;
  if (kept && !make_room(stream, kept)) kept = 0;
  if (kept) memcpy(stream->bytes + stream->length, bytes, kept);
  stream->length += kept;
  stream->dropped += length - kept;
}

static bool call_back(shi_guest *guest, int number, const uint8_t *bytes, uint64_t length) {
  if (atomic_load_explicit(&shi_exiting, memory_order_relaxed)) {
    guest->stop = SH_CANCELLED;
    return false;
  }
  if (shi_on_fiber(guest)) {
    shi_wait wait = {
        .step = SH_STEP_AWAIT, .stream = number + 1, .bytes = (uint8_t *)(uintptr_t)bytes, .length = length};
    return shi_fiber_park(guest, &wait);
  }
  uint32_t depth = shi_host_code_begins(guest);
  int failed = shi_output(shi_guest_id(guest), number + 1, bytes, length, 0);
  shi_host_code_ends(guest, depth);
  if (atomic_load_explicit(&shi_forked, memory_order_relaxed))
    guest->stop = SH_FORKED; /* its memory is gone */
  else if (failed)
    guest->stop = SH_HOST_ERROR;
  return guest->stop == 0;
}

bool shi_output_write(shi_guest *guest, int number, const uint8_t *bytes, uint64_t length) {
  if (!(guest->grant->called_back & (1u << number))) {
    keep(guest, number, bytes, length);
    return true;
  }
  while (length) {
    uint64_t piece = length < PIECE_BYTES ? length : PIECE_BYTES;
    if (!call_back(guest, number, bytes, piece)) return false;
    bytes += piece;
    length -= piece;
    if (length && !shi_guest_goes_on(guest)) return false;
  }
  return true;
}

void shi_output_free(shi_guest *guest) {
  for (int k = 0; k < 2; k++) {
    free(guest->streams[k].bytes);
    guest->streams[k] = (shi_stream){0};
  }
}

/* The guest is entered, so that what is read is what its last call left. */
int sh_output(uint64_t id, int stream, uint8_t *to, uint64_t room, uint64_t *length, uint64_t *dropped) {
  shi_guest *guest;
  int status = shi_guest_enter(id, &guest);
  if (status != SH_OK) return status;
  const shi_stream *output = &guest->streams[stream == 2];
  if (output->length && output->length <= room) memcpy(to, output->bytes, output->length);
  *length = output->length;
  *dropped = output->dropped;
  shi_guest_leave(guest);
  return SH_OK;
}

uint64_t sh_output_total(uint64_t id) {
  shi_guest *guest;
  if (shi_guest_enter(id, &guest) != SH_OK) {
    shi_error_forget();
    return UINT64_MAX;
  }
  uint64_t total = 0;
  for (int k = 0; k < 2; k++) total += guest->streams[k].length + guest->streams[k].dropped;
  shi_guest_leave(guest);
  return total;
}
