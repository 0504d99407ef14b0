// Backward pass of normalization on the CPU.
#include "normalization.h"

namespace ammnet_sparse {
namespace {

template <typename T>
struct Gradients {
  Operands<T> operands;
  Rows<const T> activated;
  Rows<const T> grad_sum;
  Rows<const T> grad_activated;
};

// For part of a row: grad = gradient of `sum`, normalized = (features - mean) * inverse_std.
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

// sums[group]: sums over the group's rows of the gradients [C], and of gradients times normalized features [C].
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
  for_each_tile(sizes, [&](int64_t group, int64_t offset, int64_t first, int64_t size) {
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
    const auto channels = channels_of<A>(name, features, mean, variance, weight, bias, eps, sizes);
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
  library.impl("normalize_sites_backward", TORCH_BOX(&normalize_sites_backward));
}

}  // namespace ammnet_sparse
