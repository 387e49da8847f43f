/* What a tenant may use in a time: guests started, and CPU time. Both are token buckets, each in one word.
 *
 * The word says when the bucket will be full again (the generic cell rate algorithm, ITU-T I.371: a "theoretical arrival
 * time"). A use of `cost_ns` puts that off by as much; whoever finds it more than `burst_ns` away has to wait.
 *
 *        now                    full_ns                     CPU time: a use of t costs t / share,
 *   ──────┼────────────────────────┼──────►                 a start costs 1 / rate
 *         |◄── owed: > burst: no ──►|
 */
#ifndef SANDHOST_QUOTA_H
#define SANDHOST_QUOTA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "events.h"

/* A use that meets a change of the quota is held against a mixture of both: it is one use. */
typedef struct {
  _Atomic uint64_t full_ns;
  _Atomic uint64_t burst_ns;
  _Atomic double cost_ns; /* of one unit; 0: there is no quota */
} shi_bucket;

/* Gives it `per_s` units a second, `burst` of them at once; 0: no quota. A change fills it; the same again does nothing.
 * One thread at a time. */
void shi_bucket_set(shi_bucket *bucket, double per_s, double burst);
bool shi_bucket_limits(const shi_bucket *bucket);

/* Takes `units` if the bucket has them. Returns 0, or after how many nanoseconds it will. */
uint64_t shi_bucket_take(shi_bucket *bucket, uint64_t now_ns, uint64_t units);
/* Undoes a take that returned 0. */
void shi_bucket_give_back(shi_bucket *bucket, uint64_t units);
/* Takes what was used already, whether the bucket has it or not. */
void shi_bucket_charge(shi_bucket *bucket, uint64_t now_ns, uint64_t units);
/* 0: it has some; else after how many nanoseconds it will. */
uint64_t shi_bucket_wait(const shi_bucket *bucket, uint64_t now_ns);

/* The CPU time of a guest's calls, for a tenant that has a quota of it: counted while the thread is in them, taken from
 * the bucket at each tick and at the end. */
struct shi_guest;
void shi_cpu_begins(struct shi_guest *guest);
void shi_cpu_charge(struct shi_guest *guest);
void shi_cpu_ends(struct shi_guest *guest);
/* Whether the tenant may go on; and the error, when it may not. */
bool shi_cpu_left(const struct shi_guest *guest, uint64_t now_ns);
int shi_cpu_refuse(struct shi_guest *guest, uint64_t now_ns);

/* Whether a guest of that tenant may start: 0, or a status with its error recorded. */
struct sh_host;
struct sh_tenant;
int shi_quota_check(struct sh_host *host, struct sh_tenant *tenant, uint64_t now_ns);
/* The same of one that will be asked about again: takes nothing. And whether there are as many as there may be. */
int shi_quota_look(struct sh_host *host, struct sh_tenant *tenant, uint64_t now_ns);
/* Records that there are `limit` of them, as many as there may be. */
int shi_quota_refuse_guest(struct sh_host *host, shi_whose whose, uint64_t limit);
/* One that was let in does not count: it will start once more. */
void shi_quota_give_back(struct sh_tenant *tenant);

#endif
