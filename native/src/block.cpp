// One transformer block of the llama family with pairs on its linear layers: forward in one call, backward in one.
//
//   n  = norm1(x)     q, k, v = L(n)     o = attention(q, k, v)     x' = x + L(o)
//   n' = norm2(x')    g, u = L'(n')      a = silu(g) u              y  = x' + L(a)
//
//   L(n) = W n + b + s B (A n)     W (out, in) frozen, A (r, in), B (out, r); either of b and the pair may be missing
//
// Linear layers that read one input are a group: {q k v} {o} {gate up} {down}. Their h = A n lie side by side in the
// rows of one (tokens, R) matrix, R the sum of the ranks; the A's are copied under one another, (R, in), for a call, and
// the B's times s. Tensors lie by rows: A, B, their gradients and the scalars of rows in float32, all others as `num`. What the backward needs is kept: x, q, k, v, o, x', g, u, h of each group, 1 / rms
// of both norms and the log of the sum of each attention row. n and a are computed again.
//
// Phases, a parallel region each ("rows": items are some tokens; "columns": columns of the products, product.h):
//
//   forward    rows n, h | columns q k v | tasks attention | rows h | columns x' | rows n', h | columns g u |
//              rows a, h | columns y
//   backward   rows dh of down | columns da | rows dg du a n', dh | columns dn' | rows dx', dh of o | columns do |
//              tasks attention | rows dk dv n, dh | gradients of all pairs | columns dn | rows dx
#include "attention.h"
#include "items.h"
#include "passes.h"
#include "product.h"

namespace LK_SPACE {
namespace {

constexpr int64_t ROWS = 192;  // tokens of an item at most

// As src/lorakit/kernels/compiled_block.py has it, field by field.
struct Layer {
  const num *w, *bias;    // (out, in); (out,) or null
  const float *A, *B;     // (rank, in), (out, rank)
  float *dA, *dB;         // of A and B, for the backward
  int64_t in, out, rank;  // rank 0: no pair
  double factor;          // s
  const Packed* packed;   // what w is instead (packed.h), or null
};

enum { Q, K_, V_, O, GATE, UP, DOWN, LAYERS };
enum { GROUPS = 4 };
constexpr int FIRST[GROUPS + 1] = {Q, O, GATE, DOWN, LAYERS};

struct Block {
  int64_t tokens, width, heads, key_heads, head_width, sequences, window, angles, rooms, room_size;
  double eps1, eps2, query_eps, key_eps, scale;
  const int64_t* start;
  const num *cos, *sin, *norm1, *norm2, *query_norm, *key_norm;
  const num *x, *dy;
  num *y, *dx;  // dx may be null: nobody asks for it
  num *q, *k, *v, *o, *middle, *gate, *up;
  float *scale1, *scale2, *log;
  num* h;
  float *work, *room;
  Layer layer[LAYERS];
};

// Where what is shared by all blocks lies in `work`, in floats, and how many there are.
struct Places {
  int64_t n, a, dg, da, dn, d_middle, d_o, dq, dk, dv, dh, pairs, end;
};

int64_t ranks_of(const Block& b, int group) {
  int64_t ranks = 0;
  for (int i = FIRST[group]; i < FIRST[group + 1]; i++) ranks += b.layer[i].rank;
  return ranks;
}

Attention attention_of(const Block& b);

Places places_of(const Block& b) {
  const int64_t t = b.tokens, inner = b.layer[GATE].out, q = b.heads * b.head_width;
  int64_t ranks = 0, pairs = 0, at = 0;
  for (const Layer& l : b.layer) ranks += l.rank, pairs += l.rank * (l.in + l.out);
  const auto take = [&](int64_t numbers) {
    const int64_t floats = up_to(pieces(numbers, PAIR), NR);
    return (at += floats) - floats;
  };
  Places p;
  p.n = take(t * b.width);
  p.a = take(t * inner);
  p.dg = take(t * inner);
  p.da = take(t * inner);
  p.dn = take(t * b.width);
  p.d_middle = take(t * b.width);
  p.d_o = take(t * q);
  p.dq = take(t * q);
  const int64_t slots = most_parts(attention_of(b)) * t * b.key_heads * b.head_width;
  p.dk = take(slots);
  p.dv = take(slots);
  p.dh = take(t * ranks);
  p.pairs = take(pairs);
  p.end = at;
  return p;
}

Attention attention_of(const Block& b) {
  Attention a = {};
  a.tokens = b.tokens, a.heads = b.heads, a.key_heads = b.key_heads, a.sequences = b.sequences, a.window = b.window;
  a.start = b.start, a.cos = b.cos, a.sin = b.sin, a.angles = b.angles;
  a.query = {b.query_norm, static_cast<float>(b.query_eps), b.head_width};
  a.key = {b.key_norm, static_cast<float>(b.key_eps), b.head_width};
  a.scale = static_cast<float>(b.scale);
  a.q = b.q, a.k = b.k, a.v = b.v, a.o = b.o, a.log = b.log;
  return a;
}

// A call: what it works with.
struct Call {
  const Block& b;
  const Places at;
  const Rooms rooms;
  const num* cat[GROUPS];     // the A's of a group under one another
  const num* scaled[LAYERS];  // s B
  num *h[GROUPS], *dh[GROUPS];
  int64_t ranks[GROUPS];

  explicit Call(const Block& block)
      : b(block), at(places_of(block)), rooms{block.room, block.room_size, block.rooms} {
    num *to = work(at.pairs), *h_at = b.h, *dh_at = work(at.dh);
    for (int g = 0; g < GROUPS; g++) {
      cat[g] = to, h[g] = h_at, dh[g] = dh_at, ranks[g] = ranks_of(b, g);
      h_at += b.tokens * ranks[g], dh_at += b.tokens * ranks[g];
      for (int i = FIRST[g]; i < FIRST[g + 1]; i++) {
        const Layer& l = b.layer[i];
        to = std::copy(l.A, l.A + l.rank * l.in, to);
      }
    }
    for (int i = 0; i < LAYERS; i++) {
      const Layer& l = b.layer[i];
      const float factor = static_cast<float>(l.factor);
      scaled[i] = to;
      to = std::transform(l.B, l.B + l.rank * l.out, to, [factor](float x) { return num(factor * x); });
    }
  }

  num* work(int64_t place) const { return reinterpret_cast<num*>(b.work + place); }
  int64_t before(int layer, int group) const {  // columns of h before those of a layer
    int64_t ranks = 0;
    for (int i = FIRST[group]; i < layer; i++) ranks += b.layer[i].rank;
    return ranks;
  }

  // f(first token, one past the last, room) for all tokens.
  template <class F>
  void rows(F&& f) const {
    const int64_t items = rooms.count * pieces(b.tokens, rooms.count * ROWS), size = pieces(b.tokens, items);
    each(items, rooms, [&](int64_t item, float* room) {
      const int64_t first = item * size, end = std::min(first + size, b.tokens);
      if (first < end) f(first, end, room);
    });
  }

  // h = A n of a group, tokens [m0, m1).
  void low(int g, const num* n, int64_t m0, int64_t m1, float* room) const {
    const int64_t in = b.layer[FIRST[g]].in;
    const Product p = {h[g], ranks[g], ranks[g], nullptr, 0, nullptr, 1, {{n, in, cat[g], in, in, Form::TURNED}}};
    for (int64_t c = 0; c < ranks[g]; c += NC) multiply(p, m0, m1, c, std::min(c + NC, ranks[g]), room);
  }

  // Columns of dh of one layer: s dy B.
  void low_back(int g, int layer, const num* dy, int64_t m0, int64_t m1, float* room) const {
    const Layer& l = b.layer[layer];
    const Segment s = {dy, l.out, scaled[layer], l.rank, l.out, Form::AS_IT_IS};
    const Product p = {dh[g] + before(layer, g), ranks[g], l.rank, nullptr, 0, nullptr, 1, {s}};
    for (int64_t c = 0; c < l.rank; c += NC) multiply(p, m0, m1, c, std::min(c + NC, l.rank), room);
  }

  // L(n), or onto + L(n).
  Product forward(int g, int layer, const num* n, const num* onto, num* y) const {
    const Layer& l = b.layer[layer];
    Product p = {y, l.out, l.out, onto, l.out, l.bias, 1, {{n, l.in, l.w, l.in, l.in, Form::TURNED, l.packed}}};
    if (l.rank)
      p.segment[p.count++] = {h[g] + before(layer, g), ranks[g], scaled[layer], l.rank, l.rank, Form::TURNED};
    return p;
  }

  // The gradient of a group's input: sum of dy W, and dh A.
  Product backward(int g, std::initializer_list<const num*> dys, num* dn) const {
    const int64_t in = b.layer[FIRST[g]].in;
    Product p = {dn, in, in, nullptr, 0, nullptr, 0, {}};
    int i = FIRST[g];
    for (const num* dy : dys) {
      const Layer& l = b.layer[i++];
      p.segment[p.count++] = {dy, l.out, l.w, in, l.out, Form::AS_IT_IS, l.packed};
    }
    if (ranks[g]) p.segment[p.count++] = {dh[g], ranks[g], cat[g], in, ranks[g], Form::AS_IT_IS};
    return p;
  }

  // The gradients of a group's pairs, appended to a list.
  Outer* gradients(int g, const num* n, std::initializer_list<const num*> dys, Outer* to) const {
    int i = FIRST[g];
    for (const num* dy : dys) {
      const Layer& l = b.layer[i];
      const int64_t at = before(i++, g);
      if (l.dA) *to++ = {dh[g] + at, ranks[g], l.rank, n, l.in, l.in, l.dA, l.in, 1, 1.f};
      if (l.dB) *to++ = {h[g] + at, ranks[g], l.rank, dy, l.out, l.out, l.dB, 1, l.rank, static_cast<float>(l.factor)};
    }
    return to;
  }
};

void forward(const Block& b) {
  const Call call(b);
  const int64_t d = b.width, inner = b.layer[GATE].out;
  num *n = call.work(call.at.n), *a = call.work(call.at.a);
  const auto normed = [&](int g, const num* x, const num* w, double eps, float* scale) {
    call.rows([&](int64_t m0, int64_t m1, float* room) {
      for (int64_t t = m0; t < m1; t++) {
        scale[t] = scale_of(x + t * d, d, static_cast<float>(eps));
        norm(x + t * d, w, scale[t], d, n + t * d);
      }
      call.low(g, n, m0, m1, room);
    });
  };
  normed(0, b.x, b.norm1, b.eps1, b.scale1);
  const Product heads[3] = {call.forward(0, Q, n, nullptr, b.q), call.forward(0, K_, n, nullptr, b.k), call.forward(0, V_, n, nullptr, b.v)};
  multiply_all(heads, 3, b.tokens, call.rooms);
  const Attention attention = attention_of(b);
  all_tasks(attention, call.rooms, [&](const Task& task, float* room) { attend(attention, task, room); });
  if (call.ranks[1]) call.rows([&](int64_t m0, int64_t m1, float* room) { call.low(1, b.o, m0, m1, room); });
  const Product out = call.forward(1, O, b.o, b.x, b.middle);
  multiply_all(&out, 1, b.tokens, call.rooms);
  normed(2, b.middle, b.norm2, b.eps2, b.scale2);
  const Product both[2] = {call.forward(2, GATE, n, nullptr, b.gate), call.forward(2, UP, n, nullptr, b.up)};
  multiply_all(both, 2, b.tokens, call.rooms);
  call.rows([&](int64_t m0, int64_t m1, float* room) {
    gated(b.gate + m0 * inner, b.up + m0 * inner, (m1 - m0) * inner, a + m0 * inner);
    call.low(3, a, m0, m1, room);
  });
  const Product down = call.forward(3, DOWN, a, b.middle, b.y);
  multiply_all(&down, 1, b.tokens, call.rooms);
}

void backward(const Block& b) {
  const Call call(b);
  const Places& at = call.at;
  const int64_t d = b.width, inner = b.layer[GATE].out;
  num *n = call.work(at.n), *a = call.work(at.a), *dg = call.work(at.dg), *da = call.work(at.da), *dn = call.work(at.dn);
  num *d_middle = call.work(at.d_middle), *d_o = call.work(at.d_o), *dq = call.work(at.dq), *dk = call.work(at.dk), *dv = call.work(at.dv);
  Outer list[2 * LAYERS];
  const auto gradients = [&](Outer* end) {
    int64_t chunks = 0;
    for (const Outer* o = list; o < end; o++) chunks += pieces(o->columns, OUTER_COLUMNS);
    each(chunks, call.rooms, [&](int64_t item, float* room) {
      const Outer* o = list;
      while (item >= pieces(o->columns, OUTER_COLUMNS)) item -= pieces((o++)->columns, OUTER_COLUMNS);
      outer(*o, b.tokens, item * OUTER_COLUMNS, room);
    });
  };

  if (call.ranks[3]) call.rows([&](int64_t m0, int64_t m1, float* room) { call.low_back(3, DOWN, b.dy, m0, m1, room); });
  const Product of_act = call.backward(3, {b.dy}, da);
  multiply_all(&of_act, 1, b.tokens, call.rooms);
  call.rows([&](int64_t m0, int64_t m1, float* room) {
    const int64_t i = m0 * inner;
    gated_back(b.gate + i, b.up + i, (m1 - m0) * inner, da + i, dg + i, a + i);
    for (int64_t t = m0; t < m1; t++) norm(b.middle + t * d, b.norm2, b.scale2[t], d, n + t * d);
    call.low_back(2, GATE, dg, m0, m1, room);
    call.low_back(2, UP, da, m0, m1, room);
  });
  gradients(call.gradients(2, n, {dg, da}, call.gradients(3, a, {b.dy}, list)));
  const Product of_middle = call.backward(2, {dg, da}, dn);
  multiply_all(&of_middle, 1, b.tokens, call.rooms);
  call.rows([&](int64_t m0, int64_t m1, float* room) {
    for (int64_t t = m0 * d; t < m1 * d; t += d)
      norm_back<num>(dn + t, b.middle + t, b.norm2, b.scale2[t / d], b.dy + t, d, d_middle + t);
    call.low_back(1, O, d_middle, m0, m1, room);
  });
  const Product of_heads = call.backward(1, {d_middle}, d_o);
  multiply_all(&of_heads, 1, b.tokens, call.rooms);
  Attention attention = attention_of(b);
  attention.d_o = d_o, attention.dq = dq, attention.dk = dk, attention.dv = dv;
  all_tasks(attention, call.rooms, [&](const Task& task, float* room) { attend_back(attention, task, room); });
  call.rows([&](int64_t m0, int64_t m1, float* room) {
    for (int64_t t = m0; t < m1; t++) {
      finish_keys(attention, t);
      norm(b.x + t * d, b.norm1, b.scale1[t], d, n + t * d);
    }
    call.low_back(0, Q, dq, m0, m1, room);
    call.low_back(0, K_, dk, m0, m1, room);
    call.low_back(0, V_, dv, m0, m1, room);
  });
  gradients(call.gradients(0, n, {dq, dk, dv}, call.gradients(1, b.o, {d_middle}, list)));
  if (!b.dx) return;
  const Product of_x = call.backward(0, {dq, dk, dv}, dn);
  multiply_all(&of_x, 1, b.tokens, call.rooms);
  call.rows([&](int64_t m0, int64_t m1, float*) {
    for (int64_t t = m0 * d; t < m1 * d; t += d)
      norm_back<num>(dn + t, b.x + t, b.norm1, b.scale1[t / d], d_middle + t, d, b.dx + t);
  });
}

}  // namespace
}  // namespace LK_SPACE

using namespace LK_SPACE;

// Floats of `work` and of one room that a block's calls need; to be asked before they are allocated.
LK_EXPORT(void, block_sizes)(const void* block, int64_t* work, int64_t* room) {
  const Block& b = *static_cast<const Block*>(block);
  int64_t ranks = 0;
  for (const Layer& l : b.layer) ranks = std::max(ranks, l.rank);
  *work = places_of(b).end;
  *room = up_to(std::max({PRODUCT_ROOM, attention_room(attention_of(b)), outer_room(ranks)}), NR);
}

LK_EXPORT(void, block_forward)(const void* block) { forward(*static_cast<const Block*>(block)); }

LK_EXPORT(void, block_backward)(const void* block) { backward(*static_cast<const Block*>(block)); }
