// Arguments and results of the normalization operators, as the kernels of both devices take them.
#pragma once

#include "normalization.h"

namespace ammnet_sparse {

// float32, or float64 for features in float64.
inline ScalarType statistics_type(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// [N, C] as features where it is wanted, else [0].
inline Tensor new_result(const Tensor& features, bool is_wanted) {
  return is_wanted ? torch::stable::new_empty(features, {features.size(0), features.size(1)})
                   : torch::stable::new_empty(features, {0});
}

// Residuals, gradients: contiguous, of the shape and type of features. It must outlive the pointer to its data.
inline std::optional<Tensor> prepared(const std::optional<Tensor>& tensor, const Tensor& features, const char* name) {
  if (!tensor.has_value()) {
    return std::nullopt;
  }
  check_shape(*tensor, {features.size(0), features.size(1)}, name);
  return as_contiguous(as_type(*tensor, features.scalar_type()));
}

// Null if there is none.
template <typename T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <typename T>
T* data_of_result(const Tensor& tensor, bool is_wanted) {
  return is_wanted ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// Parameters [C] or statistics [G, C].
template <typename A>
A* checked_statistics(const Tensor& tensor, int64_t size, const Tensor& features, const char* name) {
  STD_TORCH_CHECK(
      tensor.numel() == size && tensor.is_contiguous() && tensor.scalar_type() == statistics_type(features), name,
      ": expected ", size, " contiguous values in float32 (float64 for float64 features)");
  return static_cast<A*>(tensor.mutable_data_ptr());
}

// Rows of a group.
inline int64_t checked_rows(const Tensor& features, int64_t num_groups, const char* name) {
  STD_TORCH_CHECK(features.dim() == 2, name, ": expected features [N, C]");
  STD_TORCH_CHECK(
      num_groups >= 1 && features.size(0) % num_groups == 0, name, ": expected rows of ", num_groups,
      " equal groups, found ", features.size(0));
  return features.size(0) / num_groups;
}

// Groups of statistics [G, C] or [C].
inline int64_t groups_of(const Tensor& mean, const Tensor& features) {
  return std::max<int64_t>(1, mean.numel() / std::max<int64_t>(1, features.size(1)));
}

// Null where batches are not counted.
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
