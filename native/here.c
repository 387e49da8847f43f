/* A whole life on a thread that runs an event loop: short, or not made there. Python's lock is kept meanwhile.
 *
 * A thread that gives the lock away, for a life of some microseconds, comes back to find it taken by one that was
 * waiting, and sleeps. On an event loop that is dear: all of the loop waits as well. So `native/python_here.c` keeps it.
 *
 * That cannot hold up for ever, since nothing that a life waits for waits for the lock. What has to stay true for that,
 * of everything in this folder:
 *
 *   - Nobody asks for the lock while holding a mutex. It is asked for in python*.c, and by calls of what sh_set_callbacks
 *     and sh_heap_set_trigger were given: from host functions, output and input, signals, late answers and shi_heap_tell,
 *     each from within a guest's own call or at the very end of a crossing. wasmtime holds no lock while guests run.
 *   - No crossing returns to Python with a mutex held. os.fork() holds two of them, within itself.
 *   - No life of this kind asks for it, or waits for a guest that might: its plugin imports no function, it has no
 *     holder of handles, and signals wait until it is over (shi_guest_may_go_on).
 *   - The end of a plugin or a host, which may come with any guest's (table.c), joins threads. They ask for the lock only
 *     within a guest's call, and no guest is left then.
 *   - A thread that stays for ever since Python is going away (shi_stay_if_exiting) gives the lock away first.
 *
 * How long others wait for the lock: a call is ended by the first tick that finds it longer than SHI_LONG_NS, so after
 * some 2 ms, where Python itself lets a thread have the lock for 5 (sys.getswitchinterval). Its export then is not
 * tried here until so many of its calls were short elsewhere. A tick cannot interrupt one instruction that fills memory,
 * nor the making and closing of a guest, which take up to a millisecond for each MiB that its limits allow. That thread
 * would have kept its loop for as long without the lock, too.
 */
#include "fiber.h"

int shi_live_here(sh_plugin *plugin, sh_snapshot *from, sh_tenant *tenant, const sh_limits *limits,
                  uint32_t export_index, wasmtime_val_raw_t *cells) {
  if (export_index < plugin->export_count && !shi_export_is_short(&plugin->exports[export_index]))
    return shi_quota_look(plugin->host, tenant, shi_now_ns()) == SH_OK ? SH_LONG : SH_CLOSED;
  uint64_t guest = shi_spawn(plugin, from, tenant, limits, NULL, true);
  if (!guest) return SH_CLOSED; /* any failure: the thread's error says which */
  int status = shi_call_briefly(guest, export_index, cells);
  shi_guest_end_life(guest);
  if (__builtin_expect(status == SH_LONG, 0)) {
    shi_error_forget();
    shi_quota_give_back(tenant); /* it starts again */
  }
  return status;
}
