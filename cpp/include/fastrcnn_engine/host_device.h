// The only place that asks which compiler this is, and for which device.
#pragma once

#if defined(__CUDACC__)
#define FRCNN_HD __host__ __device__ __forceinline__
#else
// Always inlined: the same formula is compiled for several instruction sets, and a copy left to the
// linker could be one that the machine cannot run.
#define FRCNN_HD [[gnu::always_inline]] inline
#endif

// Whether one instruction takes the maxima of two pairs of 16-bit numbers: from sm_80 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define FRCNN_MAXIMA_BY_TWO false
#else
#define FRCNN_MAXIMA_BY_TWO true
#endif
