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
#include "slots.h"

#include <cstdlib>

namespace LK_SPACE {
namespace {

struct Shape {
  int64_t in, linears, rank, chunks, chunk;
  int64_t out() const { return chunks * chunk; }
};

// M tokens of one adapter.
template <int M>
void tokens(const num* A, const num* B, const num* x, num* y, const Shape& s, const int64_t* owner, int64_t width, float* h) {
  const int64_t ranks = s.linears * s.rank;
  for (int64_t w = 0; w < width; w++) {
    all_dots<M>(A, x, s.in, ranks, h, ranks);
    for (int64_t c = 0; c < s.chunks; c++)
      onto<M>(B + c * s.rank * s.chunk, h + owner[c] * s.rank, ranks, s.rank, s.chunk, s.chunk, y + c * s.chunk, s.out());
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
