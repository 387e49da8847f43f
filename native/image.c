/* Images: the first bytes of a linear memory, mapped copy-on-write into slots.
 *
 * An image is made of pieces, in address order, each a part of a file; what lies between them is zeros:
 *
 *   0                                                                        mapped_bytes
 *   | memfd of the module ... | memfd of a snapshot | (zeros) | file of a saved snapshot |
 *
 * Files are shared: an image composed over another one keeps the other's files, not a copy of its pages. An image made
 * of bytes has one sealed memfd and one piece.
 *
 * Two counts keep an image alive. `outside` is what the bridge holds (retain, release); all outside references together
 * hold one of `references`, and each slot that maps the image holds another. When the last outside reference goes, the
 * image is retired: nobody can ask for it again, so the pools turn their free slots of it cold at once, and slots still
 * in use or queued follow when they are released. The last of all frees the memory.
 */
#include "image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"
#include "os.h"
#include "pool.h"

/* A file that pieces lie in; closed with the last image that has one. */
typedef struct {
  int fd;
  uint64_t memory_bytes; /* a memfd's pages, counted in image_bytes; 0 for a file on disk */
  _Atomic uint32_t references;
} shi_file;

typedef struct {
  uint64_t offset, length; /* in the image; whole OS pages */
  uint64_t file_offset;
  shi_file *file;
} shi_piece;

/* Invariant: references == (outside > 0) + slots that map it; length <= mapped_bytes, a multiple of the OS page;
 * pieces ascend and do not overlap, and lie in [0, mapped_bytes). */
struct shi_image {
  uint64_t id;
  uint64_t length;
  uint64_t mapped_bytes;
  const uint8_t *bytes;
  _Atomic uint32_t outside;
  _Atomic uint32_t references;
  shi_habits habits;
  uint32_t piece_count;
  shi_piece pieces[];
};

static _Atomic uint64_t next_id = 1;
static _Atomic uint64_t images;
static _Atomic uint64_t image_bytes;

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* Takes the descriptor, also when it fails. */
static shi_file *open_file(int fd, uint64_t memory_bytes) {
  shi_file *file = malloc(sizeof *file);
  if (file == NULL) {
    shi_os_file_close(fd);
    return NULL;
  }
  *file = (shi_file){.fd = fd, .memory_bytes = memory_bytes};
  atomic_init(&file->references, 1);
  atomic_fetch_add(&image_bytes, memory_bytes);
  return file;
}

static void close_file(shi_file *file) {
  if (file == NULL || atomic_fetch_sub(&file->references, 1) != 1) {
    return;
  }
  shi_os_file_close(file->fd);
  atomic_fetch_sub(&image_bytes, file->memory_bytes);
  free(file);
}

/* The pages that the runs touch. They may share one: then it counts twice, which rounds up. */
static uint64_t pages_of(const shi_image_run *runs, size_t run_count) {
  uint64_t page = shi_os_page(), bytes = 0;
  for (size_t i = 0; i < run_count; i++) {
    if (runs[i].length > 0) {
      bytes += ((runs[i].offset + runs[i].length + page - 1) & ~(page - 1)) - (runs[i].offset & ~(page - 1));
    }
  }
  return bytes;
}

static bool fit(uint64_t length, const shi_image_run *runs, size_t run_count) {
  for (size_t i = 0; i < run_count; i++) {
    uint64_t end;
    if (__builtin_add_overflow(runs[i].offset, runs[i].length, &end) || end > length) {
      return false;
    }
  }
  return true;
}

static int fill(int fd, const shi_image_run *runs, size_t run_count) {
  for (size_t i = 0; i < run_count; i++) {
    int error = shi_os_file_write(fd, runs[i].offset, runs[i].bytes, runs[i].length);
    if (error != 0) {
      return error;
    }
  }
  return shi_os_file_seal(fd);
}

/* A sealed memfd of `length` bytes that holds the runs, which fit. */
static int make_memory_file(uint64_t length, const shi_image_run *runs, size_t run_count, shi_file **out) {
  int fd;
  int error = shi_os_file_create(length, &fd);
  if (error != 0) {
    return error;
  }
  error = fill(fd, runs, run_count);
  if (error != 0) {
    shi_os_file_close(fd);
    return error;
  }
  uint64_t touched = pages_of(runs, run_count);
  *out = open_file(fd, touched < length ? touched : length);
  return *out == NULL ? shi_os_failure("malloc", ENOMEM) : 0;
}

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

static int new_image(uint64_t length, uint64_t capacity, shi_image **out) {
  uint64_t rounded;
  if (length == 0 || !shi_round_up(length, shi_os_page(), &rounded) || rounded > INT64_MAX ||
      capacity > SHI_IMAGE_PIECES_MOST) {
    return shi_os_failure("image length", EINVAL);
  }
  shi_image *image = calloc(1, sizeof *image + capacity * sizeof *image->pieces);
  if (image == NULL) {
    return shi_os_failure("calloc", ENOMEM);
  }
  image->length = length;
  image->mapped_bytes = rounded;
  *out = image;
  return 0;
}

static void add_piece(shi_image *image, uint64_t offset, uint64_t length, shi_file *file, uint64_t file_offset) {
  atomic_fetch_add_explicit(&file->references, 1, memory_order_relaxed);
  image->pieces[image->piece_count++] = (shi_piece){offset, length, file_offset, file};
}

static void free_image(shi_image *image) {
  shi_habits_free(&image->habits);
  for (uint32_t i = 0; i < image->piece_count; i++) {
    close_file(image->pieces[i].file);
  }
  free(image);
}

/* What of `base` lies in [from, to). */
static void add_pieces_of(shi_image *image, const shi_image *base, uint64_t from, uint64_t to) {
  for (uint32_t i = 0; base != NULL && i < base->piece_count; i++) {
    const shi_piece *piece = &base->pieces[i];
    uint64_t start = piece->offset > from ? piece->offset : from;
    uint64_t end = piece->offset + piece->length < to ? piece->offset + piece->length : to;
    if (start < end) {
      add_piece(image, start, end - start, piece->file, piece->file_offset + (start - piece->offset));
    }
  }
}

static int map_pieces(const shi_image *image, uint8_t *at, int (*map)(uint8_t *, uint64_t, int, uint64_t)) {
  for (uint32_t i = 0; i < image->piece_count; i++) {
    const shi_piece *piece = &image->pieces[i];
    int error = map(at + piece->offset, piece->length, piece->file->fd, piece->file_offset);
    if (error != 0) {
      return error;
    }
  }
  return 0;
}

static bool is_one_piece(const shi_image *image) {
  return image->piece_count == 1 && image->pieces[0].length == image->mapped_bytes;
}

/* A view of the whole image for reading, and the image is there. */
static int publish(shi_image *image, shi_image **out) {
  uint8_t *view;
  int error = shi_os_view(image->mapped_bytes, &view);
  if (error == 0) {
    error = map_pieces(image, view, shi_os_map_in_view);
    if (error != 0) {
      shi_os_unview(view, image->mapped_bytes);
    }
  }
  if (error != 0) {
    free_image(image);
    return error;
  }
  image->bytes = view;
  image->id = atomic_fetch_add(&next_id, 1);
  atomic_init(&image->outside, 1);
  atomic_init(&image->references, 1);
  atomic_fetch_add(&images, 1);
  *out = image;
  return 0;
}

/* ---- making one ------------------------------------------------------------------------------------------------- */

int shi_image_create(uint64_t length, const shi_image_run *runs, size_t run_count, shi_image **out) {
  if (!fit(length, runs, run_count)) {
    return shi_os_failure("image run", EINVAL);
  }
  shi_image *image;
  int error = new_image(length, 1, &image);
  if (error != 0) {
    return error;
  }
  shi_file *file;
  error = make_memory_file(image->mapped_bytes, runs, run_count, &file);
  if (error != 0) {
    free(image);
    return error;
  }
  add_piece(image, 0, image->mapped_bytes, file, 0);
  close_file(file);
  return publish(image, out);
}

static bool is_whole_pages(const sh_image_part *part) {
  uint64_t mask = shi_os_page() - 1;
  return part->length > 0 && ((part->offset | part->length | part->file_offset) & mask) == 0;
}

static int add_parts(shi_image *image, const shi_image *base, const sh_image_part *parts, size_t part_count,
                     shi_file *file) {
  uint64_t at = 0;
  for (size_t i = 0; i < part_count; i++) {
    const sh_image_part *part = &parts[i];
    uint64_t end;
    if (!is_whole_pages(part) || part->offset < at || __builtin_add_overflow(part->offset, part->length, &end) ||
        end > image->mapped_bytes || part->file_offset > (uint64_t)INT64_MAX - part->length ||
        (!part->from_module && file == NULL)) {
      return shi_os_failure("image part", EINVAL);
    }
    if (part->from_module) {
      add_pieces_of(image, base, part->offset, end);
    } else {
      add_piece(image, part->offset, part->length, file, part->file_offset);
    }
    at = end;
  }
  return 0;
}

static int compose(uint64_t length, const shi_image *base, const sh_image_part *parts, size_t part_count,
                   shi_file *file, shi_image **out) {
  shi_image *image;
  /* A part of the base has some of the base's pieces; two parts share no more than one. */
  int error = new_image(length, part_count + (base == NULL ? 0 : base->piece_count), &image);
  if (error != 0) {
    return error;
  }
  error = add_parts(image, base, parts, part_count, file);
  if (error != 0) {
    free_image(image);
    return error;
  }
  return publish(image, out);
}

int shi_image_compose(uint64_t length, const shi_image *base, const sh_image_part *parts, size_t part_count, int fd,
                      shi_image **out) {
  shi_file *file = fd < 0 ? NULL : open_file(fd, 0);
  if (fd >= 0 && file == NULL) {
    return shi_os_failure("malloc", ENOMEM);
  }
  int error = compose(length, base, parts, part_count, file, out);
  close_file(file);
  return error;
}

/* A memfd that holds the runs one after the other. */
static int pack(const shi_image_run *runs, size_t run_count, shi_file **out) {
  shi_image_run *packed = calloc(run_count, sizeof *packed);
  if (packed == NULL) {
    return shi_os_failure("calloc", ENOMEM);
  }
  uint64_t at = 0;
  for (size_t i = 0; i < run_count; i++) {
    packed[i] = (shi_image_run){at, runs[i].bytes, runs[i].length};
    at += runs[i].length;
  }
  int error = make_memory_file(at, packed, run_count, out);
  free(packed);
  return error;
}

int shi_image_overlay(uint64_t length, const shi_image *base, const shi_image_run *runs, size_t run_count,
                      shi_image **out) {
  sh_image_part *parts = calloc(2 * run_count + 1, sizeof *parts);
  if (parts == NULL) {
    return shi_os_failure("calloc", ENOMEM);
  }
  size_t count = 0;
  uint64_t at = 0, packed = 0, base_end = shi_image_mapped_bytes(base);
  for (size_t i = 0; i <= run_count; i++) {
    uint64_t next = i < run_count ? runs[i].offset : base_end;
    uint64_t until = next < base_end ? next : base_end;
    if (at < until) {
      parts[count++] = (sh_image_part){.offset = at, .length = until - at, .from_module = true};
    }
    if (i < run_count) {
      parts[count++] = (sh_image_part){.offset = next, .length = runs[i].length, .file_offset = packed};
      packed += runs[i].length;
      at = next + runs[i].length;
    }
  }
  shi_file *file = NULL;
  int error = run_count == 0 ? 0 : pack(runs, run_count, &file);
  if (error == 0) {
    error = compose(length, base, parts, count, file, out);
    close_file(file);
  }
  free(parts);
  return error;
}

int shi_image_map(const shi_image *image, uint8_t *at) {
  if (!is_one_piece(image)) {
    int error = shi_os_map_zeros(at, image->mapped_bytes, true);
    if (error != 0) {
      return error;
    }
  }
  return map_pieces(image, at, shi_os_map_image);
}

/* ---- references ------------------------------------------------------------------------------------------------- */

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
  shi_os_unview(image->bytes, image->mapped_bytes);
  atomic_fetch_sub(&images, 1);
  free_image(image);
}

uint64_t shi_image_length(const shi_image *image) { return image->length; }

const void *shi_image_bytes(const shi_image *image) { return image->bytes; }

shi_habits *shi_image_habits(shi_image *image) { return &image->habits; }

uint32_t shi_image_pieces(const shi_image *image) { return image == NULL ? 0 : image->piece_count; }

uint64_t shi_image_id(const shi_image *image) { return image == NULL ? 0 : image->id; }

uint64_t shi_image_mapped_bytes(const shi_image *image) { return image == NULL ? 0 : image->mapped_bytes; }

bool shi_image_retired(const shi_image *image) { return image != NULL && atomic_load(&image->outside) == 0; }

void shi_image_totals(uint64_t *count, uint64_t *bytes) {
  *count = atomic_load_explicit(&images, memory_order_relaxed);
  *bytes = atomic_load_explicit(&image_bytes, memory_order_relaxed);
}
