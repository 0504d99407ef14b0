// Forward pass of normalization on the CPU.
#include "normalization.h"

namespace ammnet_sparse {
namespace {

template <typename T, typename A = Accumulate<T>>
void normalize_rows(
    const Operands<T>& operands, const Channels<A>& channels, const Sizes& sizes, Rows<T> sum, Rows<T> activated) {
  for_each_tile(sizes, [&](int64_t group, int64_t offset, int64_t first, int64_t size) {
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
  });
}

// Mean and sum of squared deviations of a chunk, of features minus `shift`, a row of the group.
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

// Updates the running statistics as if the groups were successive batches, in their order.
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
    const auto channels = channels_of<A>(name, features, mean, variance, weight, bias, eps, sizes);
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CPU, library) {
  library.impl("normalize_sites", TORCH_BOX(&normalize_sites));
  library.impl("apply_normalization", TORCH_BOX(&apply_normalization));
}

}  // namespace ammnet_sparse
