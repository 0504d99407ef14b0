// Launches of csrc/cuda's kernels on the CPU, and their registration as operators of a namespace of their own, so that
// they take nothing's place: ammnet_sparse_emulation::<name> has the schema of ammnet_sparse::<name>.
#pragma once

#include "../../../csrc/common.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

#define AMMNET_CUDA_KERNELS(library) STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse_emulation, CPU, library)

namespace ammnet_sparse {

// Like that of csrc/cuda/launch.h. The kernel has run when a launch returns; what went wrong in it is thrown.
class Launch {
 public:
  explicit Launch(const Tensor&) {}
  int32_t device() const { return 0; }

  template <typename T>
  T* address_of(T& variable) const {
    return &variable;
  }

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, Arguments... arguments) const {
    emulation::run_kernel(kernel, blocks, threads, arguments...);
  }
};

}  // namespace ammnet_sparse
