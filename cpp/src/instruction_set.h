// The instruction set that the CPU kernels run on, chosen at run time.
//
// Files named *_kernels.cpp are compiled once per set, from the same source, each time into a
// namespace of its own: FRCNN_SET, which the build defines. A machine that lacks a set never runs
// anything of it.
#pragma once

#include <string>
#include <vector>

namespace fastrcnn_engine::cpu {

#if defined(__x86_64__)
#define FRCNN_FOR_EACH_SET(declare) declare(baseline) declare(avx2) declare(avx512)
// The table that a function named here returns in the namespace of the chosen set.
#define FRCNN_CHOSEN(...)                                                   \
  (instruction_set() == InstructionSet::avx512 ? avx512::__VA_ARGS__()      \
   : instruction_set() == InstructionSet::avx2 ? avx2::__VA_ARGS__()        \
                                               : baseline::__VA_ARGS__())
#else
#define FRCNN_FOR_EACH_SET(declare) declare(baseline)
#define FRCNN_CHOSEN(...) (baseline::__VA_ARGS__())
#endif

enum class InstructionSet { baseline, avx2, avx512 };

const char* name_of(InstructionSet set);

// What this machine can run, slowest first.
std::vector<InstructionSet> supported_instruction_sets();

// The last of these, or the one that the environment variable FRCNN_INSTRUCTION_SET names when the
// engine is first used. InvalidArgument where that is none of them.
InstructionSet instruction_set();

}  // namespace fastrcnn_engine::cpu
