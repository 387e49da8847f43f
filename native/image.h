/* Images as the pool sees them; the bridge's side is in region.h. NULL stands for "all zeros" where said. */
#ifndef SANDHOST_IMAGE_H
#define SANDHOST_IMAGE_H

#include "habit.h"
#include "region.h"

/* A slot that maps the image holds one of these; unref takes NULL. Never triggers a sweep of the pools. */
shi_image *shi_image_ref(shi_image *image);
void shi_image_unref(shi_image *image);

/* The base with runs of whole OS pages, ascending, laid over it, in a memfd of their own. `base` may be NULL. */
int shi_image_overlay(uint64_t length, const shi_image *base, const shi_image_run *runs, size_t run_count,
                      shi_image **out);
shi_habits *shi_image_habits(shi_image *image);
uint32_t shi_image_pieces(const shi_image *image); /* NULL: 0 */

uint64_t shi_image_id(const shi_image *image);           /* NULL: 0. Ids are never used twice */
uint64_t shi_image_mapped_bytes(const shi_image *image); /* NULL: 0. The length in whole OS pages */
/* Maps it copy-on-write; what lies between its pieces becomes anonymous zeros. On failure the range may be a hole. */
int shi_image_map(const shi_image *image, uint8_t *at);
bool shi_image_retired(const shi_image *image); /* NULL: false. No outside reference is left, for ever */

/* Of the whole process: images belong to no pool. */
void shi_image_totals(uint64_t *count, uint64_t *bytes);

#endif
