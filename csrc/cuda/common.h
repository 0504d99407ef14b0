// Shared by the CUDA kernels: 16-byte vectors, launches (launch.h), flags for out-of-range indices.
#pragma once

#include "../common.h"
#if defined(AMMNET_SPARSE_EMULATION)
#include <emulation/launch.h>
#else
#include "launch.h"
#endif

namespace ammnet_sparse {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// Elements of T in 16 bytes, which one instruction loads or stores if the address is a multiple of 16.
template <typename T>
constexpr int kVectorSize = 16 / static_cast<int>(sizeof(T));

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
  T value[kSize];
};

// A misaligned access is fatal on a GPU; the CPU emulation throws an exception here instead.
template <typename Structure>
__device__ __forceinline__ void check_alignment([[maybe_unused]] const Structure* address) {
#if defined(AMMNET_SPARSE_EMULATION)
  emulation::check_alignment(address, alignof(Structure));
#endif
}

template <int kSize, typename T>
__device__ __forceinline__ Vector<T, kSize> load(const T* source) {
  check_alignment(reinterpret_cast<const Vector<T, kSize>*>(source));
  return *reinterpret_cast<const Vector<T, kSize>*>(source);
}

// Stores a structure; 16 bytes in one instruction (the compiler may split an assignment into four). The assembly has no
// memory clobber: no kernel reads its own output, so loads may be moved before the store.
template <typename Structure>
__device__ __forceinline__ void store_whole(Structure* target, const Structure& value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Structure) == 16) {
    uint32_t words[4];
    memcpy(words, &value, sizeof words);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(target)), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]));
    return;
  }
#endif
  check_alignment(target);
  *target = value;
}

template <int kSize, typename T>
__device__ __forceinline__ void store(T* target, const Vector<T, kSize>& vector) {
  store_whole(reinterpret_cast<Vector<T, kSize>*>(target), vector);
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Whether all rows of `channels` elements of T starting at `pointers` consist of aligned 16-byte vectors.
template <typename T, typename... Pointers>
bool has_vector_rows(int64_t channels, Pointers... pointers) {
  return channels % kVectorSize<T> == 0 && (is_aligned(pointers) && ...);
}

// Calls function(std::integral_constant<int, S>{}) with S, the number of elements that a thread loads at a time.
template <typename T, typename Function>
void dispatch_vector(bool has_vectors, Function&& function) {
  if (has_vectors) {
    function(std::integral_constant<int, kVectorSize<T>>{});
  } else {
    function(std::integral_constant<int, 1>{});
  }
}

inline unsigned int num_blocks(int64_t num_threads) {
  const int64_t blocks = (num_threads + kThreads - 1) / kThreads;
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "too many elements for one launch");
  return static_cast<unsigned int>(blocks);
}

// One bit per operator; the names are in ammnet_sparse/ops/_library.py.
enum class OutOfRange : unsigned int {
  kProjectFeatures = 1,
  kFillEmpty = 2,
  kShuffleCategories = 4,
  kOneHotSites = 8,
  kGatherTaps = 16,
};

// Address of the flag word on the device of `launch`: a kernel sets its operator's bit on an out-of-range index.
unsigned int* out_of_range_flags(const Launch& launch);

// Free unless an index is out of range: the bounds check compares anyway.
__device__ __forceinline__ void report(unsigned int* flags, OutOfRange bit) {
  atomicOr(flags, static_cast<unsigned int>(bit));
}

}  // namespace ammnet_sparse
