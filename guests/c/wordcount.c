/* wordcount: a text plugin: counts words, changes case in place, finds the commonest words.
 *
 * A reactor that imports nothing. The host allocates in the guest, writes its text there, calls, and frees.
 * A word is a run of ASCII letters, digits, and bytes from 128 on, so UTF-8 text needs no decoding.
 */
#include <stdint.h>
#include <stdlib.h>

#define EXPORT(name) __attribute__((export_name(name)))

typedef struct {
  const char *text;
  uint32_t length;
  uint32_t count;
} word_t;

/* Open addressing, at most half full. */
typedef struct {
  word_t *slots;
  uint32_t mask; /* number of slots - 1, a power of two less one */
  uint32_t used;
} counts_t;

static int is_word_byte(unsigned char byte) {
  return byte >= 128 || (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z');
}

static unsigned char lower(unsigned char byte) { return byte >= 'A' && byte <= 'Z' ? byte + 32 : byte; }

/* Sets *word and *length to the first word in [text, end); 0 when there is none. */
static int next_word(const char *text, const char *end, const char **word, uint32_t *length) {
  while (text < end && !is_word_byte((unsigned char)*text)) text++;
  *word = text;
  while (text < end && is_word_byte((unsigned char)*text)) text++;
  *length = (uint32_t)(text - *word);
  return *length != 0;
}

static int same_word(const word_t *slot, const char *word, uint32_t length) {
  if (slot->length != length) return 0;
  for (uint32_t i = 0; i < length; i++)
    if (lower((unsigned char)slot->text[i]) != lower((unsigned char)word[i])) return 0;
  return 1;
}

/* The slot of the word, or the free one where it belongs. */
static word_t *find(const counts_t *counts, const char *word, uint32_t length) {
  uint32_t hash = 2166136261u; /* FNV-1a */
  for (uint32_t i = 0; i < length; i++) hash = (hash ^ lower((unsigned char)word[i])) * 16777619u;
  word_t *slot = &counts->slots[hash & counts->mask];
  while (slot->count != 0 && !same_word(slot, word, length)) slot = &counts->slots[++hash & counts->mask];
  return slot;
}

/* Doubles the table; 0 when there is no memory for it. */
static int grow(counts_t *counts) {
  counts_t larger = {.mask = counts->slots ? counts->mask * 2 + 1 : 63, .used = counts->used};
  larger.slots = calloc((size_t)larger.mask + 1, sizeof(word_t));
  if (larger.slots == NULL) return 0;
  for (uint32_t i = 0; counts->slots && i <= counts->mask; i++) {
    const word_t *slot = &counts->slots[i];
    if (slot->count != 0) *find(&larger, slot->text, slot->length) = *slot;
  }
  free(counts->slots);
  *counts = larger;
  return 1;
}

/* More frequent first; of equals, the one that came first in the text. */
static int by_count(const void *left, const void *right) {
  const word_t *a = left, *b = right;
  if (a->count != b->count) return a->count < b->count ? 1 : -1;
  return a->text < b->text ? -1 : a->text > b->text;
}

static uint32_t write_decimal(char *out, uint32_t number) {
  char digits[10];
  uint32_t length = 0;
  do digits[length++] = (char)('0' + number % 10);
  while ((number /= 10) != 0);
  for (uint32_t i = 0; i < length; i++) out[i] = digits[length - 1 - i];
  return length;
}

/* `length` bytes that the host may write to; 0 when there is no memory. To be given to free(). */
EXPORT("alloc") void *guest_alloc(uint32_t length) { return malloc(length); }

EXPORT("free") void guest_free(void *pointer) { free(pointer); }

EXPORT("count_words") uint32_t count_words(const char *text, uint32_t length) {
  const char *end = text + length, *word;
  uint32_t words = 0, word_length;
  while (next_word(text, end, &word, &word_length)) {
    words++;
    text = word + word_length;
  }
  return words;
}

/* ASCII letters become capitals, in place. */
EXPORT("uppercase") void uppercase(char *text, uint32_t length) {
  for (uint32_t i = 0; i < length; i++)
    if (text[i] >= 'a' && text[i] <= 'z') text[i] -= 32;
}

/* The `limit` commonest words, one "count word\n" a line, lower case, commonest first.
 * Returns address << 32 | length of the lines, which the caller frees; 0 when there is no memory. */
EXPORT("top_words") uint64_t top_words(const char *text, uint32_t length, uint32_t limit) {
  counts_t counts = {0};
  const char *end = text + length, *word;
  uint32_t word_length;
  while (next_word(text, end, &word, &word_length)) {
    if ((counts.slots == NULL || counts.used > counts.mask / 2) && !grow(&counts)) {
      free(counts.slots);
      return 0;
    }
    word_t *slot = find(&counts, word, word_length);
    if (slot->count++ == 0) {
      slot->text = word;
      slot->length = word_length;
      counts.used++;
    }
    text = word + word_length;
  }
  if (counts.slots) qsort(counts.slots, (size_t)counts.mask + 1, sizeof(word_t), by_count);
  if (limit > counts.used) limit = counts.used;

  size_t room = 1; /* never malloc(0): address 0 means failure */
  for (uint32_t i = 0; i < limit; i++) room += counts.slots[i].length + 12; /* 10 digits, blank, newline */
  char *lines = malloc(room);
  uint32_t used = 0;
  for (uint32_t i = 0; lines != NULL && i < limit; i++) {
    const word_t *slot = &counts.slots[i];
    used += write_decimal(lines + used, slot->count);
    lines[used++] = ' ';
    for (uint32_t j = 0; j < slot->length; j++) lines[used++] = (char)lower((unsigned char)slot->text[j]);
    lines[used++] = '\n';
  }
  free(counts.slots);
  return (uint64_t)(uintptr_t)lines << 32 | used;
}
