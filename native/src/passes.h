// What stands between two products, one pass each, a row at a time.
//
//   norm        n = w x r,  r = 1 / sqrt(mean(x^2) + e)            RMSNorm, arXiv 1910.07467
//               dx = r u - x r^3 mean(u x),  u = dn w
//   SwiGLU      a = silu(g) u,  silu(g) = g / (1 + e^-g)           arXiv 2002.05202
//               du = da silu(g),  dg = da u s (1 + g (1 - s)),  s = 1 / (1 + e^-g)
//   head        q^ = R (norm of a head, where there is one): both halves turned by the angles
//               (x1, x2) -> (x1 c - x2 s, x2 c + x1 s)             arXiv 2104.09864
//   gradients   dA = dh^T n,  dB = s dy^T h: sums over all tokens, C (rank x columns) in registers
#pragma once
#include <algorithm>

#include "items.h"
#include "tile.h"

namespace LK_SPACE {
namespace {

inline float dot(const num* a, const num* b, int64_t n) {
  V s0 = zero(), s1 = zero();
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    s0 = fma(load(a + i), load(b + i), s0);
    s1 = fma(load(a + i + W), load(b + i + W), s1);
  }
  float rest = 0.f;
  for (; i < n; i++) rest += a[i] * b[i];
  return sum(add(s0, s1)) + rest;
}

inline float scale_of(const num* x, int64_t n, float eps) { return 1.f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps); }

inline void norm(const num* x, const num* w, float r, int64_t n, num* out) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, mul(mul(load(x + i), all(r)), load(w + i)));
  for (; i < n; i++) out[i] = x[i] * r * w[i];
}

// out = onto (or 0) + gradient of x; out may be dn or onto.
template <class T>
inline void norm_back(const T* dn, const num* x, const num* w, float r, const num* onto, int64_t n, T* out) {
  V s = zero();
  float rest = 0.f;
  int64_t i = 0;
  for (; i + W <= n; i += W) s = fma(mul(load(dn + i), load(w + i)), load(x + i), s);
  for (; i < n; i++) rest += dn[i] * w[i] * x[i];
  const float c = (sum(s) + rest) / static_cast<float>(n) * r * r * r;
  for (i = 0; i + W <= n; i += W) {
    const V u = mul(load(dn + i), load(w + i));
    const V g = sub(mul(all(r), u), mul(all(c), load(x + i)));
    store(out + i, onto ? add(load(onto + i), g) : g);
  }
  for (; i < n; i++) out[i] = (onto ? float(onto[i]) : 0.f) + r * dn[i] * w[i] - c * x[i];
}

// W numbers of an element-wise chain from and to memory; the last few of a row through a buffer.
template <class F>
inline void by_vectors(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, W);
  if (i < n) f(i, n - i);
}
template <class T>
inline V some(const T* p, int64_t count) {
  if (count == W) return load(p);
  alignas(64) float x[W] = {};
  for (int64_t j = 0; j < count; j++) x[j] = p[j];
  return load(x);
}
template <class T>
inline void some(T* p, V v, int64_t count) {
  if (count == W) return store(p, v);
  alignas(64) float x[W];
  store(x, v);
  for (int64_t j = 0; j < count; j++) p[j] = x[j];
}

inline V sigmoid(V g) { return divide(all(1.f), add(all(1.f), exp(sub(zero(), g)))); }

inline void gated(const num* g, const num* u, int64_t n, num* out) {
  by_vectors(n, [&](int64_t i, int64_t count) {
    const V x = some(g + i, count);
    some(out + i, mul(mul(x, sigmoid(x)), some(u + i, count)), count);
  });
}

// da becomes du; dg and a are written beside it.
inline void gated_back(const num* g, const num* u, int64_t n, num* da, num* dg, num* a) {
  by_vectors(n, [&](int64_t i, int64_t count) {
    const V x = some(g + i, count), y = some(u + i, count), d = some(da + i, count), s = sigmoid(x), silu = mul(x, s);
    some(a + i, mul(silu, y), count);
    some(dg + i, mul(mul(d, y), fma(silu, sub(all(1.f), s), s)), count);
    some(da + i, mul(d, silu), count);
  });
}

// What is done to a head before attention: a norm where w is not null, then rotary.
struct HeadForm {
  const num* w;
  float eps;
  int64_t width;
};

inline void to_head(const HeadForm& f, const num* x, const num* c, const num* s, num* out) {
  const int64_t half = f.width / 2;
  if (f.w) {
    norm(x, f.w, scale_of(x, f.width, f.eps), f.width, out);
    x = out;
  }
  by_vectors(half, [&](int64_t i, int64_t count) {
    const V a = some(x + i, count), b = some(x + half + i, count), co = some(c + i, count), si = some(s + i, count);
    some(out + i, sub(mul(a, co), mul(b, si)), count);
    some(out + half + i, fma(b, co, mul(a, si)), count);
  });
}

// The gradient of x, from that of to_head(x), in whose place it may be written.
template <class T>
inline void from_head(const HeadForm& f, const T* g, const num* x, const num* c, const num* s, T* out) {
  const int64_t half = f.width / 2;
  by_vectors(half, [&](int64_t i, int64_t count) {
    const V a = some(g + i, count), b = some(g + half + i, count), co = some(c + i, count), si = some(s + i, count);
    some(out + i, fma(b, si, mul(a, co)), count);
    some(out + half + i, sub(mul(b, co), mul(a, si)), count);
  });
  if (f.w) norm_back<T>(out, x, f.w, scale_of(x, f.width, f.eps), nullptr, f.width, out);
}

// A gradient of a pair: out[i * step + n * stride] = factor * sum_t h[t][i] x[t][n] of columns of x.
struct Outer {
  const num* h;  // (tokens, rank), rows ldh apart
  int64_t ldh, rank;
  const num* x;  // (tokens, columns), rows ldx apart
  int64_t ldx, columns;
  float* out;
  int64_t step, stride;
  float factor;
};

constexpr int64_t OUTER_ROWS = 96, OUTER_COLUMNS = 6 * NR;  // tokens and columns taken at once

// Floats of a room: the sums of some columns, an edge of x, h in pairs.
inline int64_t outer_room(int64_t rank) { return OUTER_COLUMNS * rank + OUTER_ROWS * (NR + rank); }

// Columns [n0, n0 + OUTER_COLUMNS).
inline void outer(const Outer& o, int64_t tokens, int64_t n0, float* room) {
  const int64_t n1 = std::min(n0 + OUTER_COLUMNS, o.columns), panels = (n1 - n0 + NR - 1) / NR;
  num* edge = reinterpret_cast<num*>(room + OUTER_COLUMNS * o.rank);
  num* pairs = edge + OUTER_ROWS * NR;
  std::fill(room, room + OUTER_COLUMNS * o.rank, 0.f);
  for (int64_t t = 0; t < tokens; t += OUTER_ROWS) {
    const int64_t depth = std::min(OUTER_ROWS, tokens - t);
    const num* h = o.h + t * o.ldh;
    int64_t ldh = o.ldh;
    if (PAIR > 1) {
      for (int64_t k = 0; k < depth; k++)
        for (int64_t i = 0; i < o.rank; i++) pairs[(k / PAIR * o.rank + i) * PAIR + k % PAIR] = h[k * ldh + i];
      h = pairs, ldh = o.rank;
    }
    for (int64_t p = 0; p < panels; p++) {
      const int64_t n = n0 + p * NR, width = std::min(NR, n1 - n);
      const num* x = o.x + t * o.ldx + n;
      int64_t pitch = o.ldx;
      if (width < NR) {
        for (int64_t k = 0; k < depth; k++)
          for (int64_t j = 0; j < NR; j++) edge[k * NR + j] = j < width ? x[k * o.ldx + j] : num(0.f);
        x = edge;
        pitch = NR;
      }
      float* c = room + p * NR * o.rank;
      for (int64_t i = 0, m; i < o.rank; i += m) {
        const int64_t left = o.rank - i;
        m = left > MR && left < 2 * MR ? (left + 1) / 2 : std::min(MR, left);
        with_rows(m, [&](auto rows) {
          V sums[rows()][NV];
          get(sums, c + i * NR, NR);
          tile<Lies::ROWS>(h + i * PAIR, PAIR, PAIR * ldh, x, pitch, depth, sums);
          put(sums, c + i * NR, NR);
        });
      }
    }
  }
  for (int64_t n = n0; n < n1; n++)
    for (int64_t i = 0; i < o.rank; i++)
      o.out[i * o.step + n * o.stride] = o.factor * room[(n - n0) / NR * NR * o.rank + i * NR + (n - n0) % NR];
}

}  // namespace
}  // namespace LK_SPACE
