/* WASI's clocks, random bytes, and waiting: poll_oneoff.
 *
 * The clocks of processes and threads are both the CPU time of the thread that runs the guest: the process's would tell
 * what its other guests do. It is no measure across calls, since the next one may come from another thread.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include "fiber.h"
#include "wasi.h"

/* ---- clocks ------------------------------------------------------------------------------------------------------- */

enum { REALTIME, MONOTONIC, PROCESS_CPUTIME, THREAD_CPUTIME };

static bool clock_of(uint32_t clock, clockid_t *out) {
  if (clock > THREAD_CPUTIME) return false;
  *out = clock == REALTIME ? CLOCK_REALTIME : clock == MONOTONIC ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
  return true;
}

static uint64_t nanoseconds(struct timespec time) {
  return time.tv_sec < 0 ? 0 : (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

shi_wasi_errno shi_clock_res_get(shi_wasi_call *call) {
  uint32_t at = shi_arg32(call, 1);
  clockid_t clock;
  struct timespec time;
  if (!clock_of(shi_arg32(call, 0), &clock)) return WASI_INVAL;
  if (!shi_reaches(call, at, 8)) return WASI_FAULT;
  if (clock_getres(clock, &time) != 0) return shi_wasi_errno_of(errno);
  shi_put64(call, at, nanoseconds(time));
  return WASI_OK;
}

shi_wasi_errno shi_clock_time_get(shi_wasi_call *call) {
  uint32_t at = shi_arg32(call, 2); /* argument 1, the precision, is a wish */
  clockid_t clock;
  struct timespec time;
  if (!clock_of(shi_arg32(call, 0), &clock)) return WASI_INVAL;
  if (!shi_reaches(call, at, 8)) return WASI_FAULT;
  if (clock_gettime(clock, &time) != 0) return shi_wasi_errno_of(errno);
  shi_put64(call, at, nanoseconds(time));
  return WASI_OK;
}

/* ---- random_get --------------------------------------------------------------------------------------------------- */

shi_wasi_errno shi_random_get(shi_wasi_call *call) {
  enum { PIECE = 256 << 10 }; /* about 1 ms */
  uint64_t at = shi_arg32(call, 0), left = shi_arg32(call, 1);
  if (!shi_reaches(call, (uint32_t)at, left)) return WASI_FAULT;
  while (left) {
    ssize_t got = getrandom(call->memory + at, left < PIECE ? left : PIECE, 0);
    if (got < 0 && errno != EINTR) return shi_wasi_errno_of(errno);
    if (got > 0) {
      at += (uint64_t)got;
      left -= (uint64_t)got;
    }
    if (left && !shi_guest_goes_on(call->guest)) return WASI_INTR;
  }
  return WASI_OK;
}

/* ---- poll_oneoff -------------------------------------------------------------------------------------------------- */

enum { SUBSCRIPTIONS_MOST = 65536 }; /* about 4 ms; arbitrary */
enum { SUBSCRIPTION = 48, EVENT = 32 };
enum { CLOCK, FD_READ, FD_WRITE }; /* __wasi_eventtype_t */
enum { ABSTIME = 1 };

typedef struct {
  uint64_t userdata, timeout;
  uint32_t clock; /* or the file's number */
  uint16_t flags;
  uint8_t type;
} subscription;

static subscription read_subscription(const uint8_t *at) {
  subscription out = {.type = at[8]};
  memcpy(&out.userdata, at, 8);
  memcpy(&out.clock, at + 16, 4);
  memcpy(&out.timeout, at + 24, 8);
  memcpy(&out.flags, at + 40, 2);
  return out;
}

/* Nanoseconds from now until a clock subscription is due. */
static uint64_t due_in(const subscription *one) {
  if (one->clock > MONOTONIC) return 0; /* with an error */
  if (!(one->flags & ABSTIME)) return one->timeout;
  struct timespec now;
  clock_gettime(one->clock == REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC, &now);
  return one->timeout > nanoseconds(now) ? one->timeout - nanoseconds(now) : 0;
}

/* After having waited for `waited` nanoseconds. */
static bool is_due(const subscription *one, uint64_t waited) {
  return due_in(one) <= (one->flags & ABSTIME ? 0 : waited);
}

/* What can be read or written without waiting is always ready: streams, and what is no FIFO, terminal or their like.
 * The OS file to ask about the others; -1: ready, maybe with an error. */
static int waits_for(const shi_wasi_call *call, const subscription *one, shi_wasi_errno *error, shi_file **file) {
  *error = shi_wasi_file(call, one->clock, one->type == FD_READ ? RIGHT_FD_READ : RIGHT_FD_WRITE, file);
  if (*error || (*file)->kind != SHI_FD_OPEN || (*file)->type == WASI_TYPE_REGULAR_FILE) return -1;
  return (*file)->fd;
}

static uint64_t bytes_ready(const shi_guest *guest, const shi_file *file) {
  if (file->kind != SHI_FD_STDIN || guest->grant->called_back & SHI_INPUT) return 1; /* one has to try */
  return guest->grant->input_length - guest->input_at;
}

/* Whether one of the files is ready, now or within `ns`. In a function of its own: the caller may go on on another thread,
 * where errno is elsewhere than the compiler remembers. */
__attribute__((noinline)) static bool poll_files(struct pollfd *files, nfds_t count, uint64_t ns) {
  struct timespec tick = {.tv_nsec = (long)ns};
  int ready = ppoll(files, count, &tick, NULL);
  if (ready < 0 && errno != EINTR) nanosleep(&tick, NULL); /* more than the process may open */
  return ready > 0;
}

/* Waits in ticks until `ns` have passed or one of the files is ready. False: the call is to be stopped. */
static bool wait_for(shi_guest *guest, struct pollfd *files, nfds_t count, uint64_t ns) {
  uint64_t until = shi_now_ns() + ns;
  if (until < ns) until = UINT64_MAX;
  for (uint64_t now; (now = shi_now_ns()) < until;) {
    if (!shi_guest_goes_on(guest)) return false;
    uint64_t slice = until - now < SHI_TICK_NS ? until - now : SHI_TICK_NS;
    if (shi_on_fiber(guest)) {
      if (count && poll_files(files, count, 0)) return true;
      shi_wait wait = {.step = SH_STEP_SLEEP, .ns = count ? slice : until - now};
      if (!shi_fiber_park(guest, &wait)) return false;
    } else if (poll_files(files, count, slice)) {
      return true;
    }
  }
  if (count) ppoll(files, count, &(struct timespec){0}, NULL); /* also when nothing was to be waited for */
  return shi_guest_goes_on(guest);
}

bool shi_wasi_await(shi_guest *guest, int fd, bool to_write) {
  struct pollfd file = {.fd = fd, .events = to_write ? POLLOUT : POLLIN};
  return wait_for(guest, &file, 1, UINT64_MAX);
}

static void put_event(const shi_wasi_call *call, uint64_t at, const subscription *one, shi_wasi_errno error,
                      uint64_t bytes, bool hung_up) {
  uint8_t event[EVENT] = {0};
  uint16_t number = (uint16_t)error, flags = hung_up ? 1 : 0;
  memcpy(event, &one->userdata, 8);
  memcpy(event + 8, &number, 2);
  event[10] = one->type;
  memcpy(event + 16, &bytes, 8);
  memcpy(event + 24, &flags, 2);
  shi_put(call, at, event, EVENT);
}

/* Writes one event for each subscription that has happened; returns how many. `files` in the order of the
 * subscriptions that wait for one. */
static uint32_t put_events(const shi_wasi_call *call, const uint8_t *in, uint32_t number, uint64_t out,
                           const struct pollfd *files, uint64_t waited) {
  uint32_t events = 0;
  for (uint32_t k = 0; k < number; k++) {
    subscription one = read_subscription(in + (uint64_t)k * SUBSCRIPTION);
    shi_wasi_errno error = WASI_OK;
    uint64_t bytes = 0;
    bool hung_up = false;
    if (one.type == CLOCK) {
      if (one.clock > MONOTONIC) error = one.clock > THREAD_CPUTIME ? WASI_INVAL : WASI_NOTSUP;
      if (!error && !is_due(&one, waited)) continue;
    } else {
      shi_file *file;
      int fd = waits_for(call, &one, &error, &file);
      if (fd >= 0) {
        short found = (files++)->revents;
        if (!found) continue;
        hung_up = found & POLLHUP;
      }
      if (!error) bytes = bytes_ready(call->guest, file);
    }
    put_event(call, out + (uint64_t)events * EVENT, &one, error, bytes, hung_up);
    events++;
  }
  return events;
}

shi_wasi_errno shi_poll_oneoff(shi_wasi_call *call) {
  uint32_t in = shi_arg32(call, 0), out = shi_arg32(call, 1), number = shi_arg32(call, 2), written = shi_arg32(call, 3);
  if (number == 0) return WASI_INVAL;
  if (!shi_reaches(call, in, (uint64_t)number * SUBSCRIPTION) || !shi_reaches(call, out, (uint64_t)number * EVENT) ||
      !shi_reaches(call, written, 4))
    return WASI_FAULT;
  if (number > SUBSCRIPTIONS_MOST) return WASI_INVAL; /* no deadline ends the loops below */

  /* Copied, since events may be written over what is still to be read. */
  uint8_t *copy = malloc((size_t)number * (SUBSCRIPTION + sizeof(struct pollfd)));
  if (!copy) return WASI_NOMEM;
  struct pollfd *files = (struct pollfd *)(copy + (size_t)number * SUBSCRIPTION);
  memcpy(copy, call->memory + in, (size_t)number * SUBSCRIPTION);

  uint64_t wait = UINT64_MAX;
  nfds_t count = 0;
  shi_wasi_errno error = WASI_OK;
  for (uint32_t k = 0; k < number && !error; k++) {
    subscription one = read_subscription(copy + (uint64_t)k * SUBSCRIPTION);
    uint64_t due = 0;
    if (one.type == CLOCK) {
      due = due_in(&one);
    } else if (one.type > FD_WRITE) {
      error = WASI_INVAL;
    } else {
      shi_wasi_errno ignored;
      shi_file *file;
      int fd = waits_for(call, &one, &ignored, &file);
      if (fd >= 0) {
        files[count++] = (struct pollfd){.fd = fd, .events = one.type == FD_READ ? POLLIN : POLLOUT};
        due = UINT64_MAX;
      }
    }
    if (due < wait) wait = due;
  }
  uint64_t begun = shi_now_ns();
  if (!error && wait_for(call->guest, files, count, wait))
    shi_put32(call, written, put_events(call, copy, number, out, files, shi_now_ns() - begun));
  free(copy);
  return error;
}
