/* WASI preview 1, inside: what its files share.
 *
 *   grant    what a `Wasi` in Python gives, prepared once, shared by guests     wasi_grant.c
 *   table    a guest's file descriptors                                         wasi_table.c, wasi_state.c (snapshots)
 *   calls    the 46 functions:  linking, process        wasi.c
 *                               bytes of files, streams wasi_io.c
 *                               the rest of fd_*        wasi_files.c, wasi_readdir.c
 *                               path_*                  wasi_paths.c
 *                               clocks, poll, random    wasi_clock.c
 *
 * https://github.com/WebAssembly/WASI/blob/wasi-0.1/preview1/docs.md
 *
 * Everything runs on the thread that runs the guest. What can take long is done in pieces, and what would block is
 * waited for in ticks, so that deadline and cancellation end it (shi_guest_goes_on). Then a call leaves `guest->stop`
 * set and its result does not matter.
 */
#ifndef SANDHOST_WASI_H
#define SANDHOST_WASI_H

#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "guest.h"

/* ---- errno, file types, rights ------------------------------------------------------------------------------------ */

typedef enum {
  WASI_OK = 0,
  WASI_2BIG = 1,
  WASI_AGAIN = 6,
  WASI_BADF = 8,
  WASI_BUSY = 10,
  WASI_EXIST = 20,
  WASI_FAULT = 21,
  WASI_FBIG = 22,
  WASI_ILSEQ = 25,
  WASI_INTR = 27,
  WASI_INVAL = 28,
  WASI_IO = 29,
  WASI_ISDIR = 31,
  WASI_LOOP = 32,
  WASI_MFILE = 33,
  WASI_NAMETOOLONG = 37,
  WASI_NFILE = 41,
  WASI_NOENT = 44,
  WASI_NOMEM = 48,
  WASI_NOTDIR = 54,
  WASI_NOTSOCK = 57,
  WASI_NOTSUP = 58,
  WASI_OVERFLOW = 61,
  WASI_PERM = 63,
  WASI_SPIPE = 70,
  WASI_NOTCAPABLE = 76,
} shi_wasi_errno;

shi_wasi_errno shi_wasi_errno_of(int error); /* of a positive errno of Linux */

enum { /* __wasi_filetype_t */
       WASI_TYPE_UNKNOWN,
       WASI_TYPE_BLOCK_DEVICE,
       WASI_TYPE_CHARACTER_DEVICE,
       WASI_TYPE_DIRECTORY,
       WASI_TYPE_REGULAR_FILE,
       WASI_TYPE_SOCKET_DGRAM,
       WASI_TYPE_SOCKET_STREAM,
       WASI_TYPE_SYMBOLIC_LINK
};

enum { WASI_APPEND = 1, WASI_DSYNC = 2, WASI_NONBLOCK = 4, WASI_RSYNC = 8, WASI_SYNC = 16 }; /* __wasi_fdflags_t */

enum { /* __wasi_rights_t */
       RIGHT_FD_DATASYNC = 1 << 0,
       RIGHT_FD_READ = 1 << 1,
       RIGHT_FD_SEEK = 1 << 2,
       RIGHT_FD_FDSTAT_SET_FLAGS = 1 << 3,
       RIGHT_FD_SYNC = 1 << 4,
       RIGHT_FD_TELL = 1 << 5,
       RIGHT_FD_WRITE = 1 << 6,
       RIGHT_FD_ADVISE = 1 << 7,
       RIGHT_FD_ALLOCATE = 1 << 8,
       RIGHT_PATH_CREATE_DIRECTORY = 1 << 9,
       RIGHT_PATH_CREATE_FILE = 1 << 10,
       RIGHT_PATH_LINK_SOURCE = 1 << 11,
       RIGHT_PATH_LINK_TARGET = 1 << 12,
       RIGHT_PATH_OPEN = 1 << 13,
       RIGHT_FD_READDIR = 1 << 14,
       RIGHT_PATH_READLINK = 1 << 15,
       RIGHT_PATH_RENAME_SOURCE = 1 << 16,
       RIGHT_PATH_RENAME_TARGET = 1 << 17,
       RIGHT_PATH_FILESTAT_GET = 1 << 18,
       RIGHT_PATH_FILESTAT_SET_SIZE = 1 << 19,
       RIGHT_PATH_FILESTAT_SET_TIMES = 1 << 20,
       RIGHT_FD_FILESTAT_GET = 1 << 21,
       RIGHT_FD_FILESTAT_SET_SIZE = 1 << 22,
       RIGHT_FD_FILESTAT_SET_TIMES = 1 << 23,
       RIGHT_PATH_SYMLINK = 1 << 24,
       RIGHT_PATH_REMOVE_DIRECTORY = 1 << 25,
       RIGHT_PATH_UNLINK_FILE = 1 << 26,
       RIGHT_POLL_FD_READWRITE = 1 << 27,

       /* What a file can have that is no directory, a directory, and nobody in a read-only grant. */
       RIGHTS_OF_FILES = RIGHT_FD_DATASYNC | RIGHT_FD_READ | RIGHT_FD_SEEK | RIGHT_FD_FDSTAT_SET_FLAGS | RIGHT_FD_SYNC |
           RIGHT_FD_TELL | RIGHT_FD_WRITE | RIGHT_FD_ADVISE | RIGHT_FD_ALLOCATE | RIGHT_FD_FILESTAT_GET |
           RIGHT_FD_FILESTAT_SET_SIZE | RIGHT_FD_FILESTAT_SET_TIMES | RIGHT_POLL_FD_READWRITE,
       RIGHTS_OF_DIRECTORIES = RIGHT_FD_DATASYNC | RIGHT_FD_FDSTAT_SET_FLAGS | RIGHT_FD_SYNC |
           RIGHT_PATH_CREATE_DIRECTORY | RIGHT_PATH_CREATE_FILE | RIGHT_PATH_LINK_SOURCE | RIGHT_PATH_LINK_TARGET |
           RIGHT_PATH_OPEN | RIGHT_FD_READDIR | RIGHT_PATH_READLINK | RIGHT_PATH_RENAME_SOURCE |
           RIGHT_PATH_RENAME_TARGET | RIGHT_PATH_FILESTAT_GET | RIGHT_PATH_FILESTAT_SET_SIZE |
           RIGHT_PATH_FILESTAT_SET_TIMES | RIGHT_FD_FILESTAT_GET | RIGHT_FD_FILESTAT_SET_TIMES | RIGHT_PATH_SYMLINK |
           RIGHT_PATH_REMOVE_DIRECTORY | RIGHT_PATH_UNLINK_FILE,
       RIGHTS_THAT_CHANGE = RIGHT_FD_WRITE | RIGHT_FD_ALLOCATE | RIGHT_PATH_CREATE_DIRECTORY | RIGHT_PATH_CREATE_FILE |
           RIGHT_PATH_LINK_SOURCE | RIGHT_PATH_LINK_TARGET | RIGHT_PATH_RENAME_SOURCE | RIGHT_PATH_RENAME_TARGET |
           RIGHT_PATH_FILESTAT_SET_SIZE | RIGHT_PATH_FILESTAT_SET_TIMES | RIGHT_FD_FILESTAT_SET_SIZE |
           RIGHT_FD_FILESTAT_SET_TIMES | RIGHT_PATH_SYMLINK | RIGHT_PATH_REMOVE_DIRECTORY | RIGHT_PATH_UNLINK_FILE,
};

/* ---- a guest's files ---------------------------------------------------------------------------------------------- */

enum { SHI_FILES_MAX = 1024 }; /* of one guest, the three streams included; arbitrary */

/* An entry of the table. A preopen without an OS file is a name with nothing behind it: every operation but closing,
 * renumbering and asking for the name is ENOTCAPABLE.
 *
 *   kind == SHI_FD_OPEN     fd is ours, counted in the process-wide budget
 *   kind == SHI_FD_PREOPEN  fd is the grant's (O_PATH); `listing` is ours when not -1 */
enum shi_fd_kind { SHI_FD_FREE, SHI_FD_STDIN, SHI_FD_STDOUT, SHI_FD_STDERR, SHI_FD_PREOPEN, SHI_FD_OPEN };

struct shi_file {
  uint8_t kind;   /* enum shi_fd_kind */
  uint8_t type;   /* WASI_TYPE_* */
  uint16_t flags; /* __wasi_fdflags_t */
  bool writable;  /* what its directory was granted as */
  bool owns_name;
  int fd;      /* -1: none */
  int listing; /* a preopen's own file for fd_readdir, opened when first needed; -1: not yet */
  uint64_t rights, inheriting;
  char *name; /* the guest's path of it; NULL for streams */
};

/* ---- grants ------------------------------------------------------------------------------------------------------- */

typedef struct {
  char *bytes;       /* the strings one behind the other, each with its NUL */
  uint32_t *offsets; /* of each, in `bytes` */
  uint32_t count, length;
} shi_strings;

enum { SHI_INPUT = 4 };

struct sh_wasi {
  _Atomic uint32_t references; /* Python's one, and one for each guest; everything else is constant */
  shi_strings arguments, environment;
  uint8_t *input;
  uint64_t input_length;
  uint64_t output_limit;
  uint32_t called_back; /* bit 0: stdout, bit 1: stderr goes to the callback; SHI_INPUT: stdin comes from it */
  uint32_t file_count;  /* 3 + directories */
  shi_file *files;      /* what the table of a new guest is copied from */
};

extern sh_wasi shi_wasi_nothing; /* for a spawn without a grant */
void shi_wasi_hold(sh_wasi *grant);

/* ---- calls -------------------------------------------------------------------------------------------------------- */

typedef struct {
  shi_guest *guest;
  uint8_t *memory;
  uint64_t size; /* of the memory, now: no function here lets the guest grow it */
  const wasmtime_val_raw_t *values;
} shi_wasi_call;

/* One function of WASI. Reads all its arguments, and checks all its pointers, before it does anything. */
typedef shi_wasi_errno shi_wasi_function(shi_wasi_call *call);

static inline uint32_t shi_arg32(const shi_wasi_call *call, int k) { return (uint32_t)call->values[k].i32; }
static inline uint64_t shi_arg64(const shi_wasi_call *call, int k) { return (uint64_t)call->values[k].i64; }

/* Whether the guest's memory has `length` bytes at `at`. `at` is 32 bits wide, and lengths below 2^62: no overflow. */
static inline bool shi_reaches(const shi_wasi_call *call, uint32_t at, uint64_t length) {
  return at + length <= call->size;
}
static inline void shi_put(const shi_wasi_call *call, uint64_t at, const void *from, size_t length) {
  memcpy(call->memory + at, from, length);
}
static inline void shi_put32(const shi_wasi_call *call, uint64_t at, uint32_t value) { shi_put(call, at, &value, 4); }
static inline void shi_put64(const shi_wasi_call *call, uint64_t at, uint64_t value) { shi_put(call, at, &value, 8); }

/* Waits until a file of the OS can be read or written. False: the call is to be stopped. */
bool shi_wasi_await(shi_guest *guest, int fd, bool to_write);

/* wasi_table.c */

/* The file of that number, if it has all of these rights. */
shi_wasi_errno shi_wasi_file(const shi_wasi_call *call, uint32_t number, uint64_t rights, shi_file **out);
/* Makes room for one more file, within what the guest, its tenant and the process can bear. Pointers to entries are
 * stale afterwards. */
shi_wasi_errno shi_wasi_begin_open(shi_guest *guest, uint32_t *number);
void shi_wasi_end_open(shi_guest *guest, uint32_t number, const shi_file *file); /* NULL: it was not opened */
/* A file of the OS for what an O_PATH one cannot do. Belongs to `file`. Negative: -errno. */
int shi_wasi_usable(shi_file *file);
void shi_wasi_drop(shi_guest *guest, shi_file *file);   /* closes what is its own; the entry is then free */
int shi_wasi_reserve(shi_guest *guest, uint32_t count); /* room in the table */

/* wasi_files.c */
enum { WASI_FILESTAT_BYTES = 64 };
uint8_t shi_wasi_type_of(mode_t mode);
void shi_wasi_put_filestat(const shi_wasi_call *call, uint32_t at, const struct stat *stat);
/* Times as utimensat takes them. False: the flags contradict each other. */
bool shi_wasi_times(uint64_t accessed, uint64_t modified, uint32_t flags, struct timespec out[2]);

/* wasi_io.c: signals that a write beyond a limit or into a closed pipe sends to the thread, and that the application
 * may not expect, are kept away from it between the two. `error` is the write's errno, or 0. */
void shi_wasi_hush(sigset_t *before);
void shi_wasi_unhush(const sigset_t *before, int error);

shi_wasi_function shi_args_get, shi_args_sizes_get, shi_environ_get, shi_environ_sizes_get, shi_clock_res_get,
    shi_clock_time_get, shi_fd_advise, shi_fd_allocate, shi_fd_close, shi_fd_datasync, shi_fd_fdstat_get,
    shi_fd_fdstat_set_flags, shi_fd_fdstat_set_rights, shi_fd_filestat_get, shi_fd_filestat_set_size,
    shi_fd_filestat_set_times, shi_fd_pread, shi_fd_prestat_get, shi_fd_prestat_dir_name, shi_fd_pwrite, shi_fd_read,
    shi_fd_readdir, shi_fd_renumber, shi_fd_seek, shi_fd_sync, shi_fd_tell, shi_fd_write, shi_path_create_directory,
    shi_path_filestat_get, shi_path_filestat_set_times, shi_path_link, shi_path_open, shi_path_readlink,
    shi_path_remove_directory, shi_path_rename, shi_path_symlink, shi_path_unlink_file, shi_poll_oneoff, shi_random_get,
    shi_sched_yield;

/* ---- snapshots (wasi_state.c) ------------------------------------------------------------------------------------- */

/* A table as a snapshot keeps it: which streams are still open, and the granted directories by the guest's names, each
 * at its number. `bytes` can be written to a file and read back. */
typedef struct {
  uint8_t *bytes; /* free() */
  size_t length;
} shi_wasi_state;

/* Describes the guest's table. SH_ARGUMENT, with a message that names what is open (number and the guest's path), when
 * that is more than streams and granted directories. Precondition: the caller is inside the guest, or nobody is. */
int shi_wasi_capture(shi_guest *guest, shi_wasi_state *out);

/* Whether bytes from a file can be such a table. */
bool shi_wasi_state_is_sound(const uint8_t *bytes, size_t length);

/* Gives a guest its table. `grant` may be NULL: nothing. With `from`, the captured table: its directories are bound by
 * name to the grant's; one that is not granted stays, with nothing behind it, so that numbers which the guest's libc
 * remembers stay right; directories granted besides get the numbers after the captured ones. The fork reads its own
 * standard input from the start. SH_ARGUMENT: `from` is no captured table. */
int shi_wasi_attach(shi_guest *guest, sh_wasi *grant, const shi_wasi_state *from);
void shi_wasi_detach(shi_guest *guest); /* closes its files; harmless when it has none */

#endif
