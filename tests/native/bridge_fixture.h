/* What tests of the wasmtime bridge begin and end with: its library, a host, a plugin from a text, and nothing left. */
#ifndef BRIDGE_FIXTURE_H
#define BRIDGE_FIXTURE_H

#include "check.h"
#include "sandhost.h"

enum { MIB = 1 << 20, WASM_PAGE = 65536 };

extern const sh_limits no_limits;

/* Loads what SANDHOST_WASMTIME_LIBRARY names (`run` finds it through $PYTHON), or ends the program: well if it names
 * nothing, since there is nothing to test with. */
void open_wasmtime(void);

/* 64 regions, policy warm: 1 MiB a slot, 16 MiB in all, back after 50 ms; small stacks, compiled fast. */
sh_host_options host_options(void);
sh_host *open_host(const sh_host_options *options);

/* Compiled, not linked: imports, memories and exports are still to be told. */
sh_plugin *compile(sh_host *host, const char *wat);
void add_memory(sh_plugin *plugin, uint64_t pages, uint64_t most_pages); /* most 0: without end */

typedef struct {
  const char *name, *params, *results;
} export_row;
void add_exports(sh_plugin *plugin, const export_row *exports, size_t count);
#define ADD_EXPORTS(plugin, exports) add_exports(plugin, exports, sizeof(exports) / sizeof *(exports))

void check_empty(sh_host *host); /* no guest, no region, no stack, nothing warm */
void end_host(sh_host *host, sh_plugin *plugin);

#endif
