// A frozen weight in fewer bits: its numbers, group by group. Who multiplies: product.h (many rows), packed.cpp (few).
//
//   W (out, in), p = row * in + column        scale and offset                      bytes of a group of 32 numbers
//
//   NIBBLES          table[q] scale[b]        float32, of block b = p >> block       16   q0 q1 | q2 q3 | ..   the first
//   NIBBLES_NESTED   table[q] scale[b]        map[code b] nested[b >> outer] + shift     16   in a byte's upper half
//   NIBBLES_OFFSET   table[q] scale[b] + o[b] bfloat16                              16
//   INT8, E4M3       q scale[row]             float32; e4m3: 4 bits exponent, 3 fraction  32
//   Q4_0, Q4_1       table[q] d + m           float16, before the codes of a group  18, 20: q0 q16 | q1 q17 | ..  the first
//   Q8_0             q d                      float16                               34    in a byte's lower half
//   Q4_K, Q5_K       q (d s) - (m t)          float16 d and m, 6 bits s and t       of 8 groups 144, 176
//   Q6_K             q (d s)                  float16 d, 8 bits s for 16 numbers    of 8 groups 210
//
// Everything is float32, each step rounded: table, times scale, plus offset, as src/lorakit/kernels/packed has it in
// torch, which is the oracle. A number that is stored as bfloat16 is rounded once, to nearest even.
//
// Nibbles come as two runs of 16: where a group has q0 q1 in one byte these are its even and its odd numbers.
#pragma once
#include <algorithm>
#include <type_traits>

#include "lk.h"

namespace LK_SPACE {
namespace {

constexpr int64_t GROUP = 32, VECTORS = GROUP / W;

enum class Kind : int64_t { NIBBLES, NIBBLES_NESTED, NIBBLES_OFFSET, INT8, E4M3, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K };

// As src/lorakit/kernels/packed/compiled.py has it, field by field.
struct Packed {
  const uint8_t* codes;
  const void *scales, *offsets;
  const float *table, *map, *nested, *shift;  // table: 16 numbers, whatever the kind
  int64_t out, in, block, outer;  // block: groups that share a scale, outer: scales that share one, as shifts
  Kind kind;
};

constexpr bool by_rows(Kind k) { return k == Kind::INT8 || k == Kind::E4M3; }  // a group begins anywhere in a row
constexpr bool in_turn(Kind k) { return k <= Kind::NIBBLES_OFFSET; }           // even and odd numbers
constexpr bool in_eights(Kind k) { return k >= Kind::Q4_K; }                   // groups of one block
constexpr bool has_offset(Kind k) { return k == Kind::NIBBLES_OFFSET || k == Kind::Q4_1 || k == Kind::Q4_K || k == Kind::Q5_K; }
constexpr int64_t bytes_of(Kind k) {
  return k == Kind::Q4_0   ? 18
         : k == Kind::Q4_1 ? 20
         : k == Kind::Q8_0 ? 34
         : k == Kind::Q4_K ? 144
         : k == Kind::Q5_K ? 176
         : k == Kind::Q6_K ? 210
                           : 16;
}
constexpr int64_t header_of(Kind k) { return k == Kind::Q4_1 ? 4 : k == Kind::Q4_0 || k == Kind::Q8_0 ? 2 : 0; }

// f(constant) with a kind as a constant.
template <class F>
inline void with_kind(Kind kind, F&& f) {
#define LK_KIND(k) case Kind::k: return f(std::integral_constant<Kind, Kind::k>{});
  switch (kind) {
    LK_KIND(NIBBLES) LK_KIND(NIBBLES_NESTED) LK_KIND(NIBBLES_OFFSET) LK_KIND(INT8) LK_KIND(E4M3)
    LK_KIND(Q4_0) LK_KIND(Q4_1) LK_KIND(Q8_0) LK_KIND(Q4_K) LK_KIND(Q5_K) LK_KIND(Q6_K)
  }
#undef LK_KIND
}

inline float wide(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

// Scale and offset of the group g of the flattened weight, whose bytes are at `codes`.
template <Kind K>
inline void scale_at(const Packed& p, int64_t row, int64_t g, const uint8_t* codes, float& scale, float& offset) {
  const int64_t b = g >> p.block;
  if constexpr (K == Kind::NIBBLES) scale = static_cast<const float*>(p.scales)[b];
  if constexpr (K == Kind::NIBBLES_NESTED)
    scale = p.map[static_cast<const uint8_t*>(p.scales)[b]] * p.nested[b >> p.outer] + *p.shift;
  if constexpr (K == Kind::NIBBLES_OFFSET)
    scale = wide(static_cast<const uint16_t*>(p.scales)[b]), offset = wide(static_cast<const uint16_t*>(p.offsets)[b]);
  if constexpr (by_rows(K)) scale = static_cast<const float*>(p.scales)[row];
  if constexpr (header_of(K) != 0) scale = half_at(codes);
  if constexpr (K == Kind::Q4_1) offset = half_at(codes + 2);
  if constexpr (K == Kind::Q4_K || K == Kind::Q5_K) {  // 12 bytes: s and t of groups 0 to 3, and the rest of 4 to 7
    const uint8_t* six = codes + 4;
    const int64_t j = g % 8, i = j % 4;
    const int s = j < 4 ? six[i] & 63 : (six[8 + i] & 15) | six[i] >> 6 << 4;
    const int t = j < 4 ? six[4 + i] & 63 : six[8 + i] >> 4 | six[4 + i] >> 6 << 4;
    scale = static_cast<float>(s) * half_at(codes), offset = -(static_cast<float>(t) * half_at(codes + 2));
  }
}

#if defined(LK_SET_avx2)

struct Table {
  V low, high;
  explicit Table(const float* t) : low(load(t)), high(load(t + 8)) {}
  V at(__m256i q) const {  // by the lowest four bits of q
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(q, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, q), _mm256_permutevar8x32_ps(high, q), upper);
  }
};
inline void nibbles(const uint8_t* codes, const Table& table, V (&v)[VECTORS], bool upper_first) {
  for (int i = 0; i < 2; i++) {
    const __m256i c = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + 8 * i)));
    v[i + (upper_first ? 0 : 2)] = table.at(_mm256_srli_epi32(c, 4));
    v[i + (upper_first ? 2 : 0)] = table.at(c);
  }
}
inline V whole(const uint8_t* codes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
}
inline __m256i field(const uint8_t* codes, int at, int mask) {  // bits of W bytes
  const __m256i c = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
  return _mm256_and_si256(_mm256_srl_epi32(c, _mm_cvtsi32_si128(at)), _mm256_set1_epi32(mask));
}
inline V joined(__m256i low, __m256i high) { return _mm256_cvtepi32_ps(_mm256_or_si256(low, _mm256_slli_epi32(high, 4))); }
inline V e4m3(const uint8_t* codes) {
  const __m128i c = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
  const __m128i size = _mm_and_si128(c, _mm_set1_epi16(0x7f)), sign = _mm_slli_epi16(_mm_and_si128(c, _mm_set1_epi16(0x80)), 8);
  // As a float16 it is 2^8 too small; the largest code is NaN.
  const __m128i none = _mm_and_si128(_mm_cmpeq_epi16(size, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
  return mul(_mm256_cvtph_ps(_mm_or_si128(_mm_or_si128(_mm_slli_epi16(size, 7), sign), none)), all(256.f));
}
// A group of numbers in its order.
inline void put_group(const V (&v)[VECTORS], bool turns, num* to) {
  for (int i = 0; i < 2; i++) {
    if (!turns) {
      store(to + W * i, v[i]), store(to + W * (i + 2), v[i + 2]);
      continue;
    }
    const V low = _mm256_unpacklo_ps(v[i], v[i + 2]), high = _mm256_unpackhi_ps(v[i], v[i + 2]);
    store(to + 2 * W * i, _mm256_permute2f128_ps(low, high, 0x20));
    store(to + 2 * W * i + W, _mm256_permute2f128_ps(low, high, 0x31));
  }
}

#else

struct Table {
  V levels;
  explicit Table(const float* t) : levels(load(t)) {}
  V at(__m512i q) const { return _mm512_permutexvar_ps(q, levels); }
};
inline void nibbles(const uint8_t* codes, const Table& table, V (&v)[VECTORS], bool upper_first) {
  const __m512i c = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  v[upper_first ? 0 : 1] = table.at(_mm512_srli_epi32(c, 4));
  v[upper_first ? 1 : 0] = table.at(c);
}
inline V whole(const uint8_t* codes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
}
inline __m512i field(const uint8_t* codes, int at, int mask) {
  const __m512i c = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  return _mm512_and_si512(_mm512_srl_epi32(c, _mm_cvtsi32_si128(at)), _mm512_set1_epi32(mask));
}
inline V joined(__m512i low, __m512i high) { return _mm512_cvtepi32_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 4))); }
inline V e4m3(const uint8_t* codes) {
  const __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  const __m256i size = _mm256_and_si256(c, _mm256_set1_epi16(0x7f)), sign = _mm256_slli_epi16(_mm256_and_si256(c, _mm256_set1_epi16(0x80)), 8);
  const __m256i none = _mm256_and_si256(_mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7e00));
  return mul(_mm512_cvtph_ps(_mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(size, 7), sign), none)), all(256.f));
}
// Rounded to bfloat16 in the upper halves; the instruction for it takes the smallest numbers for zero.
inline __m512i rounded(V v) {
  const __m512i x = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
}
inline void put_group(const V (&v)[VECTORS], bool turns, num* to) {
  const __m512i first = _mm512_srli_epi32(rounded(v[0]), 16);
  if (turns) {
    const __m512i second = _mm512_and_si512(rounded(v[1]), _mm512_set1_epi32(static_cast<int>(0xffff0000)));
    _mm512_storeu_si512(to, _mm512_or_si512(first, second));
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(first));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + W), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(v[1]), 16)));
  }
}

#endif

// Where the bytes of a group are, or of its block of eight.
template <Kind K>
inline const uint8_t* bytes_at(const Packed& p, int64_t g) { return p.codes + (in_eights(K) ? g / 8 : g) * bytes_of(K); }

// The codes of group j of a block of eight.
template <Kind K>
inline void of_eight(const uint8_t* block, int64_t j, V (&v)[VECTORS]) {
  const int n = static_cast<int>(j);
  for (int64_t i = 0; i < VECTORS; i++) {
    if constexpr (K == Kind::Q6_K) {  // 64 numbers in the lower halves of 64 bytes, 64 in the upper ones; two bits apart
      const auto low = field(block + n / 4 * 64 + n % 2 * 32 + i * W, n % 4 / 2 * 4, 15);
      v[i] = sub(joined(low, field(block + 128 + n / 4 * 32 + i * W, n % 4 * 2, 3)), all(32.f));
    } else {  // 32 in the lower halves of 32 bytes, 32 in the upper ones; a fifth bit apart
      const auto low = field(block + (K == Kind::Q5_K ? 48 : 16) + n / 2 * 32 + i * W, n % 2 * 4, 15);
      v[i] = joined(low, K == Kind::Q5_K ? field(block + 16 + i * W, n, 1) : field(block, 0, 0));
    }
  }
}

// The 32 numbers of a group, whose bytes are at `codes`.
template <Kind K>
inline void numbers(const Packed& p, const Table& table, int64_t row, int64_t g, const uint8_t* codes, V (&v)[VECTORS]) {
  float scale = 0.f, offset = 0.f;
  scale_at<K>(p, row, g, codes, scale, offset);
  codes += header_of(K);
  if constexpr (K == Kind::INT8 || K == Kind::Q8_0)
    for (int64_t i = 0; i < VECTORS; i++) v[i] = whole(codes + i * W);
  else if constexpr (K == Kind::E4M3)
    for (int64_t i = 0; i < VECTORS; i++) v[i] = e4m3(codes + i * W);
  else if constexpr (in_eights(K))
    of_eight<K>(codes, g % 8, v);
  else
    nibbles(codes, table, v, in_turn(K));
  if constexpr (K == Kind::Q6_K) {
    const float d = half_at(codes + 208);
    const auto* s = reinterpret_cast<const int8_t*>(codes + 192) + g % 8 * 2;
    for (int64_t i = 0; i < VECTORS; i++) v[i] = mul(v[i], all(static_cast<float>(s[i * W / 16]) * d));
    return;
  }
  for (int64_t i = 0; i < VECTORS; i++) v[i] = mul(v[i], all(scale));
  if constexpr (has_offset(K))
    for (int64_t i = 0; i < VECTORS; i++) v[i] = add(v[i], all(offset));
}

// f(v, at, skip, count) for the groups of columns [first, first + columns) of a row: v's numbers [skip, skip + count)
// are those of the columns from `first + at` on. No byte beyond the weight is read.
template <Kind K, class F>
inline void groups(const Packed& p, const Table& table, int64_t row, int64_t first, int64_t columns, F&& f) {
  const int64_t begin = row * p.in + first, end = begin + columns;
  const int64_t ahead = by_rows(K) ? 0 : begin % GROUP;
  V v[VECTORS];
  for (int64_t at = begin - ahead; at < end; at += GROUP) {
    const int64_t skip = at < begin ? ahead : 0, count = std::min(GROUP, end - at) - skip;
    const uint8_t* codes = by_rows(K) ? p.codes + at : bytes_at<K>(p, at / GROUP);
    uint8_t rest[GROUP] = {};
    if (by_rows(K) && end - at < GROUP) {
      std::memcpy(rest, codes, static_cast<size_t>(end - at));
      codes = rest;
    }
    numbers<K>(p, table, row, at / GROUP, codes, v);
    f(v, at + skip - begin, skip, count);
  }
}

// out[j] = W[row][first + j] for `columns` j.
template <Kind K>
inline void fill(const Packed& p, const Table& table, int64_t row, int64_t first, int64_t columns, num* out) {
  groups<K>(p, table, row, first, columns, [&](const V (&v)[VECTORS], int64_t at, int64_t skip, int64_t count) {
    if (count == GROUP) return put_group(v, in_turn(K), out + at);
    num some[GROUP];
    put_group(v, in_turn(K), some);
    std::memcpy(out + at, some + skip, static_cast<size_t>(count) * sizeof(num));
  });
}

// W[r0 .. r0 + rows)[c0 .. c0 + columns) by rows, one after another.
inline void unpack(const Packed& p, int64_t r0, int64_t rows, int64_t c0, int64_t columns, num* out) {
  with_kind(p.kind, [&](auto kind) {
    const Table table(p.table);
    for (int64_t r = 0; r < rows; r++) fill<kind()>(p, table, r0 + r, c0, columns, out + r * columns);
  });
}

}  // namespace
}  // namespace LK_SPACE
