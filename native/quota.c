/* Quotas of tenants, and the host that takes no more: see quota.h. */
#include "quota.h"

#include <inttypes.h>

#include "guest.h"
#include "heap.h"

/* ---- a bucket ------------------------------------------------------------------------------------------------------ */

void shi_bucket_set(shi_bucket *bucket, double per_s, double burst) {
  double cost_ns = per_s > 0 ? 1e9 / per_s : 0;
  uint64_t burst_ns = per_s > 0 && burst / per_s < 1e9 ? (uint64_t)(burst / per_s * 1e9) : UINT64_MAX / 4;
  if (cost_ns == atomic_load(&bucket->cost_ns) && burst_ns == atomic_load(&bucket->burst_ns)) return;
  atomic_store(&bucket->burst_ns, burst_ns);
  atomic_store(&bucket->cost_ns, cost_ns);
  atomic_store(&bucket->full_ns, 0); /* what was owed was owed at another price */
}

bool shi_bucket_limits(const shi_bucket *bucket) {
  return atomic_load_explicit(&bucket->cost_ns, memory_order_relaxed) > 0;
}

static uint64_t burst_of(const shi_bucket *bucket) {
  return atomic_load_explicit(&bucket->burst_ns, memory_order_relaxed);
}

/* When it would be full if `units` were taken now. */
static uint64_t full_after(const shi_bucket *bucket, uint64_t full_ns, uint64_t now_ns, uint64_t units) {
  double cost = atomic_load_explicit(&bucket->cost_ns, memory_order_relaxed) * (double)units;
  uint64_t from = full_ns > now_ns ? full_ns : now_ns;
  return cost < (double)(UINT64_MAX / 2 - from) ? from + (uint64_t)cost : UINT64_MAX / 2;
}

uint64_t shi_bucket_take(shi_bucket *bucket, uint64_t now_ns, uint64_t units) {
  uint64_t full = atomic_load(&bucket->full_ns), burst_ns = burst_of(bucket), after;
  do {
    after = full_after(bucket, full, now_ns, units);
    if (after - now_ns > burst_ns) return after - now_ns - burst_ns;
  } while (!atomic_compare_exchange_weak(&bucket->full_ns, &full, after));
  return 0;
}

void shi_bucket_give_back(shi_bucket *bucket, uint64_t units) {
  atomic_fetch_sub(&bucket->full_ns, (uint64_t)(bucket->cost_ns * (double)units));
}

void shi_bucket_charge(shi_bucket *bucket, uint64_t now_ns, uint64_t units) {
  uint64_t full = atomic_load(&bucket->full_ns);
  while (!atomic_compare_exchange_weak(&bucket->full_ns, &full, full_after(bucket, full, now_ns, units))) {
  }
}

uint64_t shi_bucket_wait(const shi_bucket *bucket, uint64_t now_ns) {
  uint64_t full = atomic_load(&bucket->full_ns), burst_ns = burst_of(bucket);
  return full > now_ns && full - now_ns > burst_ns ? full - now_ns - burst_ns : 0;
}

/* ---- refusals ------------------------------------------------------------------------------------------------------- */

static int refuse(sh_host *host, sh_tenant *tenant, uint64_t wait_ns, const char *what) {
  shi_count(&host->counters, SHI_HOST_QUOTA_REFUSALS, 1);
  shi_count(&tenant->counters, SHI_TENANT_REFUSALS, 1);
  shi_event_refused(&host->events, (shi_whose){.tenant = tenant->id}, SH_REFUSED_QUOTA, SH_LEVEL_TENANT, 1, wait_ns);
  return shi_fail_limit(SH_QUOTA, 0, wait_ns, "%s", what);
}

/* ---- CPU time ------------------------------------------------------------------------------------------------------ */

static shi_bucket *bucket_of(const shi_guest *guest) {
  sh_tenant *tenant = guest->tenant;
  return tenant && shi_bucket_limits(&tenant->cpu) ? &tenant->cpu : NULL;
}

void shi_cpu_begins(shi_guest *guest) {
  if (__builtin_expect(bucket_of(guest) != NULL, 0)) guest->cpu_from_ns = shi_thread_cpu_ns();
}

void shi_cpu_charge(shi_guest *guest) {
  shi_bucket *bucket = bucket_of(guest);
  if (__builtin_expect(bucket == NULL, 1)) return;
  uint64_t from_ns = guest->cpu_from_ns, to_ns = shi_thread_cpu_ns(), used = to_ns - from_ns;
  guest->cpu_from_ns = to_ns;
  if (!from_ns) return; /* the quota is younger than the call */
  shi_bucket_charge(bucket, shi_now_ns(), used);
  shi_count(&guest->tenant->counters, SHI_TENANT_CPU_NS, used);
}

void shi_cpu_ends(shi_guest *guest) {
  if (__builtin_expect(guest->cpu_from_ns == 0, 1)) return;
  shi_cpu_charge(guest);
  guest->cpu_from_ns = 0;
}

bool shi_cpu_left(const shi_guest *guest, uint64_t now_ns) {
  const shi_bucket *bucket = bucket_of(guest);
  return __builtin_expect(bucket == NULL, 1) || shi_bucket_wait(bucket, now_ns) == 0;
}

int shi_cpu_refuse(shi_guest *guest, uint64_t now_ns) {
  return refuse(guest->plugin->host, guest->tenant, shi_bucket_wait(&guest->tenant->cpu, now_ns), "CPU time");
}

/* ---- may a guest start --------------------------------------------------------------------------------------------- */

static int refuse_under_pressure(sh_host *host, sh_tenant *tenant, uint64_t retry_ns, const char *why) {
  shi_count(&host->counters, SHI_HOST_PRESSURE_REFUSALS, 1);
  if (tenant) shi_count(&tenant->counters, SHI_TENANT_REFUSALS, 1);
  shi_event_refused(&host->events, (shi_whose){.tenant = tenant ? tenant->id : 0}, SH_REFUSED_PRESSURE,
                    tenant ? SH_LEVEL_TENANT : SH_LEVEL_HOST, 1, retry_ns);
  return shi_fail_limit(SH_REFUSED, 0, retry_ns, "%s", why);
}

int shi_quota_refuse_guest(sh_host *host, shi_whose whose, uint64_t limit) {
  shi_count(&host->counters, SHI_HOST_QUOTA_REFUSALS, 1);
  shi_event_refused(&host->events, whose, SH_REFUSED_QUOTA, SH_LEVEL_TENANT, 1, limit);
  return shi_fail_limit(SH_QUOTA, limit, 0, "guests alive at once");
}

static int check_what_is_not_taken(sh_host *host, sh_tenant *tenant, uint64_t now_ns) {
  uint64_t wait_ns = atomic_load_explicit(&host->refusing_ns, memory_order_relaxed);
  if (__builtin_expect(wait_ns != 0, 0))
    return refuse_under_pressure(host, tenant, wait_ns, "the host is short of memory and takes no new guests");
  if (!tenant) return SH_OK;
  wait_ns = atomic_load_explicit(&tenant->refusing_ns, memory_order_relaxed);
  if (__builtin_expect(wait_ns != 0, 0))
    return refuse_under_pressure(host, tenant, wait_ns,
                                 "the host is short of memory and the tenant has more than its share of it");
  wait_ns = shi_bucket_limits(&tenant->cpu) ? shi_bucket_wait(&tenant->cpu, now_ns) : 0;
  return wait_ns ? refuse(host, tenant, wait_ns, "CPU time") : SH_OK;
}

int shi_quota_look(sh_host *host, sh_tenant *tenant, uint64_t now_ns) {
  int status = check_what_is_not_taken(host, tenant, now_ns);
  if (status != SH_OK || !tenant) return status;
  uint64_t limit = atomic_load_explicit(&tenant->guests.limit, memory_order_relaxed);
  if (atomic_load_explicit(&tenant->guests.used, memory_order_relaxed) < limit) return SH_OK; /* mostly */
  if (shi_account_used(&tenant->guests) < limit) return SH_OK;
  return shi_quota_refuse_guest(host, (shi_whose){.tenant = tenant->id}, limit);
}

int shi_quota_check(sh_host *host, sh_tenant *tenant, uint64_t now_ns) {
  int status = check_what_is_not_taken(host, tenant, now_ns);
  if (status != SH_OK || !tenant || !shi_bucket_limits(&tenant->starts)) return status;
  uint64_t wait_ns = shi_bucket_take(&tenant->starts, now_ns, 1);
  return wait_ns ? refuse(host, tenant, wait_ns, "guests started in a second") : SH_OK;
}

void shi_quota_give_back(sh_tenant *tenant) {
  if (tenant && tenant->starts.cost_ns > 0) shi_bucket_give_back(&tenant->starts, 1);
}
