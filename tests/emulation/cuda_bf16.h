// What the kernels use of the toolkit's cuda_bf16.h, by the functions in cuda_fp16.h here.
#pragma once

#include <bit>
#include <cstdint>

#include "cuda_fp16.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float number(__nv_bfloat16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }
