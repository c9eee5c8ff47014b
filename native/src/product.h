// Products of activations with frozen weights, and what is added to them.
//
//   C (M x N)  =  initial  +  sum over segments s of  A_s (M x K_s) B_s (K_s x N)
//
// A segment is one term of such a sum: x W^T and s h B^T of a forward product; dy W of each linear
// layer that read one input, and dh A of their pairs, in a backward one. `initial` is zero, a bias or
// the residual stream. A is read by rows where it lies. B is packed piece by piece, so that no weight
// is held twice:
//
//        N (NC columns at most)
//      +----+----+----+----+
//    K | p0 | p1 | p2 |    |   KC rows at most; panels of NR columns, each K x NR numbers one after
//      +----+----+----+----+   another in pairs (tile.h), zeros beyond K and N. A panel streams through the first
//                              cache while MC rows of A stay in the second (both by measurement).
//
// Short segments share a pass over C: their rows of B follow one another in the panels. Between passes the sums lie
// in float32 in the thread's room, and C is written once. What a pass takes is the same whatever the number of threads
// is, so the sums are too.
#pragma once
#include <algorithm>

#include "items.h"
#include "packed.h"
#include "tile.h"

namespace LK_SPACE {
namespace {

constexpr int64_t KC = 800 * PAIR, MC = 96, NC = 96;
constexpr int64_t STRIP = 1024;                                // rows of C that one call takes at most
constexpr int64_t PACKED = KC * NC / PAIR;                     // floats of a room that B is packed into,
constexpr int64_t SUMS = up_to(STRIP, MR) * NC;                // that the sums lie in,
constexpr int64_t PRODUCT_ROOM = 2 * PACKED + SUMS;            // and that numbers of a weight in fewer bits do

enum class Form : int64_t {
  TURNED,    // B[k][n] = w[n][k]: a weight (out, in) in the forward product
  AS_IT_IS,  // B[k][n] = w[k][n]: the same weight in the backward one
};

struct Segment {
  const num* a;
  int64_t lda;
  const num* w;
  int64_t ldw, depth;
  Form form;
  const Packed* packed = nullptr;  // what w is instead, (out, in) too: unpacked piece by piece, just before it is packed
};

struct Product {
  num* c;
  int64_t ldc, columns;
  const num* onto;  // (M, N), rows ldo apart, that the sum is added to; or null
  int64_t ldo;
  const num* bias;  // (N,) or null
  int count;
  Segment segment[4];
};

// W columns of a panel, `width` of them B's own and zeros beyond: depth rows in pairs, NR columns a row.
inline void pack_columns(const num* w, int64_t ldw, Form form, int64_t width, int64_t depth, num* out) {
  int64_t k = 0;
  if (width >= W) {
    if (form == Form::AS_IT_IS)
      for (; k < depth; k += PAIR) pair_up(w + k * ldw, k + PAIR <= depth ? w + (k + PAIR - 1) * ldw : nullptr, out + k * NR);
    else
      for (; k + W * PAIR <= depth; k += W * PAIR) turn(w + k, ldw, out + k * NR, NR * PAIR);
  }
  const int64_t row = form == Form::AS_IT_IS ? ldw : 1, column = form == Form::AS_IT_IS ? 1 : ldw;
  for (; k < depth; k += PAIR)
    for (int64_t j = 0; j < W; j++)
      for (int64_t i = 0; i < PAIR; i++)
        out[k * NR + j * PAIR + i] = j < width && k + i < depth ? w[(k + i) * row + j * column] : num(0.f);
}

// B[k0 .. k0 + depth)[n0 .. n1) in panels, `apart` numbers from one to the next; `piece` holds KC * NC numbers.
inline void pack(const Segment& s, int64_t k0, int64_t depth, int64_t n0, int64_t n1, num* out, int64_t apart, num* piece) {
  const bool turned = s.form == Form::TURNED;
  const int64_t ldw = !s.packed ? s.ldw : turned ? depth : n1 - n0;
  const num* w = piece;
  if (!s.packed) w = s.w + (turned ? n0 * s.ldw + k0 : k0 * s.ldw + n0);
  else if (turned) unpack(*s.packed, n0, n1 - n0, k0, depth, piece);
  else unpack(*s.packed, k0, depth, n0, n1 - n0, piece);
  for (int64_t n = 0; n < n1 - n0; n += NR, out += apart)
    for (int64_t v = 0; v < NR; v += W)
      pack_columns(w + (n + v) * (turned ? ldw : 1), ldw, s.form, n1 - n0 - n - v, depth, out + v * PAIR);
}

// Some of a segment's K: A from there on, and as many rows of the panels.
struct Part {
  const num* a;
  int64_t lda, depth;
  int64_t rows() const { return up_to(depth, PAIR); }
};
constexpr int PARTS = 4;

// One tile of C at (m, n): the parts' A B on top of the sums so far, or of `initial` where `from` is null; to the
// sums, or to C where `to` is null.
template <int64_t M>
inline void tile_of(const Product& p, const float* from, float* to, const Part* part, int count, const num* b, int64_t m, int64_t n) {
  const int64_t width = std::min(NR, p.columns - n);
  num* end = p.c + m * p.ldc + n;
  const num* onto = p.onto && !from ? p.onto + m * p.ldo + n : nullptr;
  const num* bias = p.bias && !from ? p.bias + n : nullptr;
  V c[M][NV];
  alignas(64) num edge[M * NR];
#pragma GCC unroll 12
  for (int64_t i = 0; i < M; i++) {  // of the tile below this one
    ahead(end + (M + i) * p.ldc);
    ahead(part[0].a + (m + M + i) * part[0].lda);
  }
  if (from) get(c, from, NC);
  else if (width == NR && onto) get(c, onto, p.ldo);
  else clear(c);
  if (width == NR && bias) {
#pragma GCC unroll 12
    for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 2
      for (int64_t v = 0; v < NV; v++) c[i][v] = add(c[i][v], load(bias + v * W));
  } else if (width < NR && (onto || bias)) {
    alignas(64) float first[M * NR];
    for (int64_t i = 0; i < M; i++)
      for (int64_t j = 0; j < NR; j++)
        first[i * NR + j] = (onto && j < width ? float(onto[i * p.ldo + j]) : 0.f) + (bias && j < width ? float(bias[j]) : 0.f);
    get(c, first, NR);
  }
  for (int i = 0; i < count; b += part[i].rows() * NR, i++)
    tile<Lies::PANEL>(part[i].a + m * part[i].lda, part[i].lda, PAIR, b, 0, part[i].depth, c);
  if (to) return put(c, to, NC);
  if (width == NR) return put(c, end, p.ldc);
  put(c, edge, NR);
  for (int64_t i = 0; i < M; i++) std::copy(edge + i * NR, edge + i * NR + width, end + i * p.ldc);
}

// Rows of K of a segment that a pass takes: as even as can be, a multiple of W * PAIR.
inline int64_t depth_of(int64_t depth) { return up_to(pieces(depth, pieces(depth, KC)), W * PAIR); }

// C[m0 .. m1)[n0 .. n1), n1 - n0 at most NC and m1 - m0 at most STRIP; `room` holds PRODUCT_ROOM floats. A sum that
// is not whole with p's segments stays in the room: `first` and `last` say which part of it p is.
inline void multiply(const Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* room, bool first = true, bool last = true) {
  num* packed = reinterpret_cast<num*>(room);
  float* sums = room + PACKED;
  num* piece = reinterpret_cast<num*>(sums + SUMS);
  int s = 0;
  for (int64_t k = 0; s < p.count; first = false) {
    Part part[PARTS];
    int64_t from[PARTS], whole = 0;  // where in its segment a part begins; rows of the panels
    int of[PARTS], count = 0;
    while (s < p.count && count < PARTS) {
      const Segment& each = p.segment[s];
      const int64_t depth = std::min(depth_of(each.depth), each.depth - k);
      if (count && whole + up_to(depth, PAIR) > KC) break;
      part[count] = {each.a + k, each.lda, depth};
      from[count] = k, of[count] = s, whole += part[count].rows(), k += depth, count++;
      if (k == each.depth) s++, k = 0;
    }
    num* to = packed;
    for (int i = 0; i < count; to += part[i].rows() * NR, i++)
      pack(p.segment[of[i]], from[i], part[i].depth, n0, n1, to, whole * NR, piece);
    const bool end = last && s == p.count;
    for (int64_t mc = m0; mc < m1; mc += MC) {
      const int64_t me = std::min(mc + MC, m1);
      const num* b = packed;
      for (int64_t n = n0; n < n1; n += NR, b += whole * NR)
        for (int64_t m = mc; m < me; m += MR) {
          float* at = sums + (m - m0) * NC + n - n0;
          with_rows(std::min(MR, me - m), [&](auto rows) { tile_of<rows()>(p, first ? nullptr : at, end ? nullptr : at, part, count, b, m, n); });
        }
    }
  }
}

// All of some products that do not need each other, M rows each, in one region.
inline void multiply_all(const Product* list, int count, int64_t rows, const Rooms& rooms) {
  int64_t wide = 0;  // chunks of columns
  for (int i = 0; i < count; i++) wide += pieces(list[i].columns, NC);
  if (!wide) return;
  // Several items a thread, so that one which lost its core does not hold up the others; but packing a
  // chunk of B is only little beside the products of some hundred rows with it.
  const int64_t high = std::max(std::min(pieces(3 * rooms.count, wide), pieces(rows, 2 * MC)), pieces(rows, STRIP));
  const int64_t step = up_to(pieces(rows, high), MR);
  each(wide * high, rooms, [&](int64_t item, float* room) {
    int64_t column = item / high, m = item % high * step;
    int i = 0;
    while (column >= pieces(list[i].columns, NC)) column -= pieces(list[i++].columns, NC);
    const int64_t n = column * NC;
    if (m < rows) multiply(list[i], m, std::min(m + step, rows), n, std::min(n + NC, list[i].columns), room);
  });
}

}  // namespace
}  // namespace LK_SPACE
