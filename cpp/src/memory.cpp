// Asks the system for huge pages, which only Linux has. Allocates nothing, and knows no operator.
#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrcnn_engine::cpu {

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  // Only advice: a kernel that knows no huge pages refuses, and nothing is lost.
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace fastrcnn_engine::cpu
