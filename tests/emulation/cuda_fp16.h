// What the kernels use of the toolkit's cuda_fp16.h, by the host compiler's own type.
#pragma once

#include <bit>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __half2float(__half value) { return static_cast<float>(std::bit_cast<_Float16>(value)); }
