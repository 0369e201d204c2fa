// How many threads one call of a CPU operator may use. Results never depend on it.
#pragma once

namespace fastrcnn_engine {

// At first as many as the process may run on.
int num_threads();

// InvalidArgument unless threads >= 1. For the whole process, from the next call on.
void set_num_threads(int threads);

}  // namespace fastrcnn_engine
