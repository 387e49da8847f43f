/* Accounts: what is in use, with a limit, a peak, and a parent: guest -> tenant -> host. In committed bytes, mostly;
 * guests and regions are counted in accounts too, for their peaks.
 *
 * An account of many threads keeps credits, so that threads whose guests come and go do not all write to one word:
 *
 *   charge   own credit ──► taken; else `used` rises, up to the peak; else all credits go back first, and then up to
 *            the limit
 *   refund   becomes the thread's own credit, unless somebody is just taking the credits back
 *
 * What is credit stays in `used`, so a charge out of it passes nothing where `used` is within the limit. Where a limit was
 * lowered below it, all credits go back first. And nobody is refused while there is credit.
 */
#ifndef SANDHOST_ACCOUNT_H
#define SANDHOST_ACCOUNT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "counters.h"

enum shi_account_level { SHI_ACCOUNT_GUEST, SHI_ACCOUNT_TENANT, SHI_ACCOUNT_HOST };

typedef struct {
  pthread_mutex_t lock;  /* held by who takes credits back */
  _Atomic bool withdrawn; /* meanwhile: refunds make no credit */
  struct {
    uint8_t apart[SHI_APART];
    _Atomic uint64_t units;
  } copies[SHI_COPIES];
  uint8_t apart[SHI_APART];
} shi_credits;

/* Invariant: used <= limit, or what it was; what is really in use is `used` less the credits; used <= peak when nothing moves; and the
 * sum over the children's `used` == the parent's own real use then, if all of it is theirs. */
typedef struct shi_account {
  struct shi_account *parent; /* NULL at the host */
  _Atomic uint64_t used;      /* credits included */
  _Atomic uint64_t peak;
  _Atomic uint64_t limit; /* UINT64_MAX: none. Where it is lowered below what is in use, `used` may stay above it */
  enum shi_account_level level;
  shi_credits *credits; /* NULL: it keeps none, mostly one thread charges it */
} shi_account;

void shi_credits_init(shi_credits *credits);
void shi_credits_destroy(shi_credits *credits);

/* Adds `units` at every level or at none. Returns NULL, or the account whose limit stands in the way. */
shi_account *shi_account_charge(shi_account *account, uint64_t units);
void shi_account_refund(shi_account *account, uint64_t units);
/* From now on. What is in use above it stays; none of it is credit afterwards. */
void shi_account_set_limit(shi_account *account, uint64_t limit);
/* Refunds all levels but the host's, which it returns. */
shi_account *shi_account_refund_below_host(shi_account *account, uint64_t units);
/* What is really in use; exact when nothing moves. */
uint64_t shi_account_used(const shi_account *account);
uint64_t shi_account_peak(const shi_account *account);

#endif
