// Shared by all operators, on the CPU and on CUDA: types, integers of any width, checks of arguments.
//
// Only libtorch's stable ABI is used, so that one binary runs with every PyTorch from TORCH_TARGET_VERSION on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#if defined(__CUDACC__)
#define AMMNET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define AMMNET_HOST_DEVICE inline __attribute__((always_inline))
#endif
// nvcc's host pass only compiles kernel launches: nothing to unroll there.
#if defined(__CUDACC__) && !defined(__CUDA_ARCH__)
#define AMMNET_UNROLL
#elif defined(__CUDACC__) || defined(__clang__)
#define AMMNET_UNROLL _Pragma("unroll")
#else
#define AMMNET_UNROLL _Pragma("GCC unroll 16")
#endif

namespace ammnet_sparse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type in which sums are accumulated.
template <typename T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <typename T>
using Accumulate = typename AccumulateOf<T>::type;

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls function(TypeTag<T>{}) with the C++ type of features.
template <typename Function>
decltype(auto) dispatch_features(ScalarType dtype, const char* name, Function&& function) {
  switch (dtype) {
    case ScalarType::Double:
      return function(TypeTag<double>{});
    case ScalarType::Float:
      return function(TypeTag<float>{});
    case ScalarType::Half:
      return function(TypeTag<c10::Half>{});
    case ScalarType::BFloat16:
      return function(TypeTag<c10::BFloat16>{});
    default:
      STD_TORCH_CHECK(false, name, ": expected float16, bfloat16, float32 or float64");
  }
  throw std::logic_error("unreachable");
}

// Calls function(TypeTag<T>{}) with the C++ type of labels or indices.
template <typename Function>
decltype(auto) dispatch_integers(ScalarType dtype, const char* name, Function&& function) {
  switch (dtype) {
    case ScalarType::Byte:
      return function(TypeTag<uint8_t>{});
    case ScalarType::Char:
      return function(TypeTag<int8_t>{});
    case ScalarType::Short:
      return function(TypeTag<int16_t>{});
    case ScalarType::Int:
      return function(TypeTag<int32_t>{});
    case ScalarType::Long:
      return function(TypeTag<int64_t>{});
    default:
      STD_TORCH_CHECK(false, name, ": expected uint8, int8, int16, int32 or int64");
  }
  throw std::logic_error("unreachable");
}

// Integers of a type known only at run time. The branch is uniform across threads and its cost is negligible next to a
// row of channels or an evaluation of Philox. Instantiating every combination of types would take a hundred kernels.
struct Integers {
  enum class Type : int32_t { kUInt8, kInt8, kInt16, kInt32, kInt64 };

  const void* data;
  Type type;

  AMMNET_HOST_DEVICE int64_t operator[](int64_t index) const {
    switch (type) {
      case Type::kUInt8:
        return static_cast<const uint8_t*>(data)[index];
      case Type::kInt8:
        return static_cast<const int8_t*>(data)[index];
      case Type::kInt16:
        return static_cast<const int16_t*>(data)[index];
      case Type::kInt32:
        return static_cast<const int32_t*>(data)[index];
      default:
        return static_cast<const int64_t*>(data)[index];
    }
  }
};

// View of a contiguous tensor, which must outlive the result.
inline Integers integers_of(const Tensor& tensor, const char* name) {
  return dispatch_integers(tensor.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr auto type = std::is_same_v<T, uint8_t>   ? Integers::Type::kUInt8
                          : std::is_same_v<T, int8_t>  ? Integers::Type::kInt8
                          : std::is_same_v<T, int16_t> ? Integers::Type::kInt16
                          : std::is_same_v<T, int32_t> ? Integers::Type::kInt32
                                                       : Integers::Type::kInt64;
    return Integers{tensor.const_data_ptr(), type};
  });
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// `tensor` converted to `dtype`; the same tensor if it already has that type.
inline Tensor as_type(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Whether two tensors of the same shape store their elements at the same offsets.
inline bool have_same_layout(const Tensor& first, const Tensor& second) {
  for (int64_t axis = 0; axis < first.dim(); ++axis) {
    if (first.size(axis) > 1 && first.stride(axis) != second.stride(axis)) {
      return false;
    }
  }
  return true;
}

// `tensor` with the type and layout of `example`, which is dense.
inline Tensor like(const Tensor& tensor, const Tensor& example) {
  if (tensor.scalar_type() == example.scalar_type() && have_same_layout(tensor, example)) {
    return tensor;
  }
  Tensor result = torch::stable::empty_like(example);
  torch::stable::copy_(result, tensor);
  return result;
}

inline void check_shape(const Tensor& tensor, const std::vector<int64_t>& expected, const char* name) {
  bool is_as_expected = tensor.dim() == static_cast<int64_t>(expected.size());
  for (size_t axis = 0; is_as_expected && axis < expected.size(); ++axis) {
    is_as_expected = tensor.size(static_cast<int64_t>(axis)) == expected[axis];
  }
  if (is_as_expected) {
    return;
  }
  std::string text;
  for (const int64_t size : expected) {
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  }
  STD_TORCH_CHECK(false, name, ": expected shape [", text, "]");
}

// Minimum and maximum of `size` >= 1 values.
template <typename T>
std::pair<int64_t, int64_t> find_range(const T* values, int64_t size) {
  T smallest = values[0];
  T largest = values[0];
  for (int64_t i = 1; i < size; ++i) {
    smallest = std::min(smallest, values[i]);
    largest = std::max(largest, values[i]);
  }
  return {smallest, largest};
}

// Throws std::out_of_range, an IndexError in Python.
[[noreturn]] inline void throw_out_of_range(
    const char* name, int64_t low, int64_t high, int64_t smallest, int64_t largest) {
  throw std::out_of_range(
      std::string(name) + ": expected values in " + std::to_string(low) + " .. " + std::to_string(high) + ", found " +
      std::to_string(smallest) + " .. " + std::to_string(largest));
}

// Throws std::out_of_range if an element of a contiguous CPU tensor is outside low .. high (both included).
inline void check_range(const Tensor& tensor, int64_t low, int64_t high, const char* name) {
  if (tensor.numel() == 0) {
    return;
  }
  const auto [smallest, largest] = dispatch_integers(tensor.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return find_range(static_cast<const T*>(tensor.const_data_ptr()), tensor.numel());
  });
  if (smallest < low || largest > high) {
    throw_out_of_range(name, low, high, smallest, largest);
  }
}

}  // namespace ammnet_sparse
