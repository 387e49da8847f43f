/* A check that fails ends the program: after it, nothing that the process says can be trusted. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                                 \
      fflush(stdout);                                                                                                  \
      _exit(1);                                                                                                        \
    }                                                                                                                  \
  } while (0)

/* Both sides as 64-bit integers, and both are shown. */
#define CHECK_EQ(left, right)                                                                                          \
  do {                                                                                                                 \
    long long left_ = (long long)(left), right_ = (long long)(right);                                                  \
    if (left_ != right_) {                                                                                             \
      printf("%s:%d: %s is %lld, %s is %lld\n", __FILE__, __LINE__, #left, left_, #right, right_);                     \
      fflush(stdout);                                                                                                  \
      _exit(1);                                                                                                        \
    }                                                                                                                  \
  } while (0)

#define RUN(test)                                                                                                      \
  do {                                                                                                                 \
    test();                                                                                                            \
    printf("ok %s\n", #test);                                                                                          \
    fflush(stdout);                                                                                                    \
  } while (0)

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif
#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#else
#define UNDER_ASAN 0
#endif

#endif
