/* What holds for the process as a whole: the list of hosts, fork, exit, and the calling thread's stack. */
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

_Atomic bool shi_forked, shi_exiting;

static pthread_mutex_t hosts_mutex = PTHREAD_MUTEX_INITIALIZER;
static sh_host *hosts;

/* fork() copies the memory map but only the calling thread: no ticker, maybe a lock held by nobody. The child is told
 * (SH_FORKED) that it has no guests. Regions are not inherited at all (MADV_DONTFORK). */
static void before_fork(void) { pthread_mutex_lock(&hosts_mutex); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&hosts_mutex); }
static void after_fork_in_child(void) {
  pthread_mutex_unlock(&hosts_mutex);
  /* Also when all hosts are gone by now: wasmtime keeps threads for compiling, and would wait for ever for those that the
   * child does not have. */
  atomic_store(&shi_forked, true);
  shi_guests_forget();
  for (sh_host *host = hosts; host; host = host->next) {
    atomic_store(&host->events.kinds, 0); /* the child does not inherit the rings */
    shi_pool_after_fork_in_child(host->pool);
    shi_pool *stacks = atomic_load(&host->stacks);
    if (stacks) shi_pool_after_fork_in_child(stacks);
  }
}

static void register_fork_handlers(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

void shi_process_add(sh_host *host) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, register_fork_handlers);
  pthread_mutex_lock(&hosts_mutex);
  host->next = hosts;
  hosts = host;
  pthread_mutex_unlock(&hosts_mutex);
}

void shi_process_remove(sh_host *host) {
  pthread_mutex_lock(&hosts_mutex);
  for (sh_host **link = &hosts; *link; link = &(*link)->next) {
    if (*link != host) continue;
    *link = host->next;
    break;
  }
  pthread_mutex_unlock(&hosts_mutex);
}

/* Guests that still run are stopped, so that no thread comes back into a Python that is being taken down. */
void sh_exiting(void) {
  atomic_store(&shi_exiting, true);
  if (atomic_load(&shi_forked)) return;
  pthread_mutex_lock(&hosts_mutex);
  for (sh_host *host = hosts; host; host = host->next) shi_ticker_advance(&host->ticker);
  pthread_mutex_unlock(&hosts_mutex);
}

int sh_leaving(void) { return atomic_load(&shi_exiting) || atomic_load(&shi_forked); }

bool shi_on_main_thread(void) {
  static _Thread_local int known; /* 0: not asked yet */
  if (!known) known = syscall(SYS_gettid) == getpid() ? 1 : -1;
  return known > 0;
}

uint64_t shi_stack_left(void) {
  static _Thread_local uintptr_t lowest;
  if (!lowest) {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) return 0; /* fail closed: no room known */
    void *address;
    size_t size;
    pthread_attr_getstack(&attributes, &address, &size);
    pthread_attr_destroy(&attributes);
    lowest = (uintptr_t)address;
  }
  uintptr_t here = (uintptr_t)__builtin_frame_address(0);
  return here > lowest ? here - lowest : 0;
}
