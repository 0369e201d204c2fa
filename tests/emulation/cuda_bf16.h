// What the kernels use of the toolkit's cuda_bf16.h.
#pragma once

#include <bit>
#include <cstdint>

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  return std::bit_cast<float>(uint32_t{value.bits} << 16);
}
inline unsigned __hgt2_mask(__nv_bfloat162 a, __nv_bfloat162 b) {
  return (__bfloat162float(a.x) > __bfloat162float(b.x) ? 0xffffu : 0u) |
         (__bfloat162float(a.y) > __bfloat162float(b.y) ? 0xffff0000u : 0u);
}
// As that of __half2.
inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {__bfloat162float(a.x) > __bfloat162float(b.x) ? a.x : b.x,
          __bfloat162float(a.y) > __bfloat162float(b.y) ? a.y : b.y};
}
