/* Accounts of committed bytes: a charge is booked at every level up to the host, or at none. */
#include "region.h"

#include "pool.h"

static bool add(shi_account *account, uint64_t bytes) {
  uint64_t used = atomic_load_explicit(&account->used, memory_order_relaxed);
  do {
    if (bytes > account->limit || used > account->limit - bytes) {
      return false;
    }
  } while (!atomic_compare_exchange_weak_explicit(&account->used, &used, used + bytes, memory_order_relaxed,
                                                  memory_order_relaxed));
  return true;
}

static void subtract(shi_account *account, uint64_t bytes) {
  atomic_fetch_sub_explicit(&account->used, bytes, memory_order_relaxed);
}

/* Only after the whole charge holds: a peak is never a sum that was refused. */
static void raise_peak(shi_account *account) {
  uint64_t used = atomic_load_explicit(&account->used, memory_order_relaxed);
  uint64_t peak = atomic_load_explicit(&account->peak, memory_order_relaxed);
  while (used > peak && !atomic_compare_exchange_weak_explicit(&account->peak, &peak, used, memory_order_relaxed,
                                                               memory_order_relaxed)) {
  }
}

shi_account *shi_account_charge(shi_account *account, uint64_t bytes) {
  for (shi_account *level = account; level != NULL; level = level->parent) {
    if (!add(level, bytes)) {
      for (shi_account *undo = account; undo != level; undo = undo->parent) {
        subtract(undo, bytes);
      }
      return level;
    }
  }
  for (shi_account *level = account; level != NULL; level = level->parent) {
    raise_peak(level);
  }
  return NULL;
}

void shi_account_refund(shi_account *account, uint64_t bytes) {
  for (shi_account *level = account; level != NULL; level = level->parent) {
    subtract(level, bytes);
  }
}

shi_account *shi_account_refund_below_host(shi_account *account, uint64_t bytes) {
  while (account->parent != NULL) {
    subtract(account, bytes);
    account = account->parent;
  }
  return account;
}
