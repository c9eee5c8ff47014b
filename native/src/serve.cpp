// The low-rank products of a mixed batch: each token meets the pair of its own adapter.
//
//     y_t += B_a (A_a x_t)        a the adapter of token t; s is folded into B
//
// Adapters lie in slots (src/lorakit/kernels/slots.py has the layout in words):
//
//     A  (slots, linears, R, in)        linears that share the input x lie side by side
//     B  (slots, chunks, R, chunk)      their outputs in chunks of one width; owner[chunk] is the linear
//     x  (T, in)   y (T, chunks * chunk)
//
//     run: adapter in slots [slot, slot + width), tokens [first, first + rows)
//
// A step of decoding reads every adapter once and multiplies little, so that a token's product is bound by
// memory. Up to four tokens of a run share what is read of A and B. h = A x stays in registers and cache.
// Every token's sums have one order, whichever tokens are beside it.
#include "lk.h"

#include <cstdlib>

namespace LK_SPACE {
namespace {

struct Run {
  int64_t slot, width, first, rows;
};

struct Shape {
  int64_t in, linears, rank, chunks, chunk;
  int64_t out() const { return chunks * chunk; }
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
      for (int64_t j = i; j < in; j++) dot += value(A[q * in + j]) * value(x[m * in + j]);
      h[m * h_stride + q] = dot;
    }
}

// y[m][j] += sum over r of h[m][r] B[r][j], for one chunk.
template <int M>
inline void onto(const num* B, const float* h, int64_t h_stride, int64_t rank, int64_t chunk, num* y, int64_t out) {
  int64_t j = 0;
  for (; j + 2 * W <= chunk; j += 2 * W) {
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
  for (; j < chunk; j++)
    for (int m = 0; m < M; m++) {
      float s = value(y[m * out + j]);
      for (int64_t r = 0; r < rank; r++) s += h[m * h_stride + r] * value(B[r * chunk + j]);
      y[m * out + j] = rounded(s);
    }
}

// M tokens of one adapter.
template <int M>
void tokens(const num* A, const num* B, const num* x, num* y, const Shape& s, const int64_t* owner, int64_t width, float* h) {
  const int64_t ranks = s.linears * s.rank;
  for (int64_t w = 0; w < width; w++) {
    int64_t q = 0;
    for (; q + 2 <= ranks; q += 2) dots<M, 2>(A + q * s.in, x, s.in, h + q, ranks);
    if (q < ranks) dots<M, 1>(A + q * s.in, x, s.in, h + q, ranks);
    for (int64_t c = 0; c < s.chunks; c++)
      onto<M>(B + c * s.rank * s.chunk, h + owner[c] * s.rank, ranks, s.rank, s.chunk, y + c * s.chunk, s.out());
    A += ranks * s.in;
    B += s.chunks * s.rank * s.chunk;
  }
}

}  // namespace
}  // namespace LK_SPACE

using namespace LK_SPACE;

// Add the products of all runs.
// shape: in, linears, rank, chunks, chunk. runs: count times slot, width, first, rows.
LK_EXPORT(void, slots_add)
(const num* x, num* y, const num* A, const num* B, const int64_t* shape, const int64_t* owner, const int64_t* runs,
 int64_t count) {
  const Shape s = {shape[0], shape[1], shape[2], shape[3], shape[4]};
  const Run* all_runs = reinterpret_cast<const Run*>(runs);
  int64_t blocks = 0;  // of up to four tokens of one run
  for (int64_t i = 0; i < count; i++) blocks += (all_runs[i].rows + 3) / 4;
  parallel([&](int thread, int threads) {
    float* h = static_cast<float*>(std::malloc(4 * s.linears * s.rank * sizeof(float)));
    const int64_t last = part(blocks, thread + 1, threads);
    int64_t block = 0, wanted = part(blocks, thread, threads);
    for (int64_t i = 0; i < count && block < last; i++) {
      const Run& run = all_runs[i];
      const num* a = A + run.slot * s.linears * s.rank * s.in;
      const num* b = B + run.slot * s.chunks * s.rank * s.chunk;
      for (int64_t t = 0; t < run.rows && block < last; t += 4, block++) {
        if (block < wanted) continue;
        const num* xs = x + (run.first + t) * s.in;
        num* ys = y + (run.first + t) * s.out();
        switch (run.rows - t) {
          case 1: tokens<1>(a, b, xs, ys, s, owner, run.width, h); break;
          case 2: tokens<2>(a, b, xs, ys, s, owner, run.width, h); break;
          case 3: tokens<3>(a, b, xs, ys, s, owner, run.width, h); break;
          default: tokens<4>(a, b, xs, ys, s, owner, run.width, h);
        }
      }
    }
    std::free(h);
  });
}
