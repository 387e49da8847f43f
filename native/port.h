/* A port: where an event loop learns which of its guests have come back from the workers.
 *
 * The workers never wait for Python. They link the guest into the port's list, and write to an eventfd when the list was
 * empty; the loop waits for that file and takes what is there.
 */
#ifndef SANDHOST_PORT_H
#define SANDHOST_PORT_H

#include <stdbool.h>

#include "sandhost.h"

typedef struct shi_guest shi_guest;

/* Invariant: `next` != NULL exactly while it is in a port's ring, under the port's lock. */
typedef struct shi_port_link {
  struct shi_port_link *next, *before;
  uint64_t guest;
} shi_port_link;

void shi_port_hold(sh_port *port);
/* Parks the guest and links it, both under the port's lock: whoever finds it parked and takes it off finds it linked. */
void shi_port_post(sh_port *port, shi_guest *guest, shi_port_link *link);
void shi_port_unlink(sh_port *port, shi_port_link *link); /* if it is linked */

#endif
