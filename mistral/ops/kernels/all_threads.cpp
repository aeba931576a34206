// Threads that wait for each other must not share a processor. They spin while they wait, so the system sees all
// processors busy; if another program runs on one, it may keep two of the threads on the other, and each wait then takes
// a time slice: with one busy program beside it, a token took up to 13 times as long, and takes twice as long now.
#include "all_threads.h"

#include <omp.h>
#include <sched.h>

#include <cstdlib>

namespace {

thread_local int depth = 0;  // of AllThreads in this thread

#ifdef __linux__

thread_local cpu_set_t allowed;  // to this thread, before it got one processor of its own
thread_local bool pinned = false;

// The processor of a set that comes after `place` others
cpu_set_t one_of(const cpu_set_t &set, int place) {
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE; i++)
    if (CPU_ISSET(i, &set) && place-- == 0) CPU_SET(i, &one);
  return one;
}

void move_to(const cpu_set_t &set) { sched_setaffinity(0, sizeof set, &set); }

// Gives each thread of the team a processor of its own, where there are as many
void pin(int threads) {
  static thread_local cpu_set_t divided;  // the processors that the other threads of the team have been given
  pinned = threads > 1 && sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) == threads;
  if (!pinned) return;
  if (!CPU_EQUAL(&allowed, &divided)) {
    const cpu_set_t all = divided = allowed;
#pragma omp parallel
    if (omp_get_thread_num()) move_to(one_of(all, omp_get_thread_num()));
  }
  move_to(one_of(allowed, 0));
}

void unpin() {
  if (pinned) move_to(allowed);
}

#else

void pin(int) {}
void unpin() {}

#endif

}  // namespace

AllThreads::AllThreads() : before_(omp_get_max_threads()) {
  static const int asked = std::atoi(std::getenv("OMP_NUM_THREADS") ? std::getenv("OMP_NUM_THREADS") : "0");
  if (depth++) return;
  omp_set_num_threads(asked > 0 ? asked : omp_get_num_procs());
  pin(omp_get_max_threads());
}

AllThreads::~AllThreads() {
  if (--depth) return;
  unpin();
  omp_set_num_threads(before_);
}
