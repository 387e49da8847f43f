/* Accounts: all or nothing at every level, and what a region charges. */
#include <errno.h>
#include <pthread.h>

#include "fixture.h"

static void a_charge_is_booked_at_every_level_or_at_none(void) {
  shi_account host = {.limit = 100, .level = SHI_ACCOUNT_HOST};
  shi_account tenant = {.parent = &host, .limit = 60, .level = SHI_ACCOUNT_TENANT};
  shi_account guest = {.parent = &tenant, .limit = UINT64_MAX, .level = SHI_ACCOUNT_GUEST};
  CHECK(shi_account_charge(&guest, 60) == NULL);
  CHECK(shi_account_charge(&guest, 1) == &tenant);
  CHECK(shi_account_charge(&host, 41) == &host);
  CHECK_EQ(guest.used, 60);
  CHECK_EQ(tenant.used, 60);
  CHECK_EQ(host.used, 60);
  shi_account_refund(&guest, 60);
  CHECK_EQ(host.used, 0);
  CHECK_EQ(host.peak, 60);
  CHECK_EQ(guest.peak, 60);
}

static void a_limit_below_what_is_in_use_lets_nothing_more_in(void) {
  shi_credits credits;
  shi_credits_init(&credits);
  shi_account account = {.limit = 100, .credits = &credits};
  CHECK(shi_account_charge(&account, 80) == NULL);
  shi_account_refund(&account, 30); /* credit */
  shi_account_set_limit(&account, 40);
  CHECK_EQ(shi_account_used(&account), 50);
  CHECK(shi_account_charge(&account, 1) == &account);
  shi_account_refund(&account, 20);
  CHECK(shi_account_charge(&account, 10) == NULL);
  shi_account_set_limit(&account, 100);
  CHECK(shi_account_charge(&account, 60) == NULL);
  CHECK(shi_account_charge(&account, 1) == &account);
  shi_account_refund(&account, 100);
  CHECK_EQ(shi_account_used(&account), 0);
  shi_credits_destroy(&credits);
}

static void what_goes_from_above_a_lowered_limit_does_not_come_back(void) {
  shi_credits credits;
  shi_credits_init(&credits);
  shi_account account = {.limit = 10, .credits = &credits};
  CHECK(shi_account_charge(&account, 10) == NULL);
  shi_account_set_limit(&account, 4);
  for (int k = 0; k < 6; k++) {
    shi_account_refund(&account, 1);
    CHECK(shi_account_charge(&account, 1) == &account);
  }
  CHECK_EQ(shi_account_used(&account), 4);
  shi_account_refund(&account, 1);
  CHECK(shi_account_charge(&account, 1) == NULL);
  shi_account_refund(&account, 4);
  shi_credits_destroy(&credits);
}

static void huge_charges_do_not_wrap(void) {
  shi_account host = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_HOST};
  CHECK(shi_account_charge(&host, 4096) == NULL);
  CHECK(shi_account_charge(&host, UINT64_MAX) == &host);
  CHECK_EQ(host.used, 4096);
}

/* ---- many threads ------------------------------------------------------------------------------------------------ */

enum { THREADS = 4, ROUNDS = UNDER_TSAN ? 20000 : 100000 };

static shi_credits host_credits, tenant_credits;
static shi_account shared_host, shared_tenant;
static _Atomic uint64_t in_use; /* no more than is charged: added after a charge, taken away before its refund */
static _Atomic uint64_t most_in_use;

static void open_accounts(uint64_t limit) {
  shi_credits_init(&host_credits);
  shi_credits_init(&tenant_credits);
  shared_host = (shi_account){.limit = limit, .level = SHI_ACCOUNT_HOST, .credits = &host_credits};
  shared_tenant =
      (shi_account){.parent = &shared_host, .limit = limit, .level = SHI_ACCOUNT_TENANT, .credits = &tenant_credits};
  atomic_store(&in_use, 0);
  atomic_store(&most_in_use, 0);
}

static void close_accounts(void) {
  CHECK_EQ(shi_account_used(&shared_host), 0);
  CHECK_EQ(shi_account_used(&shared_tenant), 0);
  CHECK(shi_account_peak(&shared_host) <= shared_host.limit);
  CHECK(shi_account_peak(&shared_host) >= atomic_load(&most_in_use));
  shi_credits_destroy(&host_credits);
  shi_credits_destroy(&tenant_credits);
}

static void *on_a_thread(void *(*run)(void *), void *argument) {
  pthread_t thread;
  CHECK_EQ(pthread_create(&thread, NULL, run, argument), 0);
  void *result;
  pthread_join(thread, &result);
  return result;
}

static void on_all_threads(void *(*run)(void *)) {
  pthread_t threads[THREADS];
  for (uintptr_t k = 0; k < THREADS; k++) {
    CHECK_EQ(pthread_create(&threads[k], NULL, run, (void *)(k + 1)), 0);
  }
  for (int k = 0; k < THREADS; k++) {
    pthread_join(threads[k], NULL);
  }
}

static bool hold(uint64_t units) {
  if (shi_account_charge(&shared_tenant, units) != NULL) {
    return false;
  }
  uint64_t now = atomic_fetch_add(&in_use, units) + units;
  CHECK(now <= shared_host.limit);
  uint64_t most = atomic_load(&most_in_use);
  while (now > most && !atomic_compare_exchange_weak(&most_in_use, &most, now)) {
  }
  return true;
}

static void let_go(uint64_t units) {
  atomic_fetch_sub(&in_use, units);
  shi_account_refund(&shared_tenant, units);
}

/* Holds several things at a time, of sizes at random, and hands the largest share of the limit about. */
static void *hold_at_random(void *argument) {
  uint64_t seed = (uint64_t)(uintptr_t)argument;
  uint64_t held[4] = {0};
  for (int k = 0; k < ROUNDS; k++) {
    uint64_t *at = &held[random_next(&seed) % 4];
    if (*at > 0) {
      let_go(*at);
      *at = 0;
    } else {
      uint64_t units = 1 + random_next(&seed) % 40;
      *at = hold(units) ? units : 0;
    }
  }
  for (int k = 0; k < 4; k++) {
    if (held[k] > 0) {
      let_go(held[k]);
    }
  }
  return NULL;
}

static void no_order_of_events_passes_a_limit(void) {
  open_accounts(100);
  on_all_threads(hold_at_random);
  CHECK(atomic_load(&most_in_use) > 60); /* else the limit was never near */
  close_accounts();
}

static void *hold_a_share(void *argument) {
  (void)argument;
  for (int k = 0; k < ROUNDS; k++) {
    CHECK(hold(100 / THREADS));
    let_go(100 / THREADS);
  }
  return NULL;
}

static void nobody_is_refused_while_there_is_room(void) {
  open_accounts(100); /* just enough for all at once */
  on_all_threads(hold_a_share);
  close_accounts();
}

static void *charge_all(void *argument) {
  (void)argument;
  CHECK(hold(100));
  CHECK(shi_account_charge(&shared_tenant, 1) == &shared_tenant);
  let_go(100);
  return NULL;
}

static void credit_of_one_thread_is_another_ones_room(void) {
  open_accounts(100);
  on_a_thread(charge_all, NULL);
  on_a_thread(charge_all, NULL);
  CHECK_EQ(shi_account_peak(&shared_host), 100);
  close_accounts();
}

static void *charge_some(void *argument) {
  (void)argument;
  CHECK(hold(60));
  let_go(60);
  return NULL;
}

static void a_peak_counts_nothing_that_was_only_credit(void) {
  open_accounts(UINT64_MAX);
  on_a_thread(charge_some, NULL);
  on_a_thread(charge_some, NULL);
  on_a_thread(charge_some, NULL);
  CHECK_EQ(shi_account_peak(&shared_host), 60);
  CHECK_EQ(shi_account_peak(&shared_tenant), 60);
  close_accounts();
}

/* ---- regions ----------------------------------------------------------------------------------------------------- */

static void a_full_account_is_named_and_nothing_is_taken(void) {
  shi_pool_options options = default_options();
  pool_fixture f;
  fixture_open(&f, &options);
  f.tenant.limit = 2 * 64 * KIB;
  shi_region *a = acquire(&f, NULL, 1, 64 * KIB);
  shi_region *b = acquire(&f, NULL, 1, 64 * KIB);
  shi_region_request request = {.account = &f.guest, .initial = 1, .maximum = 1};
  shi_region *c;
  shi_account *full = NULL;
  CHECK_EQ(shi_region_acquire(f.pool, &request, &c, &full), -EDQUOT);
  CHECK(full == &f.tenant);
  full = NULL;
  CHECK_EQ(shi_region_grow(a, 64 * KIB + 1, &full), -EDQUOT);
  CHECK(full == &f.tenant);
  CHECK_EQ(a->size, 64 * KIB);
  CHECK_EQ(stats(&f).regions_live, 2);
  CHECK_EQ(f.host.used, 2 * 64 * KIB);
  release(&f, a, -1);
  CHECK_EQ(shi_region_grow(b, 64 * KIB + 1, NULL), 0);
  CHECK_EQ(f.host.used, 64 * KIB + OS_PAGE);
  release(&f, b, -1);
  fixture_close(&f);
}

static void a_full_host_gets_back_what_is_queued(void) {
  shi_pool_options options = default_options();
  pool_fixture f;
  fixture_open(&f, &options);
  f.host.limit = 4 * MIB;
  shi_region *a = acquire(&f, NULL, 1, 4 * MIB);
  for (uint64_t i = 0; i < 4 * MIB; i += OS_PAGE) {
    a->base[i] = 1;
  }
  sh_reclaim reclaim = release(&f, a, SH_POLICY_WARM);
  CHECK_EQ(stats(&f).slots_queued, 0 + (reclaim.deferred_bytes > 0));
  if (reclaim.deferred_bytes > 0) {
    CHECK_EQ(f.host.used, 4 * MIB);
  }
  CHECK_EQ(f.guest.used, 0);
  CHECK_EQ(f.tenant.used, 0);
  shi_region *b = acquire(&f, NULL, 1, 4 * MIB);
  CHECK(reads_as(b, 0, 0));
  CHECK_EQ(stats(&f).slots_queued, 0);
  release(&f, b, -1);
  fixture_close(&f);
}

int main(void) {
  RUN(a_charge_is_booked_at_every_level_or_at_none);
  RUN(a_limit_below_what_is_in_use_lets_nothing_more_in);
  RUN(what_goes_from_above_a_lowered_limit_does_not_come_back);
  RUN(huge_charges_do_not_wrap);
  RUN(no_order_of_events_passes_a_limit);
  RUN(nobody_is_refused_while_there_is_room);
  RUN(credit_of_one_thread_is_another_ones_room);
  RUN(a_peak_counts_nothing_that_was_only_credit);
  RUN(a_full_account_is_named_and_nothing_is_taken);
  RUN(a_full_host_gets_back_what_is_queued);
}
