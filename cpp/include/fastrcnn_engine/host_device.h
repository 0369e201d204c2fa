// The only place that asks which compiler this is.
#pragma once

#if defined(__CUDACC__)
#define FRCNN_HD __host__ __device__ __forceinline__
#else
#define FRCNN_HD inline
#endif
