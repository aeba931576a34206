// Buffers that outlive a call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

// A buffer of T that grows as needed and is kept from call to call; get() gives it aligned to a cache line of 64 bytes.
// The contents are those of the previous use.
template <class T>
struct Scratch {
  std::vector<unsigned char> bytes;
  T *get(size_t count) {
    if (bytes.size() < count * sizeof(T) + 64) bytes.resize(count * sizeof(T) + 64);
    return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) & ~uintptr_t(63));
  }
};
