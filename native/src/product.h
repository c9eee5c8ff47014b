// Products of activations with frozen weights, and what is added to them.
//
//   C (M x N)  =  initial  +  sum over segments s of  f_s A_s (M x K_s) B_s (K_s x N)
//
// A segment is one term of such a sum: x W^T and s h B^T of a forward product; dy W of each linear
// layer that read one input, and dh A of their pairs, in a backward one. `initial` is zero, a bias or
// the residual stream. A is read by rows where it lies. B is packed piece by piece, so that no weight
// is held twice:
//
//        N (NC columns at most)
//      +----+----+----+----+
//    K | p0 | p1 | p2 |    |   KC rows at most; panels of NR columns, each K x NR floats one after
//      +----+----+----+----+   another, zeros beyond N. A panel streams through the first cache
//                              while MC rows of A stay in the second (both by measurement).
//
// Short segments share a pass over C: their rows of B follow one another in the panels. What a pass takes is
// the same whatever the number of threads is, so the sums are too.
#pragma once
#include <algorithm>

#include "items.h"
#include "tile.h"

namespace LK_SPACE {
namespace {

constexpr int64_t KC = 800, MC = 96, NC = 96;
constexpr int64_t PACKED = KC * NC;  // floats of a room that B is packed into

enum class Form : int64_t {
  TURNED,    // B[k][n] = w[n][k]: a weight (out, in) in the forward product
  AS_IT_IS,  // B[k][n] = w[k][n]: the same weight in the backward one
};

struct Segment {
  const float* a;
  int64_t lda;
  const float* w;
  int64_t ldw, depth;
  Form form;
  float factor;
};

struct Product {
  float* c;
  int64_t ldc, columns;
  const float* onto;  // (M, N), rows ldo apart, that the sum is added to; or null
  int64_t ldo;
  const float* bias;  // (N,) or null
  int count;
  Segment segment[4];
};

// Columns [v, v + W) of a panel, `width` of them B's own and zeros beyond: depth rows, NR apart.
inline void pack_columns(const float* w, int64_t ldw, Form form, int64_t width, int64_t depth, float* out) {
  int64_t k = 0;
  if (width >= W) {
    if (form == Form::AS_IT_IS)
      for (; k < depth; k++) store(out + k * NR, load(w + k * ldw));
    else
      for (; k + W <= depth; k += W) turn(w + k, ldw, out + k * NR, NR);
  }
  const int64_t row = form == Form::AS_IT_IS ? ldw : 1, column = form == Form::AS_IT_IS ? 1 : ldw;
  for (; k < depth; k++) {
    store(out + k * NR, zero());
    for (int64_t j = 0; j < std::min<int64_t>(width, W); j++) out[k * NR + j] = w[k * row + j * column];
  }
}

// f B[k0 .. k0 + depth)[n0 .. n1) in panels, `apart` floats from one to the next.
inline void pack(const Segment& s, int64_t k0, int64_t depth, int64_t n0, int64_t n1, float* out, int64_t apart) {
  for (int64_t n = n0; n < n1; n += NR, out += apart) {
    for (int64_t v = 0; v < NR; v += W) {
      const float* from = s.form == Form::AS_IT_IS ? s.w + k0 * s.ldw + n + v : s.w + (n + v) * s.ldw + k0;
      pack_columns(from, s.ldw, s.form, n1 - n - v, depth, out + v);
    }
    if (s.factor != 1.f)
      for (int64_t i = 0; i < depth * NR; i += W) store(out + i, mul(load(out + i), all(s.factor)));
  }
}

// Some of a segment's K: A from there on, and as many rows of the panels.
struct Part {
  const float* a;
  int64_t lda, depth;
};
constexpr int PARTS = 4;

// One tile of C at (m, n): what is there, or `initial` the first time, and the parts' A B.
template <int64_t M>
inline void tile_of(const Product& p, bool first, const Part* part, int count, const float* b, int64_t m, int64_t n) {
  const int64_t width = std::min(NR, p.columns - n);
  float* to = p.c + m * p.ldc + n;
  const float* from = !first ? to : p.onto ? p.onto + m * p.ldo + n : nullptr;
  const int64_t step = first ? p.ldo : p.ldc;
  const float* bias = first && p.bias ? p.bias + n : nullptr;
  V c[M][NV];
  alignas(64) float edge[M * NR];
  if (width == NR) {
#pragma GCC unroll 6
    for (int64_t i = 0; i < M; i++) {  // of the tile below this one
      ahead(to + (M + i) * p.ldc);
      ahead(part[0].a + (m + M + i) * part[0].lda);
    }
    if (from) get(c, from, step);
    else clear(c);
    if (bias)
#pragma GCC unroll 6
      for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int64_t v = 0; v < NV; v++) c[i][v] = add(c[i][v], load(bias + v * W));
  } else {
    for (int64_t i = 0; i < M; i++)
      for (int64_t j = 0; j < NR; j++)
        edge[i * NR + j] = j < width ? (from ? from[i * step + j] : 0.f) + (bias ? bias[j] : 0.f) : 0.f;
    get(c, edge, NR);
  }
  for (int i = 0; i < count; b += part[i].depth * NR, i++)
    tile(part[i].a + m * part[i].lda, part[i].lda, 1, b, NR, part[i].depth, c);
  if (width == NR) return put(c, to, p.ldc);
  put(c, edge, NR);
  for (int64_t i = 0; i < M; i++)
    for (int64_t j = 0; j < width; j++) to[i * p.ldc + j] = edge[i * NR + j];
}

inline void some_rows(int64_t rows, const Product& p, bool first, const Part* part, int count, const float* b, int64_t m, int64_t n) {
  switch (rows) {
    case 1: return tile_of<1>(p, first, part, count, b, m, n);
    case 2: return tile_of<2>(p, first, part, count, b, m, n);
    case 3: return tile_of<3>(p, first, part, count, b, m, n);
    case 4: return tile_of<4>(p, first, part, count, b, m, n);
    case 5: return tile_of<5>(p, first, part, count, b, m, n);
    default: return tile_of<6>(p, first, part, count, b, m, n);
  }
}

// Rows of K of a segment that a pass takes: as even as can be, a multiple of W.
inline int64_t depth_of(int64_t depth) { return up_to(pieces(depth, pieces(depth, KC)), W); }

// C[m0 .. m1)[n0 .. n1), n1 - n0 at most NC, or onto what is there where it is not the first of its terms;
// `room` holds PACKED floats.
inline void multiply(const Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* room, bool first = true) {
  int s = 0;
  for (int64_t k = 0; s < p.count; first = false) {
    Part part[PARTS];
    int64_t from[PARTS], whole = 0;  // where in its segment a part begins; rows of the panels
    int of[PARTS], count = 0;
    while (s < p.count && count < PARTS) {
      const Segment& each = p.segment[s];
      const int64_t depth = std::min(depth_of(each.depth), each.depth - k);
      if (count && whole + depth > KC) break;
      part[count] = {each.a + k, each.lda, depth};
      from[count] = k, of[count++] = s, whole += depth, k += depth;
      if (k == each.depth) s++, k = 0;
    }
    float* to = room;
    for (int i = 0; i < count; to += part[i].depth * NR, i++)
      pack(p.segment[of[i]], from[i], part[i].depth, n0, n1, to, whole * NR);
    for (int64_t mc = m0; mc < m1; mc += MC) {
      const int64_t me = std::min(mc + MC, m1);
      const float* b = room;
      for (int64_t n = n0; n < n1; n += NR, b += whole * NR)
        for (int64_t m = mc; m < me; m += MR) some_rows(std::min(MR, me - m), p, first, part, count, b, m, n);
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
  const int64_t high = std::min(pieces(3 * rooms.count, wide), pieces(rows, 2 * MC));
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
