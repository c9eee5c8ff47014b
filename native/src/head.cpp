// The output head with its loss: logits, their softmax, and the gradient of the hidden states.
//
//   z = h W^T     loss = sum over tokens of  log sum_v e^(z_v) - z_label     G = softmax(z) - onehot(label)     dh = G W
//
// h (tokens, D), W (words, D) frozen. Some tokens at a time; their logits lie in blocks of WORDS words, so that the
// product with W reads them as it goes and a page is not touched for each row:
//
//        words 0          WORDS       2 WORDS
//   tokens   [ block 0 ]  [ block 1 ]  [ block 2 ] ...      a block: tokens x WORDS numbers, one after another
//
// Phases: blocks of z | tokens: z becomes e^(z - max) and, at the label, minus the sum of the others | columns of dh,
// over all blocks, each row then divided by its sum. So the gradient of a token whose probability rounds to 1 is what
// the others give it (kernels/head.py says why).
#include "items.h"
#include "passes.h"
#include "product.h"

#include <limits>

namespace LK_SPACE {
namespace {

constexpr int64_t WORDS = 4 * NC;

// As src/lorakit/kernels/compiled_head.py has it, field by field.
struct Head {
  int64_t tokens, width, words, rooms;
  const num *h, *w;
  const int64_t* labels;
  double* loss;  // (tokens,) nats
  num* dh;       // (tokens, width), or null
  num* logits;   // blocks of WORDS words, tokens * WORDS numbers each
  float* total;  // (tokens,)
  float* room;   // rooms of PRODUCT_ROOM floats
};

void softmax(const Head& b, int64_t token) {
  const int64_t blocks = pieces(b.words, WORDS), label = b.labels[token];
  const auto row = [&](int64_t i) { return b.logits + (i * b.tokens + token) * WORDS; };
  const auto words = [&](int64_t i) { return std::min(WORDS, b.words - i * WORDS); };
  num* own = row(label / WORDS) + label % WORDS;
  V most = all(*own);
  for (int64_t i = 0; i < blocks; i++) {
    const num* z = row(i);
    int64_t j = 0;
    for (; j + W <= words(i); j += W) most = larger(most, load(z + j));
    for (; j < words(i); j++) most = larger(most, all(z[j]));
  }
  const float top = largest(most), z_label = *own;
  *own = -std::numeric_limits<float>::infinity();
  double others = 0;
  for (int64_t i = 0; i < blocks; i++) {
    num* z = row(i);
    V sums = zero();
    for (int64_t j = 0; j < words(i); j += W) {
      const int64_t count = std::min<int64_t>(W, words(i) - j);
      if (count < W) std::fill(z + j + count, z + j + W, num(-std::numeric_limits<float>::infinity()));
      const V e = exp(sub(load(z + j), all(top)));
      store(z + j, e);
      sums = add(sums, e);
    }
    others += sum(sums);
  }
  const double label_part = std::exp(static_cast<double>(z_label) - top);
  b.loss[token] = z_label == top ? std::log1p(others) : std::log(label_part + others) + (static_cast<double>(top) - z_label);
  *own = static_cast<float>(-others);
  b.total[token] = static_cast<float>(label_part + others);
}

void loss(const Head& b) {
  const Rooms rooms = {b.room, PRODUCT_ROOM, b.rooms};
  const int64_t blocks = pieces(b.words, WORDS), d = b.width;
  each(blocks, rooms, [&](int64_t i, float* room) {
    const int64_t words = std::min(WORDS, b.words - i * WORDS);
    const Product p = {b.logits + i * b.tokens * WORDS, WORDS, words, nullptr, 0, nullptr, 1, {{b.h, d, b.w + i * WORDS * d, d, d, Form::TURNED}}};
    for (int64_t n = 0; n < words; n += NC) multiply(p, 0, b.tokens, n, std::min(n + NC, words), room);
  });
  each(pieces(b.tokens, 8), rooms, [&](int64_t i, float*) {
    for (int64_t t = i * 8; t < std::min(i * 8 + 8, b.tokens); t++) softmax(b, t);
  });
  if (!b.dh) return;
  const int64_t wide = pieces(d, NC), high = std::min(pieces(3 * b.rooms, wide), pieces(b.tokens, MC)), step = up_to(pieces(b.tokens, high), MR);
  each(wide * high, rooms, [&](int64_t item, float* room) {
    const int64_t n0 = item / high * NC, n1 = std::min(n0 + NC, d), m0 = item % high * step, m1 = std::min(m0 + step, b.tokens);
    for (int64_t i = 0; i < blocks && m0 < m1; i++) {
      const int64_t words = std::min(WORDS, b.words - i * WORDS);
      const Product p = {b.dh, d, d, nullptr, 0, nullptr, 1, {{b.logits + i * b.tokens * WORDS, WORDS, b.w + i * WORDS * d, d, words, Form::AS_IT_IS}}};
      multiply(p, m0, m1, n0, n1, room, i == 0, i + 1 == blocks);
    }
    for (int64_t m = m0; m < m1; m++)
      by_vectors(n1 - n0, [&](int64_t j, int64_t count) {
        num* at = b.dh + m * d + n0 + j;
        some(at, divide(some(at, count), all(b.total[m])), count);
      });
  });
}

}  // namespace
}  // namespace LK_SPACE

using namespace LK_SPACE;

// Floats of a token's logits, and of one room.
LK_EXPORT(void, head_sizes)(int64_t words, int64_t* row, int64_t* room) {
  *row = up_to(words, WORDS) / PAIR;
  *room = PRODUCT_ROOM;
}

LK_EXPORT(void, head_loss)(const void* head) { loss(*static_cast<const Head*>(head)); }
