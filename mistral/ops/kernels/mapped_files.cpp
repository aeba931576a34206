// What to do when a mapped file becomes shorter than its mapping: reading beyond its end raises SIGBUS, in whatever
// thread, and no value can be given for the bytes that are gone. So the process ends, with a line about the file.
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unistd.h>

namespace {

constexpr int MOST_MAPPINGS = 4096;

struct Mapping {
  std::atomic<uintptr_t> start{0};  // 0: free
  std::atomic<size_t> size{0};
  std::atomic<const char *> message{nullptr};
};

Mapping mappings[MOST_MAPPINGS];
std::mutex changing;
struct sigaction before;  // whose turn it is for an address that is in none of the mappings

// Calls only what is safe in a signal handler.
void on_bus_error(int number, siginfo_t *info, void *context) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Mapping &mapping : mappings) {
    const uintptr_t start = mapping.start.load();
    if (!start || address < start || address - start >= mapping.size.load()) continue;
    const char *message = mapping.message.load();
    for (size_t left = std::strlen(message); left;) {
      const ssize_t written = write(STDERR_FILENO, message, left);
      if (written <= 0) break;
      message += written;
      left -= written;
    }
    _exit(2);
  }
  if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(number, info, context);
  if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(number);
  signal(SIGBUS, SIG_DFL);  // the same instruction raises it once more, and ends the process as it would have
}

}  // namespace

// From now on, a bus error at one of the `size` bytes from `start` writes `message` and ends the process with code 2.
// 0 where there are too many mappings.
extern "C" int guard_mapping(uintptr_t start, size_t size, const char *message) {
  const std::lock_guard<std::mutex> lock(changing);
  static bool installed = false;
  for (Mapping &mapping : mappings) {
    if (mapping.start.load()) continue;
    std::free(const_cast<char *>(mapping.message.exchange(strdup(message))));
    mapping.size.store(size);
    mapping.start.store(start);
    if (!installed) {
      struct sigaction action = {};
      action.sa_sigaction = on_bus_error;
      action.sa_flags = SA_SIGINFO;
      sigaction(SIGBUS, &action, &before);
      installed = true;
    }
    return 1;
  }
  return 0;
}

// The mapping at `start` is about to go: its addresses may soon be something else's.
extern "C" void release_mapping(uintptr_t start) {
  const std::lock_guard<std::mutex> lock(changing);
  for (Mapping &mapping : mappings) {
    if (mapping.start.load() == start) mapping.start.store(0);
  }
}
