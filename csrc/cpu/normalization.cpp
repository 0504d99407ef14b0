// Normalization on the CPU. Rows are taken in chunks that stay in the cache; sums over the chunks are formed in double,
// in their order, so that the number of threads changes nothing.
#include "../normalization_arguments.h"

namespace ammnet_sparse {
namespace {

constexpr int64_t kChannelsOfTile = 64;
constexpr int64_t kRowsOfChunk = 256;

struct Sizes {
  int64_t groups;
  int64_t rows;  // of a group
  int64_t channels;

  int64_t chunks() const { return (rows + kRowsOfChunk - 1) / kRowsOfChunk; }
  int64_t rows_of_chunk(int64_t chunk) const { return std::min(kRowsOfChunk, rows - chunk * kRowsOfChunk); }
};

Sizes sizes_of(const Tensor& features, int64_t num_groups, const char* name) {
  const int64_t rows = checked_rows(features, num_groups, name);
  return {num_groups, rows, features.size(1)};
}

// Calls function(group, chunk) for every chunk of every group, from several threads.
template <typename Function>
void for_each_chunk(const Sizes& sizes, Function&& function) {
  torch::stable::parallel_for(0, sizes.groups * sizes.chunks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      function(i / sizes.chunks(), i % sizes.chunks());
    }
  });
}

// Features, residuals or results; data is null if there are none.
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

// By group and channel what a value is normalized with.
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

// values = the sum of normalized features and residuals, of channels first .. first + size of a row.
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

template <typename T, typename A = Accumulate<T>>
void normalize_rows(
    const Operands<T>& operands, const Channels<A>& channels, const Sizes& sizes, Rows<T> sum, Rows<T> activated) {
  for_each_chunk(sizes, [&](int64_t group, int64_t chunk) {
    const int64_t begin = group * sizes.rows + chunk * kRowsOfChunk;
    for (int64_t row = begin; row < begin + sizes.rows_of_chunk(chunk); ++row) {
      for (int64_t first = 0; first < sizes.channels; first += kChannelsOfTile) {
        const int64_t size = std::min(kChannelsOfTile, sizes.channels - first);
        const int64_t offset = row * sizes.channels + first;
        A values[kChannelsOfTile];
        sum_row(operands, channels, offset, group * sizes.channels + first, first, size, values);
        if (sum) {
          for (int64_t c = 0; c < size; ++c) {
            sum.data[offset + c] = static_cast<T>(values[c]);
          }
        }
        if (activated) {
          for (int64_t c = 0; c < size; ++c) {
            activated.data[offset + c] = static_cast<T>(relu(values[c]));
          }
        }
      }
    }
  });
}

// Means and sums of squares of a chunk, of the features' differences from `shift`, a row of the group.
template <typename T, typename A = Accumulate<T>>
void find_moments(const T* features, const T* shift, int64_t rows, int64_t channels, A* mean, A* squares) {
  for (int64_t first = 0; first < channels; first += kChannelsOfTile) {
    const int64_t size = std::min(kChannelsOfTile, channels - first);
    A tile_shift[kChannelsOfTile];
    A tile_mean[kChannelsOfTile] = {};
    A tile_squares[kChannelsOfTile] = {};
    for (int64_t c = 0; c < size; ++c) {
      tile_shift[c] = static_cast<A>(shift[first + c]);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const T* values = features + row * channels + first;
      const A inverse_count = A(1) / static_cast<A>(row + 1);
      for (int64_t c = 0; c < size; ++c) {
        add_value(static_cast<A>(values[c]) - tile_shift[c], inverse_count, tile_mean[c], tile_squares[c]);
      }
    }
    std::copy(tile_mean, tile_mean + size, mean + first);
    std::copy(tile_squares, tile_squares + size, squares + first);
  }
}

template <typename T, typename A = Accumulate<T>>
void find_statistics(const T* features, const Sizes& sizes, A* mean, A* variance) {
  const int64_t chunks = sizes.chunks();
  const int64_t channels = sizes.channels;
  std::vector<A> parts(static_cast<size_t>(2 * sizes.groups * chunks * channels));
  for_each_chunk(sizes, [&](int64_t group, int64_t chunk) {
    const T* shift = features + group * sizes.rows * channels;
    A* part = parts.data() + 2 * (group * chunks + chunk) * channels;
    find_moments(
        shift + chunk * kRowsOfChunk * channels, shift, sizes.rows_of_chunk(chunk), channels, part, part + channels);
  });
  std::vector<Moments<double>> moments(static_cast<size_t>(channels));
  for (int64_t group = 0; group < sizes.groups; ++group) {
    std::fill(moments.begin(), moments.end(), Moments<double>{0, 0, 0});
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const A* part = parts.data() + 2 * (group * chunks + chunk) * channels;
      const auto count = static_cast<double>(sizes.rows_of_chunk(chunk));
      for (int64_t c = 0; c < channels; ++c) {
        Moments<double>& all = moments[static_cast<size_t>(c)];
        all = merge_moments(all, Moments<double>{count, part[c], part[channels + c]});
      }
    }
    const T* shift = features + group * sizes.rows * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const Moments<double>& all = moments[static_cast<size_t>(c)];
      mean[group * channels + c] = static_cast<A>(all.mean + static_cast<double>(static_cast<A>(shift[c])));
      variance[group * channels + c] = static_cast<A>(all.squares / all.count);
    }
  }
}

// As that many batches one after another would leave them, the first group first.
template <typename A>
void track_statistics(
    const A* mean, const A* variance, const Sizes& sizes, A momentum, A* running_mean, A* running_var) {
  const A correction = static_cast<A>(sizes.rows) / static_cast<A>(sizes.rows - 1);
  for (int64_t group = 0; group < sizes.groups; ++group) {
    for (int64_t c = 0; c < sizes.channels; ++c) {
      const int64_t i = group * sizes.channels + c;
      running_mean[c] = track(running_mean[c], mean[i], momentum);
      running_var[c] = track(running_var[c], variance[i] * correction, momentum);
    }
  }
}

std::tuple<Tensor, Tensor> apply_normalization(
    const Tensor& features, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& residual1,
    const std::optional<Tensor>& residual2, const Tensor& mean, const Tensor& variance, double eps, bool with_sum,
    bool with_relu, bool) {
  const char* name = "apply_normalization";
  STD_TORCH_CHECK(features.dim() == 2, name, ": expected features [N, C]");
  const Sizes sizes = sizes_of(features, groups_of(mean, features), name);
  const Tensor features_ = as_contiguous(features);
  const auto residual1_ = prepared(residual1, features, "apply_normalization: residual1");
  const auto residual2_ = prepared(residual2, features, "apply_normalization: residual2");
  Tensor sum = new_result(features, with_sum);
  Tensor activated = new_result(features, with_relu);
  dispatch_features(features.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Accumulate<T>;
    const int64_t size = sizes.groups * sizes.channels;
    const Channels<A> channels(
        checked_statistics<A>(mean, size, features, "apply_normalization: mean"),
        checked_statistics<A>(variance, size, features, "apply_normalization: variance"),
        checked_statistics<A>(weight, sizes.channels, features, "apply_normalization: weight"),
        checked_statistics<A>(bias, sizes.channels, features, "apply_normalization: bias"), static_cast<A>(eps), sizes);
    const Operands<T> operands{rows_of<T>(features_), rows_of<T>(residual1_), rows_of<T>(residual2_)};
    normalize_rows(operands, channels, sizes, results_of<T>(sum, with_sum), results_of<T>(activated, with_relu));
  });
  return {sum, activated};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> normalize_sites(
    const Tensor& features, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& residual1,
    const std::optional<Tensor>& residual2, const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var, const std::optional<Tensor>& num_batches_tracked, int64_t num_groups,
    double momentum, double eps, bool with_sum, bool with_relu, bool keep_residuals) {
  const char* name = "normalize_sites";
  const Sizes sizes = sizes_of(features, num_groups, name);
  STD_TORCH_CHECK(sizes.rows >= 2, name, ": expected at least 2 rows in a group, found ", sizes.rows);
  const Tensor features_ = as_contiguous(features);
  Tensor mean = torch::stable::new_empty(features, {num_groups, sizes.channels}, statistics_type(features));
  Tensor variance = torch::stable::new_empty(features, {num_groups, sizes.channels}, statistics_type(features));
  dispatch_features(features.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Accumulate<T>;
    auto* mean_data = static_cast<A*>(mean.mutable_data_ptr());
    auto* variance_data = static_cast<A*>(variance.mutable_data_ptr());
    find_statistics(static_cast<const T*>(features_.const_data_ptr()), sizes, mean_data, variance_data);
    if (running_mean.has_value() && running_var.has_value()) {
      checked_statistics<A>(*running_mean, sizes.channels, features, "normalize_sites: running_mean");
      checked_statistics<A>(*running_var, sizes.channels, features, "normalize_sites: running_var");
      track_statistics(
          mean_data, variance_data, sizes, static_cast<A>(momentum), static_cast<A*>(running_mean->mutable_data_ptr()),
          static_cast<A*>(running_var->mutable_data_ptr()));
    }
  });
  if (int64_t* num_batches = checked_counter(num_batches_tracked, name)) {
    *num_batches += num_groups;
  }
  auto [sum, activated] = apply_normalization(
      features_, weight, bias, residual1, residual2, mean, variance, eps, with_sum, with_relu, keep_residuals);
  return {sum, activated, mean, variance};
}

template <typename T>
struct Gradients {
  Operands<T> operands;
  Rows<const T> activated;
  Rows<const T> grad_sum;
  Rows<const T> grad_activated;
};

// grad = the gradient of the sum, normalized = (features - mean) * inverse_std, of a part of a row.
template <typename T, typename A = Accumulate<T>>
void gradient_row(
    const Gradients<T>& inputs, const Channels<A>& channels, int64_t offset, int64_t statistic, int64_t first,
    int64_t size, A* grad, A* normalized) {
  if (inputs.grad_activated) {
    const T* incoming = inputs.grad_activated.data + offset;
    if (inputs.activated) {
      const T* activated = inputs.activated.data + offset;
      for (int64_t c = 0; c < size; ++c) {
        grad[c] = relu_backward(static_cast<A>(activated[c]), static_cast<A>(incoming[c]));
      }
    } else {
      A values[kChannelsOfTile];
      sum_row(inputs.operands, channels, offset, statistic, first, size, values);
      for (int64_t c = 0; c < size; ++c) {
        grad[c] = relu_backward(values[c], static_cast<A>(incoming[c]));
      }
    }
  } else {
    std::fill(grad, grad + size, A(0));
  }
  add_row(inputs.grad_sum.at(offset), size, grad);
  const T* features = inputs.operands.features.data + offset;
  const A* mean = channels.mean.data() + statistic;
  const A* inverse_std = channels.inverse_std.data() + statistic;
  for (int64_t c = 0; c < size; ++c) {
    normalized[c] = (static_cast<A>(features[c]) - mean[c]) * inverse_std[c];
  }
}

// sums[group] = over its rows the gradients [C], and their products with the normalized features [C].
template <typename T, typename A = Accumulate<T>>
std::vector<double> sum_gradients(const Gradients<T>& inputs, const Channels<A>& channels, const Sizes& sizes) {
  const int64_t chunks = sizes.chunks();
  const int64_t width = 2 * sizes.channels;
  std::vector<A> parts(static_cast<size_t>(sizes.groups * chunks * width));
  for_each_chunk(sizes, [&](int64_t group, int64_t chunk) {
    A* part = parts.data() + (group * chunks + chunk) * width;
    const int64_t begin = group * sizes.rows + chunk * kRowsOfChunk;
    for (int64_t first = 0; first < sizes.channels; first += kChannelsOfTile) {
      const int64_t size = std::min(kChannelsOfTile, sizes.channels - first);
      A sums[kChannelsOfTile] = {};
      A products[kChannelsOfTile] = {};
      for (int64_t row = begin; row < begin + sizes.rows_of_chunk(chunk); ++row) {
        A grad[kChannelsOfTile];
        A normalized[kChannelsOfTile];
        gradient_row(
            inputs, channels, row * sizes.channels + first, group * sizes.channels + first, first, size, grad,
            normalized);
        for (int64_t c = 0; c < size; ++c) {
          sums[c] += grad[c];
          products[c] += grad[c] * normalized[c];
        }
      }
      std::copy(sums, sums + size, part + first);
      std::copy(products, products + size, part + sizes.channels + first);
    }
  });
  std::vector<double> totals(static_cast<size_t>(sizes.groups * width));
  for (int64_t group = 0; group < sizes.groups; ++group) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const A* part = parts.data() + (group * chunks + chunk) * width;
      for (int64_t i = 0; i < width; ++i) {
        totals[static_cast<size_t>(group * width + i)] += static_cast<double>(part[i]);
      }
    }
  }
  return totals;
}

template <typename T, typename A = Accumulate<T>>
void normalize_rows_backward(
    const Gradients<T>& inputs, const Channels<A>& channels, const Sizes& sizes, const std::vector<double>& totals,
    bool is_training, Rows<T> grad_features, Rows<T> grad_residual) {
  std::vector<A> means(totals.size());
  if (is_training) {
    std::transform(totals.begin(), totals.end(), means.begin(), [&](double total) {
      return static_cast<A>(total / static_cast<double>(sizes.rows));
    });
  }
  for_each_chunk(sizes, [&](int64_t group, int64_t chunk) {
    const int64_t begin = group * sizes.rows + chunk * kRowsOfChunk;
    for (int64_t row = begin; row < begin + sizes.rows_of_chunk(chunk); ++row) {
      for (int64_t first = 0; first < sizes.channels; first += kChannelsOfTile) {
        const int64_t size = std::min(kChannelsOfTile, sizes.channels - first);
        const int64_t offset = row * sizes.channels + first;
        const int64_t statistic = group * sizes.channels + first;
        A grad[kChannelsOfTile];
        A normalized[kChannelsOfTile];
        gradient_row(inputs, channels, offset, statistic, first, size, grad, normalized);
        const A* scale = channels.scale.data() + statistic;
        const A* mean_grad = means.data() + 2 * group * sizes.channels + first;
        const A* mean_product = mean_grad + sizes.channels;
        for (int64_t c = 0; c < size; ++c) {
          grad_features.data[offset + c] =
              static_cast<T>(normalize_backward(grad[c], normalized[c], scale[c], mean_grad[c], mean_product[c]));
        }
        if (grad_residual) {
          for (int64_t c = 0; c < size; ++c) {
            grad_residual.data[offset + c] = static_cast<T>(grad[c]);
          }
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> normalize_sites_backward(
    const std::optional<Tensor>& grad_sum, const std::optional<Tensor>& grad_activated, const Tensor& features,
    const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& residual1,
    const std::optional<Tensor>& residual2, const std::optional<Tensor>& activated, const Tensor& mean,
    const Tensor& variance, double eps, bool is_training, bool needs_residual) {
  const char* name = "normalize_sites_backward";
  STD_TORCH_CHECK(features.dim() == 2, name, ": expected features [N, C]");
  const Sizes sizes = sizes_of(features, groups_of(mean, features), name);
  const Tensor features_ = as_contiguous(features);
  const auto residual1_ = prepared(residual1, features, "normalize_sites_backward: residual1");
  const auto residual2_ = prepared(residual2, features, "normalize_sites_backward: residual2");
  const auto activated_ = prepared(activated, features, "normalize_sites_backward: activated");
  const auto grad_sum_ = prepared(grad_sum, features, "normalize_sites_backward: grad_sum");
  const auto grad_activated_ = prepared(grad_activated, features, "normalize_sites_backward: grad_activated");
  Tensor grad_features = new_result(features, true);
  Tensor grad_residual = new_result(features, needs_residual);
  Tensor grad_weight = torch::stable::new_empty(features, {sizes.channels}, statistics_type(features));
  Tensor grad_bias = torch::stable::new_empty(features, {sizes.channels}, statistics_type(features));
  dispatch_features(features.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Accumulate<T>;
    const int64_t size = sizes.groups * sizes.channels;
    const Channels<A> channels(
        checked_statistics<A>(mean, size, features, "normalize_sites_backward: mean"),
        checked_statistics<A>(variance, size, features, "normalize_sites_backward: variance"),
        checked_statistics<A>(weight, sizes.channels, features, "normalize_sites_backward: weight"),
        checked_statistics<A>(bias, sizes.channels, features, "normalize_sites_backward: bias"), static_cast<A>(eps),
        sizes);
    const Gradients<T> inputs{
        {rows_of<T>(features_), rows_of<T>(residual1_), rows_of<T>(residual2_)},
        rows_of<T>(activated_),
        rows_of<T>(grad_sum_),
        rows_of<T>(grad_activated_)};
    const std::vector<double> totals = sum_gradients(inputs, channels, sizes);
    auto* weight_data = static_cast<A*>(grad_weight.mutable_data_ptr());
    auto* bias_data = static_cast<A*>(grad_bias.mutable_data_ptr());
    for (int64_t c = 0; c < sizes.channels; ++c) {
      double bias_total = 0;
      double weight_total = 0;
      for (int64_t group = 0; group < sizes.groups; ++group) {
        bias_total += totals[static_cast<size_t>(2 * group * sizes.channels + c)];
        weight_total += totals[static_cast<size_t>((2 * group + 1) * sizes.channels + c)];
      }
      bias_data[c] = static_cast<A>(bias_total);
      weight_data[c] = static_cast<A>(weight_total);
    }
    normalize_rows_backward(
        inputs, channels, sizes, totals, is_training, results_of<T>(grad_features, true),
        results_of<T>(grad_residual, needs_residual));
  });
  return {grad_features, grad_residual, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CPU, library) {
  library.impl("normalize_sites", TORCH_BOX(&normalize_sites));
  library.impl("apply_normalization", TORCH_BOX(&apply_normalization));
  library.impl("normalize_sites_backward", TORCH_BOX(&normalize_sites_backward));
}

}  // namespace ammnet_sparse
