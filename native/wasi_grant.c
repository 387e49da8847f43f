/* What a guest is given: copied and opened once, then shared by every guest that is spawned with it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "os.h"
#include "wasi.h"

enum { STREAMS = 3 };

/* A stream has no type, so that a guest's libc does not take it for a terminal. */
#define STREAM_FILES                                                                                                   \
  {.kind = SHI_FD_STDIN, .fd = -1, .listing = -1, .rights = RIGHT_FD_READ | RIGHT_POLL_FD_READWRITE},                  \
      {.kind = SHI_FD_STDOUT, .fd = -1, .listing = -1, .rights = RIGHT_FD_WRITE | RIGHT_POLL_FD_READWRITE},            \
      {.kind = SHI_FD_STDERR, .fd = -1, .listing = -1, .rights = RIGHT_FD_WRITE | RIGHT_POLL_FD_READWRITE},

static const shi_file streams[STREAMS] = {STREAM_FILES};
static shi_file files_of_nothing[STREAMS] = {STREAM_FILES};
sh_wasi shi_wasi_nothing = {.references = 1, .file_count = STREAMS, .files = files_of_nothing};

void shi_wasi_hold(sh_wasi *grant) { atomic_fetch_add_explicit(&grant->references, 1, memory_order_relaxed); }

/* Each string is `names[k]`, or names[k]=values[k]. */
static int copy_strings(shi_strings *out, size_t count, const char *const *names, const char *const *values) {
  size_t length = 0;
  for (size_t k = 0; k < count; k++) length += strlen(names[k]) + 1 + (values ? strlen(values[k]) + 1 : 0);
  if (length > INT32_MAX || count > INT32_MAX / 4)
    return shi_fail(SH_ARGUMENT, "arguments and environment are larger than a guest can read");
  out->bytes = malloc(length + 1);
  out->offsets = malloc((count + 1) * sizeof *out->offsets);
  if (!out->bytes || !out->offsets) return shi_fail_no_memory();
  char *at = out->bytes;
  for (size_t k = 0; k < count; k++) {
    out->offsets[k] = (uint32_t)(at - out->bytes);
    at = stpcpy(at, names[k]);
    if (values) {
      *at++ = '=';
      at = stpcpy(at, values[k]);
    }
    at++; /* past the NUL */
  }
  out->count = (uint32_t)count;
  out->length = (uint32_t)length;
  return SH_OK;
}

/* Fails here rather than at the guest's first use: without openat2 nothing would keep it inside. */
static int check_beneath(int fd, const char *path) {
  int inside = shi_os_open_beneath(fd, ".", O_PATH | O_CLOEXEC, 0);
  if (inside >= 0) {
    close(inside);
    return SH_OK;
  }
  if (inside == -ENOSYS || inside == -EPERM)
    return shi_fail(SH_ARGUMENT,
                    "cannot grant the directory %s: this system has no openat2 (Linux 5.6, and a seccomp filter that "
                    "lets it through), without which nothing would keep a guest inside of it",
                    path);
  return shi_fail(SH_ARGUMENT, "cannot open the directory %s for the guest: %s", path, strerror(-inside));
}

static int open_directory(shi_file *file, const char *host, const char *name, bool writable) {
  *file = (shi_file){.kind = SHI_FD_PREOPEN, .type = WASI_TYPE_DIRECTORY, .fd = -1, .listing = -1};
  file->name = strdup(name);
  if (!file->name) return shi_fail_no_memory();
  if (!host) return SH_OK;
  file->fd = open(host, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (file->fd < 0)
    return shi_fail(SH_ARGUMENT, "cannot open the directory %s for the guest: %s", host, strerror(errno));
  file->writable = writable;
  uint64_t denied = writable ? 0 : RIGHTS_THAT_CHANGE;
  file->rights = RIGHTS_OF_DIRECTORIES & ~denied;
  file->inheriting = (RIGHTS_OF_DIRECTORIES | RIGHTS_OF_FILES) & ~denied;
  return check_beneath(file->fd, host);
}

static int fill(sh_wasi *wasi, const sh_wasi_options *options) {
  int status = copy_strings(&wasi->arguments, options->argc, options->argv, NULL);
  if (status == SH_OK)
    status = copy_strings(&wasi->environment, options->env_count, options->env_names, options->env_values);
  if (status != SH_OK) return status;
  wasi->input = malloc(options->input_length ? options->input_length : 1);
  if (options->dir_count > SHI_FILES_MAX - STREAMS)
    return shi_fail(SH_ARGUMENT, "%zu directories are granted; a guest can have %d", options->dir_count,
                    SHI_FILES_MAX - STREAMS);
  wasi->files = calloc(STREAMS + options->dir_count, sizeof *wasi->files);
  if (!wasi->input || !wasi->files) return shi_fail_no_memory();
  if (options->input_length) memcpy(wasi->input, options->input, options->input_length);
  wasi->input_length = options->input_length;
  wasi->output_limit = options->output_limit;
  wasi->called_back = options->stream;
  memcpy(wasi->files, streams, sizeof streams);
  wasi->file_count = STREAMS;
  for (size_t k = 0; k < options->dir_count && status == SH_OK; k++)
    status = open_directory(&wasi->files[wasi->file_count++], options->host_dirs[k], options->guest_dirs[k],
                            options->writable[k]);
  return status;
}

sh_wasi *sh_wasi_new(const sh_wasi_options *options) {
  sh_wasi *wasi = calloc(1, sizeof *wasi);
  if (!wasi) {
    shi_fail_no_memory();
    return NULL;
  }
  wasi->references = 1;
  if (fill(wasi, options) == SH_OK) return wasi;
  sh_wasi_release(wasi);
  return NULL;
}

/* In the child of a fork too: its descriptors are copies, and its guests' references never go. */
void sh_wasi_release(sh_wasi *wasi) {
  if (atomic_fetch_sub(&wasi->references, 1) != 1) return;
  for (uint32_t k = STREAMS; k < wasi->file_count; k++) {
    if (wasi->files[k].fd >= 0) close(wasi->files[k].fd);
    free(wasi->files[k].name);
  }
  free(wasi->files);
  free(wasi->input);
  free(wasi->arguments.bytes);
  free(wasi->arguments.offsets);
  free(wasi->environment.bytes);
  free(wasi->environment.offsets);
  free(wasi);
}

/* ---- args_*, environ_* -------------------------------------------------------------------------------------------- */

static shi_wasi_errno put_sizes(const shi_wasi_call *call, const shi_strings *strings) {
  if (!shi_reaches(call, shi_arg32(call, 0), 4) || !shi_reaches(call, shi_arg32(call, 1), 4)) return WASI_FAULT;
  shi_put32(call, shi_arg32(call, 0), strings->count);
  shi_put32(call, shi_arg32(call, 1), strings->length);
  return WASI_OK;
}

static shi_wasi_errno put_strings(const shi_wasi_call *call, const shi_strings *strings) {
  uint32_t pointers = shi_arg32(call, 0), bytes = shi_arg32(call, 1);
  if (!shi_reaches(call, pointers, 4ull * strings->count) || !shi_reaches(call, bytes, strings->length))
    return WASI_FAULT;
  for (uint32_t k = 0; k < strings->count; k++) shi_put32(call, pointers + 4ull * k, bytes + strings->offsets[k]);
  if (strings->length) shi_put(call, bytes, strings->bytes, strings->length);
  return WASI_OK;
}

shi_wasi_errno shi_args_sizes_get(shi_wasi_call *call) { return put_sizes(call, &call->guest->grant->arguments); }
shi_wasi_errno shi_args_get(shi_wasi_call *call) { return put_strings(call, &call->guest->grant->arguments); }
shi_wasi_errno shi_environ_sizes_get(shi_wasi_call *call) { return put_sizes(call, &call->guest->grant->environment); }
shi_wasi_errno shi_environ_get(shi_wasi_call *call) { return put_strings(call, &call->guest->grant->environment); }
