// Causal attention of packed sequences on themselves, forward and backward (arXiv 1706.03762, 2205.14135).
//
//   S = scale Q K^T     P = softmax(S), of keys j with i - window < j <= i     O = P V     l = log sum e^S
//   dV = P^T dO         dS = P (dO V^T - d), d = rowsum(dO O)     dQ = scale dS K     dK = scale dS^T Q
//
// A task is one sequence, one key head and some of the query heads that read it. It turns its keys (and in the
// backward its values) once into panels of NR columns, and goes over blocks of BLOCK queries:
//
//        keys  0      NR     2 NR
//            +------+------+------+           forward: the whole rows of S of a block, then their softmax
//   queries  | tile | tile | \ 0  |           backward: squares of BLOCK x KEYS, P = e^(S - l) at once
//            +------+------+------+           tiles that the diagonal leaves empty are not computed
//
// q, k and v are those of the linear layers; norm and rotary of heads are applied when a task reads them and
// undone in the gradients, so that nothing of it goes through memory. Heads are padded to E = NR numbers times
// some, zeros beyond; rows of a block to MR times some. The gradients of one key head from several tasks go to
// slots of their own and are summed in their order afterwards.
#pragma once
#include <algorithm>
#include <limits>

#include "items.h"
#include "passes.h"
#include "tile.h"

namespace LK_SPACE {
namespace {

constexpr int64_t BLOCK = 48, KEYS = 96;  // MR and NR divide both
constexpr int64_t APART = 256;            // beyond so many tokens the query heads of a key head are tasks of their own,
constexpr int64_t HALVED = 1024;          // and beyond so many each of them is two, of earlier and of later queries

struct Attention {
  int64_t tokens, heads, key_heads, sequences, window;  // window: 0 for all
  const int64_t* start;                                 // (sequences + 1,) first token of each, and their end
  const num *cos, *sin;                                 // (tokens, angles), of which the first half of a head is read
  int64_t angles;
  HeadForm query, key;
  float scale;
  const num *q, *k, *v;  // (tokens, heads or key heads, width)
  num* o;                // (tokens, heads, width)
  float* log;            // (heads, tokens)
  const num* d_o;        // backward
  num *dq, *dk, *dv;     // (tokens, heads, width); (slots, tokens, key heads, width)
  int64_t width() const { return query.width; }
  int64_t padded() const { return up_to(query.width, NR); }
  int64_t group() const { return heads / key_heads; }
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t s = 0; s < sequences; s++) most = std::max(most, start[s + 1] - start[s]);
    return most;
  }
};

struct Task {
  int64_t sequence, key_head, part;
  int64_t first, last;      // heads of the group
  int64_t from, to;         // queries of the sequence
};

// How many tasks each key head of a sequence has, and so how many slots its gradients: none but its length decides.
inline int64_t parts_of(const Attention& a, int64_t length) {
  return length > HALVED ? 2 * a.group() : length > APART ? a.group() : 1;
}
inline int64_t most_parts(const Attention& a) { return parts_of(a, a.longest()); }

inline Task task_of(const Attention& a, int64_t sequence, int64_t key_head, int64_t part) {
  const int64_t n = a.start[sequence + 1] - a.start[sequence], parts = parts_of(a, n);
  if (parts == 1) return {sequence, key_head, part, 0, a.group(), 0, n};
  if (n <= HALVED) return {sequence, key_head, part, part, part + 1, 0, n};
  // Query i sees i + 1 keys: both halves of the scores where i^2 is half of n^2.
  const int64_t middle = up_to(n * 7071 / 10000, BLOCK), later = part % 2;
  return {sequence, key_head, part, part / 2, part / 2 + 1, later ? middle : 0, later ? n : middle};
}

// Floats that a task needs of a room.
inline int64_t attention_room(const Attention& a) {
  const int64_t n = up_to(a.longest(), KEYS) + KEYS, e = a.padded();
  const int64_t forward = 3 * n * e + BLOCK * (n + 2 * e), backward = 5 * n * e + 3 * BLOCK * (e + KEYS);
  return up_to(std::max(forward, backward), NR) + 16 * NR;
}

template <class F>
inline void all_tasks(const Attention& a, const Rooms& rooms, F&& f) {
  int64_t count = 0;
  for (int64_t s = 0; s < a.sequences; s++) count += parts_of(a, a.start[s + 1] - a.start[s]) * a.key_heads;
  each(count, rooms, [&](int64_t item, float* room) {
    int64_t s = 0;
    for (;; s++) {
      const int64_t own = parts_of(a, a.start[s + 1] - a.start[s]) * a.key_heads;
      if (item < own) break;
      item -= own;
    }
    const int64_t parts = parts_of(a, a.start[s + 1] - a.start[s]);
    f(task_of(a, s, item / parts, item % parts), room);
  });
}

// Rows [0, count) of heads, padded to (rows, E) with zeros; prepared as attention takes them where form is given.
inline void rows_of_head(const Attention& a, const num* x, int64_t step, int64_t token, int64_t count, int64_t rows, const HeadForm* form, num* out) {
  const int64_t e = a.padded(), width = a.width();
  for (int64_t t = 0; t < rows; t++) {
    num* to = out + t * e;
    if (t >= count) {
      std::fill(to, to + e, num(0.f));
      continue;
    }
    const num* from = x + (token + t) * step;
    if (form) to_head(*form, from, a.cos + (token + t) * a.angles, a.sin + (token + t) * a.angles, to);
    else std::copy(from, from + width, to);
    std::fill(to + width, to + e, num(0.f));
  }
}

// (rows, E) -> panels of NR rows turned: [rows / NR][E / PAIR][NR][PAIR].
inline void panels_of(const num* x, int64_t rows, int64_t e, num* out) {
  for (int64_t p = 0; p < rows; p += NR, x += NR * e, out += NR * e)
    for (int64_t c = 0; c < e; c += W * PAIR)
      for (int64_t v = 0; v < NR; v += W) turn(x + v * e + c, e, out + c * NR + v * PAIR, NR * PAIR);
}

// The next piece of a room: so many Ts.
template <class T>
inline T* piece(float*& room, int64_t count) {
  T* own = reinterpret_cast<T*>(room);
  room += up_to(count * int64_t(sizeof(T)) / 4 + 1, 16);
  return own;
}

// Zeros where query `row` does not see key `key + lane`.
inline V seen(V x, float row, float key, float window) {
  const V keys = add(counted(), all(key));
  x = where_at_most(keys, all(row), x);
  return window > 0 ? where_at_most(all(row - window + 1), keys, x) : x;
}

inline void attend(const Attention& a, const Task& task, float* room) {
  const int64_t first = a.start[task.sequence], n = a.start[task.sequence + 1] - first, e = a.padded(), width = a.width();
  const int64_t step = a.heads * width, key_step = a.key_heads * width, keys = up_to(n, NR);
  const int64_t ldp = keys + NR, ldn = ldp * PAIR;  // off a power of two; in numbers
  num* k = piece<num>(room, keys * e);
  num* kT = piece<num>(room, keys * e);
  num* v = piece<num>(room, keys * e);
  num* q = piece<num>(room, BLOCK * e);
  float* p = piece<float>(room, BLOCK * ldp);  // a row's probabilities take the place of its scores
  float* o = piece<float>(room, BLOCK * e);
  rows_of_head(a, a.k + task.key_head * width, key_step, first, n, keys, &a.key, k);
  panels_of(k, keys, e, kT);
  rows_of_head(a, a.v + task.key_head * width, key_step, first, n, keys, nullptr, v);
  for (int64_t g = task.first; g < task.last; g++) {
    const int64_t head = task.key_head * a.group() + g;
    for (int64_t i0 = task.from; i0 < task.to; i0 += BLOCK) {
      const int64_t count = std::min(BLOCK, task.to - i0), rows = up_to(count, MR);
      const int64_t j0 = a.window ? std::max<int64_t>(0, i0 - a.window + 1) / NR * NR : 0;
      rows_of_head(a, a.q + head * width, step, first + i0, count, rows, &a.query, q);
      for (int64_t j = j0; j < std::min(up_to(i0 + rows, NR), keys); j += NR)
        for (int64_t m = std::max<int64_t>(0, (j - i0) / MR * MR); m < rows; m += MR) {
          V c[MR][NV];
          clear(c);
          tile<Lies::PANEL>(q + m * e, e, PAIR, kT + j * e, 0, e, c);
          put(c, p + m * ldp + j, ldp);
        }
      float total[BLOCK];
      for (int64_t r = 0; r < rows; r++) {
        float* s = p + r * ldp;
        num* own = reinterpret_cast<num*>(s);
        const int64_t row = std::min(i0 + r, n - 1), low = a.window ? std::max<int64_t>(0, row - a.window + 1) : 0;
        const int64_t end = std::min(up_to(i0 + r / MR * MR + MR, NR), keys);  // what the tiles of this row reach
        for (int64_t j = j0; j < low; j++) s[j] = -std::numeric_limits<float>::infinity();
        for (int64_t j = row + 1; j < end; j++) s[j] = -std::numeric_limits<float>::infinity();
        V most = load(s + j0);
        for (int64_t j = j0 + W; j < end; j += W) most = larger(most, load(s + j));
        const float top = largest(most) * a.scale;
        V sums = zero();
        for (int64_t j = j0; j < end; j += W) {
          const V x = exp(sub(mul(load(s + j), all(a.scale)), all(top)));
          store(own + j, x);
          sums = add(sums, x);
        }
        total[r] = sum(sums);
        if (r < count) a.log[head * a.tokens + first + i0 + r] = top + std::log(total[r]);
      }
      for (int64_t m = 0; m < rows; m += MR) {
        const int64_t end = std::min(i0 + m + MR, keys);
        for (int64_t x = 0; x < e; x += NR) {
          V c[MR][NV];
          clear(c);
          tile<Lies::ROWS>(reinterpret_cast<num*>(p + m * ldp) + j0, ldn, PAIR, v + j0 * e + x, e, end - j0, c);
          put(c, o + m * e + x, e);
        }
      }
      for (int64_t r = 0; r < count; r++) {
        num* to = a.o + (first + i0 + r) * step + head * width;
        const V by = all(1.f / total[r]);
        by_vectors(width, [&](int64_t x, int64_t lanes) { some(to + x, mul(load(o + r * e + x), by), lanes); });
      }
    }
  }
}

// dq of the task's heads and queries; dk and dv of its key head into its slot.
inline void attend_back(const Attention& a, const Task& task, float* room) {
  const int64_t first = a.start[task.sequence], n = a.start[task.sequence + 1] - first, e = a.padded(), width = a.width();
  const int64_t step = a.heads * width, key_step = a.key_heads * width, keys = up_to(n, KEYS);
  const float window = static_cast<float>(a.window);
  num* k = piece<num>(room, keys * e);
  num* kT = piece<num>(room, keys * e);
  num* vT = piece<num>(room, keys * e);
  float* dk = piece<float>(room, keys * e);
  float* dv = piece<float>(room, keys * e);
  num* q = piece<num>(room, BLOCK * e);
  num* g_o = piece<num>(room, BLOCK * e);
  float* dq = piece<float>(room, BLOCK * e);
  num* ds = piece<num>(room, BLOCK * KEYS);                   // by rows, for dQ,
  num* dsP = PAIR > 1 ? piece<num>(room, BLOCK * KEYS) : ds;  // and in pairs of rows, for dK
  num* p = piece<num>(room, BLOCK * KEYS);                    // in pairs of rows, for dV
  rows_of_head(a, a.v + task.key_head * width, key_step, first, n, keys, nullptr, k);
  panels_of(k, keys, e, vT);
  rows_of_head(a, a.k + task.key_head * width, key_step, first, n, keys, &a.key, k);
  panels_of(k, keys, e, kT);
  std::fill(dk, dk + keys * e, 0.f);
  std::fill(dv, dv + keys * e, 0.f);
  for (int64_t g = task.first; g < task.last; g++) {
    const int64_t head = task.key_head * a.group() + g;
    for (int64_t i0 = task.from; i0 < task.to; i0 += BLOCK) {
      const int64_t count = std::min(BLOCK, task.to - i0), rows = up_to(count, MR);
      float log[BLOCK], delta[BLOCK];
      rows_of_head(a, a.q + head * width, step, first + i0, count, rows, &a.query, q);
      rows_of_head(a, a.d_o + head * width, step, first + i0, count, rows, nullptr, g_o);
      std::fill(dq, dq + rows * e, 0.f);
      for (int64_t r = 0; r < rows; r++) {
        log[r] = r < count ? a.log[head * a.tokens + first + i0 + r] : std::numeric_limits<float>::max();
        delta[r] = r < count ? dot(g_o + r * e, a.o + (first + i0 + r) * step + head * width, width) : 0.f;
      }
      const int64_t low = a.window ? std::max<int64_t>(0, i0 - a.window + 1) / KEYS * KEYS : 0;
      for (int64_t j0 = low; j0 < i0 + count; j0 += KEYS) {
        const int64_t end = std::min(KEYS, up_to(i0 + rows, NR) - j0);  // keys that are looked at
        for (int64_t j = 0; j < end; j += NR)
          for (int64_t m = 0; m < rows; m += MR) {
            num *pm = p + m * KEYS + j * PAIR, *dm = ds + m * KEYS + j, *dp = dsP + m * KEYS + j * PAIR;
            V c[MR][NV];
            clear(c);
            if (j0 + j > i0 + m + MR - 1) {  // nothing of it is seen
              put_pairs(c, pm, KEYS);
              put_pairs(c, dp, KEYS);
              put(c, dm, KEYS);
              continue;
            }
            const bool whole = j0 + j + NR - 1 <= i0 + m && (!a.window || j0 + j > i0 + m + MR - 1 - a.window);
            alignas(64) float probability[MR * NR];
            tile<Lies::PANEL>(q + m * e, e, PAIR, kT + (j0 + j) * e, 0, e, c);
#pragma GCC unroll 12
            for (int64_t i = 0; i < MR; i++)
#pragma GCC unroll 2
              for (int64_t x = 0; x < NV; x++) {
                c[i][x] = exp(sub(mul(c[i][x], all(a.scale)), all(log[m + i])));
                if (!whole) c[i][x] = seen(c[i][x], static_cast<float>(i0 + m + i), static_cast<float>(j0 + j + x * W), window);
              }
            put(c, probability, NR);
            put_pairs(c, pm, KEYS);
            clear(c);
            tile<Lies::PANEL>(g_o + m * e, e, PAIR, vT + (j0 + j) * e, 0, e, c);
#pragma GCC unroll 12
            for (int64_t i = 0; i < MR; i++)
#pragma GCC unroll 2
              for (int64_t x = 0; x < NV; x++)
                c[i][x] = mul(mul(load(probability + i * NR + x * W), all(a.scale)), sub(c[i][x], all(delta[m + i])));
            put(c, dm, KEYS);
            if (PAIR > 1) put_pairs(c, dp, KEYS);
          }
        for (int64_t j = 0; j < std::min(KEYS, i0 + rows - j0); j += MR) {
          const int64_t from = std::max<int64_t>(0, j0 + j - i0);  // the first query that sees the first of these keys
          if (from >= count) break;
          for (int64_t x = 0; x < e; x += NR) {
            V c[MR][NV];
            get(c, dv + (j0 + j) * e + x, e);
            tile<Lies::ROWS>(p + from * KEYS + j * PAIR, PAIR, PAIR * KEYS, g_o + from * e + x, e, count - from, c);
            put(c, dv + (j0 + j) * e + x, e);
            get(c, dk + (j0 + j) * e + x, e);
            tile<Lies::ROWS>(dsP + from * KEYS + j * PAIR, PAIR, PAIR * KEYS, q + from * e + x, e, count - from, c);
            put(c, dk + (j0 + j) * e + x, e);
          }
        }
        for (int64_t m = 0; m < rows; m += MR) {
          const int64_t depth = std::min(end, i0 + m + MR - j0);
          if (depth <= 0) continue;
          for (int64_t x = 0; x < e; x += NR) {
            V c[MR][NV];
            get(c, dq + m * e + x, e);
            tile<Lies::ROWS>(ds + m * KEYS, KEYS, PAIR, k + j0 * e + x, e, depth, c);
            put(c, dq + m * e + x, e);
          }
        }
      }
      for (int64_t r = 0; r < count; r++) {
        const int64_t t = first + i0 + r;
        from_head(a.query, dq + r * e, a.q + t * step + head * width, a.cos + t * a.angles, a.sin + t * a.angles, dq + r * e);
        std::copy(dq + r * e, dq + r * e + width, a.dq + t * step + head * width);
      }
    }
  }
  const int64_t slot = task.part * a.tokens * key_step;
  for (int64_t t = 0; t < n; t++) {
    const int64_t at = slot + (first + t) * key_step + task.key_head * width;
    std::copy(dk + t * e, dk + t * e + width, a.dk + at);
    std::copy(dv + t * e, dv + t * e + width, a.dv + at);
  }
}

// The gradients of k and v of one token: its slots summed into the first, rotary and norm undone.
inline void finish_keys(const Attention& a, int64_t t) {
  const int64_t s = std::upper_bound(a.start, a.start + a.sequences + 1, t) - a.start - 1;
  const int64_t parts = parts_of(a, a.start[s + 1] - a.start[s]), width = a.width(), size = a.key_heads * width;
  for (num* x : {a.dk, a.dv})
    for (int64_t part = 1; part < parts; part++) {
      const num* from = x + (part * a.tokens + t) * size;
      by_vectors(size, [&](int64_t i, int64_t count) { some(x + t * size + i, add(some(x + t * size + i, count), some(from + i, count)), count); });
    }
  for (int64_t h = 0; h < a.key_heads; h++) {
    num* g = a.dk + t * size + h * width;
    from_head(a.key, g, a.k + t * size + h * width, a.cos + t * a.angles, a.sin + t * a.angles, g);
  }
}

}  // namespace
}  // namespace LK_SPACE
