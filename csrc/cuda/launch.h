// Kernel launches on a tensor's device, and registration of kernels. The CPU emulation has a launch.h of its own.
#pragma once

#include "../common.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

// Newer headers include PyTorch's error message; the headers of 2.11 only name the failed call.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// Begins a function that registers CUDA kernels with `library`; its body follows the macro.
#define AMMNET_CUDA_KERNELS(library) STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CUDA, library)

namespace ammnet_sparse {

// Selects a tensor's device in PyTorch and in this library's CUDA runtime during its lifetime, and launches kernels on
// PyTorch's current stream of that device.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
    STD_CUDA_CHECK(cudaSetDevice(device_));
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  int32_t device() const { return device_; }

  // Device address of a __device__ variable.
  template <typename T>
  T* address_of(T& variable) const {
    void* address = nullptr;
    STD_CUDA_CHECK(cudaGetSymbolAddress(&address, variable));
    return static_cast<T*>(address);
  }

  // Asynchronous launch without dynamic shared memory: launch(kernel, blocks, threads, arguments...). Throws if the
  // launch fails.
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
