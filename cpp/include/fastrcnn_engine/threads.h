// How many threads one call of RoI pooling or its gradient may use on the CPU; every other call uses one.
// Results never depend on it.
#pragma once

namespace fastrcnn_engine {

// At first as many as the process may run on.
int num_threads();

// InvalidArgument unless threads >= 1. For the whole process (of a static library, for each copy of it), from
// the next call on.
void set_num_threads(int threads);

}  // namespace fastrcnn_engine
