// A step of a decoder of the llama family, all its blocks in one call: what decoding many sequences is slow for.
//
// A step is T tokens: of each sequence its next one, or a piece of its prompt (src/lorakit/execution/steps.py).
//
//     x (T, D)
//       |  n = norm(x)          h = A n                     by token
//       |  y = n W' + h B       q, k, v                     by outputs
//       |  q, k turned; k and v to the cells; attention     by sequence and key head
//       |  h = A o                                          by token, where there are adapters
//       |  y = o W' + h B                                   by outputs
//       |  x += y    n = norm(x)    h = A n                 by token
//       |  a = silu(n W' + h B) (n W' + h B)                by outputs: gate and up of one place together
//       |  h = A a                                          by token, where there are adapters
//       |  y = a W' + h B                                   by outputs
//       v  x += y
//     logits of the kept tokens: norm, then the head
//
// Each line is one parallel region of items that whoever is free takes. An item computes whole results, and a
// result's additions have one order: neither threads nor neighbours in the step change a bit.
//
// Weights are read where they lie, (out, in), and each once: a token's product with a row of W is a dot product,
// a tile of them is four rows of W by three tokens, and the next four rows are asked for meanwhile.
//
// Cells: a layer's cache is (cells, 2, K, E), keys before values. Slots and runs: see slots.h.
#include "slots.h"

#include <cmath>
#include <cstdlib>
#include <initializer_list>

namespace LK_SPACE {
namespace {

typedef int64_t L;

struct Linear {  // linear layers that share their input, laid under one another
  const num *w, *bias, *A, *B;  // bias may be null; A and B of all slots
  L in, out, linears, rank, chunks, chunk;
  const L* owner;
};
struct Block {
  const num *norm1, *norm2, *q_norm, *k_norm;  // the norms of heads may be null
  num* cells;
  Linear qkv, o, gate_up, down;
  float eps1, eps2, q_eps, k_eps, scale, unused;
  L window, chunk;  // 0 for none
};
struct Place {
  L start, size, past, count;
};
struct Step {
  L tokens, blocks, width, heads, key_heads, head, places, runs, kept, kept_runs, most_width, unused;
  const Block* block;
  const L* active;  // of every block its four linears, then the head: whether some adapter of the step is there
  const Place* place;
  const Run *run, *kept_run;
  const L* keep;
  const float *cos, *sin;  // (T, head)
  num* x;                  // (T, D)
  num* room;               // as `room_of` says
  const num* norm;
  Linear out;
  num* logits;  // (kept, vocabulary)
  float eps, unused2;
};

template <class F>
inline void each(L items, F&& f) {
  L next = 0;
  if (items == 1) return f(L(0));
  if (items) parallel([&](int, int) {
    for (L i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < items;) f(i);
  });
}
inline L pieces(L n, L size) { return (n + size - 1) / size; }
inline L least(L a, L b) { return a < b ? a : b; }

// e^x = 2^n e^r, |r| <= ln 2 / 2, by a polynomial of r; two units in the last place. 0 below -87.
inline V exponential(V x) {
  const V low = all(-87.f), y = _mm256_min_ps(all(88.f), _mm256_max_ps(low, x));
  const V n = _mm256_round_ps(mul(y, all(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const V r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), y));
  V p = all(1.f / 5040);
  for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) p = fma(p, r, all(c));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  const V e = mul(p, _mm256_castsi256_ps(power));
  return _mm256_and_ps(e, _mm256_cmp_ps(x, low, _CMP_NLT_UQ));  // a NaN stays one
}

// --- products

constexpr L DEPTH = 768;   // of W and x that a tile reads at once: a few rows of each stay in the first cache
constexpr L TOKENS = 96;   // whose x stays in the second cache while rows of W go past it
constexpr L OUTPUTS = 96;  // an item's

// The sums of four vectors, each (0+1)+(2+3) of its lower half plus the same of its upper half.
inline __m128 sums(V a, V b, V c, V d) {
  const V s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

// y[m][q] (+)= w[q] . x[m], Q rows of W and M tokens; asks for `lines` cache lines from `next` on meanwhile.
template <int Q, int M>
inline void tile(const num* w, L w_step, const num* x, L x_step, L depth, num* y, L y_step, bool onto, const char* next, L lines) {
  V s[M][4];
  for (int m = 0; m < M; m++)
    for (int q = 0; q < 4; q++) s[m][q] = zero();
  for (L i = 0; i < lines; i++) _mm_prefetch(next + 64 * i, _MM_HINT_T1);
  L k = 0;
  for (; k + W <= depth; k += W) {
    V xs[M];
    for (int m = 0; m < M; m++) xs[m] = load(x + m * x_step + k);
    for (int q = 0; q < Q; q++) {
      const V row = load(w + q * w_step + k);
      for (int m = 0; m < M; m++) s[m][q] = fma(row, xs[m], s[m][q]);
    }
  }
  for (int m = 0; m < M; m++) {
    alignas(16) float dot[4];
    _mm_store_ps(dot, sums(s[m][0], s[m][1], s[m][2], s[m][3]));
    for (L j = k; j < depth; j++)
      for (int q = 0; q < Q; q++) dot[q] += w[q * w_step + j] * x[m * x_step + j];
    num* to = y + m * y_step;
    if (Q == 4) {
      const __m128 d = _mm_load_ps(dot);
      _mm_storeu_ps(to, onto ? _mm_add_ps(_mm_loadu_ps(to), d) : d);
    } else
      for (int q = 0; q < Q; q++) to[q] = onto ? to[q] + dot[q] : dot[q];
  }
}

template <int Q>
inline void rows(const num* w, L w_step, const num* x, L x_step, L tokens, L depth, num* y, L y_step, bool onto, const char* next) {
  L m = 0;
  const L lines = next ? pieces(Q * depth * L(sizeof(num)) / 64, pieces(tokens, 3)) : 0;
  for (; m + 3 <= tokens; m += 3, next += 64 * lines)
    tile<Q, 3>(w, w_step, x + m * x_step, x_step, depth, y + m * y_step, y_step, onto, next, lines);
  if (tokens - m == 2) tile<Q, 2>(w, w_step, x + m * x_step, x_step, depth, y + m * y_step, y_step, onto, next, lines);
  if (tokens - m == 1) tile<Q, 1>(w, w_step, x + m * x_step, x_step, depth, y + m * y_step, y_step, onto, next, lines);
}

// y[t][first .. last) of x W' + bias for all tokens.
void product(const Linear& l, const num* x, L tokens, L first, L last, num* y) {
  for (L t = 0; t < tokens; t += TOKENS) {
    const L some = least(TOKENS, tokens - t);
    for (L k = 0; k < l.in; k += DEPTH) {
      const L depth = least(DEPTH, l.in - k);
      L n = first;
      for (; n + 4 <= last; n += 4) {
        const num* w = l.w + n * l.in + k;
        const char* next = n + 8 <= last ? reinterpret_cast<const char*>(w + 4 * l.in) : nullptr;
        rows<4>(w, l.in, x + t * l.in + k, l.in, some, depth, y + t * l.out + n, l.out, k > 0, depth == l.in ? next : nullptr);
      }
      for (; n < last; n++)
        rows<1>(l.w + n * l.in + k, l.in, x + t * l.in + k, l.in, some, depth, y + t * l.out + n, l.out, k > 0, nullptr);
    }
  }
  if (l.bias)
    for (L t = 0; t < tokens; t++)
      for (L n = first; n < last; n++) y[t * l.out + n] += l.bias[n];
}

// --- adapters

// Up to four tokens of one run.
struct Few {
  L slot, width, first, rows;
};

L cut(const Run* run, L runs, Few* few) {
  L count = 0;
  for (L i = 0; i < runs; i++)
    for (L t = 0; t < run[i].rows; t += 4)
      few[count++] = {run[i].slot, run[i].width, run[i].first + t, least(4, run[i].rows - t)};
  return count;
}

// h = A x of some tokens, `h` at the first of them; (width, linears * R) for each token, `step` apart.
inline void down_to_h(const Linear& l, const Few& f, const num* x, float* h, L step) {
  const L ranks = l.linears * l.rank;
  for (L w = 0; w < f.width; w++) {
    const num* A = l.A + (f.slot + w) * ranks * l.in;
    switch (f.rows) {
      case 1: all_dots<1>(A, x, l.in, ranks, h + w * ranks, step); break;
      case 2: all_dots<2>(A, x, l.in, ranks, h + w * ranks, step); break;
      case 3: all_dots<3>(A, x, l.in, ranks, h + w * ranks, step); break;
      default: all_dots<4>(A, x, l.in, ranks, h + w * ranks, step);
    }
  }
}

// y[t][first .. last) += h B of all tokens that have an adapter.
void up_from_h(const Linear& l, const Few* few, L count, const float* h, L step, L first, L last, num* y) {
  const L ranks = l.linears * l.rank;
  for (L i = 0; i < count; i++) {
    const Few& f = few[i];
    for (L w = 0; w < f.width; w++)
      for (L c = first / l.chunk; c * l.chunk < last; c++) {
        const L begin = c * l.chunk > first ? 0 : first - c * l.chunk, end = least(l.chunk, last - c * l.chunk);
        const num* B = l.B + ((f.slot + w) * l.chunks + c) * l.rank * l.chunk + begin;
        const float* from = h + f.first * step + w * ranks + l.owner[c] * l.rank;
        num* to = y + f.first * l.out + c * l.chunk + begin;
        if (i + 1 < count) {  // the next adapter's part of this place
          const num* next = l.B + (few[i + 1].slot * l.chunks + c) * l.rank * l.chunk + begin;
          if (few[i + 1].slot != f.slot)
            for (L r = 0; r < l.rank; r++)
              for (L j = 0; j < end - begin; j += 16) _mm_prefetch(reinterpret_cast<const char*>(next + r * l.chunk + j), _MM_HINT_T0);
        }
        switch (f.rows) {
          case 1: onto<1>(B, from, step, l.rank, end - begin, l.chunk, to, l.out); break;
          case 2: onto<2>(B, from, step, l.rank, end - begin, l.chunk, to, l.out); break;
          case 3: onto<3>(B, from, step, l.rank, end - begin, l.chunk, to, l.out); break;
          default: onto<4>(B, from, step, l.rank, end - begin, l.chunk, to, l.out);
        }
      }
  }
}

// --- by token

inline float dot(const num* a, const num* b, L n) {
  V s = zero();
  L i = 0;
  for (; i + W <= n; i += W) s = fma(load(a + i), load(b + i), s);
  float rest = sum(s);
  for (; i < n; i++) rest += a[i] * b[i];
  return rest;
}
inline void norm(const num* x, const num* w, float eps, L n, num* out) {
  const float r = 1.f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps);
  L i = 0;
  for (; i + W <= n; i += W) store(out + i, mul(mul(load(x + i), all(r)), load(w + i)));
  for (; i < n; i++) out[i] = x[i] * r * w[i];
}
inline void plus(num* x, const num* y, L n) {
  L i = 0;
  for (; i + W <= n; i += W) store(x + i, add(load(x + i), load(y + i)));
  for (; i < n; i++) x[i] += y[i];
}
// gate = silu(gate) up
inline void gated(num* gate, const num* up, num* out, L n) {
  L i = 0;
  for (; i + W <= n; i += W) {
    const V g = load(gate + i);
    const V e = exponential(_mm256_sub_ps(zero(), g));
    store(out + i, mul(_mm256_div_ps(g, add(all(1.f), e)), load(up + i)));
  }
  for (; i < n; i++) out[i] = gate[i] / (1.f + std::exp(-gate[i])) * up[i];
}
// The norm of a head, where there is one, then (x1, x2) -> (x1 c - x2 s, x2 c + x1 s) of its halves.
inline void turn(const num* x, const num* w, float eps, const float* cos, const float* sin, L n, num* out) {
  if (w) {
    norm(x, w, eps, n, out);
    x = out;
  }
  const L half = n / 2;
  L i = 0;
  for (; i + W <= half; i += W) {
    const V a = load(x + i), b = load(x + half + i);
    const V c = load(cos + i), s = load(sin + i), c2 = load(cos + half + i), s2 = load(sin + half + i);
    store(out + i, _mm256_fmsub_ps(a, c, mul(b, s)));
    store(out + half + i, fma(b, c2, mul(a, s2)));
  }
  for (; i < half; i++) {
    const float a = x[i], b = x[half + i];
    out[i] = a * cos[i] - b * sin[i];
    out[half + i] = b * cos[half + i] + a * sin[half + i];
  }
}

// --- attention

// o of G query heads of one token over cells [0, count), which lie `step` apart. p: G * count rounded up to W.
template <int G>
void attend(const num* q, const num* k, const num* v, L step, L count, L head, float scale, float* p, num* o) {
  const L padded = pieces(count, W) * W;
  L j = 0;
  for (; j + 4 <= count; j += 4) tile<4, G>(k + j * step, step, q, head, head, p + j, padded, false, nullptr, 0);
  for (; j < count; j++) tile<1, G>(k + j * step, step, q, head, head, p + j, padded, false, nullptr, 0);
  float total[G];
  for (int g = 0; g < G; g++) {
    float* row = p + g * padded;
    for (j = count; j < padded; j++) row[j] = -INFINITY;
    V most = load(row);
    for (j = W; j < padded; j += W) most = _mm256_max_ps(load(row + j), most);
    alignas(32) float lanes[W];
    _mm256_store_ps(lanes, most);
    float high = lanes[0];
    for (int i = 1; i < W; i++) high = lanes[i] > high ? lanes[i] : high;
    V s = zero();
    for (j = 0; j < padded; j += W) {
      const V e = exponential(mul(_mm256_sub_ps(load(row + j), all(high)), all(scale)));
      store(row + j, e);
      s = add(s, e);
    }
    total[g] = sum(s);
  }
  for (L e = 0; e < head; e += 4 * W) {
    const int vectors = static_cast<int>(least(4, (head - e) / W));
    V s[G][4];
    for (int g = 0; g < G; g++)
      for (int i = 0; i < 4; i++) s[g][i] = zero();
    if (vectors == 4) {
      for (j = 0; j < count; j++) {
        V cell[4];
        for (int i = 0; i < 4; i++) cell[i] = load(v + j * step + e + i * W);
        for (int g = 0; g < G; g++) {
          const V f = all(p[g * padded + j]);
          for (int i = 0; i < 4; i++) s[g][i] = fma(f, cell[i], s[g][i]);
        }
      }
    } else {
      for (j = 0; j < count; j++)
        for (int g = 0; g < G; g++)
          for (int i = 0; i < vectors; i++) s[g][i] = fma(all(p[g * padded + j]), load(v + j * step + e + i * W), s[g][i]);
    }
    for (int g = 0; g < G; g++)
      for (int i = 0; i < vectors; i++) store(o + g * head + e + i * W, _mm256_div_ps(s[g][i], all(total[g])));
  }
}

struct Attention {
  const Step& step;
  const Block& block;
  num *y, *o;  // (T, (H + 2 K) E), (T, H E)
  L wide() const { return (step.heads + 2 * step.key_heads) * step.head; }
  L cell() const { return 2 * step.key_heads * step.head; }
  L group() const { return step.heads / step.key_heads; }

  // Queries turned in place, keys turned to their cells, values to theirs: a token's, of one key head.
  void write(const Place& place, L token, L i, L key) const {
    const L E = step.head;
    num* row = y + token * wide();
    const float *cos = step.cos + token * E, *sin = step.sin + token * E;
    for (L h = key * group(); h < (key + 1) * group(); h++) turn(row + h * E, block.q_norm, block.q_eps, cos, sin, E, row + h * E);
    num* to = block.cells + (place.start + place.past + i) * cell() + key * E;
    turn(row + (step.heads + key) * E, block.k_norm, block.k_eps, cos, sin, E, to);
    std::memcpy(to + step.key_heads * E, row + (step.heads + step.key_heads + key) * E, E * sizeof(num));
  }

  void read(const Place& place, L token, L i, L key, float* p) const {
    const L E = step.head, at = place.past + i;
    L from = block.window && at >= block.window ? at - block.window + 1 : 0;
    if (block.chunk && from < at / block.chunk * block.chunk) from = at / block.chunk * block.chunk;
    const num* k = block.cells + (place.start + from) * cell() + key * E;
    const num *v = k + step.key_heads * E, *q = y + token * wide() + key * group() * E;
    num* to = o + token * step.heads * E + key * group() * E;
    const L count = at - from + 1;
    L g = 0;
    for (; g + 3 <= group(); g += 3) attend<3>(q + g * E, k, v, cell(), count, E, block.scale, p, to + g * E);
    if (group() - g == 2) attend<2>(q + g * E, k, v, cell(), count, E, block.scale, p, to + g * E);
    if (group() - g == 1) attend<1>(q + g * E, k, v, cell(), count, E, block.scale, p, to + g * E);
  }
};

constexpr L QUERIES = 16;  // of a prompt, an item's
struct Queries {
  L place, token, first, last;
};

// --- the step

struct Adapters {
  const Few* few;
  L count;
  float* h;
  L step;
};

L outputs_of(L out) { return out >= 16 * OUTPUTS ? OUTPUTS : out >= 8 * OUTPUTS ? OUTPUTS / 2 : OUTPUTS / 4; }

void by_outputs(const Linear& l, const num* x, L tokens, num* y, const Adapters& a) {
  const L size = outputs_of(l.out);
  each(pieces(l.out, size), [&](L i) {
    const L last = least(l.out, (i + 1) * size);
    product(l, x, tokens, i * size, last, y);
    if (a.count) up_from_h(l, a.few, a.count, a.h, a.step, i * size, last, y);
  });
}

// Each token once: those with an adapter by fours, the others, from `bare` on, by fours as well.
template <class F>
void by_token(const Few* few, L count, L bare, L tokens, F&& f) {
  const L rest = pieces(tokens - bare, 4);
  each(count + rest, [&](L i) {
    if (i < count) return f(few[i], true);
    const L first = bare + (i - count) * 4;
    f(Few{0, 0, first, least(4, tokens - first)}, false);
  });
}

void run_block(const Step& s, const Block& b, const L* active, const Few* few, L count, const Queries* queries, L parts, num* n, num* y, num* o, num* act, float* h, L h_step, float* p, L p_step, bool more) {
  const L T = s.tokens, D = s.width, mlp = b.down.in;
  const L bare = count ? few[count - 1].first + few[count - 1].rows : 0;
  auto with = [&](int i) { return Adapters{few, active[i] ? count : 0, h, h_step}; };
  auto normed = [&](const Linear& l, const num* w, float eps, const num* plus_y, bool adapted) {
    by_token(few, count, bare, T, [&](const Few& f, bool has) {
      for (L t = f.first; t < f.first + f.rows; t++) {
        if (plus_y) plus(s.x + t * D, plus_y + t * D, D);
        norm(s.x + t * D, w, eps, D, n + t * D);
      }
      if (has && adapted) down_to_h(l, f, n + f.first * D, h + f.first * h_step, h_step);
    });
  };
  auto only_h = [&](const Linear& l, const num* x) {
    each(count, [&](L i) { down_to_h(l, few[i], x + few[i].first * l.in, h + few[i].first * h_step, h_step); });
  };
  normed(b.qkv, b.norm1, b.eps1, nullptr, active[0]);
  by_outputs(b.qkv, n, T, y, with(0));

  const Attention attention = {s, b, y, o};
  if (more) {  // a prompt's tokens see each other: all cells are written first
    each(parts * s.key_heads, [&](L i) {
      const Queries& part = queries[i / s.key_heads];
      for (L t = part.first; t < part.last; t++) attention.write(s.place[part.place], part.token + t - part.first, t, i % s.key_heads);
    });
  }
  each(parts * s.key_heads, [&](L i) {
    const Queries& part = queries[i / s.key_heads];
    const L key = i % s.key_heads;
    for (L t = part.first; t < part.last; t++) {
      const L token = part.token + t - part.first;
      if (!more) attention.write(s.place[part.place], token, t, key);
      attention.read(s.place[part.place], token, t, key, p + i * p_step);
    }
  });
  if (active[1] && count) only_h(b.o, o);
  by_outputs(b.o, o, T, y, with(1));
  normed(b.gate_up, b.norm2, b.eps2, y, active[2]);

  const Adapters a = with(2);
  const L size = outputs_of(mlp);
  each(pieces(mlp, size), [&](L i) {
    const L first = i * size, last = least(mlp, first + size);
    for (L half : {L(0), mlp}) {
      product(b.gate_up, n, T, half + first, half + last, y);
      if (a.count) up_from_h(b.gate_up, a.few, a.count, h, h_step, half + first, half + last, y);
    }
    for (L t = 0; t < T; t++) gated(y + t * 2 * mlp + first, y + t * 2 * mlp + mlp + first, act + t * mlp + first, last - first);
  });
  if (active[3] && count) only_h(b.down, act);
  by_outputs(b.down, act, T, y, with(3));
  each(pieces(T, 4), [&](L i) {
    for (L t = i * 4; t < least(T, i * 4 + 4); t++) plus(s.x + t * D, y + t * D, D);
  });
}

struct Sizes {
  L n, y, o, act, h_step, h, p_step, p;
  L all() const { return n + y + o + act + h + p; }
};

Sizes sizes_of(const Step& s) {
  L out = 0, mlp = 0, ranks = s.out.linears * s.out.rank, longest = 0;
  for (L i = 0; i < s.blocks; i++)
    for (const Linear* l : {&s.block[i].qkv, &s.block[i].o, &s.block[i].gate_up, &s.block[i].down}) {
      if (l->out > out) out = l->out;
      if (l->in > mlp) mlp = l->in;
      if (l->linears * l->rank > ranks) ranks = l->linears * l->rank;
    }
  L parts = 0;
  for (L i = 0; i < s.places; i++) {
    parts += pieces(s.place[i].count, QUERIES);
    if (s.place[i].past + s.place[i].count > longest) longest = s.place[i].past + s.place[i].count;
  }
  const L T = s.tokens, step = 3 * pieces(longest, W) * W, h_step = ranks * s.most_width;
  return {T * s.width, T * out, T * s.heads * s.head, T * mlp, h_step, T * h_step, step, parts * s.key_heads * step};
}

}  // namespace
}  // namespace LK_SPACE

using namespace LK_SPACE;

// Floats of the room that a step needs.
LK_EXPORT(void, decode_room)(const Step* step, int64_t* floats) { *floats = sizes_of(*step).all(); }

// Run a step: x (T, D) holds the embeddings, `logits` (kept, vocabulary) is filled, keys and values go to the cells.
LK_EXPORT(void, decode)(const Step* given) {
  const Step& s = *given;
  const Sizes z = sizes_of(s);
  num *n = s.room, *y = n + z.n, *o = y + z.y, *act = o + z.o;
  float *h = act + z.act, *p = h + z.h;
  Few* few = static_cast<Few*>(std::malloc((s.tokens + s.kept + 1) * sizeof(Few)));
  Queries* queries = static_cast<Queries*>(std::malloc((s.tokens + 1) * sizeof(Queries)));
  const L count = cut(s.run, s.runs, few);
  L parts = 0, token = 0;
  bool more = false;
  for (L i = 0; i < s.places; token += s.place[i++].count) {
    more = more || s.place[i].count > 1;
    for (L t = 0; t < s.place[i].count; t += QUERIES) queries[parts++] = {i, token + t, t, least(t + QUERIES, s.place[i].count)};
  }
  for (L i = 0; i < s.blocks; i++)
    run_block(s, s.block[i], s.active + 4 * i, few, count, queries, parts, n, y, o, act, h, z.h_step, p, z.p_step, more);

  for (L i = 0; i < s.kept; i++) norm(s.x + s.keep[i] * s.width, s.norm, s.eps, s.width, n + i * s.width);
  const L kept = s.active[4 * s.blocks] ? cut(s.kept_run, s.kept_runs, few) : 0;
  for (L i = 0; i < kept; i++) down_to_h(s.out, few[i], n + few[i].first * s.width, h + few[i].first * z.h_step, z.h_step);
  by_outputs(s.out, n, s.kept, s.logits, Adapters{few, kept, h, z.h_step});
  std::free(queries);
  std::free(few);
}
