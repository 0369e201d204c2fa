// The only place that asks whether nvcc compiles.
#pragma once

#if defined(__CUDACC__)
#define FRCNN_HD __host__ __device__ __forceinline__
#else
// Always inlined: the same formula is compiled for several instruction sets, and a copy left to the
// linker could be one that the machine cannot run.
#define FRCNN_HD [[gnu::always_inline]] inline
#endif
