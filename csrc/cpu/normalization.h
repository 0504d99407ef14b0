// Shared by the forward and backward pass of normalization on the CPU. Rows are processed in chunks that fit the cache.
// Chunks are summed in double and in order, so that the result does not depend on the number of threads.
#pragma once

#include "../normalization_arguments.h"

namespace ammnet_sparse {

constexpr int64_t kChannelsOfTile = 64;
constexpr int64_t kRowsOfChunk = 256;

struct Sizes {
  int64_t groups;
  int64_t rows;  // per group
  int64_t channels;

  int64_t chunks() const { return (rows + kRowsOfChunk - 1) / kRowsOfChunk; }
  int64_t rows_of_chunk(int64_t chunk) const { return std::min(kRowsOfChunk, rows - chunk * kRowsOfChunk); }
};

inline Sizes sizes_of(const Tensor& features, int64_t num_groups, const char* name) {
  const int64_t rows = checked_rows(features, num_groups, name);
  return {num_groups, rows, features.size(1)};
}

// Calls function(group, chunk) for every chunk of every group, in parallel.
template <typename Function>
void for_each_chunk(const Sizes& sizes, Function&& function) {
  torch::stable::parallel_for(0, sizes.groups * sizes.chunks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      function(i / sizes.chunks(), i % sizes.chunks());
    }
  });
}

// Features, residuals or results; `data` is null for an absent tensor.
template <typename T>
struct Rows {
  T* data;

  explicit operator bool() const { return data != nullptr; }
  Rows at(int64_t offset) const { return {data == nullptr ? nullptr : data + offset}; }
};

template <typename T>
Rows<const T> rows_of(const std::optional<Tensor>& tensor) {
  return {data_of<T>(tensor)};
}

template <typename T>
Rows<T> results_of(const Tensor& tensor, bool is_wanted) {
  return {data_of_result<T>(tensor, is_wanted)};
}

// Statistics and affine parameters by group and channel.
template <typename A>
struct Channels {
  std::vector<A> mean;
  std::vector<A> inverse_std;
  std::vector<A> scale;
  const A* bias;

  Channels(const A* means, const A* variances, const A* weight, const A* bias_, A eps, const Sizes& sizes)
      : mean(means, means + sizes.groups * sizes.channels), bias(bias_) {
    inverse_std.reserve(mean.size());
    scale.reserve(mean.size());
    for (size_t i = 0; i < mean.size(); ++i) {
      inverse_std.push_back(inverse_std_of(variances[i], eps));
      scale.push_back(weight[i % static_cast<size_t>(sizes.channels)] * inverse_std.back());
    }
  }
};

template <typename T>
struct Operands {
  Rows<const T> features;
  Rows<const T> residual1;
  Rows<const T> residual2;
};

template <typename T, typename A>
void add_row(Rows<const T> row, int64_t size, A* values) {
  if (row) {
    for (int64_t c = 0; c < size; ++c) {
      values[c] += static_cast<A>(row.data[c]);
    }
  }
}

// values = normalized features + residuals, for the channels first .. first + size - 1 of a row.
template <typename T, typename A = Accumulate<T>>
void sum_row(
    const Operands<T>& operands, const Channels<A>& channels, int64_t offset, int64_t statistic, int64_t first,
    int64_t size, A* values) {
  const T* features = operands.features.data + offset;
  const A* mean = channels.mean.data() + statistic;
  const A* scale = channels.scale.data() + statistic;
  const A* bias = channels.bias + first;
  for (int64_t c = 0; c < size; ++c) {
    values[c] = normalize_and_scale(static_cast<A>(features[c]), mean[c], scale[c], bias[c]);
  }
  add_row(operands.residual1.at(offset), size, values);
  add_row(operands.residual2.at(offset), size, values);
}

// Checks the statistics and parameters of operator `name`.
template <typename A>
Channels<A> channels_of(
    const std::string& name, const Tensor& features, const Tensor& mean, const Tensor& variance, const Tensor& weight,
    const Tensor& bias, double eps, const Sizes& sizes) {
  const int64_t size = sizes.groups * sizes.channels;
  return Channels<A>(
      checked_statistics<A>(mean, size, features, (name + ": mean").c_str()),
      checked_statistics<A>(variance, size, features, (name + ": variance").c_str()),
      checked_statistics<A>(weight, sizes.channels, features, (name + ": weight").c_str()),
      checked_statistics<A>(bias, sizes.channels, features, (name + ": bias").c_str()), static_cast<A>(eps), sizes);
}

// Calls function(group, offset, first, size) for the channels first .. first + size - 1 of every row, in parallel;
// `offset` is the position of the first one in the data.
template <typename Function>
void for_each_tile(const Sizes& sizes, Function&& function) {
  for_each_chunk(sizes, [&](int64_t group, int64_t chunk) {
    const int64_t begin = group * sizes.rows + chunk * kRowsOfChunk;
    for (int64_t row = begin; row < begin + sizes.rows_of_chunk(chunk); ++row) {
      for (int64_t first = 0; first < sizes.channels; first += kChannelsOfTile) {
        function(group, row * sizes.channels + first, first, std::min(kChannelsOfTile, sizes.channels - first));
      }
    }
  });
}

}  // namespace ammnet_sparse
