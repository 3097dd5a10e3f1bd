/* The C interface of a library of emulated kernels: what the host's launch layer calls in place of a driver. */
#ifndef EMULATOR_ABI_H
#define EMULATOR_ABI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emulator_launch {
  const char *kernel; /* the instance's expression, as in emulator_kernels; white space does not matter */
  uint32_t blocks;
  uint32_t cluster; /* blocks of a cluster: they run together; `blocks` is a multiple of it */
  uint32_t threads, shared_bytes;
  void **args;           /* args[i] points to the i-th parameter, as in cuLaunchKernel */
  uint32_t schedule;     /* 0 lowest thread first, 1 highest first, 2 random, 3 one warp as long as it can */
  uint32_t asynchronous; /* copies take effect: 0 at once, 1 at the wait, 2 mixed */
  uint64_t seed;
  uint32_t detect_races; /* and reads of shared memory that was never written; bounds are always checked */
  uint32_t programmatic;     /* the kernel begins before the previous one has ended, and has to wait for that */
};

struct emulator_counters {
  uint64_t switches, collectives, mma, async_copies;
  uint64_t ldmatrix, ldmatrix_extra; /* phases of 8 rows, of stmatrix too; cycles lost to bank conflicts */
  uint64_t shared, shared_extra;     /* the same of other loads and stores, in phases of 128 bytes */
};

/* Runs the kernel to its end. Null, or what went wrong and where: a text that lives until this thread's next launch.
   Any number of threads may launch at the same time. `counters` may be null, which is faster. */
const char *emulator_launch(const struct emulator_launch *launch, struct emulator_counters *counters);

/* The expressions of all instances, ended by a null. */
const char *const *emulator_kernels(void);

#ifdef __cplusplus
}
#endif

#endif
