// Launches on the device of a tensor, and how kernels are registered.
// tests/ops/emulation/launch.h has the same for a CPU.
#pragma once

#include "../common.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

// Later headers repeat the message of PyTorch's error; those of 2.11 name the call that failed.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// What follows it is the body of a function that registers kernels of operators with `library`.
#define AMMNET_CUDA_KERNELS(library) STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CUDA, library)

namespace ammnet_sparse {

// Makes the device of a tensor the current one, in PyTorch and in the CUDA runtime of this library, for the life of
// the object, and launches kernels on PyTorch's current stream there.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
    STD_CUDA_CHECK(cudaSetDevice(device_));
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  int32_t device() const { return device_; }

  // Where a __device__ variable lies on the device.
  template <typename T>
  T* address_of(T& variable) const {
    void* address = nullptr;
    STD_CUDA_CHECK(cudaGetSymbolAddress(&address, variable));
    return static_cast<T*>(address);
  }

  // Launches a kernel without dynamic shared memory: launch(kernel, blocks, threads, arguments...). Throws where that
  // fails; does not wait for the kernel.
  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, Arguments... arguments) const {
    kernel<<<blocks, threads, 0, stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace ammnet_sparse
