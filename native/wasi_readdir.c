/* fd_readdir. A cookie is the kernel's own offset (d_off): it stays right while others add and remove entries. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "wasi.h"

enum { ENTRY = 24 }; /* __wasi_dirent_t; the name follows */

/* As getdents64 gives it: struct linux_dirent64. */
typedef struct {
  uint64_t inode;
  int64_t next;
  uint16_t length;
  uint8_t type;
  char name[];
} found_entry;

static uint8_t type_of(int directory, const found_entry *entry) {
  if (entry->type != DT_UNKNOWN) return shi_wasi_type_of(DTTOIF(entry->type));
  struct stat stat; /* the file system does not say */
  return fstatat(directory, entry->name, &stat, AT_SYMLINK_NOFOLLOW) == 0 ? shi_wasi_type_of(stat.st_mode)
                                                                          : WASI_TYPE_UNKNOWN;
}

/* As much of it as there is room for; returns how much. */
static uint32_t put_cut(const shi_wasi_call *call, uint64_t at, uint32_t room, const void *from, uint32_t length) {
  if (length > room) length = room;
  if (length) shi_put(call, at, from, length);
  return length;
}

static uint32_t put_entry(const shi_wasi_call *call, uint64_t at, uint32_t room, int directory, uint64_t own_inode,
                          const found_entry *entry) {
  uint32_t name_length = (uint32_t)strlen(entry->name);
  /* What lies above a granted directory is nobody's business. */
  uint64_t inode = strcmp(entry->name, "..") == 0 ? own_inode : entry->inode;
  uint8_t head[ENTRY] = {0};
  memcpy(head, &entry->next, 8);
  memcpy(head + 8, &inode, 8);
  memcpy(head + 16, &name_length, 4);
  head[20] = type_of(directory, entry);
  uint32_t used = put_cut(call, at, room, head, ENTRY);
  return used + put_cut(call, at + used, room - used, entry->name, name_length);
}

shi_wasi_errno shi_fd_readdir(shi_wasi_call *call) {
  uint32_t at = shi_arg32(call, 1), room = shi_arg32(call, 2), used = 0, result = shi_arg32(call, 4);
  uint64_t cookie = shi_arg64(call, 3);
  shi_file *file;
  struct stat own;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), RIGHT_FD_READDIR, &file);
  if (error) return error;
  if (!shi_reaches(call, at, room) || !shi_reaches(call, result, 4)) return WASI_FAULT;
  int fd = shi_wasi_usable(file);
  if (fd < 0) return shi_wasi_errno_of(-fd);
  if (cookie > INT64_MAX) return WASI_INVAL;
  if (fstat(fd, &own) != 0 || lseek(fd, (off_t)cookie, SEEK_SET) < 0) return shi_wasi_errno_of(errno);
  while (used < room) {
    _Alignas(8) uint8_t buffer[16 << 10];
    long got = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
    if (got < 0) return shi_wasi_errno_of(errno);
    if (got == 0) break;
    for (long next = 0; next < got && used < room;) {
      const found_entry *entry = (const found_entry *)(buffer + next);
      used += put_entry(call, (uint64_t)at + used, room - used, fd, own.st_ino, entry);
      next += entry->length;
    }
    if (used < room && !shi_guest_goes_on(call->guest)) return WASI_INTR;
  }
  shi_put32(call, result, used);
  return WASI_OK;
}
