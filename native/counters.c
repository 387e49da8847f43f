#include "counters.h"

_Thread_local uint32_t shi_own_copy;

uint32_t shi_copy_assign(void) {
  static _Atomic uint32_t threads;
  shi_own_copy = atomic_fetch_add_explicit(&threads, 1, memory_order_relaxed) % SHI_COPIES + 1;
  return shi_own_copy;
}

uint64_t shi_counted(const shi_counters *counters, uint32_t which) {
  uint64_t sum = 0;
  for (uint32_t k = 0; k < SHI_COPIES; k++)
    sum += atomic_load_explicit(&counters->copies[k].counts[which], memory_order_acquire);
  return sum;
}
