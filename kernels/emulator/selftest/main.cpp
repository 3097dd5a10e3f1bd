// Tests a library of kernels through its C interface: clean kernels give the right result under every schedule, and
// each planted fault is reported under every schedule. One line a case; the exit status is 1 if any missed.
//
//   main LIBRARY PLANTED_CU            all cases
//   main LIBRARY --read-out-of-bounds  the one for the address sanitizer, which ends the process
#include <fstream>
#include <memory>
#include <thread>

#include "harness.h"

namespace {

decltype(&emulator_kernels) kernels;

std::string expect(bool holds, const char* what) { return holds ? "" : what; }

// The parameters that hardware.cuh and clean.cu declare for the device.
struct Size {
  const u32* address;
  u32 bound, unused;
};
struct MultiplyParams {
  Size rows;
  u32 k, unused;
};

// ---- clean kernels

template <class T>
std::string multiply(const char* kernel, u32 rows, u32 k, bool from_memory, const Schedule& s) {
  auto a = whole_numbers<T>(rows * k, 1), b = whole_numbers<T>(16 * k, 2);
  std::vector<float> d(rows * 16, NAN);
  MultiplyParams p = {{from_memory ? &rows : nullptr, from_memory ? rows + 100 : rows, 0}, k, 0};
  std::string fault = call(geometry(kernel, 2, 128, 4 * 3 * 2048), s, nullptr, d.data(), a.data(), b.data(), p);
  if (!fault.empty()) return fault;
  for (u32 i = 0; i < rows * 16; i++) {
    float sum = 0;
    for (u32 j = 0; j < k; j++) sum += number(a[i / 16 * k + j]) * number(b[i % 16 * k + j]);
    if (d[i] != sum) return mismatch(i, d[i], sum);
  }
  return "";
}

std::string transpose(const Schedule& s) {
  alignas(16) f16 x[16][16], out[16][16] = {};
  for (u16 i = 0; i < 256; i++) x[i / 16][i % 16].bits = i;
  std::string fault = call(geometry("transpose", 1, 32, 512), s, nullptr, &out[0][0], &x[0][0]);
  for (u32 i = 0; i < 256 && fault.empty(); i++) fault = expect(out[i % 16][i / 16].bits == i, "wrong element");
  return fault;
}

std::string sum(const Schedule& s) {
  std::vector<float> x(3 * 256), out(6, NAN);
  for (u32 i = 0; i < x.size(); i++) x[i] = (float)(i % 97);
  std::string fault = call(geometry("sum", 3, 256, 32), s, nullptr, out.data(), x.data());
  for (u32 i = 0; i < 6 && fault.empty(); i++) {
    float total = 0;
    for (u32 j = 0; j < 256; j++) total += x[i / 2 * 256 + j];
    fault = expect(out[i] == total, "wrong sum");
  }
  return fault;
}

std::string scan(const Schedule& s) {
  u32 x[32], out[65] = {}, total = 0, largest = 0;
  for (u32 i = 0; i < 32; i++) x[i] = i * 37 % 101;
  std::string fault = call(geometry("scan", 1, 32, 0), s, nullptr, &out[0], &x[0]);
  for (u32 i = 0; i < 32 && fault.empty(); i++) {
    total += x[i];
    largest = std::max(largest, x[i]);
    fault = expect(out[i] == total && out[32 + i] == x[31 - i], "wrong element");
  }
  return fault.empty() ? expect(out[64] == largest, "wrong maximum") : fault;
}

std::string hand_over(const Schedule& s) {
  std::vector<float> x(5 * 64), out(5 * 64, NAN);
  for (u32 i = 0; i < x.size(); i++) x[i] = (float)i;
  std::string fault = call(geometry("hand_over", 1, 128, 256), s, nullptr, out.data(), x.data(), 5u);
  for (u32 i = 0; i < x.size() && fault.empty(); i++) {
    fault = expect(out[i] == x[i / 64 * 64 + 63 - i % 64], "wrong element");
  }
  return fault;
}

// Extra cycles of one load and one store of a warp (or of one ldmatrix), by arithmetic.
std::string bank_conflicts(const char* kernel, u32 stride, u64 phases, u64 extra) {
  u32 out[32];
  emulator_counters c;
  std::string fault = call(geometry(kernel, 1, 32, 32 * 512), {0, 0, 1}, &c, &out[0], stride);
  bool matrix = std::string(kernel) == "stride_matrix";
  u64 counted_phases = matrix ? c.ldmatrix : c.shared / 2, counted = matrix ? c.ldmatrix_extra : c.shared_extra / 2;
  if (fault.empty() && (counted != extra || counted_phases != phases)) {
    fault = "counted " + std::to_string(counted) + " extra cycles in " + std::to_string(counted_phases) + " phases";
  }
  return fault;
}

void test_clean_kernels() {
  for (u32 k : {8u, 32u, 40u, 96u, 200u}) {
    for (u32 rows : {1u, 16u, 130u}) {
      std::string shape = " of " + std::to_string(rows) + " rows, k " + std::to_string(k);
      report("multiply<f16>" + shape, under_all_schedules([&](const Schedule& s) {
               return multiply<f16>("multiply<f16>", rows, k, false, s);
             }));
      report("multiply<bf16>" + shape + ", from device memory", under_all_schedules([&](const Schedule& s) {
               return multiply<bf16>(" multiply < bf16>", rows, k, true, s);
             }));
    }
  }
  report("transpose", under_all_schedules(transpose));
  report("sum", under_all_schedules(sum));
  report("scan", under_all_schedules(scan));
  report("hand_over", under_all_schedules(hand_over));

  report("banks: 4 bytes, neighbours", bank_conflicts("stride4", 4, 1, 0));
  report("banks: 4 bytes, every other word", bank_conflicts("stride4", 8, 1, 1));
  report("banks: 4 bytes, 33 words apart", bank_conflicts("stride4", 132, 1, 0));
  report("banks: 4 bytes, one bank", bank_conflicts("stride4", 128, 1, 31));
  report("banks: 16 bytes, neighbours", bank_conflicts("stride16", 16, 4, 0));
  report("banks: 16 bytes, every other chunk", bank_conflicts("stride16", 32, 4, 4));
  report("banks: 16 bytes, one bank", bank_conflicts("stride16", 128, 4, 28));
  report("banks: ldmatrix, rows of 16 bytes", bank_conflicts("stride_matrix", 16, 4, 0));
  report("banks: ldmatrix, rows of 64 bytes", bank_conflicts("stride_matrix", 64, 4, 12));
  report("banks: ldmatrix, rows of 144 bytes", bank_conflicts("stride_matrix", 144, 4, 0));
}

// ---- planted faults

struct Planted {
  const char* kernel;
  const char* expected;  // in the report; alternatives by '|', where it depends on who comes first
};

constexpr Planted PLANTED[] = {
    {"missing_barrier", "race|never written"},
    {"missing_barrier_before_reuse", "race"},
    {"barrier_of_the_warp_only", "race|never written"},
    {"shuffle_as_barrier", "race"},
    {"matrix_of_own_rows", "race"},
    {"divergent_barrier", "other lanes of the warp wait in"},
    {"barrier_without_a_warp", "of its block wait in sync_block|threads of the block have ended"},
    {"unequal_counts", "while others wait in it|deadlock: 32 threads wait in sync_named"},
    {"count_of_half_a_warp", "expected whole warps"},
    {"crossed_barriers", "deadlock: 64 threads wait in sync_named"},
    {"unequal_collectives", "other lanes of the warp wait in"},
    {"collective_in_a_branch", "lanes of its warp wait in shfl_xor|lanes of the warp have ended"},
    {"lane_out_of_range", " of 32"},
    {"beyond_the_end", "outside the block's"},
    {"base_forgotten", "outside the block's"},
    {"misaligned", "is not a multiple of 16"},
    {"never_written", "never written"},
    {"left_by_another_block", "never written"},
    {"copy_read_before_the_wait", "this read is not ordered after the asynchronous copy in flight"},
    {"wait_for_one_too_few", "this read is not ordered after the asynchronous copy in flight"},
    {"wait_without_commit", "this read is not ordered after the asynchronous copy in flight"},
    {"copy_of_another_thread", "this read is not ordered after|never written"},
    {"barrier_before_the_wait", "this read is not ordered after"},
    {"write_over_a_copy", "this write is not ordered after the asynchronous copy in flight"},
    {"copy_over_what_is_read", "race"},
    {"copy_never_waited_for", "never waited for"},
    {"source_misaligned", "is not a multiple of 16"},
};

// The line that the source marks with the kernel's name.
u32 planted_line(const char* source, const std::string& kernel) {
  std::ifstream file(source);
  std::string text;
  for (u32 line = 1; std::getline(file, text); line++) {
    size_t mark = text.find("// planted: " + kernel);
    if (mark != std::string::npos && mark + 12 + kernel.size() == text.size()) return line;
  }
  return 0;
}

void test_planted_faults(const char* source) {
  for (const Planted& planted : PLANTED) {
    std::string line = "planted.cu:" + std::to_string(planted_line(source, planted.kernel)), seen;
    std::string problem = under_all_schedules([&](const Schedule& s) -> std::string {
      alignas(16) u32 x[256] = {}, out[64];
      seen = call(geometry(planted.kernel, 2, 64, 1024), s, nullptr, &out[0], &x[0], 0u);
      if (seen.empty()) return "not reported";
      if (seen.compare(0, strlen(planted.kernel), planted.kernel) != 0) return "kernel not named: " + seen;
      if (!has_one_of(seen, planted.expected)) return "expected '" + std::string(planted.expected) + "': " + seen;
      return seen.find(line) == std::string::npos ? "expected " + line + ": " + seen : "";
    });
    report(problem.empty() ? seen : planted.kernel, problem);
  }
}

// ---- launches that overlap

// What a kernel does too early.
constexpr Planted OVERLAPPING[] = {
    {"never_waits", "the thread ends"},
    {"waits_in_one_thread", "the thread ends"},
    {"waits_where_there_is_work", "the thread ends"},
    {"waits_behind_a_copy", "a copy is issued"},
    {"starts_the_next_too_early", "it lets the next kernel start"},
};

// A kernel that is not launched to begin early need not wait; of one that is, every thread has to.
void test_overlaps() {
  auto run = [](const char* kernel, u32 programmatic, const Schedule& s) {
    alignas(16) u32 x[256] = {}, out[64];
    Call launch = geometry(kernel, 2, 64, 1024);
    launch.programmatic = programmatic;
    return call(launch, s, nullptr, &out[0], &x[0], 0u);
  };
  auto none = [&](const char* kernel, u32 programmatic) {
    report(kernel, under_all_schedules([&](const Schedule& s) { return run(kernel, programmatic, s); }));
  };
  auto fault = [&](const char* kernel, const char* what) {
    const std::string expected = std::string(what) + " before it has waited for the previous kernel";
    none(kernel, 0);
    report(kernel, under_all_schedules([&](const Schedule& s) {
             std::string seen = run(kernel, 1, s);
             return expect(seen.find(expected) != std::string::npos, (expected + ", not: " + seen).c_str());
           }));
  };
  none("overlaps_well", 1);
  for (auto [kernel, what] : OVERLAPPING) fault(kernel, what);
}

// ---- the rest of the interface

void test_objections() {
  u32 out[64];
  auto objection = [&](const char* kernel, u32 blocks, u32 threads, u32 shared_bytes, const char* expected) {
    std::string fault = call(geometry(kernel, blocks, threads, shared_bytes), {0, 0, 1}, nullptr, &out[0], 4u);
    report(fault, expect(fault.find(expected) != std::string::npos, expected));
  };
  objection("missing", 1, 32, 0, "no such kernel");
  objection("stride4", 0, 32, 0, "at least one block");
  objection("stride4", 1, 48, 0, "whole warps");
  objection("stride4", 1, 2048, 0, "1 to 1024 threads");
  objection("stride4", 1, 32, 1 << 20, "more shared memory");

  u32 registered = 0;
  bool found = false;
  for (const char* const* k = kernels(); *k; k++, registered++) found |= std::string(*k) == "multiply<f16>";
  report("list of kernels", expect(found && registered == 9 + 2 + std::size(PLANTED) + std::size(OVERLAPPING), "not the registered ones"));
}

// Launches of several threads have nothing to do with one another.
void test_threads() {
  std::vector<std::thread> threads;
  std::vector<std::string> problems(4);
  for (u32 i = 0; i < 4; i++) {
    threads.emplace_back([&problems, i] {
      problems[i] = under_all_schedules([&](const Schedule& s) {
        return i % 2 ? multiply<f16>("multiply<f16>", 130, 96, false, s) : sum(s);
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& problem : problems) report("one of four threads", problem);
}

// ---- numbers

// `to_bits(x)` against the definition: the nearest of the representable numbers, the even one of two.
template <class ToFloat, class ToBits>
std::string rounding(ToFloat to_float, ToBits to_bits, u32 infinity) {
  for (u32 low = 0; low < infinity; low++) {
    for (u32 sign : {0u, 0x8000u}) {
      if (to_bits(to_float((u16)(low | sign))) != (low | sign)) return "round trip of " + std::to_string(low | sign);
    }
    // The number halfway to the next pattern (which beyond the largest would be 2 to the power of the next exponent).
    double a = to_float((u16)low);
    double step = low + 1 < infinity ? to_float((u16)(low + 1)) - a : a - to_float((u16)(low - 1));
    float half = (float)(a + step / 2);
    u32 even = low % 2 ? low + 1 : low;
    if (to_bits(half) != even) return "tie above " + std::to_string(low);
    if (to_bits(std::nextafter(half, INFINITY)) != low + 1) return "just above the tie above " + std::to_string(low);
    if (to_bits(std::nextafter(half, 0.f)) != low) return "just below the tie above " + std::to_string(low);
    if (to_bits(-half) != (even | 0x8000)) return "negative tie below " + std::to_string(low);
  }
  if (to_bits(INFINITY) != infinity || to_bits(-INFINITY) != (infinity | 0x8000)) return "infinity";
  if (to_bits(NAN) != 0x7fff || to_bits(-NAN) != 0x7fff) return "NaN";
  return "";
}

float f16_by_definition(u32 bits) {
  u32 exponent = bits >> 10 & 31, fraction = bits & 1023;
  double magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                     : exponent     ? std::ldexp(1024 + fraction, (int)exponent - 25)
                                    : std::ldexp(fraction, -24);
  return (float)(bits & 0x8000 ? -magnitude : magnitude);
}

bool same(float a, float b) { return emulator::as_bits(a) == emulator::as_bits(b) || (std::isnan(a) && std::isnan(b)); }

// One by one and eight at a time.
template <class T, class ToFloat>
std::string all_patterns(ToFloat by_definition) {
  for (u32 bits = 0; bits < 65536; bits += 8) {
    u16 halves[8];
    float eight[8];
    for (u16 i = 0; i < 8; i++) halves[i] = (u16)(bits + i);
    emulator::to_floats<T>(eight, halves);
    for (u32 i = 0; i < 8; i++) {
      float expected = by_definition(bits + i);
      bool right = same(eight[i], expected) && same(number(T{halves[i]}), expected);
      if (!right) return "pattern " + std::to_string(bits + i);
    }
  }
  return "";
}

template <class Approximate, class Exact>
std::string approximation(Approximate approximate, Exact exact, float from, float to) {
  u32 moved = 0;
  for (int i = 0; i <= 100000; i++) {
    float x = from + (to - from) * (float)i / 100000, y = approximate(x), e = (float)exact((double)x);
    if (y == e) continue;
    moved++;
    if (y != std::nextafter(e, INFINITY) && y != std::nextafter(e, -INFINITY)) return "off at " + std::to_string(x);
  }
  return expect(moved > 50000 && moved < 80000, "not two thirds are moved");
}

void test_numbers() {
  using namespace emulator;
  report("f16 to float, all patterns", all_patterns<f16>(f16_by_definition));
  report("bf16 to float, all patterns", all_patterns<bf16>([](u32 bits) { return as_float(bits << 16); }));
  report("float to f16, all ties", rounding(f16_to_float, float_to_f16, 0x7c00));
  report("float to bf16, all ties", rounding(bf16_to_float, float_to_bf16, 0x7f80));
  report("exp2", approximation(approximate_exp2, [](double x) { return std::exp2(x); }, -100, 1));
  report("rcp", approximation(approximate_rcp, [](double x) { return 1 / x; }, 0.25, 3000));
  report("rsqrt", approximation(approximate_rsqrt, [](double x) { return 1 / std::sqrt(x); }, 0.01f, 3000));
  report("exp2, special values",
         expect(approximate_exp2(0.f) == 1 && approximate_exp2(-0.f) == 1 && approximate_exp2(-INFINITY) == 0 &&
                    approximate_exp2(-130.f) == 0 && approximate_exp2(INFINITY) == INFINITY &&
                    std::isnan(approximate_exp2(NAN)),
                "not as the hardware has them"));
  report("rcp, special values",
         expect(approximate_rcp(0.f) == INFINITY && approximate_rcp(-0.f) == -INFINITY &&
                    approximate_rcp(INFINITY) == 0,
                "not as the hardware has them"));
  report("rsqrt, special values",
         expect(approximate_rsqrt(0.f) == INFINITY && std::isnan(approximate_rsqrt(-1.f)) &&
                    approximate_rsqrt(INFINITY) == 0,
                "not as the hardware has them"));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3 || !open_library(arguments[1])) return 2;
  kernels = reinterpret_cast<decltype(kernels)>(dlsym(library, "emulator_kernels"));

  if (std::string(arguments[2]) == "--read-out-of-bounds") {
    std::unique_ptr<u32[]> x(new u32[256]());
    u32 out[64];
    call(geometry("source_out_of_bounds", 2, 64, 1024), {0, 1, 1}, nullptr, &out[0], x.get(), 0u);
    return 0;  // not reached under the sanitizer
  }
  test_numbers();
  test_clean_kernels();
  test_planted_faults(arguments[2]);
  test_overlaps();
  test_objections();
  test_threads();
  return conclude();
}
