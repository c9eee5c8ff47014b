// A packed weight (packed.h draws the kinds) for whoever multiplies by torch, and products with few rows straight on it.
//
//   packed_fill      out = W[first .. first + rows)
//
//   packed_product   y[m] = (W_0 x[m], W_1 x[m], ...)        m at most 4: decoding. The weights share the input x.
//
//        x in float32, in the order in which a group's numbers come        item: ROWS rows of the W's under one another
//            x0  x2 .. x30 | x1 x3 .. x31 | x32 ..                         two rows a time, so that their sums do not
//   W_r      v0            | v1           | ..      sum += v x             wait for one another; codes are read once
//
// W's numbers are float32 here and not rounded to `num`. A sum has one order, whatever is computed beside it.
#include "packed.h"

#include "items.h"

namespace LK_SPACE {
namespace {

constexpr int64_t ROWS = 16, ALONE = 1 << 16;  // rows of an item; numbers of W that are not worth a second thread

struct Few {
  int64_t count, tokens, in;
  const Packed* const* weight;
  const num* x;  // (tokens, in)
  num* y;        // (tokens, sum of the outs)
  float* room;   // tokens * in, rounded up to whole groups
};

// x as `groups` gives W's numbers, zeros beyond.
void turn(const Few& f, bool turns) {
  const int64_t wide = up_to(f.in, GROUP);
  for (int64_t m = 0; m < f.tokens; m++)
    for (int64_t g = 0; g < wide; g += GROUP)
      for (int64_t j = 0; j < GROUP; j++) {
        const int64_t from = g + (turns ? j % 16 * 2 + j / 16 : j);
        f.room[m * wide + g + j] = from < f.in ? float(f.x[m * f.in + from]) : 0.f;
      }
}

// y of R rows of one W, M tokens.
template <Kind K, int R, int M>
inline void rows(const Packed& p, const Table& table, int64_t row, const float* x, num* y, int64_t ldy) {
  const int64_t whole = p.in / GROUP, apart = up_to(p.in, GROUP);
  V sums[R][M][VECTORS];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++)
      for (int64_t i = 0; i < VECTORS; i++) sums[r][m][i] = zero();
  const auto take = [&](int r, int64_t g, const V (&v)[VECTORS]) {
    for (int m = 0; m < M; m++)
      for (int64_t i = 0; i < VECTORS; i++) sums[r][m][i] = fma(v[i], load(x + m * apart + g * GROUP + i * W), sums[r][m][i]);
  };
  for (int64_t g = 0; g < whole; g++)
    for (int r = 0; r < R; r++) {
      const int64_t group = (row + r) * whole + g;
      const uint8_t* codes = by_rows(K) ? p.codes + (row + r) * p.in + g * GROUP : bytes_at<K>(p, group);
      V v[VECTORS];
      numbers<K>(p, table, row + r, group, codes, v);
      take(r, g, v);
    }
  if (p.in % GROUP)  // of rows alone: the others' are whole groups
    for (int r = 0; r < R; r++)
      groups<K>(p, table, row + r, whole * GROUP, p.in % GROUP, [&](const V (&v)[VECTORS], int64_t, int64_t, int64_t) { take(r, whole, v); });
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) {
      V s = sums[r][m][0];
      for (int64_t i = 1; i < VECTORS; i++) s = add(s, sums[r][m][i]);
      y[m * ldy + r] = sum(s);
    }
}

template <Kind K, int M>
inline void rows_of(const Packed& p, int64_t first, int64_t end, const float* x, num* y, int64_t ldy) {
  const Table table(p.table);
  for (; first + 2 <= end; first += 2, y += 2) rows<K, 2, M>(p, table, first, x, y, ldy);
  if (first < end) rows<K, 1, M>(p, table, first, x, y, ldy);
}

void product(const Few& f) {
  int64_t out = 0, items = 0;
  for (int64_t i = 0; i < f.count; i++) out += f.weight[i]->out, items += pieces(f.weight[i]->out, ROWS);
  turn(f, in_turn(f.weight[0]->kind));
  const auto item = [&](int64_t number, float*) {
    int64_t i = 0, before = 0;
    for (int64_t own; number >= (own = pieces(f.weight[i]->out, ROWS)); number -= own) before += f.weight[i++]->out;
    const Packed& p = *f.weight[i];
    const int64_t first = number * ROWS, end = std::min(first + ROWS, p.out);
    with_kind(p.kind, [&](auto kind) {
      num* y = f.y + before + first;
      switch (f.tokens) {
        case 1: return rows_of<kind(), 1>(p, first, end, f.room, y, out);
        case 2: return rows_of<kind(), 2>(p, first, end, f.room, y, out);
        case 3: return rows_of<kind(), 3>(p, first, end, f.room, y, out);
        default: return rows_of<kind(), 4>(p, first, end, f.room, y, out);
      }
    });
  };
  if (out * f.in < ALONE)
    for (int64_t i = 0; i < items; i++) item(i, nullptr);
  else
    each(items, {nullptr, 0, items}, item);
}

}  // namespace
}  // namespace LK_SPACE

using namespace LK_SPACE;

LK_EXPORT(void, packed_fill)(const void* packed, int64_t first, int64_t rows, num* out) {
  const Packed& p = *static_cast<const Packed*>(packed);
  const int64_t step = std::max<int64_t>(1, ALONE / 4 / std::max<int64_t>(1, p.in));
  each(pieces(rows, step), {nullptr, 0, rows}, [&](int64_t i, float*) {
    unpack(p, first + i * step, std::min(step, rows - i * step), 0, p.in, out + i * step * p.in);
  });
}

LK_EXPORT(void, packed_product)(const void* const* weights, int64_t count, const num* x, int64_t tokens, int64_t in, num* y, float* room) {
  product({count, tokens, in, reinterpret_cast<const Packed* const*>(weights), x, y, room});
}
