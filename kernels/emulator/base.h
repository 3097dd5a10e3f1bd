// What every part of the emulator needs: fixed-width types, source sites, faults, random numbers.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int32_t i32;
typedef unsigned long long u64;  // as on the device, where it is not uint64_t
typedef long long i64;

// State must have one address in each OS thread and no cost to find. Libraries are opened at run time; a few words of
// static thread-local storage are there for them.
#define EMULATOR_THREAD_LOCAL thread_local __attribute__((tls_model("initial-exec")))

// Hidden, so that two libraries in one process (kernels, and the same kernels with a planted bug) share no state.
namespace emulator __attribute__((visibility("hidden"))) {

// The place in a kernel that called a wrapper. Wrappers take it as a defaulted last parameter.
struct Site {
  const char* file;
  u32 line;

  static constexpr Site here(const char* file = __builtin_FILE(), u32 line = __builtin_LINE()) { return {file, line}; }
};

// Equal text may have several addresses where several translation units took part.
inline bool same_text(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }
inline bool same_site(Site a, Site b) { return a.line == b.line && same_text(a.file, b.file); }

inline const char* file_name(Site at) {
  const char* slash = strrchr(at.file, '/');
  return slash ? slash + 1 : at.file;
}

// Ends the launch: the text, prefixed with kernel, block, thread and site, is its result. The calling fiber is never
// resumed.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fault(Site at, const char* format, ...);

// splitmix64
struct Random {
  u64 state = 0;

  u64 next() {
    u64 z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  u32 below(u32 bound) { return (u32)(next() % bound); }
  bool coin() { return next() & 1; }
};

}  // namespace emulator
