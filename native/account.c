/* Accounts: a charge is booked at every level up to the host, or at none. account.h has the idea. */
#include "account.h"

#include <stddef.h>
#include <string.h>

/* ---- `used` itself ---------------------------------------------------------------------------------------------- */

static bool add_up_to(shi_account *account, uint64_t units, uint64_t limit) {
  uint64_t used = atomic_load(&account->used);
  do {
    if (units > limit || used > limit - units) {
      return false;
    }
  } while (!atomic_compare_exchange_weak(&account->used, &used, used + units));
  return true;
}

static void subtract(shi_account *account, uint64_t units) { atomic_fetch_sub(&account->used, units); }

/* ---- credits ---------------------------------------------------------------------------------------------------- */

void shi_credits_init(shi_credits *credits) {
  memset(credits, 0, sizeof *credits);
  pthread_mutex_init(&credits->lock, NULL);
}

void shi_credits_destroy(shi_credits *credits) { pthread_mutex_destroy(&credits->lock); }

static bool take_credit(_Atomic uint64_t *credit, uint64_t units) {
  uint64_t left = atomic_load_explicit(credit, memory_order_relaxed);
  do {
    if (left < units) {
      return false;
    }
  } while (!atomic_compare_exchange_weak(credit, &left, left - units));
  return true;
}

static void take_back(shi_account *account, _Atomic uint64_t *credit) {
  if (atomic_load(credit) != 0) {
    subtract(account, atomic_exchange(credit, 0));
  }
}

/* A refund adds its credit and then looks at `withdrawn`; we set it and then look for credits. Both sequentially
 * consistent: what we do not find is a refund that has not returned, and that brings it back itself. So a charge is
 * refused only if it found no room at a moment when all the rest was in use. */
static bool add_without_credits(shi_account *account, uint64_t units) {
  shi_credits *credits = account->credits;
  pthread_mutex_lock(&credits->lock);
  atomic_store(&credits->withdrawn, true);
  for (uint32_t k = 0; k < SHI_COPIES; k++) {
    take_back(account, &credits->copies[k].units);
  }
  bool done = add_up_to(account, units, account->limit);
  atomic_store(&credits->withdrawn, false);
  pthread_mutex_unlock(&credits->lock);
  return done;
}

void shi_account_set_limit(shi_account *account, uint64_t limit) {
  atomic_store(&account->limit, limit);
  if (account->credits != NULL) {
    (void)add_without_credits(account, 0);
  }
}

static bool add(shi_account *account, uint64_t units) {
  shi_credits *credits = account->credits;
  if (credits == NULL) {
    return add_up_to(account, units, account->limit);
  }
  uint64_t peak = shi_account_peak(account), limit = atomic_load(&account->limit);
  if (atomic_load(&account->used) > limit) { /* it was lowered: credit would let in again what has gone */
    return add_without_credits(account, units);
  }
  return take_credit(&credits->copies[shi_copy()].units, units) ||
         add_up_to(account, units, peak < limit ? peak : limit) || add_without_credits(account, units);
}

static void give(shi_account *account, uint64_t units) {
  shi_credits *credits = account->credits;
  if (credits == NULL || atomic_load(&credits->withdrawn)) {
    subtract(account, units);
    return;
  }
  _Atomic uint64_t *credit = &credits->copies[shi_copy()].units;
  atomic_fetch_add(credit, units);
  if (atomic_load(&credits->withdrawn)) {
    take_back(account, credit);
  }
}

/* ---- charge and refund ------------------------------------------------------------------------------------------ */

/* Only after the whole charge holds: a peak is never a sum that was refused. Beyond the peak `used` holds no credits
 * but those that came since the charge, so it was all in use. */
static void raise_peak(shi_account *account) {
  uint64_t used = atomic_load_explicit(&account->used, memory_order_relaxed);
  uint64_t peak = shi_account_peak(account);
  while (used > peak && !atomic_compare_exchange_weak_explicit(&account->peak, &peak, used, memory_order_relaxed,
                                                               memory_order_relaxed)) {
  }
}

shi_account *shi_account_charge(shi_account *account, uint64_t units) {
  for (shi_account *level = account; level != NULL; level = level->parent) {
    if (!add(level, units)) {
      for (shi_account *undo = account; undo != level; undo = undo->parent) {
        subtract(undo, units); /* never as credit: beyond the peak there is none */
      }
      return level;
    }
  }
  for (shi_account *level = account; level != NULL; level = level->parent) {
    raise_peak(level);
  }
  return NULL;
}

void shi_account_refund(shi_account *account, uint64_t units) {
  for (shi_account *level = account; level != NULL; level = level->parent) {
    give(level, units);
  }
}

shi_account *shi_account_refund_below_host(shi_account *account, uint64_t units) {
  while (account->parent != NULL) {
    give(account, units);
    account = account->parent;
  }
  return account;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

uint64_t shi_account_used(const shi_account *account) {
  uint64_t used = atomic_load(&account->used);
  uint64_t credit = 0;
  for (uint32_t k = 0; account->credits != NULL && k < SHI_COPIES; k++) {
    credit += atomic_load(&account->credits->copies[k].units);
  }
  return credit < used ? used - credit : 0; /* given meanwhile */
}

uint64_t shi_account_peak(const shi_account *account) {
  return atomic_load_explicit(&account->peak, memory_order_relaxed);
}
