// The micro-kernel of the training kernels, and the arithmetic on vectors that lk.h leaves out.
//
//   C (M x NR)  +=  A (M x K)  *  B (K x NR)              M <= MR
//
//                      MR   NR   vectors: C, of all     a step
//      avx2             6   16         12    16         one k: M broadcasts, 2 M FMAs
//      avx512bf16      12   32         24    32         two k: M broadcasts of a pair, 2 M vdpbf16ps
//
//           B  b0  b1          PAIR numbers of k make one step: one float32, or two bfloat16 whose products are
//    A  a0     c00 c01         added to one float32. A pair has to lie together:
//       a1     c10 c11
//       ..     ..  ..          A   a + i * step + (k / PAIR) * stride      by rows: step apart, stride PAIR
//                                  turned: rows of k, `ld` apart, in pairs: step PAIR, stride PAIR * ld
//                              B   in panels, [k / PAIR][NR][PAIR], or by rows, whose pairs are made here
//
// In pairs, element (k, i) of a matrix of `ld` columns lies at (k / PAIR) * PAIR * ld + i * PAIR + k % PAIR; where
// PAIR is 1 that is by rows.
#pragma once
#include <cmath>
#include <type_traits>

#include "lk.h"

namespace LK_SPACE {
namespace {

constexpr int64_t PAIR = 4 / sizeof(num);
constexpr int64_t MR = 6 * PAIR;  // rows of a tile
constexpr int64_t NV = 2;         // vectors that make up a tile's row
constexpr int64_t NR = NV * W;

inline void ahead(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// e^x to two units in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial of r (Cephes,
// expf), times 2^n. Zero below -87.3; as at 88.3 above it; NaN of NaN, which min and max give where it is second.
inline V exp(V x) {
  const V low = all(-87.3365447504019f);
  const V y = smaller(all(88.3762626647949f), larger(low, x));
  const V n = nearest(mul(y, all(1.44269504088896341f)));
  const V r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), y));
  V p = fma(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), all(1.f));
  return unless_below(x, low, doubled(p, n));
}

#if defined(LK_SET_avx2)

// W rows of W times 32 bits, `from` numbers apart, become W columns, `to` numbers apart.
inline void turn(const num* x, int64_t from, num* y, int64_t to) {
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

typedef V Step;  // PAIR numbers of k in each lane
inline Step pair_at(const num* a) { return _mm256_broadcast_ss(a); }
inline Step half_pair_at(const num* a) { return pair_at(a); }  // there is no half of one
inline V multiply_add(Step a, Step b, V c) { return fma(a, b, c); }
// Two vectors of B: of a panel, or of the rows of a step, the second of which may be missing.
inline void panel_row(const num* b, Step& b0, Step& b1) { b0 = load(b), b1 = load(b + W); }
inline void paired_rows(const num* b, const num*, Step& b0, Step& b1) { panel_row(b, b0, b1); }
// Rows of W numbers of a step's k, in pairs; `second` may be null.
inline void pair_up(const num* first, const num*, num* to) { store(to, load(first)); }
inline void pair_up(V first, V, num* to) { store(to, first); }

#else

inline void turn(const num* x, int64_t from, num* y, int64_t to) {
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(x + i * from);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {  // quarters of the columns i, i + 4, i + 8 and i + 12
    const __m512i low = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), high = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), high2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    _mm512_storeu_si512(y + i * to, _mm512_shuffle_i32x4(low, low2, 0x88));
    _mm512_storeu_si512(y + (i + 8) * to, _mm512_shuffle_i32x4(low, low2, 0xdd));
    _mm512_storeu_si512(y + (i + 4) * to, _mm512_shuffle_i32x4(high, high2, 0x88));
    _mm512_storeu_si512(y + (i + 12) * to, _mm512_shuffle_i32x4(high, high2, 0xdd));
  }
}

typedef __m512i Step;
inline Step pair_at(const num* a) {
  int32_t both;
  std::memcpy(&both, a, 4);
  return _mm512_set1_epi32(both);
}
inline Step half_pair_at(const num* a) { return _mm512_set1_epi32(a->bits); }
inline V multiply_add(Step a, Step b, V c) {
  return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(b), reinterpret_cast<__m512bh>(a));
}
inline void panel_row(const num* b, Step& b0, Step& b1) { b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 2 * W); }
inline void paired_rows(const num* first, const num* second, Step& b0, Step& b1) {
  const __m512i step = _mm512_set1_epi32(0x00010001);
  const __m512i places = _mm512_add_epi16(
      _mm512_cvtepu16_epi32(_mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)),
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_setr_epi16(32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47)), 16));
  const __m512i r0 = _mm512_loadu_si512(first), r1 = second ? _mm512_loadu_si512(second) : _mm512_setzero_si512();
  b0 = _mm512_permutex2var_epi16(r0, places, r1);
  b1 = _mm512_permutex2var_epi16(r0, _mm512_add_epi16(places, _mm512_slli_epi16(step, 4)), r1);
}
inline __m512i wide(__m256i x) { return _mm512_cvtepu16_epi32(x); }
inline void pair_up(const num* first, const num* second, num* to) {
  __m512i both = wide(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
  if (second) both = _mm512_or_si512(both, _mm512_slli_epi32(wide(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(second))), 16));
  _mm512_storeu_si512(to, both);
}
inline void pair_up(V first, V second, num* to) {
  const __m512i low = wide(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(first))), high = wide(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(second)));
  _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

#endif

enum class Lies { PANEL, ROWS };  // how B does; rows are `pitch` apart

template <Lies B, int64_t M>
inline void tile(const num* a, int64_t step, int64_t stride, const num* b, int64_t pitch, int64_t depth, V (&c)[M][NV]) {
  const num* row[M];
#pragma GCC unroll 12
  for (int64_t i = 0; i < M; i++) row[i] = a + i * step;
  int64_t at = 0;
  Step b0, b1;
#pragma GCC unroll 4
  for (int64_t k = 0; k + PAIR <= depth; k += PAIR, at += stride) {
    if (B == Lies::PANEL) panel_row(b, b0, b1), b += NR * PAIR;
    else paired_rows(b, b + pitch, b0, b1), b += pitch * PAIR;
#pragma GCC unroll 12
    for (int64_t i = 0; i < M; i++) {
      const Step x = pair_at(row[i] + at);
      c[i][0] = multiply_add(x, b0, c[i][0]);
      c[i][1] = multiply_add(x, b1, c[i][1]);
    }
  }
  if (depth % PAIR == 0) return;
  if (B == Lies::PANEL) panel_row(b, b0, b1);
  else paired_rows(b, nullptr, b0, b1);
#pragma GCC unroll 12
  for (int64_t i = 0; i < M; i++) {
    const Step x = half_pair_at(row[i] + at);
    c[i][0] = multiply_add(x, b0, c[i][0]);
    c[i][1] = multiply_add(x, b1, c[i][1]);
  }
}

template <int64_t M>
inline void clear(V (&c)[M][NV]) {
#pragma GCC unroll 12
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int64_t v = 0; v < NV; v++) c[i][v] = zero();
}

template <int64_t M, class T>
inline void get(V (&c)[M][NV], const T* from, int64_t step) {
#pragma GCC unroll 12
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int64_t v = 0; v < NV; v++) c[i][v] = load(from + i * step + v * W);
}

template <int64_t M, class T>
inline void put(const V (&c)[M][NV], T* to, int64_t step) {
#pragma GCC unroll 12
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int64_t v = 0; v < NV; v++) store(to + i * step + v * W, c[i][v]);
}

// A whole tile in pairs of its rows, into a matrix of `ld` columns in pairs.
inline void put_pairs(const V (&c)[MR][NV], num* to, int64_t ld) {
#pragma GCC unroll 12
  for (int64_t i = 0; i < MR; i += PAIR)
#pragma GCC unroll 2
    for (int64_t v = 0; v < NV; v++) pair_up(c[i][v], c[i + PAIR - 1][v], to + i * ld + v * W * PAIR);
}

// f with a number of rows, 1 to MR, as a constant.
template <class F>
inline void with_rows(int64_t rows, F&& f) {
#define LK_ROWS(n) case n: return f(std::integral_constant<int64_t, n>{});
  switch (rows) {
    LK_ROWS(1) LK_ROWS(2) LK_ROWS(3) LK_ROWS(4) LK_ROWS(5)
#if !defined(LK_SET_avx2)
    LK_ROWS(6) LK_ROWS(7) LK_ROWS(8) LK_ROWS(9) LK_ROWS(10) LK_ROWS(11)
#endif
  }
#undef LK_ROWS
  f(std::integral_constant<int64_t, MR>{});
}

}  // namespace
}  // namespace LK_SPACE
