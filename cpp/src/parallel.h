// Work of one call, shared out to threads.
#pragma once

#include <cstdint>
#include <functional>

namespace fastrcnn_engine::cpu {

// How many threads are worth starting for `items` that together take about `microseconds` on one.
// At most `most`, or num_threads() where that is 0.
int worthwhile_threads(int64_t items, double microseconds, int most);

// Runs work(thread, item) once for every item in [0, items), on at most `threads` threads, numbered from
// 0, the caller's among them: those of the process's OpenMP runtime, or new ones. Items are taken in
// turn; `work` must not throw.
void parallel_for(int64_t items, int threads, const std::function<void(int, int64_t)>& work);

}  // namespace fastrcnn_engine::cpu
