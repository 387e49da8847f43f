/* The maintenance thread: gives back what release has left for later.
 *
 *   release ──► queue (oldest first) ──► batches of up to 64 ranges, one system call each ──► free lists
 *   warm free slots ── idle for decay_ns ──► the same batches ──► free lists, without resident pages
 *
 * A batch goes out when 16 slots wait, or the oldest has waited for queue_ns, or someone needs the memory now. The
 * thread sleeps without a timer when nothing waits and nothing is warm. Waking it costs the releasing thread a system
 * call, so it stays half awake for one queue_ns after each batch: under a steady load of releases no one wakes it.
 *
 * Whoever works off a batch holds pool.upkeep for as long as slots are in his hands; so a thread that found no slot and
 * then gets `upkeep` knows that what was being worked on is free, as long as he holds it.
 */
#include <errno.h>
#include <time.h>

#include "image.h"
#include "pool.h"

/* Most of the gain of batching is there by 16 ranges; measured on Linux 6.18. */
enum { SEND_FROM = 16 };

static const uint64_t NEVER = UINT64_MAX;

static uint64_t later(uint64_t ns, uint64_t by_ns) { return ns > NEVER - by_ns ? NEVER : ns + by_ns; }

/* ---- batches ---------------------------------------------------------------------------------------------------- */

typedef struct {
  shi_slot *slots[SHI_OS_BATCH];
  struct iovec ranges[SHI_OS_BATCH];
  uint64_t bytes[SHI_OS_BATCH]; /* private in the range */
  size_t count;
} range_batch;

static void batch_add(range_batch *batch, shi_slot *slot, uint64_t from, uint64_t to, uint64_t bytes) {
  batch->slots[batch->count] = slot;
  batch->ranges[batch->count] = (struct iovec){.iov_base = slot->region.base + from, .iov_len = to - from};
  batch->bytes[batch->count] = bytes;
  batch->count++;
}

/* Calls `finish` for each slot, saying whether its range was given back. Returns the bytes given back. */
static uint64_t batch_send(shi_pool *pool, const range_batch *batch, void (*finish)(shi_pool *, shi_slot *, bool)) {
  bool all = shi_os_give_back_batch(batch->ranges, batch->count) == 0;
  uint64_t bytes = 0;
  for (size_t i = 0; i < batch->count; i++) {
    bool done = all || shi_os_give_back(batch->ranges[i].iov_base, batch->ranges[i].iov_len) == 0;
    if (done) {
      bytes += batch->bytes[i];
      shi_event_decommit(pool->events, batch->slots[i]->whose, batch->bytes[i]);
    } else {
      shi_count(&pool->counters, SHI_POOL_RESET_FAILURES, 1);
    }
    finish(pool, batch->slots[i], done);
  }
  shi_count(&pool->counters, SHI_POOL_RETURNED_BYTES, bytes);
  return bytes;
}

/* ---- the queue -------------------------------------------------------------------------------------------------- */

bool shi_maintain_reserve(shi_pool *pool, uint64_t bytes) {
  uint64_t limit = pool->options.queue_bytes;
  uint64_t queued = atomic_load_explicit(&pool->queue.bytes, memory_order_relaxed);
  do {
    if (bytes > limit || queued > limit - bytes) {
      return false;
    }
  } while (!atomic_compare_exchange_weak_explicit(&pool->queue.bytes, &queued, queued + bytes, memory_order_relaxed,
                                                  memory_order_relaxed));
  return true;
}

void shi_maintain_defer(shi_pool *pool, shi_slot *slot) {
  shi_queue *queue = &pool->queue;
  uint64_t due_ns = later(slot->freed_ns, pool->options.queue_ns);
  slot->state = SHI_SLOT_QUEUED;
  shi_slot_show(slot, SH_SLOT_QUEUED, shi_shown_units(slot->rest_bytes));
  slot->queue_next = NULL;
  pthread_mutex_lock(&queue->lock);
  atomic_fetch_add_explicit(&queue->slots, 1, memory_order_relaxed);
  *queue->tail = slot;
  queue->tail = &slot->queue_next;
  queue->count++;
  if (queue->count == SEND_FROM || due_ns < queue->wake_ns) {
    queue->wake_ns = due_ns; /* the next to come need not wake it again */
    pthread_cond_signal(&queue->wake);
  }
  pthread_mutex_unlock(&queue->lock);
}

static void take_queued(shi_queue *queue, range_batch *batch) {
  batch->count = 0;
  pthread_mutex_lock(&queue->lock);
  while (queue->head != NULL && batch->count < SHI_OS_BATCH) {
    shi_slot *slot = queue->head;
    queue->head = slot->queue_next;
    queue->count--;
    batch_add(batch, slot, slot->rest_from, slot->rest_to, slot->rest_bytes);
  }
  if (queue->head == NULL) {
    queue->tail = &queue->head;
  }
  pthread_mutex_unlock(&queue->lock);
}

static void finish_queued(shi_pool *pool, shi_slot *slot, bool given_back) {
  atomic_fetch_sub_explicit(&pool->queue.bytes, slot->rest_bytes, memory_order_relaxed);
  atomic_fetch_sub_explicit(&pool->queue.slots, 1, memory_order_relaxed);
  slot->state = SHI_SLOT_TAKEN;
  if (given_back) {
    shi_account_refund(slot->owed_to, slot->owed_bytes);
    slot->owed_to = NULL;
    slot->freed_ns = shi_os_now_ns();
    shi_pool_put(pool, slot, SHI_NEWEST);
  } else {
    shi_pool_quarantine(pool, slot);
  }
}

/* The caller holds `upkeep`. */
static uint64_t flush(shi_pool *pool) {
  uint64_t bytes = 0;
  range_batch batch;
  for (take_queued(&pool->queue, &batch); batch.count > 0; take_queued(&pool->queue, &batch)) {
    bytes += batch_send(pool, &batch, finish_queued);
  }
  return bytes;
}

uint64_t shi_maintain_flush(shi_pool *pool) {
  pthread_mutex_lock(&pool->upkeep);
  uint64_t bytes = flush(pool);
  pthread_mutex_unlock(&pool->upkeep);
  return bytes;
}

int shi_maintain_take(shi_pool *pool, uint64_t image_id, uint64_t affinity, shi_slot **out) {
  pthread_mutex_lock(&pool->upkeep);
  (void)flush(pool);
  int error = shi_pool_take(pool, image_id, affinity, out);
  pthread_mutex_unlock(&pool->upkeep);
  return error;
}

/* ---- decay ------------------------------------------------------------------------------------------------------ */

void shi_maintain_warmed(shi_pool *pool) {
  shi_queue *queue = &pool->queue;
  if (pool->options.decay_ns == NEVER || atomic_load_explicit(&queue->decay_planned, memory_order_relaxed) ||
      atomic_exchange(&queue->decay_planned, true)) {
    return;
  }
  pthread_mutex_lock(&queue->lock);
  pthread_cond_signal(&queue->wake);
  pthread_mutex_unlock(&queue->lock);
}

/* A failure is no harm: the slot was reset before, or is stale as before. It is asked again after another decay_ns. */
static void finish_decayed(shi_pool *pool, shi_slot *slot, bool given_back) {
  if (given_back) {
    shi_slot_forget_resident(pool, slot);
    slot->stale = false;
  } else {
    slot->freed_ns = shi_os_now_ns();
  }
  shi_pool_put(pool, slot, given_back ? SHI_OLDEST : SHI_NEWEST);
}

static bool take_decaying(shi_pool *pool, shi_shard *shard, range_batch *batch, uint64_t before_ns,
                          uint64_t *oldest_ns) {
  shi_slot *slot = NULL;
  batch->count = 0;
  while (batch->count < SHI_OS_BATCH && (slot = shi_shard_take_warm(shard, before_ns, oldest_ns)) != NULL) {
    /* What MADV_FREE left is counted now: the kernel may have taken some. */
    uint64_t bytes = slot->stale ? shi_reset_private_bytes(pool, slot) : slot->resident;
    batch_add(batch, slot, 0, slot->accessible, bytes);
  }
  return batch->count > 0;
}

uint64_t shi_maintain_decay(shi_pool *pool, uint64_t before_ns, uint64_t *oldest_ns) {
  uint64_t bytes = 0;
  range_batch batch;
  *oldest_ns = NEVER;
  pthread_mutex_lock(&pool->upkeep);
  for (uint32_t n = 0; n < pool->numa.count; n++) {
    for (uint32_t s = 0; s < pool->nodes[n].shard_count; s++) {
      while (take_decaying(pool, &pool->nodes[n].shards[s], &batch, before_ns, oldest_ns)) {
        bytes += batch_send(pool, &batch, finish_decayed);
      }
    }
  }
  pthread_mutex_unlock(&pool->upkeep);
  return bytes;
}

/* ---- the thread ------------------------------------------------------------------------------------------------- */

static void sleep_until(shi_queue *queue, uint64_t wake_ns) {
  queue->wake_ns = wake_ns;
  if (wake_ns == NEVER) {
    pthread_cond_wait(&queue->wake, &queue->lock);
  } else {
    struct timespec at = {.tv_sec = (time_t)(wake_ns / UINT64_C(1000000000)),
                          .tv_nsec = (long)(wake_ns % UINT64_C(1000000000))};
    pthread_cond_timedwait(&queue->wake, &queue->lock, &at);
  }
}

/* Decays what is due; returns when to come again. */
static uint64_t decay(shi_pool *pool, uint64_t now_ns) {
  uint64_t decay_ns = pool->options.decay_ns;
  uint64_t oldest_ns;
  /* Cleared before the look: a slot that gets warm after it sets the flag again, and wakes us. */
  atomic_store(&pool->queue.decay_planned, false);
  (void)shi_maintain_decay(pool, now_ns > decay_ns ? now_ns - decay_ns : 0, &oldest_ns);
  if (oldest_ns == NEVER) {
    return NEVER;
  }
  atomic_store(&pool->queue.decay_planned, true);
  return later(oldest_ns, decay_ns);
}

static void *run(void *argument) {
  shi_pool *pool = argument;
  shi_queue *queue = &pool->queue;
  uint64_t decay_due_ns = NEVER;
  uint64_t half_awake_until_ns = 0;
  pthread_mutex_lock(&queue->lock);
  while (!queue->stop) {
    uint64_t now_ns = shi_os_now_ns();
    uint64_t flush_due_ns = queue->head == NULL ? NEVER : later(queue->head->freed_ns, pool->options.queue_ns);
    bool planned = atomic_load(&queue->decay_planned);
    if (planned && decay_due_ns == NEVER) {
      decay_due_ns = later(now_ns, pool->options.decay_ns);
    }
    if (queue->count >= SEND_FROM || flush_due_ns <= now_ns) {
      pthread_mutex_unlock(&queue->lock);
      (void)shi_maintain_flush(pool);
      pthread_mutex_lock(&queue->lock);
      half_awake_until_ns = later(shi_os_now_ns(), pool->options.queue_ns);
    } else if (decay_due_ns <= now_ns) {
      pthread_mutex_unlock(&queue->lock);
      decay_due_ns = decay(pool, now_ns);
      pthread_mutex_lock(&queue->lock);
    } else {
      uint64_t wake_ns = flush_due_ns < decay_due_ns ? flush_due_ns : decay_due_ns;
      if (half_awake_until_ns > now_ns && half_awake_until_ns < wake_ns) {
        wake_ns = half_awake_until_ns;
      }
      sleep_until(queue, wake_ns);
    }
  }
  pthread_mutex_unlock(&queue->lock);
  return NULL;
}

int shi_maintain_start(shi_pool *pool) {
  shi_queue *queue = &pool->queue;
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&queue->wake, &attributes);
  pthread_condattr_destroy(&attributes);
  pthread_mutex_init(&queue->lock, NULL);
  queue->tail = &queue->head;
  queue->wake_ns = NEVER;
  int error = shi_os_thread_start(&queue->thread, "sandhost-memory", run, pool);
  if (error != 0) {
    pthread_cond_destroy(&queue->wake);
    pthread_mutex_destroy(&queue->lock);
  }
  return error;
}

void shi_maintain_stop(shi_pool *pool) {
  shi_queue *queue = &pool->queue;
  pthread_mutex_lock(&queue->lock);
  queue->stop = true;
  pthread_cond_signal(&queue->wake);
  pthread_mutex_unlock(&queue->lock);
  pthread_join(queue->thread, NULL);
  (void)shi_maintain_flush(pool);
  pthread_cond_destroy(&queue->wake);
  pthread_mutex_destroy(&queue->lock);
}
