// What the kernels use of the toolkit's cuda_fp16.h, by the host compiler's own type.
#pragma once

#include <bit>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __half2float(__half value) { return static_cast<float>(std::bit_cast<_Float16>(value)); }

struct __half2 {
  __half x, y;
};

inline unsigned __hgt2_mask(__half2 a, __half2 b) {
  return (__half2float(a.x) > __half2float(b.x) ? 0xffffu : 0u) |
         (__half2float(a.y) > __half2float(b.y) ? 0xffff0000u : 0u);
}
// Faithful to numbers that are not NaN, nor zeros of both signs. The kernels ask for no others.
inline __half2 __hmax2(__half2 a, __half2 b) {
  return {__half2float(a.x) > __half2float(b.x) ? a.x : b.x,
          __half2float(a.y) > __half2float(b.y) ? a.y : b.y};
}
