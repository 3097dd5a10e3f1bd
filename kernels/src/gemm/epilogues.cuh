// What both matrix products, gemm.cu and gemm_hopper.cu, share: their parameters, and what becomes of a sum before it is stored.
#pragma once

struct GemmParams {
  Size m;
  u32 n;  // rows of b, a multiple of 8, of 16 when gated
  u32 k;  // a multiple of 8, not 0
  float scale;         // AddResidual
  u32 head_dim;        // Rope, a power of two
  u32 rotary_columns;  // Rope: the columns below are heads to rotate
  u32 unused;
};

// ---- epilogues

// What becomes of a tile: each element by itself; gates and ups to half as many outputs; a sum into the f32 residual stream.
enum class Form { ELEMENTWISE, GATED, RESIDUAL };

struct Operands {
  const float *bias, *cos, *sin;
  const u32* position_ids;
};

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
};

// The same for 16 rows and 32 columns that a warp holds: acc[j][2 h + e] is row `row + 8 h`, column `col + 8 j + 2 quad + e`.
DEV void add_residual(float* d, const float (&acc)[4][4], u32 row, u32 col, u32 quad, u32 m, const GemmParams& p) {
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
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      const float x0 = fma(p.scale, acc[j][h * 2], bits_to_float(residual[h][j].x));
      const float x1 = fma(p.scale, acc[j][h * 2 + 1], bits_to_float(residual[h][j].y));
      if (inside(h, j)) pairs(h)[j * 4] = {float_to_bits(x0), float_to_bits(x1)};
    }
  }
}
