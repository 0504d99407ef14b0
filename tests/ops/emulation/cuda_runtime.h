// Stands for CUDA's header of this name where the host compiler compiles csrc/cuda: the keywords become nothing, and
// the functions that kernels call run on the CPU, over the fibers of threads.cpp.
//
// Stricter than a GPU: masks of warps must be full, lanes must lie within the warp, all lanes of a warp must meet at
// the same line, and no thread may have ended while others wait at a barrier. What breaks this throws.
#pragma once

#include "threads.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// One block runs at a time, on one thread of the CPU. Nothing else of the library is thread-local, so that a block
// finds all of this memory and overwrites what the block before has left in it.
#define __shared__ static thread_local

#define threadIdx (::ammnet_sparse::emulation::place.thread)
#define blockIdx (::ammnet_sparse::emulation::place.block)
#define blockDim (::ammnet_sparse::emulation::place.block_size)
#define gridDim (::ammnet_sparse::emulation::place.grid_size)
constexpr int warpSize = ::ammnet_sparse::emulation::kLanes;

using std::max;
using std::min;

// Lines of kernels, for messages.
#define AMMNET_WHERE std::source_location where = std::source_location::current()

inline void __syncthreads(AMMNET_WHERE) {
  ::ammnet_sparse::emulation::wait_for_block("__syncthreads", where);
}

inline void __threadfence() {}
inline void __threadfence_block() {}

inline void __syncwarp(unsigned int mask = 0xFFFFFFFFu, AMMNET_WHERE) {
  ::ammnet_sparse::emulation::exchange("__syncwarp", mask, 0, where);
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, AMMNET_WHERE) {
  const auto& votes = ::ammnet_sparse::emulation::exchange("__ballot_sync", mask, predicate != 0, where);
  unsigned int result = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    result |= static_cast<unsigned int>(votes[lane]) << lane;
  }
  return result;
}

inline int __any_sync(unsigned int mask, int predicate, AMMNET_WHERE) {
  const auto& votes = ::ammnet_sparse::emulation::exchange("__any_sync", mask, predicate != 0, where);
  return std::any_of(votes.begin(), votes.end(), [](uint64_t vote) { return vote != 0; });
}

inline int __all_sync(unsigned int mask, int predicate, AMMNET_WHERE) {
  const auto& votes = ::ammnet_sparse::emulation::exchange("__all_sync", mask, predicate != 0, where);
  return std::all_of(votes.begin(), votes.end(), [](uint64_t vote) { return vote != 0; });
}

namespace ammnet_sparse::emulation {

// The value that lane `source` of the warp hands over; that of the lane itself where `source` is -1.
template <typename T>
T shuffle(const char* name, unsigned int mask, T value, int source, std::source_location where) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(uint64_t), "CUDA shuffles integers, float and double");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const auto& values = exchange(name, mask, bits, where);
  if (source != -1) {
    check_lane(name, source, where);
    std::memcpy(&value, &values[static_cast<size_t>(source)], sizeof value);
  }
  return value;
}

inline int lane() {
  return static_cast<int>(place.thread.x % static_cast<unsigned int>(kLanes));
}

}  // namespace ammnet_sparse::emulation

template <typename T>
T __shfl_sync(unsigned int mask, T value, int source, AMMNET_WHERE) {
  ::ammnet_sparse::emulation::check_lane("__shfl_sync", source, where);
  return ::ammnet_sparse::emulation::shuffle("__shfl_sync", mask, value, source, where);
}

template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int distance, AMMNET_WHERE) {
  const int source = ::ammnet_sparse::emulation::lane() - static_cast<int>(distance);
  return ::ammnet_sparse::emulation::shuffle("__shfl_up_sync", mask, value, source < 0 ? -1 : source, where);
}

template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int distance, AMMNET_WHERE) {
  const int source = ::ammnet_sparse::emulation::lane() + static_cast<int>(distance);
  return ::ammnet_sparse::emulation::shuffle("__shfl_down_sync", mask, value, source < warpSize ? source : -1, where);
}

template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int lanes, AMMNET_WHERE) {
  const int source = ::ammnet_sparse::emulation::lane() ^ lanes;
  return ::ammnet_sparse::emulation::shuffle("__shfl_xor_sync", mask, value, source, where);
}

#undef AMMNET_WHERE

inline int __ffs(int value) {
  return value == 0 ? 0 : std::countr_zero(static_cast<unsigned int>(value)) + 1;
}
inline int __popc(unsigned int value) {
  return std::popcount(value);
}
inline int __clz(int value) {
  return std::countl_zero(static_cast<unsigned int>(value));
}
inline float rsqrtf(float value) {
  return 1.0f / std::sqrt(value);
}
inline float rsqrt(float value) {
  return 1.0f / std::sqrt(value);
}
inline double rsqrt(double value) {
  return 1.0 / std::sqrt(value);
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}

namespace ammnet_sparse::emulation {

// One thread runs at a time, so nothing can come between; others may run before, as the order of atomics is open.
template <typename T, typename Change>
T change_atomically(T* address, Change&& change) {
  check_alignment(address, sizeof(T));
  pause();
  const T before = *address;
  *address = change(before);
  return before;
}

}  // namespace ammnet_sparse::emulation

// CUDA has these for some types only; nvcc says for which.
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return ::ammnet_sparse::emulation::change_atomically(
      address, [&](T before) { return static_cast<T>(before + value); });
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return ::ammnet_sparse::emulation::change_atomically(address, [&](T before) { return std::min(before, value); });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return ::ammnet_sparse::emulation::change_atomically(address, [&](T before) { return std::max(before, value); });
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return ::ammnet_sparse::emulation::change_atomically(address, [&](T before) { return before & value; });
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return ::ammnet_sparse::emulation::change_atomically(address, [&](T before) { return before | value; });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return ::ammnet_sparse::emulation::change_atomically(address, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return ::ammnet_sparse::emulation::change_atomically(
      address, [&](T before) { return before == expected ? value : before; });
}
