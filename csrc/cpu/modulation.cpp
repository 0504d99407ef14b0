// Modulation on the CPU: one vectorized pass over memory.
#include "../modulation.h"

namespace ammnet_sparse {
namespace {

constexpr int64_t kElementsOfTask = 1 << 14;

template <typename T>
void modulate_range(
    const T* __restrict features, const T* __restrict scale, const T* __restrict bias, T* __restrict result,
    int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    result[i] = modulate_element(features[i], scale[i], bias[i]);
  }
}

template <typename T>
void modulate_range_backward(
    const T* __restrict grad, const T* __restrict features, const T* __restrict scale, T* __restrict grad_features,
    T* __restrict grad_scale, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const ModulationGradients<T> gradients = modulate_element_backward(grad[i], features[i], scale[i]);
    grad_features[i] = gradients.features;
    grad_scale[i] = gradients.scale;
  }
}

Tensor modulate(const Tensor& features, const Tensor& scale, const Tensor& bias) {
  Tensor result = torch::stable::empty_like(features);
  const Tensor features_ = like(features, result);
  const Tensor scale_ = like(scale, result);
  const Tensor bias_ = like(bias, result);
  dispatch_features(features.scalar_type(), "modulate", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* features_data = static_cast<const T*>(features_.const_data_ptr());
    const auto* scale_data = static_cast<const T*>(scale_.const_data_ptr());
    const auto* bias_data = static_cast<const T*>(bias_.const_data_ptr());
    auto* result_data = static_cast<T*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, result.numel(), kElementsOfTask, [&](int64_t begin, int64_t end) {
      modulate_range(features_data + begin, scale_data + begin, bias_data + begin, result_data + begin, end - begin);
    });
  });
  return result;
}

std::tuple<Tensor, Tensor> modulate_backward(const Tensor& grad, const Tensor& features, const Tensor& scale) {
  Tensor grad_features = torch::stable::empty_like(features);
  Tensor grad_scale = torch::stable::empty_like(grad_features);
  const Tensor grad_ = like(grad, grad_features);
  const Tensor features_ = like(features, grad_features);
  const Tensor scale_ = like(scale, grad_features);
  dispatch_features(features.scalar_type(), "modulate_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* grad_data = static_cast<const T*>(grad_.const_data_ptr());
    const auto* features_data = static_cast<const T*>(features_.const_data_ptr());
    const auto* scale_data = static_cast<const T*>(scale_.const_data_ptr());
    auto* grad_features_data = static_cast<T*>(grad_features.mutable_data_ptr());
    auto* grad_scale_data = static_cast<T*>(grad_scale.mutable_data_ptr());
    torch::stable::parallel_for(0, features_.numel(), kElementsOfTask, [&](int64_t begin, int64_t end) {
      modulate_range_backward(
          grad_data + begin, features_data + begin, scale_data + begin, grad_features_data + begin,
          grad_scale_data + begin, end - begin);
    });
  });
  // A scale nearly always has the layout of features; then nothing else is allocated.
  return {
      grad_features,
      have_same_layout(grad_scale, scale) ? grad_scale : like(grad_scale, torch::stable::empty_like(scale))};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CPU, library) {
  library.impl("modulate", TORCH_BOX(&modulate));
  library.impl("modulate_backward", TORCH_BOX(&modulate_backward));
}

}  // namespace ammnet_sparse
