// What every kernel of a set stands on: its names, its vectors, its numbers.
//
// LK_SET is the set that a source is compiled for. All code lies in namespace lk_<set>, and that is no matter of
// taste: a function that two sets compile under one name is linked once, and a processor would run the other's.
//
//     avx2          V: 8 floats    a number in memory (`num`) is float32
//     avx512bf16    V: 16 floats   a number is bfloat16, rounded to nearest even when it is stored
//     amx           as avx512bf16, and tiles
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
inline float value(num x) { return x; }
inline num rounded(float x) { return x; }

#else

typedef uint16_t num;
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
inline float value(num x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline num rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<num>(bits >> 16 | 0x40);  // NaN stays NaN
  return static_cast<num>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif

}  // namespace LK_SPACE
