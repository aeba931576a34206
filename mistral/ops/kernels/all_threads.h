// The number of OpenMP threads that an operator runs on.
#pragma once
#include <omp.h>

#include <cstdlib>

// While one lives, parallel regions of this thread use OMP_NUM_THREADS threads, or all processors where it is not set.
// Needed because MindSpore limits the thread that launches operators to one.
struct AllThreads {
  const int before = omp_get_max_threads();
  AllThreads() {
    static const int asked = std::atoi(std::getenv("OMP_NUM_THREADS") ? std::getenv("OMP_NUM_THREADS") : "0");
    omp_set_num_threads(asked > 0 ? asked : omp_get_num_procs());
  }
  ~AllThreads() { omp_set_num_threads(before); }
};
