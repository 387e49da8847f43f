/* A guest's file descriptors: the table, and the calls that only concern it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "wasi.h"

/* Tables up to this size stay with the struct for its next guest. */
enum { KEPT_FILES = 16 };

/* What an open file costs the host beside its entry: the kernel's structs and the path. Chosen generously; the tenant
 * and the host are charged, since a guest's own limit is one of linear memory. */
enum { OPEN_FILE_BYTES = 4096 };

/* ---- how many files the process can bear -------------------------------------------------------------------------- */

/* Of all guests together, preopens aside. They get half of what the process may open: the host must not run dry. */
static _Atomic uint32_t open_files;

static bool may_open(void) {
  struct rlimit limit;
  uint64_t most = getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur / 2 : 0;
  if (atomic_fetch_add(&open_files, 1) < most) return true;
  atomic_fetch_sub(&open_files, 1);
  return false;
}

static void closed(void) { atomic_fetch_sub(&open_files, 1); }

/* ---- the table ---------------------------------------------------------------------------------------------------- */

int shi_wasi_reserve(shi_guest *guest, uint32_t count) {
  if (count <= guest->file_capacity) return SH_OK;
  uint32_t capacity = guest->file_capacity ? guest->file_capacity : 8;
  while (capacity < count) capacity *= 2;
  shi_file *grown = realloc(guest->files, capacity * sizeof *grown);
  if (!grown) return shi_fail_no_memory();
  guest->files = grown;
  guest->file_capacity = capacity;
  return SH_OK;
}

void shi_wasi_drop(shi_guest *guest, shi_file *file) {
  if (file->kind == SHI_FD_OPEN) {
    close(file->fd);
    closed();
    shi_account_refund(guest->account.parent, OPEN_FILE_BYTES);
  }
  if (file->listing >= 0) {
    close(file->listing);
    closed();
  }
  if (file->owns_name) free(file->name);
  file->kind = SHI_FD_FREE;
}

void shi_wasi_detach(shi_guest *guest) {
  if (!guest->grant) return;
  for (uint32_t k = 0; k < guest->file_count; k++)
    if (guest->files[k].kind >= SHI_FD_PREOPEN) shi_wasi_drop(guest, &guest->files[k]);
  guest->file_count = 0;
  if (guest->file_capacity > KEPT_FILES) {
    free(guest->files);
    guest->files = NULL;
    guest->file_capacity = 0;
  }
  shi_output_free(guest);
  if (guest->grant != &shi_wasi_nothing) sh_wasi_release(guest->grant);
  guest->grant = NULL;
}

/* Everything that can be refused is, before a file is opened or created. */
shi_wasi_errno shi_wasi_begin_open(shi_guest *guest, uint32_t *number) {
  uint32_t first = 0;
  while (first < guest->file_count && guest->files[first].kind != SHI_FD_FREE) first++;
  if (first >= SHI_FILES_MAX) return WASI_MFILE;
  if (!may_open()) return WASI_NFILE;
  bool room = shi_wasi_reserve(guest, first + 1) == SH_OK;
  if (!room) shi_error_forget(); /* the guest gets an errno */
  if (!room || shi_account_charge(guest->account.parent, OPEN_FILE_BYTES)) {
    closed();
    return WASI_NOMEM;
  }
  *number = first;
  return WASI_OK;
}

void shi_wasi_end_open(shi_guest *guest, uint32_t number, const shi_file *file) {
  if (!file) {
    closed();
    shi_account_refund(guest->account.parent, OPEN_FILE_BYTES);
    return;
  }
  guest->files[number] = *file;
  if (number == guest->file_count) guest->file_count++;
}

/* ---- look-up ------------------------------------------------------------------------------------------------------ */

/* Of the numbers that could be meant, the one that programs know from POSIX and from wasmtime, which keeps no rights:
 * the wrong kind of file, a read-only directory, not opened for that; ENOTCAPABLE for what the guest gave away. */
static shi_wasi_errno refusal(const shi_file *file, uint64_t missing) {
  if (file->kind < SHI_FD_PREOPEN) {
    bool only_seeks = !(missing & ~(uint64_t)(RIGHT_FD_SEEK | RIGHT_FD_TELL));
    return only_seeks ? WASI_SPIPE : WASI_BADF;
  }
  bool directory = file->type == WASI_TYPE_DIRECTORY;
  if (directory && missing & ~(uint64_t)RIGHTS_OF_DIRECTORIES) return WASI_BADF;
  if (!directory && missing & RIGHT_FD_READDIR) return WASI_BADF;
  if (!directory && missing & ~(uint64_t)RIGHTS_OF_FILES) return WASI_NOTDIR;
  if (!file->writable && missing & RIGHTS_THAT_CHANGE & ~RIGHT_FD_WRITE) return WASI_PERM;
  if (missing & (RIGHT_FD_READ | RIGHT_FD_WRITE)) return WASI_BADF;
  return WASI_NOTCAPABLE;
}

static shi_file *entry(const shi_guest *guest, uint32_t number) {
  if (number >= guest->file_count || guest->files[number].kind == SHI_FD_FREE) return NULL;
  return &guest->files[number];
}

shi_wasi_errno shi_wasi_file(const shi_wasi_call *call, uint32_t number, uint64_t rights, shi_file **out) {
  shi_file *file = *out = entry(call->guest, number);
  if (!file) return WASI_BADF;
  if (file->kind == SHI_FD_PREOPEN && file->fd < 0) return WASI_NOTCAPABLE;
  uint64_t missing = rights & ~file->rights;
  return missing ? refusal(file, missing) : WASI_OK;
}

int shi_wasi_usable(shi_file *file) {
  if (file->kind != SHI_FD_PREOPEN) return file->fd;
  if (file->listing >= 0) return file->listing;
  if (!may_open()) return -ENFILE;
  file->listing = openat(file->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
  if (file->listing >= 0) return file->listing;
  int error = errno;
  closed();
  return -error;
}

/* ---- calls that only concern the table ---------------------------------------------------------------------------- */

shi_wasi_errno shi_fd_close(shi_wasi_call *call) {
  shi_file *file = entry(call->guest, shi_arg32(call, 0));
  if (!file) return WASI_BADF;
  shi_wasi_drop(call->guest, file);
  return WASI_OK;
}

shi_wasi_errno shi_fd_renumber(shi_wasi_call *call) {
  shi_file *from = entry(call->guest, shi_arg32(call, 0)), *to = entry(call->guest, shi_arg32(call, 1));
  if (!from || !to) return WASI_BADF;
  if (from == to) return WASI_OK;
  shi_wasi_drop(call->guest, to);
  *to = *from;
  from->kind = SHI_FD_FREE;
  return WASI_OK;
}

shi_wasi_errno shi_fd_fdstat_get(shi_wasi_call *call) {
  uint32_t at = shi_arg32(call, 1);
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), 0, &file);
  if (error) return error;
  if (!shi_reaches(call, at, 24)) return WASI_FAULT;
  uint8_t out[24] = {file->type};
  memcpy(out + 2, &file->flags, 2);
  memcpy(out + 8, &file->rights, 8);
  memcpy(out + 16, &file->inheriting, 8);
  shi_put(call, at, out, sizeof out);
  return WASI_OK;
}

/* Linux can change what appending means for an open file; whether writes are synchronous, it cannot. */
shi_wasi_errno shi_fd_fdstat_set_flags(shi_wasi_call *call) {
  uint32_t flags = shi_arg32(call, 1) & 0xffff;
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), 0, &file);
  if (error) return error;
  if (flags & ~(uint32_t)(WASI_APPEND | WASI_DSYNC | WASI_NONBLOCK | WASI_RSYNC | WASI_SYNC)) return WASI_INVAL;
  const uint32_t fixed = WASI_DSYNC | WASI_RSYNC | WASI_SYNC;
  if ((flags & fixed) != (file->flags & fixed)) return WASI_INVAL;
  if (file->kind >= SHI_FD_PREOPEN && !(file->rights & RIGHT_FD_FDSTAT_SET_FLAGS)) return WASI_NOTCAPABLE;
  if (file->kind == SHI_FD_OPEN && (flags ^ file->flags) & WASI_APPEND) {
    int now = fcntl(file->fd, F_GETFL);
    if (now < 0 || fcntl(file->fd, F_SETFL, flags & WASI_APPEND ? now | O_APPEND : now & ~O_APPEND) < 0)
      return shi_wasi_errno_of(errno);
  }
  file->flags = (uint16_t)flags; /* waiting is ours: every file is open with O_NONBLOCK */
  return WASI_OK;
}

shi_wasi_errno shi_fd_fdstat_set_rights(shi_wasi_call *call) {
  uint64_t rights = shi_arg64(call, 1), inheriting = shi_arg64(call, 2);
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), 0, &file);
  if (error) return error;
  if (rights & ~file->rights || inheriting & ~file->inheriting) return WASI_NOTCAPABLE;
  file->rights = rights;
  file->inheriting = inheriting;
  return WASI_OK;
}

/* ---- prestat: also of a name with nothing behind it, or libc would stop there -------------------------------------- */

shi_wasi_errno shi_fd_prestat_get(shi_wasi_call *call) {
  uint32_t at = shi_arg32(call, 1);
  const shi_file *file = entry(call->guest, shi_arg32(call, 0));
  if (!file || file->kind != SHI_FD_PREOPEN) return WASI_BADF;
  if (!shi_reaches(call, at, 8)) return WASI_FAULT;
  shi_put32(call, at, 0); /* a directory */
  shi_put32(call, at + 4ull, (uint32_t)strlen(file->name));
  return WASI_OK;
}

shi_wasi_errno shi_fd_prestat_dir_name(shi_wasi_call *call) {
  uint32_t at = shi_arg32(call, 1), room = shi_arg32(call, 2);
  const shi_file *file = entry(call->guest, shi_arg32(call, 0));
  if (!file || file->kind != SHI_FD_PREOPEN) return WASI_BADF;
  size_t length = strlen(file->name);
  if (!shi_reaches(call, at, room)) return WASI_FAULT;
  if (length > room) return WASI_NAMETOOLONG;
  shi_put(call, at, file->name, length);
  return WASI_OK;
}
