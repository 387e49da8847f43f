/* Keeps wasmtime's fault handlers reachable.
 *
 * A trap in a guest is a SIGSEGV, SIGILL, SIGBUS or SIGFPE that wasmtime's handler turns into an error. Whoever installs
 * a handler later without calling the one before it (faulthandler.enable(), for one) would turn that trap into the end
 * of the process. So spawns, calls and the ticker look whether the handlers are still ours, and if not put a dispatcher
 * in front:
 *
 *   fault on a thread that is in a guest  -> wasmtime's handler (which passes on what is not a trap)
 *   any other fault                       -> the handler that was installed later
 */
#include <signal.h>
#include <string.h>

#include "bridge.h"
#include "guest.h"

enum { SIGNALS = 4 };
enum { RAISED = 2 }; /* by guests of wasmtime 50; the others it installs as well */
static const int numbers[SIGNALS] = {SIGSEGV, SIGILL, SIGFPE, SIGBUS};
static struct sigaction wasmtimes[SIGNALS], later[SIGNALS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void dispatch(int number, siginfo_t *info, void *context) {
  for (int k = 0; k < SIGNALS; k++) {
    if (numbers[k] != number) continue;
    const struct sigaction *next = shi_thread_in_guest ? &wasmtimes[k] : &later[k];
    if (next->sa_flags & SA_SIGINFO) {
      next->sa_sigaction(number, info, context);
    } else if (next->sa_handler == SIG_DFL || next->sa_handler == SIG_IGN) {
      sigaction(number, next, NULL); /* the fault comes again and is handled the default way */
    } else {
      next->sa_handler(number);
    }
  }
}

static bool reaches_wasmtime(int k, const struct sigaction *current) {
  return current->sa_sigaction == wasmtimes[k].sa_sigaction || current->sa_sigaction == dispatch;
}

void shi_trap_signals_installed(void) {
  pthread_mutex_lock(&mutex);
  if (!wasmtimes[0].sa_sigaction)
    for (int k = 0; k < SIGNALS; k++) sigaction(numbers[k], NULL, &wasmtimes[k]);
  pthread_mutex_unlock(&mutex);
}

static void repair(void) {
  pthread_mutex_lock(&mutex);
  for (int k = 0; k < SIGNALS; k++) {
    struct sigaction current;
    sigaction(numbers[k], NULL, &current);
    if (reaches_wasmtime(k, &current)) continue;
    later[k] = current;
    struct sigaction ours = {.sa_sigaction = dispatch, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    sigaction(numbers[k], &ours, NULL);
  }
  pthread_mutex_unlock(&mutex);
}

static bool is_ours(int k) {
  struct sigaction current;
  sigaction(numbers[k], NULL, &current);
  return reaches_wasmtime(k, &current);
}

/* Asking costs about 0.2 us, so a call asks for one signal, in turns: of those that guests raise, and whoever replaces
 * handlers behind our back mostly replaces them all. Who replaces one is met by the ticker, within a tick. */
void shi_trap_signals_check(void) {
  static _Thread_local unsigned turn;
  if (!is_ours(turn++ % RAISED)) repair();
}

void shi_trap_signals_check_all(void) {
  for (int k = 0; k < RAISED; k++)
    if (!is_ours(k)) {
      repair();
      return;
    }
}
