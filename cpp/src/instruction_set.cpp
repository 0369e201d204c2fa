// Asks the processor what it can run, and the environment what is wanted. Knows no kernel.
#include "instruction_set.h"

#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "fastrcnn_engine/error.h"

namespace fastrcnn_engine::cpu {

namespace {

InstructionSet choose() {
  const std::vector<InstructionSet> supported = supported_instruction_sets();
  const char* wanted = std::getenv("FRCNN_INSTRUCTION_SET");
  if (wanted == nullptr || *wanted == '\0') return supported.back();
  std::string names;
  for (const InstructionSet set : supported) {
    if (std::string(wanted) == name_of(set)) return set;
    names += (names.empty() ? "" : ", ") + std::string(name_of(set));
  }
  throw InvalidArgument("FRCNN_INSTRUCTION_SET must be one of " + names + " on this machine, got " +
                        wanted);
}

}  // namespace

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    default: return "baseline";
  }
}

std::vector<InstructionSet> supported_instruction_sets() {
  std::vector<InstructionSet> sets = {InstructionSet::baseline};
#if defined(__x86_64__)
  // As the build compiles them (CMakeLists.txt); the compiler's check includes the operating system's.
  // Clang's does not know F16C, which needs no more of it than AVX2 does. PREFETCHW is not asked for: a machine
  // without it, as the first with AVX2, takes it for no operation.
  unsigned a, b, c = 0, d;
  if (__builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C))
    sets.push_back(InstructionSet::avx2);
  if (sets.size() == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    sets.push_back(InstructionSet::avx512);
#endif
  return sets;
}

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace fastrcnn_engine::cpu
