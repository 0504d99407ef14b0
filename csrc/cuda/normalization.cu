// Normalization on CUDA in three launches: moments of chunks of rows, moments of groups from those of their chunks, and
// a second pass that computes the result. Kernels depend on the previous launch only (no grid synchronization), and all
// sums have a fixed order: equal inputs give equal bits.
#include "normalization.h"

namespace ammnet_sparse {
namespace {

// parts [groups, chunks, 2, channels]: mean and sum of squared deviations of each chunk, of features minus the first
// row of the group (Welford per thread, Chan's merge across threads).
//   grid          groups * chunks * tiles, at most kSummingBlocks unless groups * tiles exceed it
//   block         256 threads, see Layout
//   shared memory (1 + 2 * kSize) * 256 accumulators: 9 KiB in float32, 17 KiB in float16
//   complexity    one read per element; log2(256 / columns) steps of a tree reduction
//   determinism   yes: the tree depends on the shape only
template <typename T, int kSize, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads)
    moments_kernel(const T* __restrict__ features, Layout layout, A* __restrict__ parts) {
  __shared__ A shared_count[kThreads];
  __shared__ A shared_mean[kSize][kThreads];
  __shared__ A shared_squares[kSize][kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const Coordinates coordinates = find_coordinates<kSize>(layout);
  const bool is_inside = coordinates.is_inside(layout);
  A count = 0;
  A mean[kSize] = {};
  A squares[kSize] = {};
  if (is_inside) {
    const auto shift = load<kSize>(features + coordinates.group * layout.rows * layout.channels + coordinates.channel);
    for (int64_t row = coordinates.begin + coordinates.row; row < coordinates.end;
         row += kRowsAtOnce * coordinates.step) {
      Vector<T, kSize> values[kRowsAtOnce] = {};
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k) {
        if (row + k * coordinates.step < coordinates.end) {
          values[k] = load<kSize>(features + (row + k * coordinates.step) * layout.channels + coordinates.channel);
        }
      }
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k) {
        if (row + k * coordinates.step < coordinates.end) {
          count += A(1);
          const A inverse_count = A(1) / count;
#pragma unroll
          for (int i = 0; i < kSize; ++i) {
            const A value = static_cast<A>(values[k].value[i]) - static_cast<A>(shift.value[i]);
            add_value(value, inverse_count, mean[i], squares[i]);
          }
        }
      }
    }
  }
  for (int half = coordinates.step; half > 0; half /= 2) {
    if (half < coordinates.step && coordinates.row < half) {
      const int other = thread + half * layout.columns;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const auto merged = merge_moments(
            Moments<A>{count, mean[i], squares[i]},
            Moments<A>{shared_count[other], shared_mean[i][other], shared_squares[i][other]});
        mean[i] = merged.mean;
        squares[i] = merged.squares;
      }
      count += shared_count[other];
    }
    __syncthreads();
    shared_count[thread] = count;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      shared_mean[i][thread] = mean[i];
      shared_squares[i][thread] = squares[i];
    }
    __syncthreads();
  }
  if (is_inside && coordinates.row == 0) {
    A* part = parts + part_of(layout, coordinates.group, coordinates.chunk) + coordinates.channel;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      part[i] = mean[i];
      part[layout.channels + i] = squares[i];
    }
  }
}

// Mean and biased variance of each group from those of its chunks; updates the running statistics group by group.
//   grid          ceil(channels / 8)
//   block         256 threads: 32 rows of 8 channels; a thread merges every 32nd chunk
//   shared memory 3 * 256 accumulators
//   complexity    reads 2 * groups * chunks * channels partial results
//   determinism   yes: fixed order of chunks and groups
template <typename T, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads) finish_moments_kernel(
    const T* __restrict__ features, const A* __restrict__ parts, Layout layout, A momentum, A* __restrict__ mean,
    A* __restrict__ variance, A* __restrict__ running_mean, A* __restrict__ running_var,
    int64_t* __restrict__ num_batches) {
  __shared__ A shared_count[kThreads];
  __shared__ A shared_mean[kThreads];
  __shared__ A shared_squares[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int channel = static_cast<int>(blockIdx.x) * kFinishingColumns + thread % kFinishingColumns;
  const int row = thread / kFinishingColumns;
  const bool is_inside = channel < layout.channels;
  const A rows = static_cast<A>(layout.rows);
  for (int group = 0; group < layout.groups; ++group) {
    Moments<A> moments{0, 0, 0};
    if (is_inside) {
      for (int chunk = row; chunk < layout.chunks; chunk += kFinishingRows) {
        const A* part = parts + part_of(layout, group, chunk) + channel;
        moments = merge_moments(
            moments, Moments<A>{static_cast<A>(rows_of_chunk(layout, chunk)), part[0], part[layout.channels]});
      }
    }
    for (int half = kFinishingRows; half > 0; half /= 2) {
      if (half < kFinishingRows && row < half) {
        const int other = thread + half * kFinishingColumns;
        moments = merge_moments(moments, Moments<A>{shared_count[other], shared_mean[other], shared_squares[other]});
      }
      __syncthreads();
      shared_count[thread] = moments.count;
      shared_mean[thread] = moments.mean;
      shared_squares[thread] = moments.squares;
      __syncthreads();
    }
    if (is_inside && row == 0) {
      const int64_t first = group * layout.rows * layout.channels + channel;
      const A group_mean = moments.mean + static_cast<A>(features[first]);
      const A group_variance = moments.squares / rows;
      mean[group * layout.channels + channel] = group_mean;
      variance[group * layout.channels + channel] = group_variance;
      if (running_mean != nullptr) {
        running_mean[channel] = track(running_mean[channel], group_mean, momentum);
        running_var[channel] = track(running_var[channel], group_variance * (rows / (rows - A(1))), momentum);
      }
    }
  }
  if (num_batches != nullptr && blockIdx.x == 0 && thread == 0) {
    *num_batches += layout.groups;
  }
}

// sum = normalized features + residuals; activated = ReLU of it. Null outputs are not written.
//   grid          groups * chunks * tiles, at most kComputingBlocks unless groups * tiles exceed it
//   block         256 threads, see Layout
//   shared memory none
//   complexity    one read per operand and one write per output and element; memory-bound
//   determinism   yes: no sums over rows
template <typename T, int kSize, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads) apply_kernel(
    Operands<T> operands, Parameters<A> parameters, Layout layout, T* __restrict__ sum, T* __restrict__ activated) {
  const Coordinates coordinates = find_coordinates<kSize>(layout);
  if (!coordinates.is_inside(layout)) {
    return;
  }
  const auto channels = read_channels<kSize>(parameters, layout, coordinates);
  for (int64_t row = coordinates.begin + coordinates.row; row < coordinates.end; row += coordinates.step) {
    const int64_t offset = row * layout.channels + coordinates.channel;
    A values[kSize];
    sum_vector(load<kSize>(operands.features + offset), operands, channels, offset, values);
    if (sum != nullptr) {
      store_rounded(sum + offset, values);
    }
    if (activated != nullptr) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        values[i] = relu(values[i]);
      }
      store_rounded(activated + offset, values);
    }
  }
}

std::tuple<Tensor, Tensor> apply_normalization(
    const Tensor& features, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& residual1,
    const std::optional<Tensor>& residual2, const Tensor& mean, const Tensor& variance, double eps, bool with_sum,
    bool with_relu, bool) {
  const char* name = "apply_normalization";
  const int64_t num_groups = groups_of(mean, features);
  const int64_t rows = checked_rows(features, num_groups, name);
  const Launch launch(features);
  const std::optional<Tensor> features_ = as_contiguous(features);
  const auto residual1_ = prepared(residual1, features, "apply_normalization: residual1");
  const auto residual2_ = prepared(residual2, features, "apply_normalization: residual2");
  Tensor sum = new_result(features, with_sum);
  Tensor activated = new_result(features, with_relu);
  if (features.numel() == 0) {
    return {sum, activated};
  }
  dispatch_features(features.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Accumulate<T>;
    const auto parameters = parameters_of<A>(mean, variance, weight, bias, eps, features, num_groups);
    const Operands<T> operands{data_of<T>(features_), data_of<T>(residual1_), data_of<T>(residual2_)};
    T* sum_data = data_of_result<T>(sum, with_sum);
    T* activated_data = data_of_result<T>(activated, with_relu);
    const bool has_vectors = has_vector_rows<T>(
        features.size(1), operands.features, operands.residual1, operands.residual2, sum_data, activated_data);
    dispatch_vector<T>(has_vectors, [&](auto vector) {
      const Layout layout = make_layout(rows, num_groups, features.size(1), vector(), kComputingBlocks);
      launch(
          apply_kernel<T, vector()>, layout.num_blocks(), kThreads, operands, parameters, layout, sum_data,
          activated_data);
    });
  });
  return {sum, activated};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> normalize_sites(
    const Tensor& features, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& residual1,
    const std::optional<Tensor>& residual2, const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var, const std::optional<Tensor>& num_batches_tracked, int64_t num_groups,
    double momentum, double eps, bool with_sum, bool with_relu, bool keep_residuals) {
  const char* name = "normalize_sites";
  const int64_t rows = checked_rows(features, num_groups, name);
  const int64_t channels = features.size(1);
  STD_TORCH_CHECK(rows >= 2, name, ": expected at least 2 rows in a group, found ", rows);
  const Launch launch(features);
  const Tensor features_ = as_contiguous(features);
  Tensor mean = torch::stable::new_empty(features, {num_groups, channels}, statistics_type(features));
  Tensor variance = torch::stable::new_empty(features, {num_groups, channels}, statistics_type(features));
  int64_t* num_batches = checked_counter(num_batches_tracked, name);
  if (channels > 0) {
    dispatch_features(features.scalar_type(), name, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = Accumulate<T>;
      const auto* source = static_cast<const T*>(features_.const_data_ptr());
      A* running_mean_data = nullptr;
      A* running_var_data = nullptr;
      if (running_mean.has_value() && running_var.has_value()) {
        running_mean_data = checked_statistics<A>(*running_mean, channels, features, "normalize_sites: running_mean");
        running_var_data = checked_statistics<A>(*running_var, channels, features, "normalize_sites: running_var");
      }
      dispatch_vector<T>(has_vector_rows<T>(channels, source), [&](auto vector) {
        const Layout layout = make_layout(rows, num_groups, channels, vector(), kSummingBlocks);
        Tensor parts =
            torch::stable::new_empty(features, {num_groups, layout.chunks, 2, channels}, statistics_type(features));
        auto* parts_data = static_cast<A*>(parts.mutable_data_ptr());
        launch(moments_kernel<T, vector()>, layout.num_blocks(), kThreads, source, layout, parts_data);
        launch(
            finish_moments_kernel<T>, finishing_blocks(layout), kThreads, source, parts_data, layout,
            static_cast<A>(momentum), static_cast<A*>(mean.mutable_data_ptr()),
            static_cast<A*>(variance.mutable_data_ptr()), running_mean_data, running_var_data, num_batches);
      });
    });
  }
  auto [sum, activated] = apply_normalization(
      features_, weight, bias, residual1, residual2, mean, variance, eps, with_sum, with_relu, keep_residuals);
  return {sum, activated, mean, variance};
}

}  // namespace

AMMNET_CUDA_KERNELS(library) {
  library.impl("normalize_sites", TORCH_BOX(&normalize_sites));
  library.impl("apply_normalization", TORCH_BOX(&apply_normalization));
}

}  // namespace ammnet_sparse
