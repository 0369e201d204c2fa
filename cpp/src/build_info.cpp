// What the build was told (version, compiler, CUDA or why not), and the instruction set that was chosen.
// Looks for no GPU: cuda::why_unavailable does.
#include "fastrcnn_engine/build_info.h"

#include "instruction_set.h"

namespace fastrcnn_engine {

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

std::string instruction_sets() {
  const cpu::InstructionSet chosen = cpu::instruction_set();
  std::string text = std::string(cpu::name_of(chosen)) + " (of";
  for (const cpu::InstructionSet set : cpu::supported_instruction_sets())
    text += std::string(" ") + cpu::name_of(set);
  return text + ")";
}

}  // namespace

BuildInfo build_info() {
  const std::string architectures = FRCNN_CUDA_ARCHITECTURES;
  return {FRCNN_VERSION,     kCompiler,     !architectures.empty(),
          FRCNN_CUDA_REASON, architectures, instruction_sets()};
}

}  // namespace fastrcnn_engine
