// What of cuda:: there is in a build without CUDA kernels: the question whether they can be used.
#include "fastrcnn_engine/build_info.h"

namespace fastrcnn_engine::cuda {

std::string why_unavailable() { return FRCNN_CUDA_REASON; }

}  // namespace fastrcnn_engine::cuda
