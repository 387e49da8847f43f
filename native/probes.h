/* USDT probes, provider `sandhost`: where bpftrace, perf or gdb look in from outside.
 *
 * A probe is one nop in the code and a note in the file that says where its arguments are; who attaches turns the nop
 * into a trap. All arguments are at hand where they are named, so that none is computed for nobody. Without <sys/sdt.h>
 * (Debian: systemtap-sdt-dev) at build time there are none.
 *
 *   spawn        guest plugin tenant name bytes ns       name: the plugin's, a string; bytes: committed
 *   close        guest plugin ns returned kept deferred  bytes
 *   commit       guest plugin bytes size                 growth by `bytes`, to `size`
 *   decommit     guest plugin bytes                      of a guest that ended before
 *   reset        guest plugin ns returned kept deferred  one region
 *   quarantine   guest plugin bytes
 *   refused      guest plugin what level wanted limit    enum sh_refusal, enum sh_level
 *   trap         guest plugin code
 *   deadline     guest plugin limit_ns
 *   cancel       guest plugin
 *   handle_alloc guest plugin handle bytes label
 *   handle_free  guest plugin handle bytes
 *   cycle_begin  cycle live_bytes live_handles
 *   mark_done    cycle live_bytes live_handles ns        how long it took by the clock
 *   cycle_end    cycle live_bytes live_handles
 *   gc_assist    guest bytes ns                          a guest that allocates did so much scan work
 *
 * Plugins and tenants are numbers; deploy/bpftrace/ learns names from `spawn`. Six arguments are what bpftrace reads.
 */
#ifndef SANDHOST_PROBES_H
#define SANDHOST_PROBES_H

#if defined(__has_include) && !defined(SANDHOST_NO_PROBES)
#if __has_include(<sys/sdt.h>)
#define SDT_USE_VARIADIC
#include <sys/sdt.h>
#define SHI_PROBE(name, ...) STAP_PROBEV(sandhost, name, __VA_ARGS__)
#endif
#endif
#ifndef SHI_PROBE
static inline void shi_no_probe(int first, ...) { (void)first; } /* so that the arguments are checked, and used */
#define SHI_PROBE(name, ...)                                                                                           \
  do {                                                                                                                 \
    if (0) shi_no_probe(0, __VA_ARGS__);                                                                               \
  } while (0)
#endif

#endif
