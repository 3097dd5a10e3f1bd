// The C interface: the table of registered kernels, and their launch.
#include "library.h"

#include <cctype>
#include <unordered_map>

#include "abi.h"

namespace emulator {
namespace {

struct Kernel {
  const char* expression;
  Entry entry;
};

struct Table {
  std::unordered_map<std::string, Kernel> kernels;  // by the expression without white space
  std::vector<const char*> expressions = {nullptr};
};

// Made by the first registration, wherever the linker puts that.
Table& table() {
  static Table table;
  return table;
}

std::string without_space(const char* expression) {
  std::string text;
  for (const char* c = expression; *c; c++) {
    if (!isspace((unsigned char)*c)) text += *c;
  }
  return text;
}

}  // namespace

void register_kernel(const char* expression, Entry entry) {
  Table& t = table();
  if (!t.kernels.emplace(without_space(expression), Kernel{expression, entry}).second) {
    fprintf(stderr, "emulator: the kernel %s is registered twice\n", expression);
    abort();
  }
  t.expressions.back() = expression;
  t.expressions.push_back(nullptr);
}

}  // namespace emulator

__attribute__((visibility("default"))) const char* const* emulator_kernels(void) {
  return emulator::table().expressions.data();
}

__attribute__((visibility("default"))) const char* emulator_launch(const struct emulator_launch* call,
                                                                   struct emulator_counters* counters) {
  using namespace emulator;
  const auto& kernels = table().kernels;
  auto found = kernels.find(without_space(call->kernel));
  if (found == kernels.end()) {
    static thread_local std::string unknown;
    unknown = std::string(call->kernel) + ": this library has no such kernel";
    return unknown.c_str();
  }

  struct Context {
    Entry entry;
    void** args;
  } context = {found->second.entry, call->args};
  auto body = [](void* context) { static_cast<Context*>(context)->entry(static_cast<Context*>(context)->args); };

  Launch launch;
  launch.kernel = found->second.expression;
  launch.blocks = call->blocks;
  launch.cluster = call->cluster;
  launch.threads = call->threads;
  launch.shared_bytes = call->shared_bytes;
  launch.schedule = call->schedule;
  launch.asynchronous = call->asynchronous;
  launch.seed = call->seed;
  launch.detect_races = call->detect_races != 0;
  launch.programmatic = call->programmatic != 0;
  Counters counted;
  const char* fault = run(launch, body, &context, counters ? &counted : nullptr);
  if (counters) {
    *counters = {counted.switches, counted.collectives, counted.mma,    counted.async_copies,
                 counted.ldmatrix, counted.ldmatrix_extra, counted.shared, counted.shared_extra};
  }
  return fault;
}
