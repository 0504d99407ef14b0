// Modulation on CUDA: one pass over memory, 16 bytes of each input per thread.
#include "../modulation.h"
#include "common.h"

namespace ammnet_sparse {
namespace {

// Forward pass, element-wise.
//   grid          ceil(num_vectors / 256)
//   block         256 threads, one vector of kSize elements each
//   shared memory none
//   complexity    three reads and one write per element; memory-bound
//   determinism   yes: no sums
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) modulate_kernel(
    const T* __restrict__ features, const T* __restrict__ scale, const T* __restrict__ bias, T* __restrict__ result,
    int64_t num_vectors) {
  const int64_t index = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (index >= num_vectors) {
    return;
  }
  const int64_t first = index * kSize;
  const auto features_ = load<kSize>(features + first);
  const auto scale_ = load<kSize>(scale + first);
  const auto bias_ = load<kSize>(bias + first);
  Vector<T, kSize> result_;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    result_.value[i] = modulate_element(features_.value[i], scale_.value[i], bias_.value[i]);
  }
  store(result + first, result_);
}

// Backward pass: recomputes the sigmoid from `scale`. Launch geometry and determinism as in modulate_kernel; three
// reads and two writes per element.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) modulate_backward_kernel(
    const T* __restrict__ grad, const T* __restrict__ features, const T* __restrict__ scale,
    T* __restrict__ grad_features, T* __restrict__ grad_scale, int64_t num_vectors) {
  const int64_t index = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (index >= num_vectors) {
    return;
  }
  const int64_t first = index * kSize;
  const auto grad_ = load<kSize>(grad + first);
  const auto features_ = load<kSize>(features + first);
  const auto scale_ = load<kSize>(scale + first);
  Vector<T, kSize> grad_features_;
  Vector<T, kSize> grad_scale_;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const auto gradients = modulate_element_backward(grad_.value[i], features_.value[i], scale_.value[i]);
    grad_features_.value[i] = gradients.features;
    grad_scale_.value[i] = gradients.scale;
  }
  store(grad_features + first, grad_features_);
  store(grad_scale + first, grad_scale_);
}

Tensor modulate(const Tensor& features, const Tensor& scale, const Tensor& bias) {
  const Launch launch(features);
  Tensor result = torch::stable::empty_like(features);
  const Tensor features_ = like(features, result);
  const Tensor scale_ = like(scale, result);
  const Tensor bias_ = like(bias, result);
  const int64_t size = result.numel();
  if (size == 0) {
    return result;
  }
  dispatch_features(features.scalar_type(), "modulate", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* features_data = static_cast<const T*>(features_.const_data_ptr());
    const auto* scale_data = static_cast<const T*>(scale_.const_data_ptr());
    const auto* bias_data = static_cast<const T*>(bias_.const_data_ptr());
    auto* result_data = static_cast<T*>(result.mutable_data_ptr());
    const bool has_vectors = has_vector_rows<T>(size, features_data, scale_data, bias_data, result_data);
    dispatch_vector<T>(has_vectors, [&](auto vector) {
      const int64_t num_vectors = size / vector();
      launch(
          modulate_kernel<T, vector()>, num_blocks(num_vectors), kThreads, features_data, scale_data, bias_data,
          result_data, num_vectors);
    });
  });
  return result;
}

std::tuple<Tensor, Tensor> modulate_backward(const Tensor& grad, const Tensor& features, const Tensor& scale) {
  const Launch launch(features);
  Tensor grad_features = torch::stable::empty_like(features);
  Tensor grad_scale = torch::stable::empty_like(grad_features);
  const Tensor grad_ = like(grad, grad_features);
  const Tensor features_ = like(features, grad_features);
  const Tensor scale_ = like(scale, grad_features);
  const int64_t size = grad_features.numel();
  if (size > 0) {
    dispatch_features(features.scalar_type(), "modulate_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      const auto* grad_data = static_cast<const T*>(grad_.const_data_ptr());
      const auto* features_data = static_cast<const T*>(features_.const_data_ptr());
      const auto* scale_data = static_cast<const T*>(scale_.const_data_ptr());
      auto* grad_features_data = static_cast<T*>(grad_features.mutable_data_ptr());
      auto* grad_scale_data = static_cast<T*>(grad_scale.mutable_data_ptr());
      const bool has_vectors =
          has_vector_rows<T>(size, grad_data, features_data, scale_data, grad_features_data, grad_scale_data);
      dispatch_vector<T>(has_vectors, [&](auto vector) {
        const int64_t num_vectors = size / vector();
        launch(
            modulate_backward_kernel<T, vector()>, num_blocks(num_vectors), kThreads, grad_data, features_data,
            scale_data, grad_features_data, grad_scale_data, num_vectors);
      });
    });
  }
  // A scale nearly always has the layout of features; then nothing else is allocated.
  return {
      grad_features,
      have_same_layout(grad_scale, scale) ? grad_scale : like(grad_scale, torch::stable::empty_like(scale))};
}

}  // namespace

AMMNET_CUDA_KERNELS(library) {
  library.impl("modulate", TORCH_BOX(&modulate));
  library.impl("modulate_backward", TORCH_BOX(&modulate_backward));
}

}  // namespace ammnet_sparse
