// The low-rank products of tokens and the slots of their adapters: what serve.cpp and decode.cpp share.
//
//     A  (slots, linears, R, in)        linears that share the input x lie side by side
//     B  (slots, chunks, R, chunk)      their outputs in chunks of one width; s is folded in
//
// Up to four tokens of one adapter share what is read of A and B. Every token's sums have one order, whichever
// tokens are beside it.
#pragma once
#include "lk.h"

namespace LK_SPACE {
namespace {

struct Run {  // an adapter in slots [slot, slot + width), its tokens [first, first + rows)
  int64_t slot, width, first, rows;
};

// h[m][q] = A[q] . x[m] for Q rows of A and M tokens.
template <int M, int Q>
inline void dots(const num* A, const num* x, int64_t in, float* h, int64_t h_stride) {
  V s[Q][M];
  for (int q = 0; q < Q; q++)
    for (int m = 0; m < M; m++) s[q][m] = zero();
  int64_t i = 0;
  for (; i + W <= in; i += W) {
    V xs[M];
    for (int m = 0; m < M; m++) xs[m] = load(x + m * in + i);
    for (int q = 0; q < Q; q++) {
      V a = load(A + q * in + i);
      for (int m = 0; m < M; m++) s[q][m] = fma(a, xs[m], s[q][m]);
    }
  }
  for (int q = 0; q < Q; q++)
    for (int m = 0; m < M; m++) {
      float dot = sum(s[q][m]);
      for (int64_t j = i; j < in; j++) dot += A[q * in + j] * x[m * in + j];
      h[m * h_stride + q] = dot;
    }
}

// h[m][q] = A[q] . x[m] for all rows of A.
template <int M>
inline void all_dots(const num* A, const num* x, int64_t in, int64_t ranks, float* h, int64_t h_stride) {
  int64_t q = 0;
  for (; q + 2 <= ranks; q += 2) dots<M, 2>(A + q * in, x, in, h + q, h_stride);
  if (q < ranks) dots<M, 1>(A + q * in, x, in, h + q, h_stride);
}

// y[m][j] += sum over r of h[m][r] B[r][j], for `columns` outputs; rows of B lie `chunk` apart.
template <int M>
inline void onto(const num* B, const float* h, int64_t h_stride, int64_t rank, int64_t columns, int64_t chunk, num* y, int64_t out) {
  int64_t j = 0;
  for (; j + 2 * W <= columns; j += 2 * W) {
    V low[M], high[M];
    for (int m = 0; m < M; m++) low[m] = load(y + m * out + j), high[m] = load(y + m * out + j + W);
    for (int64_t r = 0; r < rank; r++) {
      V b0 = load(B + r * chunk + j), b1 = load(B + r * chunk + j + W);
      for (int m = 0; m < M; m++) {
        V f = all(h[m * h_stride + r]);
        low[m] = fma(f, b0, low[m]);
        high[m] = fma(f, b1, high[m]);
      }
    }
    for (int m = 0; m < M; m++) store(y + m * out + j, low[m]), store(y + m * out + j + W, high[m]);
  }
  for (; j < columns; j++)
    for (int m = 0; m < M; m++) {
      float s = y[m * out + j];
      for (int64_t r = 0; r < rank; r++) s += h[m * h_stride + r] * B[r * chunk + j];
      y[m * out + j] = s;
    }
}

}  // namespace
}  // namespace LK_SPACE
