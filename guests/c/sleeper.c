/* sleeper: a command that sleeps in one poll_oneoff for the milliseconds its first argument names (1000 by default).
 *
 * It cannot be stopped by counting its instructions, since it executes none: only a host that bounds its own waiting
 * ends it in time.
 */
#include <stdlib.h>
#include <unistd.h>
#include <wasi/api.h>

int main(int argc, char **argv) {
  long long milliseconds = argc > 1 ? atoll(argv[1]) : 1000;
  __wasi_subscription_t alarm = {
      .userdata = 1,
      .u = {.tag = __WASI_EVENTTYPE_CLOCK,
            .u = {.clock = {.id = __WASI_CLOCKID_MONOTONIC,
                            .timeout = (__wasi_timestamp_t)milliseconds * 1000000,
                            .precision = 0,
                            .flags = 0}}},
  };
  __wasi_event_t event;
  __wasi_size_t events;
  __wasi_errno_t error = __wasi_poll_oneoff(&alarm, &event, 1, &events);
  if (error != __WASI_ERRNO_SUCCESS || events != 1 || event.error != __WASI_ERRNO_SUCCESS) return 1;
  (void)!write(STDOUT_FILENO, "slept\n", 6);
  return 0;
}
