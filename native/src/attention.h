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
// undone in the gradients, so that nothing of it goes through memory. Heads are padded to E = NR floats times
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
  const float *cos, *sin;                               // (tokens, angles), of which the first half of a head is read
  int64_t angles;
  HeadForm query, key;
  float scale;
  const float *q, *k, *v;  // (tokens, heads or key heads, width)
  float *o, *log;          // (tokens, heads, width), (heads, tokens)
  const float* d_o;        // backward
  float *dq, *dk, *dv;     // (tokens, heads, width); (slots, tokens, key heads, width)
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
  return up_to(n * e * 6 + BLOCK * (n + 4 * e) + 2 * BLOCK * KEYS + 4 * BLOCK, NR);
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
inline void rows_of_head(const Attention& a, const float* x, int64_t step, int64_t token, int64_t count, int64_t rows, const HeadForm* form, float* out) {
  const int64_t e = a.padded(), width = a.width();
  for (int64_t t = 0; t < rows; t++) {
    float* to = out + t * e;
    if (t >= count) {
      std::fill(to, to + e, 0.f);
      continue;
    }
    const float* from = x + (token + t) * step;
    if (form) to_head(*form, from, a.cos + (token + t) * a.angles, a.sin + (token + t) * a.angles, to);
    else std::copy(from, from + width, to);
    std::fill(to + width, to + e, 0.f);
  }
}

// (rows, E) -> panels of NR rows turned: [rows / NR][E][NR].
inline void panels_of(const float* x, int64_t rows, int64_t e, float* out) {
  for (int64_t p = 0; p < rows; p += NR, x += NR * e, out += NR * e)
    for (int64_t c = 0; c < e; c += W)
      for (int64_t v = 0; v < NR; v += W) turn(x + v * e + c, e, out + c * NR + v, NR);
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
  float* k = room;
  float* kT = k + keys * e;
  float* v = kT + keys * e;
  float* q = v + keys * e;
  float* p = q + BLOCK * e;
  float* o = p + BLOCK * (keys + NR);
  const int64_t ldp = keys + NR;  // off a power of two
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
          tile(q + m * e, e, 1, kT + j * e, NR, e, c);
          put(c, p + m * ldp + j, ldp);
        }
      float total[BLOCK];
      for (int64_t r = 0; r < rows; r++) {
        float* s = p + r * ldp;
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
          store(s + j, x);
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
          tile(p + m * ldp + j0, ldp, 1, v + j0 * e + x, e, end - j0, c);
          put(c, o + m * e + x, e);
        }
      }
      for (int64_t r = 0; r < count; r++) {
        float* to = a.o + (first + i0 + r) * step + head * width;
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
  float* k = room;
  float* kT = k + keys * e;
  float* vT = kT + keys * e;
  float* dk = vT + keys * e;
  float* dv = dk + keys * e;
  float* q = dv + keys * e;
  float* g_o = q + BLOCK * e;
  float* dq = g_o + BLOCK * e;
  float* p = dq + BLOCK * e;
  float* ds = p + BLOCK * KEYS;
  rows_of_head(a, a.v + task.key_head * width, key_step, first, n, keys, nullptr, k);
  panels_of(k, keys, e, vT);
  rows_of_head(a, a.k + task.key_head * width, key_step, first, n, keys, &a.key, k);
  panels_of(k, keys, e, kT);
  std::fill(dk, dk + 2 * keys * e, 0.f);
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
            float *pm = p + m * KEYS + j, *dm = ds + m * KEYS + j;
            V c[MR][NV];
            if (j0 + j > i0 + m + MR - 1) {  // nothing of it is seen
              clear(c);
              put(c, pm, KEYS);
              put(c, dm, KEYS);
              continue;
            }
            const bool whole = j0 + j + NR - 1 <= i0 + m && (!a.window || j0 + j > i0 + m + MR - 1 - a.window);
            clear(c);
            tile(q + m * e, e, 1, kT + (j0 + j) * e, NR, e, c);
#pragma GCC unroll 6
            for (int64_t i = 0; i < MR; i++)
#pragma GCC unroll 2
              for (int64_t x = 0; x < NV; x++) {
                V y = exp(sub(mul(c[i][x], all(a.scale)), all(log[m + i])));
                if (!whole) y = seen(y, static_cast<float>(i0 + m + i), static_cast<float>(j0 + j + x * W), window);
                store(pm + i * KEYS + x * W, y);
              }
            clear(c);
            tile(g_o + m * e, e, 1, vT + (j0 + j) * e, NR, e, c);
#pragma GCC unroll 6
            for (int64_t i = 0; i < MR; i++)
#pragma GCC unroll 2
              for (int64_t x = 0; x < NV; x++)
                store(dm + i * KEYS + x * W, mul(mul(load(pm + i * KEYS + x * W), all(a.scale)), sub(c[i][x], all(delta[m + i]))));
          }
        for (int64_t j = 0; j < std::min(KEYS, i0 + rows - j0); j += MR) {
          const int64_t from = std::max<int64_t>(0, j0 + j - i0);  // the first query that sees the first of these keys
          if (from >= count) break;
          for (int64_t x = 0; x < e; x += NR) {
            V c[MR][NV];
            get(c, dv + (j0 + j) * e + x, e);
            tile(p + from * KEYS + j, 1, KEYS, g_o + from * e + x, e, count - from, c);
            put(c, dv + (j0 + j) * e + x, e);
            get(c, dk + (j0 + j) * e + x, e);
            tile(ds + from * KEYS + j, 1, KEYS, q + from * e + x, e, count - from, c);
            put(c, dk + (j0 + j) * e + x, e);
          }
        }
        for (int64_t m = 0; m < rows; m += MR) {
          const int64_t depth = std::min(end, i0 + m + MR - j0);
          if (depth <= 0) continue;
          for (int64_t x = 0; x < e; x += NR) {
            V c[MR][NV];
            get(c, dq + m * e + x, e);
            tile(ds + m * KEYS, KEYS, 1, k + j0 * e + x, e, depth, c);
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
  for (float* x : {a.dk, a.dv})
    for (int64_t part = 1; part < parts; part++) {
      const float* from = x + (part * a.tokens + t) * size;
      by_vectors(size, [&](int64_t i, int64_t count) { some(x + t * size + i, add(some(x + t * size + i, count), some(from + i, count)), count); });
    }
  for (int64_t h = 0; h < a.key_heads; h++) {
    float* g = a.dk + t * size + h * width;
    from_head(a.key, g, a.k + t * size + h * width, a.cos + t * a.angles, a.sin + t * a.angles, g);
  }
}

}  // namespace
}  // namespace LK_SPACE
