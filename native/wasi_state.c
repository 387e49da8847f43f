/* A guest's table at its start, and as a snapshot keeps it.
 *
 * A captured table is a row of bytes, so that it can stand in a file:
 *
 *   count                                            u32
 *   count times, by rising number:
 *     number, kind (enum shi_fd_kind), name length   u32 each
 *     the name, without NUL; of a stream none
 *
 * What stands in a file may have been altered: attaching checks every word of it.
 */
#include <stdio.h>
#include <stdlib.h>

#include "wasi.h"

enum { NAME_BYTES_MAX = 4096, HEAD_BYTES = 12 };

/* ---- capture ------------------------------------------------------------------------------------------------------ */

static int refuse_open_files(const shi_guest *guest) {
  enum { SHOWN = 8 };
  char list[1024];
  size_t at = 0;
  uint32_t count = 0;
  for (uint32_t k = 0; k < guest->file_count; k++) {
    if (guest->files[k].kind != SHI_FD_OPEN) continue;
    if (++count <= SHOWN && at < sizeof list)
      at += (size_t)snprintf(list + at, sizeof list - at, "%sfd %u (%.100s)", count > 1 ? ", " : "", k,
                             guest->files[k].name);
  }
  if (count > SHOWN && at < sizeof list) snprintf(list + at, sizeof list - at, " and %u more", count - SHOWN);
  return shi_fail(SH_ARGUMENT, "the guest has files open, which no snapshot can hold; it must close %s", list);
}

static uint8_t *put_word(uint8_t *at, uint32_t word) {
  memcpy(at, &word, sizeof word);
  return at + sizeof word;
}

int shi_wasi_capture(shi_guest *guest, shi_wasi_state *out) {
  uint32_t count = 0;
  size_t length = sizeof count;
  for (uint32_t k = 0; k < guest->file_count; k++) {
    const shi_file *file = &guest->files[k];
    if (file->kind == SHI_FD_OPEN) return refuse_open_files(guest);
    if (file->kind == SHI_FD_FREE) continue;
    count++;
    length += HEAD_BYTES + (file->name ? strlen(file->name) : 0);
  }
  uint8_t *at = malloc(length);
  if (!at) return shi_fail_no_memory();
  *out = (shi_wasi_state){.bytes = at, .length = length};
  at = put_word(at, count);
  for (uint32_t k = 0; k < guest->file_count; k++) {
    const shi_file *file = &guest->files[k];
    if (file->kind == SHI_FD_FREE) continue;
    size_t name_length = file->name ? strlen(file->name) : 0;
    at = put_word(put_word(put_word(at, k), file->kind), (uint32_t)name_length);
    if (name_length) memcpy(at, file->name, name_length);
    at += name_length;
  }
  return SH_OK;
}

/* ---- attach ------------------------------------------------------------------------------------------------------- */

typedef struct {
  const uint8_t *at;
  size_t left;
} reader;

typedef struct {
  uint32_t number, kind, name_length;
  const char *name; /* no NUL */
} captured;

static bool read_word(reader *in, uint32_t *out) {
  if (in->left < sizeof *out) return false;
  memcpy(out, in->at, sizeof *out);
  in->at += sizeof *out;
  in->left -= sizeof *out;
  return true;
}

/* `next`: the lowest number that the entry may have. */
static bool read_entry(reader *in, uint32_t next, captured *out) {
  if (!read_word(in, &out->number) || !read_word(in, &out->kind) || !read_word(in, &out->name_length)) return false;
  if (out->number < next || out->number >= SHI_FILES_MAX) return false;
  bool directory = out->kind == SHI_FD_PREOPEN;
  if (!directory && (out->kind < SHI_FD_STDIN || out->kind > SHI_FD_STDERR || out->name_length)) return false;
  if (out->name_length > in->left || out->name_length > NAME_BYTES_MAX) return false;
  out->name = (const char *)in->at;
  in->at += out->name_length;
  in->left -= out->name_length;
  return !memchr(out->name, 0, out->name_length);
}

bool shi_wasi_state_is_sound(const uint8_t *bytes, size_t length) {
  reader in = {bytes, length};
  uint32_t count, next = 0;
  if (!read_word(&in, &count)) return false;
  for (uint32_t k = 0; k < count; k++) {
    captured entry;
    if (!read_entry(&in, next, &entry)) return false;
    next = entry.number + 1;
  }
  return in.left == 0;
}

static int fail_damaged(void) { return shi_fail(SH_ARGUMENT, "the snapshot's table of open files is damaged"); }

static bool is_named(const shi_file *file, const captured *entry) {
  return strlen(file->name) == entry->name_length && memcmp(file->name, entry->name, entry->name_length) == 0;
}

/* The entry as the grant has it. `taken[k]`: the grant's k-th file has its place. */
static int bind_entry(shi_guest *guest, const captured *entry, bool *taken) {
  shi_file *file = &guest->files[entry->number];
  const sh_wasi *grant = guest->grant;
  if (entry->kind != SHI_FD_PREOPEN) {
    *file = grant->files[entry->kind - SHI_FD_STDIN];
    return SH_OK;
  }
  for (uint32_t k = 3; k < grant->file_count; k++) {
    if (taken[k] || !is_named(&grant->files[k], entry)) continue;
    taken[k] = true;
    *file = grant->files[k];
    return SH_OK;
  }
  char *name = strndup(entry->name, entry->name_length);
  if (!name) return shi_fail_no_memory();
  *file = (shi_file){
      .kind = SHI_FD_PREOPEN, .type = WASI_TYPE_DIRECTORY, .fd = -1, .listing = -1, .name = name, .owns_name = true};
  return SH_OK;
}

static int attach_captured(shi_guest *guest, const shi_wasi_state *from) {
  reader in = {from->bytes, from->length};
  uint32_t count;
  if (!shi_wasi_state_is_sound(from->bytes, from->length) || !read_word(&in, &count)) return fail_damaged();
  bool taken[SHI_FILES_MAX] = {false};
  for (uint32_t k = 0; k < count; k++) {
    captured entry;
    if (!read_entry(&in, guest->file_count, &entry)) return fail_damaged();
    int status = shi_wasi_reserve(guest, entry.number + 1);
    if (status != SH_OK) return status;
    while (guest->file_count < entry.number) guest->files[guest->file_count++].kind = SHI_FD_FREE;
    status = bind_entry(guest, &entry, taken);
    if (status != SH_OK) return status;
    guest->file_count++;
  }
  if (guest->file_count < 3) {
    int status = shi_wasi_reserve(guest, 3);
    if (status != SH_OK) return status;
    while (guest->file_count < 3) guest->files[guest->file_count++].kind = SHI_FD_FREE;
  }
  const sh_wasi *grant = guest->grant;
  for (uint32_t k = 3; k < grant->file_count; k++) {
    if (taken[k]) continue;
    if (guest->file_count == SHI_FILES_MAX)
      return shi_fail(SH_ARGUMENT, "the snapshot's directories and those granted besides are more than %d",
                      SHI_FILES_MAX);
    int status = shi_wasi_reserve(guest, guest->file_count + 1);
    if (status != SH_OK) return status;
    guest->files[guest->file_count++] = grant->files[k];
  }
  return SH_OK;
}

int shi_wasi_attach(shi_guest *guest, sh_wasi *grant, const shi_wasi_state *from) {
  if (!grant) grant = &shi_wasi_nothing;
  if (grant != &shi_wasi_nothing) shi_wasi_hold(grant);
  guest->grant = grant;
  guest->input_at = 0;
  guest->file_count = 0;
  if (from) return attach_captured(guest, from);
  int status = shi_wasi_reserve(guest, grant->file_count);
  if (status != SH_OK) return status;
  memcpy(guest->files, grant->files, grant->file_count * sizeof *grant->files);
  guest->file_count = grant->file_count;
  return SH_OK;
}
