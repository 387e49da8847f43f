/* What a guest was at one moment, to be continued from by any number of others. */
#ifndef SANDHOST_SNAPSHOT_H
#define SANDHOST_SNAPSHOT_H

#include "bridge.h"

struct sh_snapshot {
  sh_plugin *plugin;                           /* a reference */
  shi_memory_plan memories[SHI_MEMORIES_MAX];  /* `minimum` is the size it had; owns its images */
  shi_state state;
  _Atomic uint32_t references; /* Python's one, and one for each guest that came from it */
};

void shi_snapshot_release(sh_snapshot *snapshot); /* NULL: nothing */

#endif
