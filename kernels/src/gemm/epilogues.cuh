// What both matrix products, gemm.cu and gemm_hopper.cu, share: their parameters, and what becomes of a sum before it is stored.
#pragma once

struct GemmParams {
  Size m;
  u32 n;  // rows of b, a multiple of 8, of 16 when gated
  u32 k;  // a multiple of 8, not 0
  float scale;         // AddResidual
  u32 head_dim;        // Rope, a power of two
  u32 rotary_columns;  // Rope: the columns below are heads to rotate
  float eps;           // of a deferred norm
};

// ---- epilogues

// What becomes of a tile: each element by itself; gates and ups to half as many outputs; a sum into the f32 residual stream.
enum class Form { ELEMENTWISE, GATED, RESIDUAL };

struct Operands {
  const float *bias, *cos, *sin;
  const u32* position_ids;
};

// ---- deferred norms: b holds an RMSNorm's weight, a the rows that it would divide by their root mean squares, and the sums are divided

// Columns to a sum of squares: as many as a warp holds of a row at least, so that no tile decides how a row is summed.
constexpr u32 SQUARES_COLUMNS = 32;

// 1 / sqrt(mean square + eps) of the rows `row` and 8 below, from their sums of squares. The lanes of a quad add up every fourth each.
DEV void inverse_rms(float (&inverse)[2], const float* squares, u32 row, u32 quad, u32 m, const GemmParams& p) {
  const u32 num_sums = ceil_div(p.k, SQUARES_COLUMNS);
  const float *upper = squares + (u64)min(row, m - 1) * num_sums, *lower = squares + (u64)min(row + 8, m - 1) * num_sums;
  float sums[2] = {};
#pragma unroll 8
  for (u32 i = quad; i < num_sums; i += 4) {
    sums[0] += upper[i];
    sums[1] += lower[i];
  }
#pragma unroll
  for (u32 h = 0; h < 2; ++h) {
    sums[h] += shfl_xor(sums[h], 1);
    sums[h] += shfl_xor(sums[h], 2);
    inverse[h] = fast_rsqrt(fma(sums[h], fast_rcp((float)p.k), p.eps));
  }
}

// ---- each epilogue

// GELU with the exact error function.
DEV float gelu_erf(float x) { return fma(0.5f * x, erff(x * 0.70710678f), 0.5f * x); }

// x / (1 + 2^y), for y up to infinity.
DEV float over_one_plus_exp2(float x, float y) { return x * fast_rcp(1.0f + fast_exp2(y)); }

DEV float silu(float x) { return over_one_plus_exp2(x, -1.44269504f * x); }

// GELU by its tanh approximation, 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
DEV float gelu_tanh(float x) {
  constexpr float MINUS_TWO_LOG2E_SQRT_2_OVER_PI = -2.30220819f;
  return over_one_plus_exp2(x, MINUS_TWO_LOG2E_SQRT_2_OVER_PI * fma(0.044715f * x * x, x, x));
}

// Two neighbouring values, the first at an even index.
DEV u32x2 pair_at(const float* values, u32 index) { return *(const u32x2*)(values + index); }

// `apply` works on two neighbouring columns of a row, `col` even. Multiply-adds are spelled out: every instance rounds alike.
struct Elementwise {
  static constexpr Form FORM = Form::ELEMENTWISE;
  // Whether the norm of a's rows may be deferred: then there are sums of squares, otherwise null.
  static constexpr bool TAKES_DEFERRED = false;
};
struct None : Elementwise {
  static DEV void apply(float&, float&, u32, u32, const Operands&, const GemmParams&) {}
};
struct Bias : Elementwise {
  static DEV void apply(float& x0, float& x1, u32, u32 col, const Operands& o, const GemmParams&) {
    const u32x2 bias = pair_at(o.bias, col);
    x0 += bits_to_float(bias.x);
    x1 += bits_to_float(bias.y);
  }
};
struct BiasGeluErf : Elementwise {
  static DEV void apply(float& x0, float& x1, u32 row, u32 col, const Operands& o, const GemmParams& p) {
    Bias::apply(x0, x1, row, col, o, p);
    x0 = gelu_erf(x0);
    x1 = gelu_erf(x1);
  }
};
struct BiasTanh : Elementwise {
  static DEV void apply(float& x0, float& x1, u32 row, u32 col, const Operands& o, const GemmParams& p) {
    Bias::apply(x0, x1, row, col, o, p);
    x0 = tanhf(x0);
    x1 = tanhf(x1);
  }
};
// The rows of b are permuted within each head, so that the two halves of a rotated pair are neighbouring columns.
struct Rope : Elementwise {
  static constexpr bool TAKES_DEFERRED = true;
  static DEV void apply(float& x0, float& x1, u32 row, u32 col, const Operands& o, const GemmParams& p) {
    if (col >= p.rotary_columns) return;
    const u32 angle = o.position_ids[row] * (p.head_dim / 2) + (col & (p.head_dim - 1)) / 2;
    const float c = o.cos[angle], s = o.sin[angle], x = x0;
    x0 = fma(x0, c, -(x1 * s));
    x1 = fma(x1, c, x * s);
  }
};

// Rows 16 g .. 16 g + 7 of b are the gates of outputs 8 g .., the next eight rows their ups: both lie in one thread's accumulators.
struct Gated {
  static constexpr Form FORM = Form::GATED;
  static constexpr bool TAKES_DEFERRED = true;
};
struct GeluTanhGated : Gated {
  static DEV float activation(float x) { return gelu_tanh(x); }
};
struct GeluErfGated : Gated {
  static DEV float activation(float x) { return gelu_erf(x); }
};
struct SiluGated : Gated {
  static DEV float activation(float x) { return silu(x); }
};

// d += scale * acc, d in f32.
struct AddResidual {
  static constexpr Form FORM = Form::RESIDUAL;
  static constexpr bool TAKES_DEFERRED = false, DEFERS = false;
};
// The same; the new rows once more for the products behind their norm, in the operand type, and the sums of their squares.
struct AddResidualDeferred : AddResidual {
  static constexpr bool DEFERS = true;
};

// Transposes the 4 x 4 words that the four lanes of a quad hold: word i of lane q becomes word q of lane i. So a lane can store 16 bytes
// of one row where the words as they lie would be four stores of half sectors. It costs four shuffles; a detour through shared memory
// would cost barriers and hold back the next tile's copies.
DEV void transpose_quad(u32 (&v)[4], u32 quad) {
  const bool odd = quad & 1, high = quad & 2;
#pragma unroll
  for (u32 i = 0; i < 4; i += 2) {
    const u32 other = shfl_xor(odd ? v[i] : v[i + 1], 1);
    if (odd) v[i] = other; else v[i + 1] = other;
  }
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u32 other = shfl_xor(high ? v[i] : v[i + 2], 2);
    if (high) v[i] = other; else v[i + 2] = other;
  }
}

// A residual add for 16 rows and 32 columns that a warp holds: acc[j][2 h + e] is row `row + 8 h`, column `col + 8 j + 2 quad + e`.
template <class T, class Epilogue>
DEV void add_residual(float* d, T* copy, float* squares, const float (&acc)[4][4], u32 row, u32 col, u32 quad, u32 m, const GemmParams& p) {
  static_assert(SQUARES_COLUMNS == 32, "a warp's columns are one sum");
  // A quad's four pairs of floats are a whole sector as they lie. The loads of 16 rows go out together.
  const auto pairs = [&](u32 h) { return (u32x2*)(d + (u64)(row + h * 8) * p.n + col) + quad; };
  const auto inside = [&](u32 h, u32 j) { return row + h * 8 < m && col + j * 8 < p.n; };
  u32x2 residual[2][4] = {};
#pragma unroll
  for (u32 h = 0; h < 2; ++h) {
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      if (inside(h, j)) residual[h][j] = pairs(h)[j * 4];
    }
  }
#pragma unroll
  for (u32 h = 0; h < 2; ++h) {
    u32 words[4];
    float sum = 0;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      const float x0 = fma(p.scale, acc[j][h * 2], bits_to_float(residual[h][j].x));
      const float x1 = fma(p.scale, acc[j][h * 2 + 1], bits_to_float(residual[h][j].y));
      if (inside(h, j)) pairs(h)[j * 4] = {float_to_bits(x0), float_to_bits(x1)};
      if constexpr (Epilogue::DEFERS) {
        words[j] = pack2<T>(x0, x1);
        // Columns behind the last are zeros.
        sum = fma(x1, x1, fma(x0, x0, sum));
      }
    }
    if constexpr (Epilogue::DEFERS) {
      transpose_quad(words, quad);
      sum += shfl_xor(sum, 1);
      sum += shfl_xor(sum, 2);
      const u64 d_row = row + h * 8;
      if (inside(h, quad)) *(u32x4*)(copy + d_row * p.n + col + quad * 8) = {words[0], words[1], words[2], words[3]};
      if (quad == 0 && inside(h, 0)) squares[d_row * ceil_div(p.n, SQUARES_COLUMNS) + col / SQUARES_COLUMNS] = sum;
    }
  }
}
