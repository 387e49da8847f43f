/* Images: the first bytes of a linear memory, sealed in a memfd.
 *
 * Two counts keep an image alive. `outside` is what the bridge holds (retain, release); all outside references together
 * hold one of `references`, and each slot that maps the image holds another. When the last outside reference goes, the
 * image is retired: nobody can ask for it again, so the pools turn their free slots of it cold at once, and slots still
 * in use or queued follow when they are released. The last of all frees the memory.
 */
#include "image.h"

#include <errno.h>
#include <stdlib.h>

#include "layout.h"
#include "os.h"
#include "pool.h"

/* Invariant: references == (outside > 0) + slots that map it; length <= mapped_bytes, a multiple of the OS page. */
struct shi_image {
  uint64_t id;
  uint64_t length;
  uint64_t mapped_bytes;
  const uint8_t *bytes;
  int fd;
  _Atomic uint32_t outside;
  _Atomic uint32_t references;
};

static _Atomic uint64_t next_id = 1;
static _Atomic uint64_t images;
static _Atomic uint64_t image_bytes;

static int fill(int fd, uint64_t length, const shi_image_run *runs, size_t run_count) {
  for (size_t i = 0; i < run_count; i++) {
    uint64_t end;
    if (__builtin_add_overflow(runs[i].offset, runs[i].length, &end) || end > length) {
      return shi_os_failure("image run", EINVAL);
    }
    int error = shi_os_file_write(fd, runs[i].offset, runs[i].bytes, runs[i].length);
    if (error != 0) {
      return error;
    }
  }
  return shi_os_file_seal(fd);
}

int shi_image_create(uint64_t length, const shi_image_run *runs, size_t run_count, shi_image **out) {
  uint64_t rounded;
  if (length == 0 || !shi_round_up(length, shi_os_page(), &rounded) || rounded > INT64_MAX) {
    return shi_os_failure("image length", EINVAL);
  }
  shi_image *image = calloc(1, sizeof *image);
  if (image == NULL) {
    return shi_os_failure("calloc", ENOMEM);
  }
  int error = shi_os_file_create(rounded, &image->fd);
  if (error != 0) {
    goto free_image;
  }
  error = fill(image->fd, length, runs, run_count);
  if (error != 0) {
    goto close_file;
  }
  error = shi_os_file_map(image->fd, rounded, &image->bytes);
  if (error != 0) {
    goto close_file;
  }
  image->id = atomic_fetch_add(&next_id, 1);
  image->length = length;
  image->mapped_bytes = rounded;
  atomic_init(&image->outside, 1);
  atomic_init(&image->references, 1);
  atomic_fetch_add(&images, 1);
  atomic_fetch_add(&image_bytes, rounded);
  *out = image;
  return 0;

close_file:
  shi_os_file_close(image->fd);
free_image:
  free(image);
  return error;
}

shi_image *shi_image_retain(shi_image *image) {
  atomic_fetch_add_explicit(&image->outside, 1, memory_order_relaxed);
  return image;
}

void shi_image_release(shi_image *image) {
  if (atomic_fetch_sub(&image->outside, 1) == 1) {
    shi_pools_forget_image(image);
    shi_image_unref(image);
  }
}

shi_image *shi_image_ref(shi_image *image) {
  atomic_fetch_add_explicit(&image->references, 1, memory_order_relaxed);
  return image;
}

void shi_image_unref(shi_image *image) {
  if (image == NULL || atomic_fetch_sub(&image->references, 1) != 1) {
    return;
  }
  shi_os_file_unmap(image->bytes, image->mapped_bytes);
  shi_os_file_close(image->fd);
  atomic_fetch_sub(&images, 1);
  atomic_fetch_sub(&image_bytes, image->mapped_bytes);
  free(image);
}

uint64_t shi_image_length(const shi_image *image) { return image->length; }

const void *shi_image_bytes(const shi_image *image) { return image->bytes; }

uint64_t shi_image_id(const shi_image *image) { return image == NULL ? 0 : image->id; }

uint64_t shi_image_mapped_bytes(const shi_image *image) { return image == NULL ? 0 : image->mapped_bytes; }

int shi_image_fd(const shi_image *image) { return image->fd; }

bool shi_image_retired(const shi_image *image) { return image != NULL && atomic_load(&image->outside) == 0; }

void shi_image_totals(uint64_t *count, uint64_t *bytes) {
  *count = atomic_load_explicit(&images, memory_order_relaxed);
  *bytes = atomic_load_explicit(&image_bytes, memory_order_relaxed);
}
