// Registers the instances of a kernel file. The source of a library has one translation unit for each kernel file:
//
//   #include "../src/hardware.cuh"
//   #include "library.h"
//   namespace gemm_cu {  // so that kernel files need not avoid one another's names
//   #include "../src/gemm/gemm.cu"
//   EMULATE(gemm<f16, Tile128, Bias>)
//   }
#pragma once

#include <type_traits>
#include <utility>

#include "simt.h"

namespace emulator __attribute__((visibility("hidden"))) {

typedef void (*Entry)(void** args);

// Takes the parameters from where the launch says they are, by the types that the kernel declares. Each thread has
// its own.
template <auto kernel>
struct EntryOf;
template <class... Parameters, void (*kernel)(Parameters...)>
struct EntryOf<kernel> {
  static void call(void** args) { call(args, std::index_sequence_for<Parameters...>()); }

 private:
  template <size_t... I>
  static void call([[maybe_unused]] void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Parameters>*>(args[I])...);
  }
};

void register_kernel(const char* expression, Entry entry);

struct Registration {
  Registration(const char* expression, Entry entry) { register_kernel(expression, entry); }
};

}  // namespace emulator

#define EMULATOR_JOIN_(a, b) a##b
#define EMULATOR_JOIN(a, b) EMULATOR_JOIN_(a, b)
#define EMULATE(...) \
  static const emulator::Registration EMULATOR_JOIN(registration_, __COUNTER__)( \
      #__VA_ARGS__, &emulator::EntryOf<&__VA_ARGS__>::call);
