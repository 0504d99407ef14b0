// Kernels with a fault each, for test_faults.py: what the emulation says of them. Usage: faults NAME
#include <cuda_runtime.h>

#include <cstdio>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

namespace {

constexpr int kThreads = 64;
using Kernel = void (*)(const int*, int*);

// Each thread hands its value to the thread of the other end of the block, through shared memory and then through
// its warp: result[i] = values[63 - i].
template <bool kHasBarrier, int kLaneError, int kBeyond>
__global__ void reverse(const int* values, int* result) {
  __shared__ int turned[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % warpSize;
  const int mirrored = __shfl_sync(0xFFFFFFFFu, values[thread + kBeyond], (warpSize - 1 - lane) ^ kLaneError);
  turned[thread] = mirrored;
  if (kHasBarrier) {
    __syncthreads();
  }
  result[thread] = turned[(thread + warpSize) % kThreads];
}

__global__ void ends_before_barrier(const int* values, int* result) {
  result[threadIdx.x] = values[threadIdx.x];
  if (threadIdx.x == 5) {
    return;
  }
  __syncthreads();
}

__global__ void ends_before_warp(const int* values, int* result) {
  if (threadIdx.x == 5) {
    return;
  }
  result[threadIdx.x] = __any_sync(0xFFFFFFFFu, values[threadIdx.x]);
}

__global__ void meets_elsewhere(const int* values, int* result) {
  if (threadIdx.x % 2 == 0) {
    result[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, values[threadIdx.x], 1);
  } else {
    result[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, values[threadIdx.x], 1);
  }
}

__global__ void takes_half_a_warp(const int* values, int* result) {
  if (threadIdx.x % 32 < 16) {
    result[threadIdx.x] = static_cast<int>(__ballot_sync(0xFFFFu, values[threadIdx.x]));
  }
}

__global__ void reads_misaligned(const int* values, int* result) {
  ammnet_sparse::emulation::check_alignment(values + 1 + threadIdx.x * 0, 16);
  result[threadIdx.x] = values[threadIdx.x];
}

// The second block reads what only the first one writes.
__global__ void reads_unwritten(const int* values, int* result) {
  __shared__ int turned[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0) {
    turned[thread] = values[kThreads - 1 - thread];
  } else {
    result[thread] = turned[thread];
  }
}

Kernel kernel_of(const std::string& name) {
  if (name == "none") return reverse<true, 0, 0>;
  if (name == "missing barrier") return reverse<false, 0, 0>;
  if (name == "wrong lane") return reverse<true, 1, 0>;
  if (name == "lane outside") return reverse<true, 32, 0>;
  if (name == "out of bounds") return reverse<true, 0, 1>;
  if (name == "ends before barrier") return ends_before_barrier;
  if (name == "ends before warp") return ends_before_warp;
  if (name == "meets elsewhere") return meets_elsewhere;
  if (name == "takes half a warp") return takes_half_a_warp;
  if (name == "reads unwritten") return reads_unwritten;
  return reads_misaligned;
}

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  std::vector<int> values(kThreads);
  std::iota(values.begin(), values.end(), 100);
  std::vector<int> result(kThreads, -1);
  try {
    const dim3 blocks = name == "no block" ? dim3(0) : name == "reads unwritten" ? dim3(2) : dim3(1);
    ammnet_sparse::emulation::run_kernel(kernel_of(name), blocks, kThreads, values.data(), result.data());
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 0;
  }
  for (int i = 0; i < kThreads; ++i) {
    if (result[static_cast<size_t>(i)] != 100 + kThreads - 1 - i) {
      std::printf("wrong\n");
      return 0;
    }
  }
  std::printf("right\n");
}
