// What the emulator tells the sanitizer that watches the program. That is the one for memory, which has to
// follow from stack to stack; or, where FRCNN_RACES is defined, the one for races, to which a fiber is a
// thread: it knows which of a kernel's accesses a barrier puts in order, and which are so only here. What is
// shared by blocks no barrier puts in order.
#pragma once

#include <cstddef>
#include <cstring>

namespace emulation {

constexpr size_t kPageBytes = 4096;

}  // namespace emulation

#ifdef FRCNN_RACES

#include <sanitizer/tsan_interface.h>
#include <sys/mman.h>

extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();

namespace emulation {

// The stack of a fiber, as the sanitizer sees it.
struct Watched {
  void* context = __tsan_create_fiber(0);
  inline static void* main = __tsan_get_current_fiber();

  static void leave_main(Watched& to, char*, size_t) { to.is_next(); }
  void leave(Watched& to, char*, size_t) { to.is_next(); }
  void leave_for_main() { __tsan_switch_to_fiber(main, __tsan_switch_to_fiber_no_sync); }
  void is_there() {}
  static void is_in_main() {}

 private:
  void is_next() { __tsan_switch_to_fiber(context, __tsan_switch_to_fiber_no_sync); }
};

// What comes before a release happens before what comes after an acquire of the same place.
inline void release(void* place) { __tsan_release(place); }
inline void acquire(void* place) { __tsan_acquire(place); }

// Within its life nothing is watched: all fibers change the emulator's own lists.
struct Unwatched {
  Unwatched() { __tsan_ignore_thread_begin(); }
  ~Unwatched() { __tsan_ignore_thread_end(); }
};

// A block's shared memory is not the memory of the block before it: new pages at the same place.
inline void begin_shared(void* memory, size_t bytes, size_t) {
  const size_t pages = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (pages > 0)
    mmap(memory, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  std::memset(memory, 0xFF, bytes);
}

}  // namespace emulation

#else

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

namespace emulation {

struct Watched {
  void* context = nullptr;
  inline static void* main = nullptr;
  inline static const void* main_stack = nullptr;
  inline static size_t main_bytes = 0;

  static void leave_main(Watched&, char* stack, size_t bytes) {
    __sanitizer_start_switch_fiber(&main, stack, bytes);
  }
  void leave(Watched&, char* stack, size_t bytes) {
    __sanitizer_start_switch_fiber(&context, stack, bytes);
  }
  void leave_for_main() { __sanitizer_start_switch_fiber(&context, main_stack, main_bytes); }
  void is_there() {  // the first of all comes from main
    const bool first = main_stack == nullptr;
    __sanitizer_finish_switch_fiber(context, first ? &main_stack : nullptr,
                                    first ? &main_bytes : nullptr);
  }
  static void is_in_main() { __sanitizer_finish_switch_fiber(main, nullptr, nullptr); }
};

inline void release(void*) {}
inline void acquire(void*) {}
struct Unwatched {
  ~Unwatched() {}
};

// What lies beyond `bytes` is poisoned. (By functions: the header's macros do nothing in a file that is not
// itself watched.)
inline void begin_shared(void* memory, size_t bytes, size_t all) {
  __asan_unpoison_memory_region(memory, all);
  std::memset(memory, 0xFF, bytes);
  __asan_poison_memory_region(static_cast<char*>(memory) + bytes, all - bytes);
}

}  // namespace emulation

#endif
