/* Keeps threads that come back from C from going to sleep on the interpreter's lock when it is free in a moment.
 *
 *   Python (holds the lock) ── shi_turnstile_leave ──► C, without the lock ── shi_turnstile_pass ──► Python
 *
 * Whoever finds the lock taken sleeps on a futex, and is woken tens of microseconds after the lock was given up: longer
 * than most of what our calls take. So a thread first waits here, awake, while another one is between `pass` and
 * `leave`. It is a hint, not a lock: who waited too long goes on, and other users of the interpreter's lock are not
 * seen. One thread alone pays two atomic operations.
 */
#ifndef SANDHOST_TURNSTILE_H
#define SANDHOST_TURNSTILE_H

void shi_turnstile_leave(void);
void shi_turnstile_pass(void);

#endif
