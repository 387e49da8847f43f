/* Who is there: a row for each live guest of a host, and for each slot of its pool, while they go on.
 *
 * A guest that is held does not end (guest.h), so what its row is read from stays; and nobody waits for us but who ends
 * just that guest. A slot shows who owns it; its owner is that guest if the slot still shows it when the guest is held,
 * since a guest that ends leaves its slots before its struct is another's.
 */
#include "guest.h"
#include "heap.h"

sh_guest_row shi_guest_row(shi_guest *guest, uint64_t id, uint64_t now_ns) {
  enum shi_phase phase = shi_phase_shown(atomic_load(&guest->state));
  const shi_holder *holder = atomic_load(&guest->holder);
  return (sh_guest_row){
      .guest = id,
      .committed_bytes = shi_account_used(&guest->account),
      .peak_bytes = shi_account_peak(&guest->account),
      .handles = holder ? shi_account_used(&holder->handles) : 0,
      .handle_bytes = holder ? shi_account_used(&holder->bytes) : 0,
      .age_ns = now_ns > guest->born_ns ? now_ns - guest->born_ns : 0,
      .calls = shi_tallied(&guest->calls),
      .plugin = guest->plugin->id,
      .tenant = guest->tenant ? guest->tenant->id : 0,
      .node = atomic_load_explicit(&guest->node, memory_order_relaxed),
      .doing = phase == SHI_RUNNING  ? SH_DOING_CALL
               : phase == SHI_PARKED ? SH_DOING_WAIT
                                     : SH_DOING_NOTHING,
  };
}

uint32_t sh_host_guests(sh_host *host, uint32_t *from, sh_guest_row *rows, uint32_t room) {
  if (atomic_load(&shi_forked)) return 0;
  uint32_t size = shi_guest_table_size(), count = 0;
  uint64_t now_ns = shi_now_ns();
  while (*from < size && count < room) {
    shi_guest *guest = shi_guest_at((*from)++);
    /* Most are free or another host's, which is seen without their locks; the rest is looked at again under them. */
    if (atomic_load_explicit(&guest->host, memory_order_relaxed) != host) continue;
    uint64_t id = shi_guest_id(guest);
    if (!shi_guest_hold(id)) continue;
    if (atomic_load_explicit(&guest->host, memory_order_relaxed) == host)
      rows[count++] = shi_guest_row(guest, id, now_ns);
    shi_guest_let_go(guest);
  }
  return count;
}

/* ---- slots --------------------------------------------------------------------------------------------------------- */

static void name_owner(sh_host *host, const shi_slot_seen *seen, sh_slot_row *row) {
  shi_guest *guest = shi_guest_at(seen->owner);
  uint64_t id = guest ? shi_guest_id(guest) : 0;
  if (!id || !shi_guest_hold(id)) return;
  if (atomic_load_explicit(&guest->host, memory_order_relaxed) == host &&
      atomic_load_explicit(seen->word, memory_order_relaxed) == seen->shown) {
    row->guest = id;
    row->plugin = guest->plugin->id;
    row->tenant = guest->tenant ? guest->tenant->id : 0;
  }
  shi_guest_let_go(guest);
}

uint32_t sh_host_slots(sh_host *host, uint64_t *from, sh_slot_row *rows, uint32_t room, int measure) {
  enum { AT_ONCE = 64 };
  if (atomic_load(&shi_forked)) return 0;
  shi_slot_seen seen[AT_ONCE];
  uint32_t count = shi_pool_slots(host->pool, from, seen, room < AT_ONCE ? room : AT_ONCE, measure);
  for (uint32_t k = 0; k < count; k++) {
    rows[k] = (sh_slot_row){.committed_bytes = seen[k].committed_bytes,
                            .resident_bytes = seen[k].resident_bytes,
                            .node = seen[k].node,
                            .state = seen[k].state};
    if (seen[k].state == SH_SLOT_LIVE) name_owner(host, &seen[k], &rows[k]);
  }
  return count;
}
