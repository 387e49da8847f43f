/* blur: an image plugin: a box blur over RGBA pixels, in place.
 *
 * A reactor that imports nothing. Work is proportional to the number of pixels, whatever the radius.
 */
#include <stdint.h>
#include <stdlib.h>

#define EXPORT(name) __attribute__((export_name(name)))

enum { OK = 0, BAD_ARGUMENT = 1, NO_MEMORY = 2 };

#define CHANNELS 4u
#define MAX_SIDE 16384u /* keeps every product below in 32 bits */

/* Averages `count` pixels that lie `stride` bytes apart; pixels beyond an end count as the last one.
 * `line` has room for count * CHANNELS bytes. */
static void blur_line(uint8_t *pixels, uint32_t count, uint32_t stride, uint32_t radius, uint8_t *line) {
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t c = 0; c < CHANNELS; c++) line[i * CHANNELS + c] = pixels[i * stride + c];

  uint32_t width = 2 * radius + 1, last = count - 1;
  for (uint32_t c = 0; c < CHANNELS; c++) {
    uint32_t sum = line[c] * radius; /* the window around pixel 0: its left half repeats that pixel */
    for (uint32_t i = 0; i <= radius; i++) sum += line[(i < last ? i : last) * CHANNELS + c];
    for (uint32_t i = 0; i < count; i++) {
      pixels[i * stride + c] = (uint8_t)((sum + width / 2) / width);
      uint32_t enters = i + radius + 1 < last ? i + radius + 1 : last;
      uint32_t leaves = i > radius ? i - radius : 0;
      sum += line[enters * CHANNELS + c] - line[leaves * CHANNELS + c];
    }
  }
}

/* `length` bytes that the host may write to; 0 when there is no memory. To be given to free(). */
EXPORT("alloc") void *guest_alloc(uint32_t length) { return malloc(length); }

EXPORT("free") void guest_free(void *pointer) { free(pointer); }

/* Blurs width * height pixels of 4 bytes. Returns 0, or 1 (a side or the radius is out of 1 to 16384), or
 * 2 (no memory for one line). */
EXPORT("blur") int32_t blur(uint8_t *pixels, uint32_t width, uint32_t height, uint32_t radius) {
  if (width - 1 >= MAX_SIDE || height - 1 >= MAX_SIDE || radius - 1 >= MAX_SIDE) return BAD_ARGUMENT;
  uint8_t *line = malloc((width > height ? width : height) * CHANNELS);
  if (line == NULL) return NO_MEMORY;
  for (uint32_t y = 0; y < height; y++) blur_line(pixels + y * width * CHANNELS, width, CHANNELS, radius, line);
  for (uint32_t x = 0; x < width; x++) blur_line(pixels + x * CHANNELS, height, width * CHANNELS, radius, line);
  free(line);
  return OK;
}
