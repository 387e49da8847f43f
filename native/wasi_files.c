/* What else can be done with an open file: attributes, sizes, times, syncing. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "wasi.h"

/* ---- attributes --------------------------------------------------------------------------------------------------- */

uint8_t shi_wasi_type_of(mode_t mode) {
  switch (mode & S_IFMT) {
  case S_IFREG:
    return WASI_TYPE_REGULAR_FILE;
  case S_IFDIR:
    return WASI_TYPE_DIRECTORY;
  case S_IFLNK:
    return WASI_TYPE_SYMBOLIC_LINK;
  case S_IFCHR:
    return WASI_TYPE_CHARACTER_DEVICE;
  case S_IFBLK:
    return WASI_TYPE_BLOCK_DEVICE;
  case S_IFSOCK:
    return WASI_TYPE_SOCKET_STREAM;
  default:
    return WASI_TYPE_UNKNOWN; /* a FIFO: WASI knows none */
  }
}

static uint64_t nanoseconds(struct timespec time) { /* WASI knows no time before 1970 */
  return time.tv_sec < 0 ? 0 : (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

void shi_wasi_put_filestat(const shi_wasi_call *call, uint32_t at, const struct stat *stat) {
  uint64_t out[WASI_FILESTAT_BYTES / 8] = {
      stat->st_dev,
      stat->st_ino,
      shi_wasi_type_of(stat->st_mode),
      stat->st_nlink,
      (uint64_t)stat->st_size,
      nanoseconds(stat->st_atim),
      nanoseconds(stat->st_mtim),
      nanoseconds(stat->st_ctim),
  };
  shi_put(call, at, out, sizeof out);
}

shi_wasi_errno shi_fd_filestat_get(shi_wasi_call *call) {
  uint32_t at = shi_arg32(call, 1);
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), 0, &file);
  if (error) return error;
  bool stream = file->kind < SHI_FD_PREOPEN; /* about which there is nothing to know */
  if (!stream && !(file->rights & RIGHT_FD_FILESTAT_GET)) return WASI_NOTCAPABLE;
  if (!shi_reaches(call, at, WASI_FILESTAT_BYTES)) return WASI_FAULT;
  struct stat stat = {0};
  if (!stream && fstat(file->fd, &stat) != 0) return shi_wasi_errno_of(errno);
  shi_wasi_put_filestat(call, at, &stat);
  return WASI_OK;
}

/* ---- size --------------------------------------------------------------------------------------------------------- */

shi_wasi_errno shi_fd_filestat_set_size(shi_wasi_call *call) {
  uint64_t size = shi_arg64(call, 1);
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), RIGHT_FD_FILESTAT_SET_SIZE, &file);
  if (error) return error;
  if (size > INT64_MAX) return WASI_INVAL;
  sigset_t before;
  shi_wasi_hush(&before);
  int failed = ftruncate(file->fd, (off_t)size) != 0 ? errno : 0;
  shi_wasi_unhush(&before, failed);
  return failed ? shi_wasi_errno_of(failed) : WASI_OK;
}

shi_wasi_errno shi_fd_allocate(shi_wasi_call *call) {
  enum { PIECE = 16 << 20 }; /* between two looks at the deadline: about 5 ms on tmpfs, which fills its pages */
  uint64_t offset = shi_arg64(call, 1), left = shi_arg64(call, 2);
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), RIGHT_FD_ALLOCATE, &file);
  if (error) return error;
  if (left == 0) return WASI_INVAL;
  if (offset > INT64_MAX || left > INT64_MAX - offset) return WASI_FBIG;
  while (left) {
    uint64_t length = left < PIECE ? left : PIECE;
    sigset_t before;
    shi_wasi_hush(&before);
    int failed = fallocate(file->fd, 0, (off_t)offset, (off_t)length) != 0 ? errno : 0;
    shi_wasi_unhush(&before, failed);
    if (failed && failed != EINTR) return shi_wasi_errno_of(failed);
    if (!failed) {
      offset += length;
      left -= length;
    }
    if (left && !shi_guest_goes_on(call->guest)) return WASI_INTR;
  }
  return WASI_OK;
}

/* ---- times -------------------------------------------------------------------------------------------------------- */

static bool time_of(uint64_t time, bool set, bool now, struct timespec *out) {
  *out = (struct timespec){.tv_sec = (time_t)(time / 1000000000u), .tv_nsec = (long)(time % 1000000000u)};
  if (!set) out->tv_nsec = now ? UTIME_NOW : UTIME_OMIT;
  return !(set && now);
}

bool shi_wasi_times(uint64_t accessed, uint64_t modified, uint32_t flags, struct timespec out[2]) {
  enum { ATIM = 1, ATIM_NOW = 2, MTIM = 4, MTIM_NOW = 8, ALL = 15 }; /* __wasi_fstflags_t */
  return !(flags & ~(uint32_t)ALL) && time_of(accessed, flags & ATIM, flags & ATIM_NOW, &out[0]) &&
         time_of(modified, flags & MTIM, flags & MTIM_NOW, &out[1]);
}

shi_wasi_errno shi_fd_filestat_set_times(shi_wasi_call *call) {
  shi_file *file;
  struct timespec times[2];
  if (!shi_wasi_times(shi_arg64(call, 1), shi_arg64(call, 2), shi_arg32(call, 3) & 0xffff, times)) return WASI_INVAL;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), RIGHT_FD_FILESTAT_SET_TIMES, &file);
  if (error) return error;
  int fd = shi_wasi_usable(file);
  if (fd < 0) return shi_wasi_errno_of(-fd);
  return futimens(fd, times) != 0 ? shi_wasi_errno_of(errno) : WASI_OK;
}

/* ---- the rest ----------------------------------------------------------------------------------------------------- */

shi_wasi_errno shi_fd_advise(shi_wasi_call *call) {
  static const int advices[] = {POSIX_FADV_NORMAL,   POSIX_FADV_SEQUENTIAL, POSIX_FADV_RANDOM,
                                POSIX_FADV_WILLNEED, POSIX_FADV_DONTNEED,   POSIX_FADV_NOREUSE};
  uint64_t offset = shi_arg64(call, 1), length = shi_arg64(call, 2);
  uint32_t advice = shi_arg32(call, 3);
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), RIGHT_FD_ADVISE, &file);
  if (error) return error;
  if (advice >= sizeof advices / sizeof advices[0] || offset > INT64_MAX || length > INT64_MAX - offset)
    return WASI_INVAL;
  int failed = posix_fadvise(file->fd, (off_t)offset, (off_t)length, advices[advice]);
  return failed ? shi_wasi_errno_of(failed) : WASI_OK;
}

static shi_wasi_errno sync_file(const shi_wasi_call *call, uint64_t right, int (*sync)(int)) {
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), right, &file);
  if (error) return error;
  int fd = shi_wasi_usable(file);
  if (fd < 0) return shi_wasi_errno_of(-fd);
  return sync(fd) != 0 ? shi_wasi_errno_of(errno) : WASI_OK;
}

shi_wasi_errno shi_fd_sync(shi_wasi_call *call) { return sync_file(call, RIGHT_FD_SYNC, fsync); }
shi_wasi_errno shi_fd_datasync(shi_wasi_call *call) { return sync_file(call, RIGHT_FD_DATASYNC, fdatasync); }
