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

constexpr int LOOK = 64;      // operators after which a thread looks again which processors it may use
constexpr int CROWDED = 256;  // operators for which it stays where it belongs, once it was elsewhere: a move takes 5 us

thread_local cpu_set_t allowed;  // the processors of this thread
thread_local int home = -1;      // its own while an operator runs, if there are as many as threads; -1: none
thread_local bool pinned = false;

// The processor of a set that comes after `place` others
int one_of(const cpu_set_t &set, int place) {
  int i = 0;
  while (i < CPU_SETSIZE && !(CPU_ISSET(i, &set) && place-- == 0)) i++;
  return i;
}

void move_to(int processor) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(processor, &one);
  sched_setaffinity(0, sizeof one, &one);
}

bool look(int threads) {
  const bool found = sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) == threads;
  home = found ? one_of(allowed, 0) : -1;
  return found;
}

// Gives each other thread of the team a processor of its own, where there are as many. Threads that OpenMP makes later
// begin on the processors of the one that makes them, so this is done again.
void divide(int threads) {
  if (!look(threads)) return;
  const cpu_set_t all = allowed;
#pragma omp parallel
  if (omp_get_thread_num()) {
    static thread_local int own = -1;
    const int wanted = one_of(all, omp_get_thread_num());
    if (own != wanted) move_to(own = wanted);
  }
}

void pin(int threads) {
  static thread_local unsigned operators = 0;
  static thread_local int crowded = 0;
  if (threads < 2) return;
  if (operators++ % LOOK == 0) divide(threads);
  if (home >= 0 && sched_getcpu() != home) crowded = CROWDED;
  pinned = home >= 0 && crowded && look(threads);
  if (!pinned) return;
  crowded--;
  move_to(home);
}

void unpin() {
  if (pinned) sched_setaffinity(0, sizeof allowed, &allowed);
  pinned = false;
}

#else

void pin(int) {}
void unpin() {}

#endif

}  // namespace

AllThreads::AllThreads(bool several) : before_(omp_get_max_threads()) {
  static const int asked = std::atoi(std::getenv("OMP_NUM_THREADS") ? std::getenv("OMP_NUM_THREADS") : "0");
  if (depth++) return;
  omp_set_num_threads(asked > 0 ? asked : omp_get_num_procs());
  pin(several ? omp_get_max_threads() : 1);
}

AllThreads::~AllThreads() {
  if (--depth) return;
  unpin();
  omp_set_num_threads(before_);
}
