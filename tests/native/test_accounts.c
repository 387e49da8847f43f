/* Accounts: all or nothing at every level, and what a region charges. */
#include <errno.h>

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

static void huge_charges_do_not_wrap(void) {
  shi_account host = {.limit = UINT64_MAX, .level = SHI_ACCOUNT_HOST};
  CHECK(shi_account_charge(&host, 4096) == NULL);
  CHECK(shi_account_charge(&host, UINT64_MAX) == &host);
  CHECK_EQ(host.used, 4096);
}

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
  RUN(huge_charges_do_not_wrap);
  RUN(a_full_account_is_named_and_nothing_is_taken);
  RUN(a_full_host_gets_back_what_is_queued);
}
