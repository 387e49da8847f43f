/* path_*: what a guest may do by name, and only below the directories it was given.
 *
 * Two ways to a name, neither of which can leave the directory (nor be raced out of it by a rename or a new link):
 *
 *   openat2(directory, path, RESOLVE_BENEATH)             for what can be done with an open file
 *   openat2(directory, parent) and *at(parent, last)      for the rest: `last` is one name, which is never followed
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "os.h"
#include "wasi.h"

enum { FOLLOW = 1 }; /* __wasi_lookupflags_t */

/* ---- paths -------------------------------------------------------------------------------------------------------- */

/* A path from the guest's memory, never absolute: that would lead out, as wasmtime says with the same number. */
static shi_wasi_errno read_path(const shi_wasi_call *call, uint32_t at, uint32_t length, char out[PATH_MAX]) {
  if (!shi_reaches(call, at, length)) return WASI_FAULT;
  if (length >= PATH_MAX) return WASI_NAMETOOLONG;
  if (length == 0) return WASI_NOENT;
  memcpy(out, call->memory + at, length);
  out[length] = 0;
  if (memchr(out, 0, length)) return WASI_INVAL;
  return out[0] == '/' ? WASI_PERM : WASI_OK;
}

static shi_wasi_errno open_beneath(int directory, const char *path, int flags, uint32_t mode, int *fd) {
  *fd = shi_os_open_beneath(directory, path, flags | O_CLOEXEC, mode);
  if (*fd == -EXDEV) return WASI_PERM; /* it leads out */
  return *fd < 0 ? shi_wasi_errno_of(-*fd) : WASI_OK;
}

/* The file that a path names, or with no FOLLOW the link itself: to look at, not to read. */
static shi_wasi_errno open_named(const shi_wasi_call *call, int argument, uint64_t right, int *fd) {
  uint32_t flags = shi_arg32(call, argument + 1);
  char path[PATH_MAX];
  shi_file *directory;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, argument), right, &directory);
  if (!error) error = read_path(call, shi_arg32(call, argument + 2), shi_arg32(call, argument + 3), path);
  if (error) return error;
  if (flags & ~(uint32_t)FOLLOW) return WASI_INVAL;
  return open_beneath(directory->fd, path, O_PATH | (flags & FOLLOW ? 0 : O_NOFOLLOW), 0, fd);
}

/* Where a name stands. */
typedef struct {
  int parent;
  bool owned; /* `parent` is to be closed */
  bool slash; /* something that must be a directory was meant */
  char *last; /* one name, in `path` */
  char path[PATH_MAX];
} place;

static void leave(const place *at) {
  if (at->owned) close(at->parent);
}

/* `dots`: what to say of a path that ends in "." or ".." and does not lead out. Leave the place if and only if this is WASI_OK. */
static shi_wasi_errno find(const shi_wasi_call *call, uint32_t number, uint32_t path, uint32_t length, uint64_t right,
                           shi_wasi_errno dots, place *out) {
  shi_file *directory;
  shi_wasi_errno error = shi_wasi_file(call, number, right, &directory);
  if (!error) error = read_path(call, path, length, out->path);
  if (error) return error;
  size_t end = length;
  while (out->path[end - 1] == '/') end--; /* it does not begin with one */
  out->slash = end < length;
  out->path[end] = 0;
  char *slash = strrchr(out->path, '/');
  out->last = slash ? slash + 1 : out->path;
  if (strcmp(out->last, ".") == 0 || strcmp(out->last, "..") == 0) {
    int fd;
    error = open_beneath(directory->fd, out->path, O_PATH | O_DIRECTORY, 0, &fd);
    if (!error) close(fd);
    return error ? error : dots;
  }
  out->owned = slash != NULL;
  out->parent = directory->fd;
  if (!slash) return WASI_OK;
  *slash = 0;
  return open_beneath(directory->fd, out->path, O_PATH | O_DIRECTORY, 0, &out->parent);
}

static shi_wasi_errno outcome(int result) { return result != 0 ? shi_wasi_errno_of(errno) : WASI_OK; }

/* For a path with a slash behind it where no directory can be meant. */
static shi_wasi_errno refuse_slash(const place *at, shi_wasi_errno directory, shi_wasi_errno other) {
  struct stat stat;
  if (fstatat(at->parent, at->last, &stat, AT_SYMLINK_NOFOLLOW) != 0) return shi_wasi_errno_of(errno);
  return S_ISDIR(stat.st_mode) ? directory : other;
}

/* ---- path_open ---------------------------------------------------------------------------------------------------- */

/* The guest's name of what it opens, for messages. */
static char *joined(const char *directory, const char *path) {
  char *out = NULL;
  size_t length = strlen(directory);
  bool slash = length == 0 || directory[length - 1] == '/';
  return asprintf(&out, "%s%s%s", directory, slash ? "" : "/", path) < 0 ? NULL : out;
}

typedef struct {
  uint64_t rights, inheriting;
  uint32_t flags; /* __wasi_fdflags_t */
  int how; /* as open() takes it */
} wish;

enum { CREAT = 1, DIRECTORY = 2, EXCL = 4, TRUNC = 8 }; /* __wasi_oflags_t */

static int flags_of_open(uint32_t open_flags, uint32_t fd_flags, uint32_t lookup_flags, uint64_t rights) {
  bool reads = rights & (RIGHT_FD_READ | RIGHT_FD_READDIR), writes = rights & RIGHT_FD_WRITE;
  int flags = O_NOCTTY | O_NONBLOCK;
  if (writes) flags |= reads ? O_RDWR : O_WRONLY; /* else O_RDONLY, which is 0 */
  if (open_flags & CREAT) flags |= O_CREAT;
  if (open_flags & DIRECTORY) flags |= O_DIRECTORY;
  if (open_flags & EXCL) flags |= O_EXCL;
  if (open_flags & TRUNC) flags |= O_TRUNC;
  if (fd_flags & WASI_APPEND) flags |= O_APPEND;
  if (fd_flags & WASI_DSYNC) flags |= O_DSYNC;
  if (fd_flags & (WASI_SYNC | WASI_RSYNC)) flags |= O_SYNC;
  if (!(lookup_flags & FOLLOW)) flags |= O_NOFOLLOW;
  return flags;
}

/* Rights that no directory can pass on are left out rather than refused: programs ask for all they can think of. */
static shi_wasi_errno understand(const shi_wasi_call *call, shi_file **directory, wish *out) {
  uint32_t lookup_flags = shi_arg32(call, 1), open_flags = shi_arg32(call, 4) & 0xffff;
  out->rights = shi_arg64(call, 5);
  out->inheriting = shi_arg64(call, 6);
  out->flags = shi_arg32(call, 7) & 0xffff;
  uint64_t needed = RIGHT_PATH_OPEN | (open_flags & CREAT ? RIGHT_PATH_CREATE_FILE : 0) |
                    (open_flags & TRUNC ? RIGHT_PATH_FILESTAT_SET_SIZE : 0);
  const uint32_t known = WASI_APPEND | WASI_DSYNC | WASI_NONBLOCK | WASI_RSYNC | WASI_SYNC;
  if (lookup_flags & ~(uint32_t)FOLLOW || open_flags & ~(uint32_t)(CREAT | DIRECTORY | EXCL | TRUNC) ||
      out->flags & ~known || (open_flags & CREAT && open_flags & DIRECTORY))
    return WASI_INVAL;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), needed, directory);
  if (error) return error;
  if (out->rights & RIGHT_FD_WRITE & ~(*directory)->inheriting)
    return (*directory)->writable ? WASI_NOTCAPABLE : WASI_PERM;
  out->rights &= (*directory)->inheriting;
  out->inheriting &= (*directory)->inheriting;
  out->how = flags_of_open(open_flags, out->flags, lookup_flags, out->rights);
  return WASI_OK;
}

static shi_wasi_errno open_file(const shi_file *directory, const char *path, const wish *wanted, shi_file *out) {
  char *name = joined(directory->name, path);
  if (!name) return WASI_NOMEM;
  int fd;
  struct stat stat;
  shi_wasi_errno error = open_beneath(directory->fd, path, wanted->how, 0666, &fd);
  if (!error && fstat(fd, &stat) != 0) {
    error = shi_wasi_errno_of(errno);
    close(fd);
  }
  if (error) {
    free(name);
    return error;
  }
  uint64_t possible = S_ISDIR(stat.st_mode) ? RIGHTS_OF_DIRECTORIES : RIGHTS_OF_FILES;
  *out = (shi_file){
      .kind = SHI_FD_OPEN,
      .type = shi_wasi_type_of(stat.st_mode),
      .flags = (uint16_t)wanted->flags,
      .writable = directory->writable,
      .owns_name = true,
      .fd = fd,
      .listing = -1,
      .rights = wanted->rights & possible,
      .inheriting = wanted->inheriting,
      .name = name,
  };
  return WASI_OK;
}

shi_wasi_errno shi_path_open(shi_wasi_call *call) {
  uint32_t result = shi_arg32(call, 8), number;
  char path[PATH_MAX];
  wish wanted;
  shi_file *directory, file;
  shi_wasi_errno error = understand(call, &directory, &wanted);
  if (!error) error = read_path(call, shi_arg32(call, 2), shi_arg32(call, 3), path);
  if (error) return error;
  if (!shi_reaches(call, result, 4)) return WASI_FAULT;
  error = shi_wasi_begin_open(call->guest, &number);
  if (error) return error;
  error = open_file(&call->guest->files[shi_arg32(call, 0)], path, &wanted, &file);
  shi_wasi_end_open(call->guest, number, error ? NULL : &file);
  if (!error) shi_put32(call, result, number);
  return error;
}

/* ---- attributes by name, through an open file --------------------------------------------------------------------- */

shi_wasi_errno shi_path_filestat_get(shi_wasi_call *call) {
  uint32_t at = shi_arg32(call, 4);
  if (!shi_reaches(call, at, WASI_FILESTAT_BYTES)) return WASI_FAULT;
  int fd;
  shi_wasi_errno error = open_named(call, 0, RIGHT_PATH_FILESTAT_GET, &fd);
  if (error) return error;
  struct stat stat;
  error = outcome(fstat(fd, &stat));
  close(fd);
  if (!error) shi_wasi_put_filestat(call, at, &stat);
  return error;
}

shi_wasi_errno shi_path_filestat_set_times(shi_wasi_call *call) {
  struct timespec times[2];
  if (!shi_wasi_times(shi_arg64(call, 4), shi_arg64(call, 5), shi_arg32(call, 6) & 0xffff, times)) return WASI_INVAL;
  int fd;
  shi_wasi_errno error = open_named(call, 0, RIGHT_PATH_FILESTAT_SET_TIMES, &fd);
  if (error) return error;
  error = outcome(utimensat(fd, "", times, AT_EMPTY_PATH)); /* Linux 5.8 */
  close(fd);
  return error;
}

/* An absolute link tells of the host, and leads nowhere for the guest. */
shi_wasi_errno shi_path_readlink(shi_wasi_call *call) {
  uint32_t at = shi_arg32(call, 3), room = shi_arg32(call, 4), result = shi_arg32(call, 5);
  char path[PATH_MAX], target[PATH_MAX];
  shi_file *directory;
  if (!shi_reaches(call, at, room) || !shi_reaches(call, result, 4)) return WASI_FAULT;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), RIGHT_PATH_READLINK, &directory);
  if (!error) error = read_path(call, shi_arg32(call, 1), shi_arg32(call, 2), path);
  int fd;
  if (!error) error = open_beneath(directory->fd, path, O_PATH | O_NOFOLLOW, 0, &fd);
  if (error) return error;
  struct stat stat;
  ssize_t length = -1;
  error = outcome(fstat(fd, &stat));
  if (!error && !S_ISLNK(stat.st_mode)) error = WASI_INVAL;
  if (!error && (length = readlinkat(fd, "", target, sizeof target)) < 0) error = shi_wasi_errno_of(errno);
  close(fd);
  if (!error && length > 0 && target[0] == '/') error = WASI_PERM;
  if (error) return error;
  uint32_t used = (uint64_t)length < room ? (uint32_t)length : room;
  shi_put(call, at, target, used);
  shi_put32(call, result, used);
  return WASI_OK;
}

/* ---- names made, moved and removed -------------------------------------------------------------------------------- */

shi_wasi_errno shi_path_create_directory(shi_wasi_call *call) {
  place at;
  shi_wasi_errno error = find(call, shi_arg32(call, 0), shi_arg32(call, 1), shi_arg32(call, 2),
                              RIGHT_PATH_CREATE_DIRECTORY, WASI_EXIST, &at);
  if (error) return error;
  error = outcome(mkdirat(at.parent, at.last, 0777));
  leave(&at);
  return error;
}

shi_wasi_errno shi_path_remove_directory(shi_wasi_call *call) {
  place at;
  shi_wasi_errno error = find(call, shi_arg32(call, 0), shi_arg32(call, 1), shi_arg32(call, 2),
                              RIGHT_PATH_REMOVE_DIRECTORY, WASI_INVAL, &at);
  if (error) return error;
  error = outcome(unlinkat(at.parent, at.last, AT_REMOVEDIR));
  leave(&at);
  return error;
}

shi_wasi_errno shi_path_unlink_file(shi_wasi_call *call) {
  place at;
  shi_wasi_errno error =
      find(call, shi_arg32(call, 0), shi_arg32(call, 1), shi_arg32(call, 2), RIGHT_PATH_UNLINK_FILE, WASI_ISDIR, &at);
  if (error) return error;
  error = at.slash ? refuse_slash(&at, WASI_ISDIR, WASI_NOTDIR) : outcome(unlinkat(at.parent, at.last, 0));
  leave(&at);
  return error;
}

/* The target is what the guest says; who follows it stays inside. An absolute one could only mislead the host. */
shi_wasi_errno shi_path_symlink(shi_wasi_call *call) {
  char target[PATH_MAX];
  place at;
  shi_wasi_errno error = read_path(call, shi_arg32(call, 0), shi_arg32(call, 1), target);
  if (!error)
    error = find(call, shi_arg32(call, 2), shi_arg32(call, 3), shi_arg32(call, 4), RIGHT_PATH_SYMLINK, WASI_EXIST, &at);
  if (error) return error;
  error = at.slash ? refuse_slash(&at, WASI_EXIST, WASI_EXIST) : outcome(symlinkat(target, at.parent, at.last));
  leave(&at);
  return error;
}

/* Both directories must be writable: a link is another way to write the file. */
shi_wasi_errno shi_path_link(shi_wasi_call *call) {
  if (shi_arg32(call, 1) != 0) return WASI_INVAL; /* to what a link leads to */
  place from, to;
  shi_wasi_errno error =
      find(call, shi_arg32(call, 0), shi_arg32(call, 2), shi_arg32(call, 3), RIGHT_PATH_LINK_SOURCE, WASI_PERM, &from);
  if (error) return error;
  error =
      find(call, shi_arg32(call, 4), shi_arg32(call, 5), shi_arg32(call, 6), RIGHT_PATH_LINK_TARGET, WASI_EXIST, &to);
  if (!error) {
    if (from.slash)
      error = refuse_slash(&from, WASI_PERM, WASI_NOTDIR);
    else if (to.slash)
      error = refuse_slash(&to, WASI_EXIST, WASI_NOTDIR);
    else
      error = outcome(linkat(from.parent, from.last, to.parent, to.last, 0));
    leave(&to);
  }
  leave(&from);
  return error;
}

shi_wasi_errno shi_path_rename(shi_wasi_call *call) {
  place from, to;
  shi_wasi_errno error = find(call, shi_arg32(call, 0), shi_arg32(call, 1), shi_arg32(call, 2),
                              RIGHT_PATH_RENAME_SOURCE, WASI_BUSY, &from);
  if (error) return error;
  error =
      find(call, shi_arg32(call, 3), shi_arg32(call, 4), shi_arg32(call, 5), RIGHT_PATH_RENAME_TARGET, WASI_BUSY, &to);
  if (!error) {
    if (from.slash || to.slash) error = refuse_slash(&from, WASI_OK, WASI_NOTDIR);
    if (!error) error = outcome(renameat(from.parent, from.last, to.parent, to.last));
    leave(&to);
  }
  leave(&from);
  return error;
}
