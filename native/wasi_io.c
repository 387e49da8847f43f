/* Bytes in and out: fd_read, fd_write, fd_pread, fd_pwrite, fd_seek, fd_tell; streams and files.
 *
 * Every file of the OS is open with O_NONBLOCK. A regular file ignores that and is read in pieces, with a look at the
 * deadline between them; of a FIFO, a terminal or their like, what is there is taken, and nothing yet is waited for.
 */
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fiber.h"
#include "wasi.h"

enum { VECTORS_MOST = 1024 };   /* as of POSIX's IOV_MAX on Linux */
enum { PIECE_BYTES = 1 << 20 }; /* between two looks at the deadline: below 1 ms from the page cache */
enum { PIECE_VECTORS = 64 };

/* ---- the guest's vectors ------------------------------------------------------------------------------------------ */

/* All of them lie in the memory, and what they hold together can be told in 32 bits. */
typedef struct {
  struct iovec list[VECTORS_MOST];
  uint32_t count;
  uint32_t next; /* the first that is not done with */
  uint64_t left; /* bytes */
} vectors;

static shi_wasi_errno read_vectors(const shi_wasi_call *call, uint32_t at, uint32_t count, vectors *out) {
  if (!shi_reaches(call, at, 8ull * count)) return WASI_FAULT;
  if (count > VECTORS_MOST) return WASI_INVAL;
  out->count = count;
  out->next = 0;
  out->left = 0;
  for (uint32_t k = 0; k < count; k++) {
    uint32_t pair[2];
    memcpy(pair, call->memory + at + 8ull * k, sizeof pair);
    if (!shi_reaches(call, pair[0], pair[1])) return WASI_FAULT;
    out->list[k] = (struct iovec){call->memory + pair[0], pair[1]};
    out->left += pair[1];
  }
  return out->left > UINT32_MAX ? WASI_INVAL : WASI_OK;
}

/* The next bytes, no more than a piece. */
static int take_piece(const vectors *from, struct iovec piece[PIECE_VECTORS], uint64_t *bytes) {
  int count = 0;
  *bytes = 0;
  for (uint32_t k = from->next; k < from->count && count < PIECE_VECTORS && *bytes < PIECE_BYTES; k++) {
    size_t length = from->list[k].iov_len;
    if (!length) continue;
    if (length > PIECE_BYTES - *bytes) length = PIECE_BYTES - *bytes;
    piece[count++] = (struct iovec){from->list[k].iov_base, length};
    *bytes += length;
  }
  return count;
}

static void advance(vectors *of, uint64_t bytes) {
  of->left -= bytes;
  while (of->next < of->count) {
    struct iovec *first = &of->list[of->next];
    uint64_t here = bytes < first->iov_len ? bytes : first->iov_len;
    first->iov_base = (uint8_t *)first->iov_base + here;
    first->iov_len -= here;
    bytes -= here;
    if (first->iov_len) return;
    of->next++;
  }
}

/* ---- files -------------------------------------------------------------------------------------------------------- */

void shi_wasi_hush(sigset_t *before) {
  sigset_t both;
  sigemptyset(&both);
  sigaddset(&both, SIGPIPE);
  sigaddset(&both, SIGXFSZ);
  pthread_sigmask(SIG_BLOCK, &both, before);
}

/* What was blocked before may be pending for another reason, and is left alone. */
void shi_wasi_unhush(const sigset_t *before, int error) {
  int number = error == EPIPE ? SIGPIPE : error == EFBIG ? SIGXFSZ : 0;
  if (number && !sigismember(before, number)) {
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, number);
    while (sigtimedwait(&one, NULL, &(struct timespec){0}) < 0 && errno == EINTR) {
    }
  }
  pthread_sigmask(SIG_SETMASK, before, NULL);
}

typedef struct {
  bool out;         /* from the guest's memory into the file */
  bool at_position; /* the file's own; else at `offset` */
  uint64_t offset;
} direction;

/* Bytes, or -errno: the caller may go on on another thread, where errno is elsewhere than the compiler remembers. */
__attribute__((noinline)) static ssize_t move_piece(int fd, const struct iovec *piece, int count, const direction *to) {
  ssize_t moved;
  if (!to->out) {
    moved = to->at_position ? readv(fd, piece, count) : preadv(fd, piece, count, (off_t)to->offset);
    return moved < 0 ? -errno : moved;
  }
  sigset_t before;
  shi_wasi_hush(&before);
  moved = to->at_position ? writev(fd, piece, count) : pwritev(fd, piece, count, (off_t)to->offset);
  if (moved < 0) moved = -errno;
  shi_wasi_unhush(&before, moved < 0 ? (int)-moved : 0);
  return moved;
}

static shi_wasi_errno move(const shi_wasi_call *call, const shi_file *file, vectors *bytes, direction to,
                           uint32_t *moved) {
  *moved = 0;
  if (!to.at_position && (to.offset > INT64_MAX || bytes->left > INT64_MAX - to.offset)) return WASI_INVAL;
  bool regular = file->type == WASI_TYPE_REGULAR_FILE;
  while (bytes->left) {
    struct iovec piece[PIECE_VECTORS];
    uint64_t length;
    int count = take_piece(bytes, piece, &length);
    ssize_t done = move_piece(file->fd, piece, count, &to);
    if (done == -EAGAIN && !*moved && !(file->flags & WASI_NONBLOCK)) {
      if (!shi_wasi_await(call->guest, file->fd, to.out)) return WASI_INTR;
      continue;
    }
    if (done == -EINTR) {
      if (!shi_guest_goes_on(call->guest)) return WASI_INTR;
      continue;
    }
    if (done < 0) return *moved ? WASI_OK : shi_wasi_errno_of((int)-done); /* the next call will say it */
    advance(bytes, (uint64_t)done);
    *moved += (uint32_t)done;
    to.offset += (uint64_t)done;
    if (!regular || (uint64_t)done < length) break;
    if (bytes->left && !shi_guest_goes_on(call->guest)) return WASI_INTR;
  }
  return WASI_OK;
}

/* ---- streams ------------------------------------------------------------------------------------------------------ */

/* What comes next from the host, as much as the first vector takes. */
static uint32_t await_input(shi_guest *guest, const vectors *into) {
  uint32_t k = 0;
  while (k < into->count && !into->list[k].iov_len) k++;
  if (k == into->count) return 0;
  shi_wait wait = {.step = SH_STEP_AWAIT, .bytes = into->list[k].iov_base, .length = into->list[k].iov_len};
  if (shi_on_fiber(guest)) return shi_fiber_park(guest, &wait) ? (uint32_t)wait.length : 0;
  guest->waits_for = "standard input";
  guest->stop = SH_WAITS;
  return 0;
}

static uint32_t read_input(shi_guest *guest, const vectors *into) {
  if (guest->grant->called_back & SHI_INPUT) return await_input(guest, into);
  uint64_t before = guest->input_at;
  for (uint32_t k = 0; k < into->count; k++) {
    uint64_t length = guest->grant->input_length - guest->input_at;
    if (length > into->list[k].iov_len) length = into->list[k].iov_len;
    if (!length) continue;
    memcpy(into->list[k].iov_base, guest->grant->input + guest->input_at, length);
    guest->input_at += length;
  }
  return (uint32_t)(guest->input_at - before);
}

/* Small vectors are put together, so that a callback gets a line whole that libc wrote from two buffers. */
static void write_output(shi_guest *guest, int number, const vectors *from) {
  uint8_t line[4096];
  if (from->left <= sizeof line) {
    size_t length = 0;
    for (uint32_t k = 0; k < from->count; k++) {
      if (!from->list[k].iov_len) continue;
      memcpy(line + length, from->list[k].iov_base, from->list[k].iov_len);
      length += from->list[k].iov_len;
    }
    if (length) shi_output_write(guest, number, line, length);
    return;
  }
  for (uint32_t k = 0; k < from->count; k++)
    if (from->list[k].iov_len && !shi_output_write(guest, number, from->list[k].iov_base, from->list[k].iov_len))
      return;
}

/* ---- the calls ---------------------------------------------------------------------------------------------------- */

static shi_wasi_errno transfer(shi_wasi_call *call, direction to, uint32_t result) {
  uint64_t rights = (to.out ? RIGHT_FD_WRITE : RIGHT_FD_READ) | (to.at_position ? 0 : RIGHT_FD_SEEK);
  shi_file *file;
  vectors bytes;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), rights, &file);
  if (!error) error = read_vectors(call, shi_arg32(call, 1), shi_arg32(call, 2), &bytes);
  if (error) return error;
  if (!shi_reaches(call, result, 4)) return WASI_FAULT;
  uint32_t moved = (uint32_t)bytes.left;
  if (file->kind == SHI_FD_STDIN)
    moved = read_input(call->guest, &bytes);
  else if (file->kind == SHI_FD_STDOUT || file->kind == SHI_FD_STDERR)
    write_output(call->guest, file->kind == SHI_FD_STDERR, &bytes);
  else
    error = move(call, file, &bytes, to, &moved);
  if (call->guest->stop) return WASI_INTR; /* after a fork in a callback there is no memory to write to */
  if (!error) shi_put32(call, result, moved);
  return error;
}

shi_wasi_errno shi_fd_read(shi_wasi_call *call) {
  return transfer(call, (direction){.out = false, .at_position = true}, shi_arg32(call, 3));
}
shi_wasi_errno shi_fd_write(shi_wasi_call *call) {
  return transfer(call, (direction){.out = true, .at_position = true}, shi_arg32(call, 3));
}
shi_wasi_errno shi_fd_pread(shi_wasi_call *call) {
  return transfer(call, (direction){.out = false, .offset = shi_arg64(call, 3)}, shi_arg32(call, 4));
}
shi_wasi_errno shi_fd_pwrite(shi_wasi_call *call) {
  return transfer(call, (direction){.out = true, .offset = shi_arg64(call, 3)}, shi_arg32(call, 4));
}

static shi_wasi_errno seek(const shi_wasi_call *call, uint64_t rights, int64_t offset, int whence, uint32_t result) {
  shi_file *file;
  shi_wasi_errno error = shi_wasi_file(call, shi_arg32(call, 0), rights, &file);
  if (error) return error;
  if (!shi_reaches(call, result, 8)) return WASI_FAULT;
  off_t now = lseek(file->fd, (off_t)offset, whence);
  if (now < 0) return shi_wasi_errno_of(errno);
  shi_put64(call, result, (uint64_t)now);
  return WASI_OK;
}

shi_wasi_errno shi_fd_seek(shi_wasi_call *call) {
  static const int whences[] = {SEEK_SET, SEEK_CUR, SEEK_END};
  uint32_t whence = shi_arg32(call, 2);
  if (whence > 2) return WASI_INVAL;
  return seek(call, RIGHT_FD_SEEK, (int64_t)shi_arg64(call, 1), whences[whence], shi_arg32(call, 3));
}

shi_wasi_errno shi_fd_tell(shi_wasi_call *call) { return seek(call, RIGHT_FD_TELL, 0, SEEK_CUR, shi_arg32(call, 1)); }
