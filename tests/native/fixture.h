/* A pool with accounts around it, and questions about memory that are asked of the kernel, not of the code under test.
 */
#ifndef FIXTURE_H
#define FIXTURE_H

#include "check.h"
#include "pool.h"

enum { KIB = 1 << 10, MIB = 1 << 20, OS_PAGE = 4096 };

typedef struct pool_fixture {
  shi_pool *pool;
  shi_account host;
  shi_account tenant;
  shi_account guest;
  int files_before;
} pool_fixture;

/* Small slots, a warm policy that keeps 256 KiB, a queue that waits for long, no decay. */
shi_pool_options default_options(void);
void fixture_open(pool_fixture *fixture, const shi_pool_options *options);
/* Destroys the pool, and checks that it left nothing: accounts, files, images, address space. */
void fixture_close(pool_fixture *fixture);

/* Acquires for the fixture's guest or ends the test. */
shi_region *acquire(pool_fixture *fixture, shi_image *image, uint64_t affinity, uint64_t initial);
sh_reclaim release(pool_fixture *fixture, shi_region *region, int policy);
sh_pool_stats stats(pool_fixture *fixture);

/* An image of `length` bytes, each `fill`. */
shi_image *make_image(uint64_t length, uint8_t fill);
/* True when all of the region reads as `length` bytes of `fill`, then zeros. */
bool reads_as(const shi_region *region, uint64_t length, uint8_t fill);
bool is_all(const uint8_t *bytes, uint64_t length, uint8_t value);

/* What the kernel says. */
bool is_readable(const uint8_t *at);
uint64_t resident_bytes(const uint8_t *at, uint64_t bytes);
uint64_t process_resident_bytes(void);
int open_files(void);
/* Of these addresses: others are the sanitizer's as well, which maps memory when it likes. */
int count_mappings(const uint8_t *from, uint64_t bytes);

uint64_t random_next(uint64_t *state); /* xorshift64* */

void no_faults(void);

#endif
