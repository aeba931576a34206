// The OpenMP threads that an operator runs on.
#pragma once

// While one lives, parallel regions of this thread use OMP_NUM_THREADS threads, or all processors where it is not set.
// Needed because MindSpore limits the thread that launches operators to one. Where there are as many threads as
// processors, each has one of its own: all but this thread for good, and this one while the outermost of these lives, if
// it has been found on another's.
class AllThreads {
 public:
  // several: whether there is a parallel region at all
  explicit AllThreads(bool several = true);
  ~AllThreads();
  AllThreads(const AllThreads &) = delete;

 private:
  const int before_;
};
