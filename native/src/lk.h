// What every kernel of a set stands on: its names, its vectors, its numbers.
//
// LK_SET is the set that a source is compiled for. All code lies in namespace lk_<set>, and that is no matter of
// taste: a function that two sets compile under one name is linked once, and a processor would run the other's.
//
//     avx2          V: 8 floats    a number in memory (`num`) is float32
//     avx512bf16    V: 16 floats   a number is bfloat16, rounded to nearest even when it is stored
//     amx           as avx512bf16, and tiles
//
// Sums are float32 in every set; only what is stored as `num` is rounded.
//
// Results never depend on the number of threads: a thread computes whole results, each in the same order of
// additions, whoever computes it.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "team.h"

#define LK_PASTE(set, name) lk_##set##_##name
#define LK_NAME(set, name) LK_PASTE(set, name)
#define LK_SPACE_OF(set) lk_##set
#define LK_SPACE_FROM(set) LK_SPACE_OF(set)
#define LK_SPACE LK_SPACE_FROM(LK_SET)
// A function of the library: LK_EXPORT(void, slots_add)(const num* x, ...) { ... }
#define LK_EXPORT(type, name) extern "C" __attribute__((visibility("default"))) type LK_NAME(LK_SET, name)

namespace LK_SPACE {

// One region: f(thread, threads) in each thread of the team.
template <class F>
inline void parallel(F&& f) {
  lk_parallel([](void* g, int thread, int threads) { (*static_cast<F*>(g))(thread, threads); }, &f);
}

// The part [first, last) of n that a thread takes.
inline int64_t part(int64_t n, int thread, int threads) { return n * thread / threads; }

#if defined(LK_SET_avx2)

typedef float num;
typedef __m256 V;
enum { W = 8 };
inline V zero() { return _mm256_setzero_ps(); }
inline V all(float f) { return _mm256_set1_ps(f); }
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline float sum(V v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V divide(V a, V b) { return _mm256_div_ps(a, b); }
inline V larger(V a, V b) { return _mm256_max_ps(a, b); }
inline V smaller(V a, V b) { return _mm256_min_ps(a, b); }
inline V where_at_most(V a, V b, V x) { return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_LE_OQ)); }  // x where a <= b, else 0
inline V unless_below(V a, V b, V x) { return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_NLT_UQ)); }  // 0 where a < b, else x
inline V nearest(V x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V doubled(V x, V times) {  // x 2^times
  return mul(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(times), _mm256_set1_epi32(127)), 23)));
}
inline V counted() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
inline float largest(V x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

#else

struct num {  // converts where C++ converts a float: code over `num` reads alike in every set
  uint16_t bits;
  num() = default;
  num(float x) {
    uint32_t wide;
    std::memcpy(&wide, &x, 4);
    bits = (wide & 0x7fffffff) > 0x7f800000 ? static_cast<uint16_t>(wide >> 16 | 0x40)  // NaN stays NaN
                                            : static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
  }
};
typedef __m512 V;
enum { W = 16 };
inline V zero() { return _mm512_setzero_ps(); }
inline V all(float f) { return _mm512_set1_ps(f); }
inline V load(const num* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store(num* p, V v) {
  __m256bh narrow = _mm512_cvtneps_pbh(v);
  std::memcpy(p, &narrow, sizeof narrow);
}
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline float sum(V v) { return _mm512_reduce_add_ps(v); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V divide(V a, V b) { return _mm512_div_ps(a, b); }
inline V larger(V a, V b) { return _mm512_max_ps(a, b); }
inline V smaller(V a, V b) { return _mm512_min_ps(a, b); }
inline V where_at_most(V a, V b, V x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), x); }
inline V unless_below(V a, V b, V x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x); }
inline V nearest(V x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V doubled(V x, V times) { return _mm512_scalef_ps(x, times); }
inline V counted() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
inline float largest(V x) { return _mm512_reduce_max_ps(x); }

#endif

}  // namespace LK_SPACE
