// Flags for out-of-range indices: one word per device, set by kernels without synchronization.
#include "common.h"

#include <atomic>

// ammnet_sparse/ops/_library.py finds this string in the file before it loads the library: 13000 is CUDA 13.0.
#if defined(CUDART_VERSION)
#define AMMNET_TEXT_OF(number) #number
#define AMMNET_TEXT(number) AMMNET_TEXT_OF(number)
extern "C" __attribute__((used)) const char ammnet_sparse_cuda_version[] =
    "ammnet_sparse: built with CUDA " AMMNET_TEXT(CUDART_VERSION) ".";
#endif

namespace ammnet_sparse {
namespace {

constexpr int kMaxDevices = 64;

__device__ unsigned int flags_of_device = 0;

// Returns the flag word and resets it.
//   grid 1, block 1; no shared memory; one atomic exchange
__global__ void take_flags(unsigned int* flags, int32_t* result) {
  *result = static_cast<int32_t>(atomicExch(flags, 0u));
}

Tensor take_out_of_range(const Tensor& like) {
  const Launch launch(like);
  Tensor result = torch::stable::new_empty(like, {1}, ScalarType::Int);
  launch(take_flags, 1, 1, out_of_range_flags(launch), static_cast<int32_t*>(result.mutable_data_ptr()));
  return result;
}

}  // namespace

unsigned int* out_of_range_flags(const Launch& launch) {
  static std::atomic<unsigned int*> known[kMaxDevices] = {};
  STD_TORCH_CHECK(launch.device() < kMaxDevices, "expected at most ", kMaxDevices, " devices");
  std::atomic<unsigned int*>& address = known[launch.device()];
  unsigned int* flags = address.load();
  if (flags == nullptr) {
    flags = launch.address_of(flags_of_device);
    address.store(flags);
  }
  return flags;
}

AMMNET_CUDA_KERNELS(library) {
  library.impl("take_out_of_range", TORCH_BOX(&take_out_of_range));
}

}  // namespace ammnet_sparse
