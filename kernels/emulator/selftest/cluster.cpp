// Tests the emulation of Hopper's clusters, multicast, bulk stores, wide products and stmatrix: main.cpp's method, with
// the kernels of cluster.cu.
//
//   cluster LIBRARY           all cases
//   cluster LIBRARY --clean   those without a fault
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

// d[m, n] = a[m, k] * b[n, k] transposed, of small whole numbers. Rows of d are followed by one that must stay.
template <class T>
std::string multiply(const std::string& kernel, u32 blocks, u32 tile_n, Params p, const Schedule& s) {
  auto a = whole_numbers<T>(p.m * p.k, 1), b = whole_numbers<T>(p.n * p.k, 2);
  std::vector<T> d((p.m + 1) * p.n, T{0x7fff});
  TensorMap a_map = {a.data(), p.k, p.m, p.k * 2, 64, 128, 2, 128, {}};
  TensorMap b_map = {b.data(), p.k, p.n, p.k * 2, 64, tile_n / blocks, 2, 128, {}};
  TensorMap d_map = {d.data(), p.n, p.m, p.n * 2, 64, 64, 2, 128, {}};
  Call launch = geometry(kernel.c_str(), 2 * blocks, 384, 3 * (128 + tile_n) * 128 + 4 * 64 * 128 + 48);
  launch.cluster = blocks;
  std::string fault = call(launch, s, nullptr, d_map, a_map, b_map, p);
  if (!fault.empty()) return fault;
  for (u32 i = 0; i < d.size(); i++) {
    float sum = 0;
    for (u32 j = 0; j < p.k && i / p.n < p.m; j++) sum += number(a[i / p.n * p.k + j]) * number(b[i % p.n * p.k + j]);
    T expected;
    expected.bits = std::is_same<T, f16>::value ? emulator::float_to_f16(sum) : emulator::float_to_bf16(sum);
    if (i / p.n == p.m) expected.bits = 0x7fff;
    if (d[i].bits != expected.bits) return mismatch(i, number(d[i]), number(expected));
  }
  return "";
}

template <class T>
void test_multiply(const char* type, u32 blocks, u32 tile_n, Params p) {
  std::string kernel = std::string("multiply<") + type + ", " + std::to_string(blocks) + ", " + std::to_string(tile_n) +
                       ", Fault::none>";
  std::string shape = " of " + std::to_string(p.m) + " x " + std::to_string(p.n) + " x " + std::to_string(p.k);
  report(kernel + shape, under_all_schedules([&](const Schedule& s) {
           return multiply<T>(kernel, blocks, tile_n, p, s);
         }));
}

std::string stride_store(u32 stride, u64 extra) {
  u32 out[128] = {};
  emulator_counters c;
  std::string fault = call(geometry("stride_store", 1, 32, 32 * 512), {0, 0, 1}, &c, &out[0], stride);
  for (u32 i = 0; i < 128 && fault.empty(); i++) fault = out[i] == i ? "" : mismatch(i, (float)out[i], (float)i);
  if (fault.empty() && (c.ldmatrix != 8 || c.ldmatrix_extra != 2 * extra)) {
    fault = "counted " + std::to_string(c.ldmatrix_extra) + " extra cycles, " + std::to_string(c.ldmatrix) + " phases";
  }
  return fault;
}

void test_clean() {
  test_multiply<f16>("f16", 1, 64, {130, 72, 200, 0});
  test_multiply<bf16>("bf16", 2, 64, {300, 136, 328, 0});
  test_multiply<f16>("f16", 2, 128, {1, 8, 8, 0});
  test_multiply<f16>("f16", 2, 256, {300, 264, 136, 0});
  test_multiply<bf16>("bf16", 2, 256, {140, 256, 64, 0});
  test_multiply<f16>("f16", 4, 64, {520, 72, 136, 0});
  report("stmatrix and ldmatrix, rows of 16 bytes", stride_store(16, 0));
  report("stmatrix and ldmatrix, rows of 64 bytes", stride_store(64, 12));
  report("stmatrix and ldmatrix, rows of 144 bytes", stride_store(144, 0));
}

// Under every schedule: the expected report, or the expected wrong result.
void test_planted(const std::string& name, const char* expected) {
  std::string seen, problem = under_all_schedules([&](const Schedule& s) -> std::string {
    seen = multiply<f16>("multiply<f16, 2, 64, Fault::" + name + ">", 2, 64, {300, 136, 328, 0}, s);
    if (seen.empty()) return "not reported";
    return has_one_of(seen, expected) ? "" : "expected '" + std::string(expected) + "': " + seen;
  });
  report(problem.empty() ? name + ": " + seen : name, problem);
}

void test_planted_faults() {
  test_planted("no_sync_before_reaching", "with no sync_cluster since|no mbarrier was initialised");
  test_planted("no_sync_before_the_end", "nothing to order that after this arrival|of the cluster has ended");
  test_planted("peers_not_waited_for", "race on the shared word");
  test_planted("peers_not_released", "lacks 2 arrivals");
  test_planted("mask_of_own_block", "with 24576 bytes expected and 20480 loaded");
  test_planted("mask_beyond_the_cluster", "to the blocks of mask 0x4 in a cluster of 2");
  test_planted("rank_beyond_the_cluster", "block 2 of a cluster of 2");
  test_planted("own_part_expected",
               "24576 bytes are loaded in a phase of the mbarrier that expects 20480|has never written|race");
  test_planted("extra_load", "no thread of it has waited for this copy");
  test_planted("too_many_registers", "wants 240 registers a thread, has 168, and 56 are free");
  test_planted("fewer_registers", "takes up to 160 registers, but has 168 already");
  test_planted("operand_between_groups", "expected the first row of a group");
  test_planted("no_proxy_fence", "asynchronous read of the shared word at");
  test_planted("proxy_fence_after_the_barrier", "without a proxy_fence");
  test_planted("load_over_stores", "asynchronous write over the shared word at");
  test_planted("no_barrier_before_the_store", "race on the shared word|never written");
  test_planted("no_wait_before_reuse", "race on the shared word");
  test_planted("wait_for_one_too_few", "race on the shared word");
  test_planted("store_not_committed", "race on the shared word|not waited for by tma_wait_read");
  test_planted("store_never_awaited", "not waited for by tma_wait_read");
  test_planted("store_unaligned", "is not a multiple of 128");
  test_planted("staging_not_swizzled", "element");
  test_planted("matrices_swapped", "element");
  test_planted("sync_by_some", "threads of the cluster have ended|warps of its cluster wait in sync_cluster");
  std::string overtaken = under_all_schedules([](const Schedule& s) -> std::string {
    std::string seen = call(geometry("overtaken", 1, 64, 16), s, nullptr);
    return has_one_of(seen, "has completed 3: nothing held it back") ? "" : "not reported: " + seen;
  });
  report("overtaken", overtaken);

  Call launch = geometry("overtaken", 3, 64, 16);
  launch.cluster = 2;
  std::string seen = call(launch, {0, 0, 1}, nullptr);
  report(seen, has_one_of(seen, "whole clusters") ? "" : "expected an objection");
}

}  // namespace

int main(int count, char** arguments) {
  const bool clean_only = count == 3 && std::string(arguments[2]) == "--clean";
  if ((count != 2 && !clean_only) || !open_library(arguments[1])) return 2;
  test_clean();
  if (!clean_only) test_planted_faults();
  return conclude();
}
