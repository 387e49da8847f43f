/* The threads of os.h: how the host's own begin, and which of them the scheduler prefers. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "os.h"

int shi_os_thread_start(pthread_t *out, const char *name, void *(*run)(void *), void *argument) {
  if (shi_os_injected(SH_OS_THREAD)) {
    return shi_os_failure("pthread_create", errno);
  }
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(out, NULL, run, argument);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error != 0) {
    return shi_os_failure("pthread_create", error);
  }
  pthread_setname_np(*out, name);
  return 0;
}

/* Of one step each a weight of four fifths: ten are a tenth. With fewer, a thread that wakes up waits now and then for
 * the end of another's slice, which takes 4 ms; measured on Linux 6.18. POSIX has it for processes, Linux for threads.
 *
 * In the background, sched(7)'s SCHED_IDLE, nobody waits for its slice at all. Where there is one processor only, a
 * thread that is never idle would leave it nothing. */
void shi_os_thread_give_way(bool background) {
  nice(10);
  cpu_set_t processors;
  if (background && sched_getaffinity(0, sizeof processors, &processors) == 0 && CPU_COUNT(&processors) > 1)
    sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
}

int shi_os_thread_go_before(pthread_t thread, uint32_t priority) {
  int error = shi_os_injected(SH_OS_SCHEDULER)
                  ? errno
                  : pthread_setschedparam(thread, SCHED_FIFO, &(struct sched_param){.sched_priority = (int)priority});
  return error ? shi_os_failure("pthread_setschedparam", error) : 0;
}
