#include "port.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "guest.h"

struct sh_port {
  _Atomic uint32_t references; /* Python's one, and one for each call on its way */
  int fd;
  pthread_mutex_t lock;
  shi_port_link ring; /* oldest first */
};

sh_port *sh_port_new(void) {
  sh_port *port = calloc(1, sizeof *port);
  if (!port) return shi_fail_no_memory(), NULL;
  port->references = 1;
  port->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (port->fd < 0) {
    shi_fail_os(errno, "eventfd");
    free(port);
    return NULL;
  }
  pthread_mutex_init(&port->lock, NULL);
  port->ring.next = port->ring.before = &port->ring;
  return port;
}

int sh_port_fd(const sh_port *port) { return port->fd; }

void shi_port_hold(sh_port *port) { atomic_fetch_add(&port->references, 1); }

void sh_port_release(sh_port *port) {
  if (atomic_fetch_sub(&port->references, 1) != 1) return;
  close(port->fd);
  pthread_mutex_destroy(&port->lock);
  free(port);
}

static void unlink_it(shi_port_link *link) {
  link->before->next = link->next;
  link->next->before = link->before;
  link->next = link->before = NULL;
}

void shi_port_post(sh_port *port, shi_guest *guest, shi_port_link *link) {
  pthread_mutex_lock(&port->lock);
  bool wake = port->ring.next == &port->ring;
  if (!link->next) { /* else it came back before, was driven on, and nobody has taken it off since */
    link->guest = shi_guest_id(guest);
    link->next = &port->ring;
    link->before = port->ring.before;
    link->before->next = port->ring.before = link;
  }
  shi_guest_park(guest);
  if (wake) { /* a counter of 1 never blocks, and cannot fail */
    ssize_t written = write(port->fd, &(uint64_t){1}, sizeof(uint64_t));
    (void)written;
  }
  pthread_mutex_unlock(&port->lock);
}

void shi_port_unlink(sh_port *port, shi_port_link *link) {
  pthread_mutex_lock(&port->lock);
  if (link->next) unlink_it(link);
  pthread_mutex_unlock(&port->lock);
}

uint32_t sh_port_take(sh_port *port, uint64_t *guests, uint32_t room) {
  uint32_t count = 0;
  pthread_mutex_lock(&port->lock);
  while (count < room && port->ring.next != &port->ring) {
    guests[count++] = port->ring.next->guest;
    unlink_it(port->ring.next);
  }
  if (port->ring.next == &port->ring) {
    uint64_t counter;
    ssize_t got = read(port->fd, &counter, sizeof counter);
    (void)got; /* nothing to read: whoever was posted has been unlinked since */
  }
  pthread_mutex_unlock(&port->lock);
  return count;
}
