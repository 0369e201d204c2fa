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

inline float number(__half value) { return __half2float(value); }

// Of two pairs, __half2 or __nv_bfloat162.
template <typename Two>
unsigned __hgt2_mask(Two a, Two b) {
  return (number(a.x) > number(b.x) ? 0xffffu : 0u) | (number(a.y) > number(b.y) ? 0xffff0000u : 0u);
}
// Faithful to numbers that are not NaN, nor zeros of both signs. The kernels ask for no others.
template <typename Two>
Two __hmax2(Two a, Two b) {
  return {number(a.x) > number(b.x) ? a.x : b.x, number(a.y) > number(b.y) ? a.y : b.y};
}
