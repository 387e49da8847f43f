/* What a guest was at one moment, to be continued from by any number of others. */
#ifndef SANDHOST_SNAPSHOT_H
#define SANDHOST_SNAPSHOT_H

#include "wasi.h"

struct sh_snapshot {
  sh_plugin *plugin;                           /* a reference */
  shi_memory_plan memories[SHI_MEMORIES_MAX];  /* `minimum` is the size it had; owns its images */
  shi_state state;
  shi_wasi_state wasi; /* its table of files; no bytes: as a fresh guest has it */
  _Atomic uint32_t references; /* Python's one, and one for each guest that came from it */
  _Atomic bool unloaded;       /* Python has let go of it: free guests hold it no longer */
};

void shi_snapshot_release(sh_snapshot *snapshot); /* NULL: nothing */

#endif
