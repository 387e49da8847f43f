/* What a guest writes to stdout and stderr: kept for Python to read, or handed to Python's callbacks.
 *
 *   wasmtime's own thread          the guest's thread
 *   fd_write ──► shi_output_write ──► waiting ──► shi_output_deliver ──► callback
 *
 * wasmtime writes a custom stream on a thread of the runtime that all WASI calls of the process share. A callback there
 * would hold up the output of other guests, would find no thread-local of the caller's, and would end the process by
 * calling a guest that uses WASI itself. So bytes wait until the guest's thread comes by: before a host function, at its
 * next check of the epoch, before its call returns.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guest.h"

/* So much is handed over at once, instead of at the next tick. Arbitrary. */
enum { HURRY_BYTES = 64 << 10 };

/* Before each run of bytes of one stream in `waiting`. */
typedef struct {
  uint64_t number, length;
} run_header;

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

static ssize_t keep(shi_guest *guest, int number, const unsigned char *bytes, size_t length) {
  shi_stream *stream = &guest->streams[number];
  uint64_t room = guest->output_limit - stream->length;
  uint64_t kept = length < room ? length : room;
  if (kept && !make_room(stream, kept)) return -ENOMEM;
  if (kept) memcpy(stream->bytes + stream->length, bytes, kept);
  stream->length += kept;
  stream->dropped += length - kept;
  return (ssize_t)length; /* the guest is not told: its own limit is no reason for it to fail half-way */
}

/* What waits is memory that the guest makes the host hold, so it counts against the guest's limits. */
static ssize_t queue(shi_guest *guest, int number, const unsigned char *bytes, size_t length) {
  shi_stream *waiting = &guest->waiting;
  run_header header = {(uint64_t)number, 0};
  bool same = waiting->length > 0;
  if (same) {
    memcpy(&header, waiting->bytes + guest->waiting_last, sizeof header);
    same = header.number == (uint64_t)number;
  }
  uint64_t more = length + (same ? 0 : sizeof header);
  if (shi_account_charge(&guest->account, more)) return -ENOMEM;
  if (!make_room(waiting, more)) {
    shi_account_refund(&guest->account, more);
    return -ENOMEM;
  }
  if (!same) {
    header = (run_header){(uint64_t)number, 0};
    guest->waiting_last = waiting->length;
    waiting->length += sizeof header;
  }
  header.length += length;
  memcpy(waiting->bytes + guest->waiting_last, &header, sizeof header);
  memcpy(waiting->bytes + waiting->length, bytes, length);
  waiting->length += length;
  atomic_store_explicit(&guest->has_waiting, true, memory_order_release);
  return (ssize_t)length;
}

void shi_output_open(shi_guest *guest, uint64_t limit, uint32_t called_back) {
  pthread_mutex_lock(&guest->output_mutex);
  guest->output_limit = limit;
  guest->called_back = called_back;
  pthread_mutex_unlock(&guest->output_mutex);
}

ssize_t shi_output_write(shi_guest *guest, int number, const unsigned char *bytes, size_t length) {
  pthread_mutex_lock(&guest->output_mutex);
  ssize_t written = (ssize_t)length;
  if (!(guest->called_back & (1u << number)))
    written = keep(guest, number, bytes, length);
  else if (length && !atomic_load(&guest->deaf)) /* an error would break the stream for good */
    written = queue(guest, number, bytes, length);
  bool hurry = guest->waiting.length >= HURRY_BYTES;
  pthread_mutex_unlock(&guest->output_mutex);
  if (hurry) shi_ticker_advance(&guest->plugin->host->ticker);
  return written;
}

/* The bytes are taken first: a callback may raise, and then nothing of this is heard any more. */
bool shi_output_deliver_waiting(shi_guest *guest) {
  pthread_mutex_lock(&guest->output_mutex);
  shi_stream taken = guest->waiting;
  guest->waiting = (shi_stream){0};
  atomic_store_explicit(&guest->has_waiting, false, memory_order_relaxed);
  pthread_mutex_unlock(&guest->output_mutex);
  shi_account_refund(&guest->account, taken.length);

  bool failed = false;
  uint32_t depth = shi_host_code_begins(guest);
  for (uint64_t at = 0; at < taken.length && !failed && !atomic_load(&shi_exiting);) {
    run_header header;
    memcpy(&header, taken.bytes + at, sizeof header);
    at += sizeof header;
    failed = shi_output(shi_guest_id(guest), (int)header.number + 1, taken.bytes + at, header.length) != 0;
    at += header.length;
  }
  shi_host_code_ends(guest, depth);
  free(taken.bytes);
  if (failed) atomic_store(&guest->deaf, true);
  return !failed;
}

void shi_output_free(shi_guest *guest) {
  pthread_mutex_lock(&guest->output_mutex);
  shi_account_refund(&guest->account, guest->waiting.length);
  free(guest->waiting.bytes);
  guest->waiting = (shi_stream){0};
  atomic_store_explicit(&guest->has_waiting, false, memory_order_relaxed);
  for (int k = 0; k < 2; k++) {
    free(guest->streams[k].bytes);
    guest->streams[k] = (shi_stream){0};
  }
  pthread_mutex_unlock(&guest->output_mutex);
}

/* The guest is entered, so that what is read is what its last call left. */
int sh_output(uint64_t id, int stream, uint8_t *to, uint64_t room, uint64_t *length, uint64_t *dropped) {
  shi_guest *guest;
  int status = shi_guest_enter(id, &guest);
  if (status != SH_OK) return status;
  pthread_mutex_lock(&guest->output_mutex);
  const shi_stream *output = &guest->streams[stream == 2];
  if (output->length && output->length <= room) memcpy(to, output->bytes, output->length);
  *length = output->length;
  *dropped = output->dropped;
  pthread_mutex_unlock(&guest->output_mutex);
  shi_guest_leave(guest);
  return SH_OK;
}
