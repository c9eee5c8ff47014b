// The micro-kernel of the training kernels, and the arithmetic on vectors that lk.h leaves out.
//
//   C (M x NR)  +=  A (M x K)  *  B (K x NR)              M <= MR;  AVX2: MR = 6, NR = 16
//
//           B  b0  b1          One step of k: two loads of B, M broadcasts of A, 2 M FMAs into as
//    A  a0     c00 c01         many registers. Of the sixteen, twelve hold C and three A and B.
//       a1     c10 c11
//       ..     ..  ..          A[i][k] lies at a + i * step + k * stride: by rows or turned.
//       a5     c50 c51         B[k] lies at b + k * pitch: packed in panels or by rows.
//
// Another set brings its own MR, NV and tile(); everything that includes this file stays.
#pragma once
#include <cmath>

#include "lk.h"

namespace LK_SPACE {
namespace {

constexpr int64_t MR = 6;   // rows of a tile
constexpr int64_t NV = 2;   // vectors that make up a tile's row
constexpr int64_t NR = NV * W;

inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V divide(V a, V b) { return _mm256_div_ps(a, b); }
inline V larger(V a, V b) { return _mm256_max_ps(a, b); }
inline V smaller(V a, V b) { return _mm256_min_ps(a, b); }
inline V where_at_most(V a, V b, V x) { return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_LE_OQ)); }  // x where a <= b, else 0
inline V counted() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
inline void ahead(const float* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

inline float largest(V x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

// e^x to two units in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial of r (Cephes,
// expf), times 2^n. Zero below -87.3; as at 88.3 above it; NaN of NaN, which min and max give where it is second.
inline V exp(V x) {
  const V low = all(-87.3365447504019f);
  const V y = smaller(all(88.3762626647949f), larger(low, x));
  const V n = _mm256_round_ps(mul(y, all(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const V r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), y));
  V p = fma(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), all(1.f));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(mul(p, _mm256_castsi256_ps(power)), _mm256_cmp_ps(x, low, _CMP_NLT_UQ));
}

// W rows of W floats, `from` apart, become W columns, `to` apart.
inline void turn(const float* x, int64_t from, float* y, int64_t to) {
  V r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = load(x + i * from);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    store(y + i * to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    store(y + (i + 4) * to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

template <int64_t M>
inline void tile(const float* a, int64_t step, int64_t stride, const float* b, int64_t pitch, int64_t depth, V (&c)[M][NV]) {
  const float* row[M];
#pragma GCC unroll 6
  for (int64_t i = 0; i < M; i++) row[i] = a + i * step;
  int64_t at = 0;
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; k++, b += pitch, at += stride) {
    const V b0 = load(b), b1 = load(b + W);
#pragma GCC unroll 6
    for (int64_t i = 0; i < M; i++) {
      const V x = _mm256_broadcast_ss(row[i] + at);
      c[i][0] = fma(x, b0, c[i][0]);
      c[i][1] = fma(x, b1, c[i][1]);
    }
  }
}

template <int64_t M>
inline void clear(V (&c)[M][NV]) {
#pragma GCC unroll 6
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int64_t v = 0; v < NV; v++) c[i][v] = zero();
}

template <int64_t M>
inline void get(V (&c)[M][NV], const float* from, int64_t step) {
#pragma GCC unroll 6
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int64_t v = 0; v < NV; v++) c[i][v] = load(from + i * step + v * W);
}

template <int64_t M>
inline void put(const V (&c)[M][NV], float* to, int64_t step) {
#pragma GCC unroll 6
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int64_t v = 0; v < NV; v++) store(to + i * step + v * W, c[i][v]);
}

}  // namespace
}  // namespace LK_SPACE
