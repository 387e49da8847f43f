/* Latency histograms: log-linear buckets, exact counts, a few nanoseconds a record.
 *
 * A value below 64 is its own bucket. Above, each power of two is cut into 32 equal buckets, so that a bucket's width
 * is at most 1/32 of its value (HdrHistogram's layout, http://hdrhistogram.org).
 *
 *   value     0 ... 63 | 64 ... 127 | 128 ... 255 | ...
 *   width        1     |     2      |      4      |
 *   buckets     64     |    32      |     32      |         64 + 35 * 32 = 1184: up to 2^41 ns, 36 minutes
 */
#include <string.h>
#include <time.h>

#include "bridge.h"

enum { SUB_BITS = 5, BUCKETS = 1184 };

uint64_t shi_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint32_t bucket_of(uint64_t value) {
  if (value < 2u << SUB_BITS) return (uint32_t)value;
  uint32_t shift = 63u - (uint32_t)__builtin_clzll(value) - SUB_BITS;
  uint64_t bucket = ((uint64_t)shift << SUB_BITS) + (value >> shift);
  return bucket < BUCKETS ? (uint32_t)bucket : BUCKETS - 1;
}

uint64_t sh_histogram_value(uint32_t bucket) {
  if (bucket < 2u << SUB_BITS) return bucket;
  uint32_t shift = (bucket >> SUB_BITS) - 1;
  uint64_t low = (uint64_t)(bucket - (shift << SUB_BITS)) << shift;
  return low + ((uint64_t)1 << shift) - 1;
}

void shi_histogram_record(shi_histogram *histogram, uint64_t ns) {
  uint32_t copy = shi_copy();
  atomic_fetch_add_explicit(&histogram->copies[copy].counts[bucket_of(ns)], 1, memory_order_relaxed);
  _Atomic uint64_t *most = &histogram->copies[copy].max;
  uint64_t max = atomic_load_explicit(most, memory_order_relaxed);
  while (ns > max &&
         !atomic_compare_exchange_weak_explicit(most, &max, ns, memory_order_relaxed, memory_order_relaxed)) {
  }
}

void shi_histogram_copy(shi_histogram *histogram, sh_histogram *out) {
  memset(out, 0, sizeof *out);
  for (uint32_t copy = 0; copy < SHI_COPIES; copy++) {
    for (uint32_t k = 0; k < BUCKETS; k++)
      out->counts[k] += atomic_load_explicit(&histogram->copies[copy].counts[k], memory_order_relaxed);
    uint64_t max = atomic_load_explicit(&histogram->copies[copy].max, memory_order_relaxed);
    if (max > out->max) out->max = max;
  }
}
