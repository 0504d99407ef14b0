// Checks and conversions of the normalization operators' arguments, for the kernels of both devices.
#pragma once

#include "normalization.h"

namespace ammnet_sparse {

// float32, or float64 for features in float64.
inline ScalarType statistics_type(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// [N, C] like features if wanted, otherwise [0].
inline Tensor new_result(const Tensor& features, bool is_wanted) {
  return is_wanted ? torch::stable::new_empty(features, {features.size(0), features.size(1)})
                   : torch::stable::new_empty(features, {0});
}

// Residual or gradient, made contiguous and of the type of features. The result must outlive pointers to its data.
inline std::optional<Tensor> prepared(const std::optional<Tensor>& tensor, const Tensor& features, const char* name) {
  if (!tensor.has_value()) {
    return std::nullopt;
  }
  check_shape(*tensor, {features.size(0), features.size(1)}, name);
  return as_contiguous(as_type(*tensor, features.scalar_type()));
}

// Null for an absent tensor.
template <typename T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <typename T>
T* data_of_result(const Tensor& tensor, bool is_wanted) {
  return is_wanted ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// Data of parameters [C] or statistics [G, C].
template <typename A>
A* checked_statistics(const Tensor& tensor, int64_t size, const Tensor& features, const char* name) {
  STD_TORCH_CHECK(
      tensor.numel() == size && tensor.is_contiguous() && tensor.scalar_type() == statistics_type(features), name,
      ": expected ", size, " contiguous values in float32 (float64 for float64 features)");
  return static_cast<A*>(tensor.mutable_data_ptr());
}

// Number of rows per group.
inline int64_t checked_rows(const Tensor& features, int64_t num_groups, const char* name) {
  STD_TORCH_CHECK(features.dim() == 2, name, ": expected features [N, C]");
  STD_TORCH_CHECK(
      num_groups >= 1 && features.size(0) % num_groups == 0, name, ": expected rows of ", num_groups,
      " equal groups, found ", features.size(0));
  return features.size(0) / num_groups;
}

// Number of groups of statistics [G, C] or [C].
inline int64_t groups_of(const Tensor& mean, const Tensor& features) {
  return std::max<int64_t>(1, mean.numel() / std::max<int64_t>(1, features.size(1)));
}

// Null if batches are not counted.
inline int64_t* checked_counter(const std::optional<Tensor>& counter, const char* name) {
  if (!counter.has_value()) {
    return nullptr;
  }
  STD_TORCH_CHECK(
      counter->numel() == 1 && counter->scalar_type() == ScalarType::Long, name,
      ": expected num_batches_tracked as one int64");
  return static_cast<int64_t*>(counter->mutable_data_ptr());
}

}  // namespace ammnet_sparse
