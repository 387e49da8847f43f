/* Keeps wasmtime's fault handlers reachable.
 *
 * A trap in a guest is a SIGSEGV, SIGILL or SIGFPE that wasmtime's handler turns into an error. Whoever installs
 * a handler later without calling the one before it (faulthandler.enable(), for one) would turn that trap into the end
 * of the process. So spawns, calls and the ticker look whether the handlers are still ours, and if not put a dispatcher
 * in front:
 *
 *   fault on a thread that is in a guest  -> wasmtime's handler (which passes on what is not a trap)
 *   any other fault                       -> the handler that was installed later
 *   ... which passes it on to us, if we were before it -> wasmtime's handler, not the later one once more
 */
#include <dlfcn.h>
#include <signal.h>
#include <string.h>

#include "bridge.h"
#include "guest.h"

enum { SIGNALS = 3 };
enum { RAISED = 2 }; /* by guests of wasmtime 50; the others it installs as well */
static const int numbers[SIGNALS] = {SIGSEGV, SIGILL, SIGFPE};
static struct sigaction wasmtimes[SIGNALS], later[SIGNALS];
static bool known; /* wasmtimes; under `mutex` */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Where on the stack this thread is in a later handler; 0: in none. A handler can be left by longjmp, so a value counts
 * only for frames below it. */
static _Thread_local uintptr_t in_later __attribute__((tls_model("initial-exec")));

static void pass_to(const struct sigaction *next, int number, siginfo_t *info, void *context) {
  if (next->sa_flags & SA_SIGINFO)
    next->sa_sigaction(number, info, context);
  else if (next->sa_handler == SIG_DFL || next->sa_handler == SIG_IGN)
    sigaction(number, next, NULL); /* the fault comes again and is handled the default way */
  else
    next->sa_handler(number);
}

static void dispatch(int number, siginfo_t *info, void *context) {
  uintptr_t here = (uintptr_t)__builtin_frame_address(0), outer = in_later;
  for (int k = 0; k < SIGNALS; k++) {
    if (numbers[k] != number) continue;
    if (shi_thread_in_guest || here < outer) {
      pass_to(&wasmtimes[k], number, info, context);
    } else {
      in_later = here;
      pass_to(&later[k], number, info, context);
      in_later = outer;
    }
  }
}

static bool reaches_wasmtime(int k, const struct sigaction *current) {
  return current->sa_sigaction == wasmtimes[k].sa_sigaction || current->sa_sigaction == dispatch;
}

static const void *library_of(const void *address) {
  Dl_info info;
  return dladdr(address, &info) ? info.dli_fbase : NULL;
}

/* wasmtime installs its handlers once for the process. When somebody else has used it before us, they may have been
 * replaced by now, and only the one who did knows where they are. */
int shi_trap_signals_installed(void) {
  const void *wasmtime = library_of(*(void **)&wt.wasm_engine_new_with_config);
  pthread_mutex_lock(&mutex);
  bool found = true;
  for (int k = 0; k < SIGNALS && !known; k++) {
    sigaction(numbers[k], NULL, &wasmtimes[k]);
    if (k < RAISED) found = found && library_of(*(void **)&wasmtimes[k].sa_sigaction) == wasmtime;
  }
  known = found;
  pthread_mutex_unlock(&mutex);
  if (found) return SH_OK;
  return shi_fail(SH_ARGUMENT, "this process has used wasmtime before, and its fault handlers were replaced since, so "
                               "that a guest's trap would end the process; make the first Host earlier, before "
                               "faulthandler.enable() or its like");
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
