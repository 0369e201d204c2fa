#include "fastrcnn_engine/build_info.h"

namespace fastrcnn_engine {

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

#if defined(__AVX512F__)
constexpr const char* kInstructionSets = "x86-64, AVX-512";
#elif defined(__AVX2__)
constexpr const char* kInstructionSets = "x86-64, AVX2";
#elif defined(__x86_64__)
constexpr const char* kInstructionSets = "x86-64 baseline, SSE2";
#elif defined(__aarch64__)
constexpr const char* kInstructionSets = "aarch64 baseline, NEON";
#else
constexpr const char* kInstructionSets = "portable";
#endif

}  // namespace

BuildInfo build_info() {
  const std::string architectures = FRCNN_CUDA_ARCHITECTURES;
  return {FRCNN_VERSION,     kCompiler,     !architectures.empty(),
          FRCNN_CUDA_REASON, architectures, kInstructionSets};
}

}  // namespace fastrcnn_engine
