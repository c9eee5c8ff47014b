// One parallel region over numbered items, taken by whichever thread is free.
//
//     items   0 1 2 3 4 5 6 ...      an item computes whole results, so that no result depends on
//     thread  a b a a b a b ...      which thread took it; a thread that lost its core takes fewer
//
// Each thread works in a room of its own. A team larger than the number of rooms leaves threads idle.
#pragma once
#include <atomic>

#include "lk.h"

namespace LK_SPACE {
namespace {

struct Rooms {
  float* first;
  int64_t size, count;  // floats of a room, a multiple of 16; rooms
};

template <class F>
inline void each(int64_t items, const Rooms& rooms, F&& f) {
  if (items <= 0) return;
  if (items == 1) return f(int64_t{0}, rooms.first);
  std::atomic<int64_t> next{0};
  parallel([&](int thread, int) {
    if (thread >= rooms.count) return;
    float* room = rooms.first + thread * rooms.size;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(i, room);
  });
}

constexpr int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
constexpr int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

}  // namespace
}  // namespace LK_SPACE
