/* Forgetting a guest: its private pages go back to the image or to the OS.
 *
 *   0            image_bytes                    initial              accessible
 *   | image       | anonymous                    | grown              |
 *   | ## . ### .. | ######### ... ####### ..s... | ########  ###      |     # private page  s swapped
 *   |<- restored in place ->|<------------ rest: given back --------->|
 *                           ^ the resident budget ends here
 *
 * The kernel says which pages the guest has made its own (PAGEMAP_SCAN: present or swapped, not the file's, not the
 * zero page); all others still read as the image or as zeros. Restoring a page in place costs a tenth of giving it back
 * and faulting it in again, so pages are restored in address order until the budget of the slot or of the pool is used
 * up; what follows is one span, given back with one call, or left to the queue when it is big. Grown pages are never
 * kept: the next guest starts without them. Swapped pages are not worth reading back.
 *
 * Pages kept by earlier resets are found again each time, as the kernel does not say who wrote them last: they count
 * anew, and what is reported as kept is what the slot holds, not what this guest wrote.
 *
 * When the kernel does not answer, all goes back to the OS. When it does not take that either, the slot is lost.
 */
#include <errno.h>
#include <string.h>

#include "image.h"
#include "pool.h"

/* One call finds the pages of nearly every guest; 6 KiB of stack. */
enum { RUNS = 256 };

/* Beyond the image the kernel finds a page in 20 ns instead of 40, but asking apart costs 600: so it is asked about the
 * whole slot at once, and for what it has left after so many pages apart. Measured with tests/native/bench_lives.c. */
enum { FEW = 32 };

/* Restoring pages is worth it in proportion to what the next guest touches; where they are less than an eighth of what
 * it is likely to dirty they only delay the close. Arbitrary. */
enum { FAR_OVER = 8 };

/* Handing a slot to the queue costs the releasing thread about 1 µs, giving 64 OS pages back 8 µs: what is cheaper than
 * that is not worth having the slot out of use for a while. Measured with tests/native/bench_region.c. */
enum { QUEUE_FROM_BYTES = 256 << 10 };

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* In two calls where the range crosses the border of the image, so that each takes the lock of one VMA only. */
static int give_back(const shi_slot *slot, uint64_t from, uint64_t to) {
  uint64_t border = least(slot->image_bytes, to);
  border = border < from ? from : border;
  int error = shi_os_give_back(slot->region.base + from, border - from);
  return error != 0 ? error : shi_os_give_back(slot->region.base + border, to - border);
}

static void write_back(const shi_slot *slot, uint64_t from, uint64_t to) {
  uint8_t *base = slot->region.base;
  uint64_t border = least(slot->image_bytes, to);
  if (from < border) {
    memcpy(base + from, (const uint8_t *)shi_image_bytes(slot->image) + from, border - from);
    from = border;
  }
  memset(base + from, 0, to - from);
}

/* ---- finding private pages -------------------------------------------------------------------------------------- */

/* Walks the private pages of a slot, in address order, in as many system calls as it takes.
 *
 * Beyond the image the zero page is what should be there. Within the image it is not: a guest's page of zeros can
 * become one when the kernel merges equal pages (KSM with use_zero_pages, as under systemd's MemoryKSM). */
typedef struct {
  const shi_slot *slot;
  uint64_t at; /* an address: the search has come so far */
  uint64_t end;
  bool files;   /* the image's own pages are wanted too */
  int count;
  shi_os_run runs[RUNS]; /* offsets from the slot's base */
} page_search;

static bool search_over(const page_search *search) { return search->at >= search->end; }

/* One call. With `few` about all that is left, else no further than to the end of the image. */
static int search_on(const shi_pool *pool, page_search *search, uint64_t few) {
  uint64_t from = search->at;
  uint64_t border = (uint64_t)(uintptr_t)search->slot->region.base + search->slot->image_bytes;
  enum shi_os_pages wanted = from >= border ? SHI_OS_ANONYMOUS : search->files ? SHI_OS_PRIVATE_FILES : SHI_OS_PRIVATE;
  uint64_t to = from >= border || few > 0 ? search->end : border;
  int found = shi_os_pages(&pool->pagemap, from, to, wanted, from >= border ? 0 : few, search->runs + search->count,
                           (size_t)(RUNS - search->count), &search->at);
  if (found < 0) {
    return found;
  }
  if (search->at == from && from < search->end) {
    return shi_os_failure("private pages", EIO); /* a walk that does not advance never ends */
  }
  search->count += found;
  return 0;
}

static int search_more(const shi_pool *pool, page_search *search) {
  uint64_t base = (uint64_t)(uintptr_t)search->slot->region.base;
  uint64_t few = search->at == base ? FEW : 0;
  search->count = 0;
  int error = search_on(pool, search, few);
  while (error == 0 && few > 0 && !search_over(search) && search->count < RUNS) {
    error = search_on(pool, search, 0);
  }
  if (error != 0) {
    return error;
  }
  int kept = 0;
  for (int i = 0; i < search->count; i++) {
    shi_os_run run = search->runs[i];
    run.start -= base;
    run.end -= base;
    if (run.categories & SHI_OS_ZERO_PAGE) {
      run.end = least(run.end, search->slot->image_bytes);
    }
    if (run.start < run.end) {
      search->runs[kept++] = run;
    }
  }
  search->count = kept;
  return 0;
}

static int search_start(const shi_pool *pool, const shi_slot *slot, bool files, page_search *search) {
  search->slot = slot;
  search->files = files;
  search->at = (uint64_t)(uintptr_t)slot->region.base;
  search->end = search->at + slot->accessible;
  return search_more(pool, search);
}

/* What a guest has left in its slot. */
typedef struct {
  uint64_t image_bytes; /* private, within the image */
  uint64_t zero_bytes;  /* private, beyond it */
  /* What there is to give back, the image's own pages too: clean ones count in RSS as well. Apart, so that each takes
   * the lock of one VMA only, and mostly one of them is empty. */
  uint64_t image_from;
  uint64_t image_to;
  uint64_t zero_from;
  uint64_t zero_to;
} page_totals;

static void widen(uint64_t *from, uint64_t *to, uint64_t start, uint64_t end) {
  if (start < end) {
    *from = *to == 0 ? start : *from;
    *to = end;
  }
}

static void add_run(page_totals *totals, const shi_slot *slot, const shi_os_run *run) {
  uint64_t border = least(slot->image_bytes, run->end);
  border = border < run->start ? run->start : border;
  widen(&totals->image_from, &totals->image_to, run->start, border);
  widen(&totals->zero_from, &totals->zero_to, border, run->end);
  if (!(run->categories & SHI_OS_FILE)) {
    totals->image_bytes += border - run->start;
    totals->zero_bytes += run->end - border;
  }
}

static int total(const shi_pool *pool, const shi_slot *slot, page_totals *totals) {
  page_search search;
  int error = search_start(pool, slot, true, &search);
  memset(totals, 0, sizeof *totals);
  while (error == 0) {
    for (int i = 0; i < search.count; i++) {
      add_run(totals, slot, &search.runs[i]);
    }
    if (search_over(&search)) {
      break;
    }
    error = search_more(pool, &search);
  }
  return error;
}

uint64_t shi_reset_private_bytes(shi_pool *pool, const shi_slot *slot) {
  page_totals totals;
  return total(pool, slot, &totals) == 0 ? totals.image_bytes + totals.zero_bytes : 0;
}

/* ---- restoring in place ----------------------------------------------------------------------------------------- */

typedef struct {
  uint64_t budget; /* most bytes to keep */
  uint64_t keep_below; /* an offset: nothing beyond is kept */
  uint64_t kept;
  uint64_t returned; /* swapped pages before the rest */
  uint64_t rest_from; /* all that was not kept lies in [rest_from, rest_to) ... */
  uint64_t rest_to;
  uint64_t rest_bytes; /* ... and this much of it is private */
} restoring;

static int restore_run(const shi_slot *slot, restoring *work, const shi_os_run *run) {
  uint64_t from = run->start;
  if (work->rest_bytes == 0) {
    if (run->categories & SHI_OS_SWAPPED) {
      work->returned += run->end - from;
      return give_back(slot, from, run->end);
    }
    uint64_t keep_to = least(least(run->end, work->keep_below), from + (work->budget - work->kept));
    if (keep_to > from) {
      write_back(slot, from, keep_to);
      work->kept += keep_to - from;
      from = keep_to;
    }
  }
  if (from < run->end) {
    work->rest_from = work->rest_bytes == 0 ? from : work->rest_from;
    work->rest_to = run->end;
    work->rest_bytes += run->end - from;
  }
  return 0;
}

/* Works off what `search` has found and goes on until it is over. *scan_failed says which kind of error it was. */
static int restore(const shi_pool *pool, page_search *search, restoring *work, bool *scan_failed) {
  for (;;) {
    for (int i = 0; i < search->count; i++) {
      int error = restore_run(search->slot, work, &search->runs[i]);
      if (error != 0) {
        return error;
      }
    }
    if (search_over(search)) {
      return 0;
    }
    int error = search_more(pool, search);
    if (error != 0) {
      *scan_failed = true;
      return error;
    }
  }
}

/* ---- the policies ----------------------------------------------------------------------------------------------- */

static void count_returned(shi_pool *pool, sh_reclaim *reclaim, uint64_t bytes) {
  reclaim->returned_bytes += bytes;
  shi_count(&pool->counters, SHI_POOL_RETURNED_BYTES, bytes);
}

static enum shi_reset_result failed(shi_pool *pool) {
  shi_count(&pool->counters, SHI_POOL_RESET_FAILURES, 1);
  return SHI_RESET_FAILED;
}

/* Without knowledge of what is dirty: all of it goes, and nobody can say how much it was. */
static enum shi_reset_result give_back_blindly(shi_pool *pool, const shi_slot *slot) {
  shi_count(&pool->counters, SHI_POOL_RESET_FAILURES, 1);
  return give_back(slot, 0, slot->accessible) == 0 ? SHI_RESET_DONE : SHI_RESET_FAILED;
}

static enum shi_reset_result reset_immediate(shi_pool *pool, shi_slot *slot, sh_reclaim *reclaim) {
  page_totals totals;
  if (total(pool, slot, &totals) != 0) {
    return give_back_blindly(pool, slot);
  }
  if (give_back(slot, totals.image_from, totals.image_to) != 0 ||
      give_back(slot, totals.zero_from, totals.zero_to) != 0) {
    return failed(pool);
  }
  count_returned(pool, reclaim, totals.image_bytes + totals.zero_bytes);
  return SHI_RESET_DONE;
}

static enum shi_reset_result reset_lazy(shi_pool *pool, shi_slot *slot, sh_reclaim *reclaim) {
  page_totals totals;
  if (total(pool, slot, &totals) != 0) {
    return give_back_blindly(pool, slot);
  }
  if (give_back(slot, totals.image_from, totals.image_to) != 0) { /* MADV_FREE does not take a file's mapping */
    return failed(pool);
  }
  count_returned(pool, reclaim, totals.image_bytes);
  if (totals.zero_bytes == 0) {
    return SHI_RESET_DONE;
  }
  if (shi_os_give_back_lazily(slot->region.base + totals.zero_from, totals.zero_to - totals.zero_from) != 0) {
    return give_back_blindly(pool, slot);
  }
  reclaim->deferred_bytes += totals.zero_bytes;
  slot->stale = true;
  return SHI_RESET_DONE;
}

/* As much of `wanted` as the pool's budget for all free slots has left. */
static uint64_t reserve_resident(shi_pool *pool, uint64_t wanted) {
  uint64_t whole_pages = ~(pool->os_page - 1);
  uint64_t granted = wanted & whole_pages;
  while (granted > 0 && shi_account_charge(&pool->warm_bytes, granted) != NULL) {
    granted = least(granted - pool->os_page, pool->options.resident_total - shi_account_used(&pool->warm_bytes));
    granted &= whole_pages;
  }
  return granted;
}

static uint64_t resident_budget(shi_pool *pool, const page_search *search) {
  uint64_t most = pool->options.resident_per_slot;
  uint64_t found = 0;
  for (int i = 0; i < search->count; i++) {
    found += search->runs[i].end - search->runs[i].start;
  }
  if (found / FAR_OVER > most) {
    return 0;
  }
  return reserve_resident(pool, search_over(search) ? least(found, most) : most);
}

static void keep_resident(shi_pool *pool, shi_slot *slot, uint64_t budget, uint64_t kept) {
  if (budget > kept) {
    shi_account_refund(&pool->warm_bytes, budget - kept);
  }
  slot->resident = kept;
  if (kept > 0) {
    shi_count(&pool->counters, SHI_POOL_WARM, 1);
  }
}

static enum shi_reset_result reset_warm(shi_pool *pool, shi_slot *slot, sh_reclaim *reclaim) {
  page_search search;
  if (search_start(pool, slot, false, &search) != 0) {
    return give_back_blindly(pool, slot);
  }
  restoring work = {.budget = resident_budget(pool, &search), .keep_below = slot->initial};
  bool scan_failed = false;
  if (restore(pool, &search, &work, &scan_failed) != 0) {
    keep_resident(pool, slot, work.budget, 0);
    return scan_failed ? give_back_blindly(pool, slot) : failed(pool);
  }
  keep_resident(pool, slot, work.budget, work.kept);
  reclaim->kept_bytes += work.kept;
  shi_count(&pool->counters, SHI_POOL_RESTORED_BYTES, work.kept);
  count_returned(pool, reclaim, work.returned);
  if (work.rest_bytes == 0) {
    return SHI_RESET_DONE;
  }
  if (work.rest_bytes >= QUEUE_FROM_BYTES && shi_maintain_reserve(pool, work.rest_bytes)) {
    slot->rest_from = work.rest_from;
    slot->rest_to = work.rest_to;
    slot->rest_bytes = work.rest_bytes;
    reclaim->deferred_bytes += work.rest_bytes;
    return SHI_RESET_QUEUE;
  }
  if (give_back(slot, work.rest_from, work.rest_to) != 0) {
    return failed(pool);
  }
  count_returned(pool, reclaim, work.rest_bytes);
  return SHI_RESET_DONE;
}

/* A slot whose bytes nobody had is as it was acquired: there is nothing to find, and what it keeps counts again. */
static bool is_as_acquired(shi_pool *pool, shi_slot *slot, enum sh_policy policy) {
  if (!slot->region.untouched || policy == SH_POLICY_LAZY || slot->kept == SHI_KEPT_UNKNOWN) {
    return false;
  }
  if (slot->kept == 0) {
    return true;
  }
  if (policy != SH_POLICY_WARM) {
    return false;
  }
  uint64_t budget = reserve_resident(pool, slot->kept);
  keep_resident(pool, slot, budget, budget < slot->kept ? 0 : slot->kept);
  return slot->resident > 0;
}

enum shi_reset_result shi_reset(shi_pool *pool, shi_slot *slot, enum sh_policy policy, sh_reclaim *reclaim) {
  if (shi_image_retired(slot->image)) {
    policy = SH_POLICY_IMMEDIATE; /* nobody will ask for this slot as it is */
  }
  if (is_as_acquired(pool, slot, policy)) {
    reclaim->kept_bytes += slot->resident;
    return SHI_RESET_DONE;
  }
  switch (policy) {
  case SH_POLICY_WARM:
    return reset_warm(pool, slot, reclaim);
  case SH_POLICY_LAZY:
    return reset_lazy(pool, slot, reclaim);
  case SH_POLICY_IMMEDIATE:
  default:
    return reset_immediate(pool, slot, reclaim);
  }
}

int shi_reset_stale(shi_pool *pool, shi_slot *slot) {
  page_search search;
  restoring work = {.budget = pool->options.resident_per_slot & ~(pool->os_page - 1), .keep_below = slot->accessible};
  bool scan_failed = false;
  int error = search_start(pool, slot, false, &search);
  if (error != 0) {
    scan_failed = true;
  } else {
    error = restore(pool, &search, &work, &scan_failed);
  }
  if (scan_failed) {
    shi_count(&pool->counters, SHI_POOL_RESET_FAILURES, 1);
    error = give_back(slot, 0, slot->accessible);
  } else if (error == 0) {
    error = give_back(slot, work.rest_from, work.rest_to);
  }
  if (error != 0) {
    shi_count(&pool->counters, SHI_POOL_RESET_FAILURES, 1);
    return error;
  }
  slot->stale = false;
  return 0;
}
