// What the tests of the emulator share: a library is opened and launched through its C interface, under many
// schedules.
#pragma once

#include <dlfcn.h>

#include <string>
#include <vector>

#include "../abi.h"
#include "../numbers.h"

namespace {

using Call = struct emulator_launch;  // a function has the same name

void* library;
decltype(&emulator_launch) launch;
int missed = 0;

void report(const std::string& name, const std::string& problem) {
  printf("%-4s %s%s%s\n", problem.empty() ? "ok" : "MISS", name.c_str(), problem.empty() ? "" : ": ", problem.c_str());
  if (!problem.empty()) missed++;
}

bool open_library(const char* path) {
  library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return false;
  }
  launch = reinterpret_cast<decltype(launch)>(dlsym(library, "emulator_launch"));
  return true;
}

int conclude() {
  printf("%s\n", missed ? "MISSED" : "all as expected");
  return missed != 0;
}

struct Schedule {
  u32 order, asynchronous;
  u64 seed;
};

// Every order with every time of asynchronous effects.
std::vector<Schedule> schedules() {
  std::vector<Schedule> all;
  for (u32 order = 0; order < 4; order++) {
    for (u32 asynchronous = 0; asynchronous < 3; asynchronous++) {
      u64 seeds = order >= 2 || asynchronous == 2 ? 3 : 1;
      for (u64 seed = 1; seed <= seeds; seed++) all.push_back({order, asynchronous, seed});
    }
  }
  return all;
}

std::string describe(const Schedule& s) {
  char text[80];
  snprintf(text, sizeof text, "schedule %u, asynchronous %u, seed %llu: ", s.order, s.asynchronous, s.seed);
  return text;
}

// The fault, or an empty string.
template <class... Parameters>
std::string call(Call call, const Schedule& s, emulator_counters* counters, Parameters... parameters) {
  void* args[] = {&parameters...};
  call.args = args;
  call.schedule = s.order;
  call.asynchronous = s.asynchronous;
  call.seed = s.seed;
  const char* fault = launch(&call, counters);
  return fault ? fault : "";
}

Call geometry(const char* kernel, u32 blocks, u32 threads, u32 shared_bytes) {
  return {kernel, blocks, 1, threads, shared_bytes, nullptr, 0, 0, 0, 1, 0};
}

// Runs `check` under every schedule; the first problem it gives.
template <class Check>
std::string under_all_schedules(Check check) {
  for (const Schedule& s : schedules()) {
    std::string problem = check(s);
    if (!problem.empty()) return describe(s) + problem;
  }
  return "";
}

bool has_one_of(const std::string& text, std::string alternatives) {
  for (size_t bar; (bar = alternatives.find('|')) != std::string::npos; alternatives.erase(0, bar + 1)) {
    if (text.find(alternatives.substr(0, bar)) != std::string::npos) return true;
  }
  return text.find(alternatives) != std::string::npos;
}

std::string mismatch(u32 i, float got, float expected) {
  return "element " + std::to_string(i) + " is " + std::to_string(got) + ", not " + std::to_string(expected);
}

template <class T>
float number(T x);
template <>
float number(f16 x) {
  return emulator::f16_to_float(x.bits);
}
template <>
float number(bf16 x) {
  return emulator::bf16_to_float(x.bits);
}

// Small whole numbers: every sum is exact, in any order.
template <class T>
std::vector<T> whole_numbers(size_t count, u64 seed) {
  emulator::Random random{seed};
  std::vector<T> values(count);
  for (T& x : values) {
    float whole = (float)random.below(17) - 8;
    x.bits = std::is_same<T, f16>::value ? emulator::float_to_f16(whole) : emulator::float_to_bf16(whole);
  }
  return values;
}

}  // namespace
