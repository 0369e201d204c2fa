// Memory of the CPU operators.
#pragma once

#include <cstdint>
#include <new>

namespace fastrcnn_engine::cpu {

// Asks for huge pages where a large result will be written: in pages of 4 KiB the first touch of new
// memory takes several times as long as the operator. Memory in use already is left as it is.
void advise_huge_pages(void* data, int64_t bytes);

// A piece of memory for every thread of a call, each beginning on a cache line. Each is
// longer than was asked for: put_run reads whole vectors, and two lines of sums for one of 16-bit results.
class Scratch {
 public:
  Scratch(int64_t bytes_per_thread, int threads)
      : stride_((bytes_per_thread + 4 * kLine - 1) / kLine * kLine),
        memory_(static_cast<char*>(::operator new(stride_ * threads,
                                                  std::align_val_t{kLine}))) {}
  ~Scratch() { ::operator delete(memory_, std::align_val_t{kLine}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* of(int thread) const { return memory_ + stride_ * thread; }

 private:
  static constexpr int64_t kLine = 64;
  int64_t stride_;
  char* memory_;
};

}  // namespace fastrcnn_engine::cpu
