// Numbers of 16 bits in kernels.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "fastrcnn_engine/semantics/half.h"

// Whether one instruction takes the maxima of two pairs of 16-bit numbers: from sm_80 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define FRCNN_MAXIMA_BY_TWO false
#else
#define FRCNN_MAXIMA_BY_TWO true
#endif

namespace fastrcnn_engine::cuda {

using semantics::Wide;

// What semantics::widen says, in one instruction where there is one.
template <typename T>
__device__ Wide<T> widened(const T& value) {
  if constexpr (std::is_same_v<T, float16>)
    return __half2float(__ushort_as_half(value.bits));
  else
    return semantics::widen(value);
}

template <typename T>
__device__ T narrowed(const Wide<T>& value) {
  if constexpr (std::is_same_v<T, Wide<T>>)
    return value;
  else
    return semantics::narrow<T>(value);
}

}  // namespace fastrcnn_engine::cuda
