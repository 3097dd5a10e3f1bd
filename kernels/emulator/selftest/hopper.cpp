// Tests the emulation of Hopper's asynchronous operations: main.cpp's method, with the kernels of hopper.cu.
#include "harness.h"

namespace {

struct alignas(64) TensorMap {
  const void* base;
  u64 columns, rows, row_bytes;
  u32 box_columns, box_rows, element_bytes, swizzle;
  u64 unused[9];
};

struct Params {
  u32 m, n, k, unused;
};

template <class T>
std::string compare(const std::vector<float>& d, const std::vector<T>& a, const std::vector<T>& b, u32 n, u32 k) {
  for (u32 i = 0; i < d.size(); i++) {
    float sum = 0;
    for (u32 j = 0; j < k; j++) sum += number(a[i / n * k + j]) * number(b[i % n * k + j]);
    if (d[i] != sum) return mismatch(i, d[i], sum);
  }
  return "";
}

template <class T>
std::string multiply(const std::string& kernel, Params p, u32 swizzle, const Schedule& s) {
  auto a = whole_numbers<T>(p.m * p.k, 1), b = whole_numbers<T>(p.n * p.k, 2);
  std::vector<float> d(p.m * p.n, NAN);
  TensorMap a_map = {a.data(), p.k, p.m, p.k * 2, 64, 128, 2, swizzle, {}};
  TensorMap b_map = {b.data(), p.k, p.n, p.k * 2, 64, 64, 2, swizzle, {}};
  Call launch = geometry(kernel.c_str(), 2, 384, 4 * (128 + 64) * 128 + 64);
  std::string fault = call(launch, s, nullptr, d.data(), a_map, b_map, p);
  return fault.empty() ? compare(d, a, b, p.n, p.k) : fault;
}

std::string multiply_stored(const char* kernel, const Schedule& s) {
  auto a = whole_numbers<bf16>(64 * 16, 1), b = whole_numbers<bf16>(64 * 16, 2);
  std::vector<float> d(64 * 64, NAN);
  std::string fault = call(geometry(kernel, 1, 128, 2 * 64 * 128), s, nullptr, d.data(), a.data(), b.data());
  return fault.empty() ? compare(d, a, b, 64, 16) : fault;
}

void test_clean() {
  for (Params p : {Params{128, 64, 64, 0}, Params{200, 96, 456, 0}, Params{1, 8, 8, 0}, Params{260, 130, 320, 0}}) {
    std::string shape = " of " + std::to_string(p.m) + " x " + std::to_string(p.n) + " x " + std::to_string(p.k);
    report("multiply, f16" + shape, under_all_schedules([&](const Schedule& s) {
             return multiply<f16>("multiply<f16, Fault::none>", p, 128, s);
           }));
    report("multiply, bf16" + shape, under_all_schedules([&](const Schedule& s) {
             return multiply<bf16>("multiply<bf16, Fault::none>", p, 128, s);
           }));
  }
  report("multiply, operands by stores", under_all_schedules([](const Schedule& s) {
           return multiply_stored("multiply_stored<true>", s);
         }));
}

using Run = std::string (*)(const std::string& fault, const Schedule& s);

// Under every schedule: the expected report, or the expected wrong result.
void test_planted(const std::string& name, const char* expected, Run run) {
  std::string seen, problem = under_all_schedules([&](const Schedule& s) -> std::string {
    seen = run(name, s);
    if (seen.empty()) return "not reported";
    return has_one_of(seen, expected) ? "" : "expected '" + std::string(expected) + "': " + seen;
  });
  report(problem.empty() ? name + ": " + seen : name, problem);
}

std::string run_planted(const std::string& fault, const Schedule& s) {
  return multiply<f16>("multiply<f16, Fault::" + fault + ">", {200, 96, 456, 0}, 128, s);
}

void test_planted_faults() {
  test_planted("init_not_fenced", "no mbarrier_init_fence", run_planted);
  test_planted("no_barrier_after_init", "race|never written|no mbarrier was initialised", run_planted);
  test_planted("full_not_awaited", "race|never written", run_planted);
  test_planted("empty_not_awaited", "race|expects", run_planted);
  test_planted("wrong_parity", "deadlock", run_planted);
  test_planted("too_few_bytes_expected", "bytes are loaded in a phase of the mbarrier that expects", run_planted);
  test_planted("too_many_bytes_expected", "deadlock", run_planted);
  test_planted("too_many_arrivals", "more than the 2 arrivals|race|deadlock|nothing held it back", run_planted);
  test_planted("released_before_the_wait", "race", run_planted);
  test_planted("released_one_too_early", "race", run_planted);
  test_planted("no_accumulator_fence", "no wgmma_fence", run_planted);
  test_planted("unequal_descriptors", "other descriptors", run_planted);
  test_planted("unaligned_stage", "is not a multiple of 128", run_planted);
  test_planted("products_never_awaited", "products of its warpgroup are in flight|race", run_planted);
  test_planted("no_proxy_fence", "without a proxy_fence", [](const std::string&, const Schedule& s) {
    return multiply_stored("multiply_stored<false>", s);
  });
  test_planted("map_without_swizzle", "element", [](const std::string&, const Schedule& s) {
    return multiply<f16>("multiply<f16, Fault::none>", {200, 96, 456, 0}, 0, s);
  });
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2 || !open_library(arguments[1])) return 2;
  test_clean();
  test_planted_faults();
  return conclude();
}
