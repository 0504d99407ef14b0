// Backward pass of normalization on CUDA, in three launches as the forward pass: sums of chunks, sums of groups,
// gradients.
#include "normalization.h"

namespace ammnet_sparse {
namespace {

template <typename T>
struct Gradients {
  Operands<T> operands;
  const T* activated;  // this and the next two: null if absent
  const T* grad_sum;
  const T* grad_activated;
};

// grad = gradient of `sum`, normalized = (features - mean) * inverse_std.
template <typename T, int kSize, typename A>
__device__ __forceinline__ void gradient_vector(
    const Gradients<T>& inputs, const Channels<A, kSize>& channels, int64_t offset, A (&grad)[kSize],
    A (&normalized)[kSize]) {
  const auto features = load<kSize>(inputs.operands.features + offset);
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    grad[i] = A(0);
    normalized[i] = (static_cast<A>(features.value[i]) - channels.mean[i]) * channels.inverse_std[i];
  }
  add_vector<kSize>(inputs.grad_sum, offset, grad);
  if (inputs.grad_activated != nullptr) {
    A values[kSize] = {};
    if (inputs.activated != nullptr) {
      add_vector<kSize>(inputs.activated, offset, values);
    } else {
      sum_vector(features, inputs.operands, channels, offset, values);
    }
    const auto incoming = load<kSize>(inputs.grad_activated + offset);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      grad[i] += relu_backward(values[i], static_cast<A>(incoming.value[i]));
    }
  }
}

// parts [groups, chunks, 2, channels]: per chunk, sums of the gradients and of gradients times normalized features.
//   grid, block   as moments_kernel
//   shared memory 2 * kSize * 256 accumulators: 8 KiB in float32, 16 KiB in float16
//   complexity    one read per operand and element; log2(256 / columns) steps of a tree reduction
//   determinism   yes: the tree depends on the shape only
template <typename T, int kSize, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads)
    gradient_sums_kernel(Gradients<T> inputs, Parameters<A> parameters, Layout layout, A* __restrict__ parts) {
  __shared__ A shared_sums[kSize][kThreads];
  __shared__ A shared_products[kSize][kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const Coordinates coordinates = find_coordinates<kSize>(layout);
  const bool is_inside = coordinates.is_inside(layout);
  A sums[kSize] = {};
  A products[kSize] = {};
  if (is_inside) {
    const auto channels = read_channels<kSize>(parameters, layout, coordinates);
#pragma unroll 2
    for (int64_t row = coordinates.begin + coordinates.row; row < coordinates.end; row += coordinates.step) {
      A grad[kSize];
      A normalized[kSize];
      gradient_vector(inputs, channels, row * layout.channels + coordinates.channel, grad, normalized);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        sums[i] += grad[i];
        products[i] = multiply_add(grad[i], normalized[i], products[i]);
      }
    }
  }
  for (int half = coordinates.step; half > 0; half /= 2) {
    if (half < coordinates.step && coordinates.row < half) {
      const int other = thread + half * layout.columns;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        sums[i] += shared_sums[i][other];
        products[i] += shared_products[i][other];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      shared_sums[i][thread] = sums[i];
      shared_products[i][thread] = products[i];
    }
    __syncthreads();
  }
  if (is_inside && coordinates.row == 0) {
    A* part = parts + part_of(layout, coordinates.group, coordinates.chunk) + coordinates.channel;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      part[i] = sums[i];
      part[layout.channels + i] = products[i];
    }
  }
}

// means [groups, 2, channels]: both sums divided by the rows of a group. grad_bias and grad_weight [channels]: their
// totals over all groups.
//   grid, block   as finish_moments_kernel
//   shared memory 2 * 256 accumulators
//   complexity    reads 2 * groups * chunks * channels partial results
//   determinism   yes: fixed order of chunks and groups
template <typename A>
__global__ void __launch_bounds__(kThreads) finish_sums_kernel(
    const A* __restrict__ parts, Layout layout, A* __restrict__ means, A* __restrict__ grad_weight,
    A* __restrict__ grad_bias) {
  __shared__ A shared_sums[kThreads];
  __shared__ A shared_products[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int channel = static_cast<int>(blockIdx.x) * kFinishingColumns + thread % kFinishingColumns;
  const int row = thread / kFinishingColumns;
  const bool is_inside = channel < layout.channels;
  A bias_total = 0;
  A weight_total = 0;
  for (int group = 0; group < layout.groups; ++group) {
    A sum = 0;
    A product = 0;
    if (is_inside) {
      for (int chunk = row; chunk < layout.chunks; chunk += kFinishingRows) {
        const A* part = parts + part_of(layout, group, chunk) + channel;
        sum += part[0];
        product += part[layout.channels];
      }
    }
    for (int half = kFinishingRows; half > 0; half /= 2) {
      if (half < kFinishingRows && row < half) {
        const int other = thread + half * kFinishingColumns;
        sum += shared_sums[other];
        product += shared_products[other];
      }
      __syncthreads();
      shared_sums[thread] = sum;
      shared_products[thread] = product;
      __syncthreads();
    }
    if (is_inside && row == 0) {
      bias_total += sum;
      weight_total += product;
      if (means != nullptr) {
        A* mean = means + static_cast<int64_t>(group) * 2 * layout.channels + channel;
        mean[0] = sum / static_cast<A>(layout.rows);
        mean[layout.channels] = product / static_cast<A>(layout.rows);
      }
    }
  }
  if (is_inside && row == 0) {
    grad_bias[channel] = bias_total;
    grad_weight[channel] = weight_total;
  }
}

// Gradients of features and residuals. means: null if the statistics are constants (evaluation).
//   grid, block   as apply_kernel
//   shared memory none
//   complexity    one read per operand and one write per output and element; memory-bound
//   determinism   yes: no sums over rows
template <typename T, int kSize, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads) gradient_kernel(
    Gradients<T> inputs, Parameters<A> parameters, Layout layout, const A* __restrict__ means,
    T* __restrict__ grad_features, T* __restrict__ grad_residual) {
  const Coordinates coordinates = find_coordinates<kSize>(layout);
  if (!coordinates.is_inside(layout)) {
    return;
  }
  const auto channels = read_channels<kSize>(parameters, layout, coordinates);
  A mean_grad[kSize] = {};
  A mean_product[kSize] = {};
  if (means != nullptr) {
    const A* mean = means + static_cast<int64_t>(coordinates.group) * 2 * layout.channels + coordinates.channel;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      mean_grad[i] = mean[i];
      mean_product[i] = mean[layout.channels + i];
    }
  }
  for (int64_t row = coordinates.begin + coordinates.row; row < coordinates.end; row += coordinates.step) {
    const int64_t offset = row * layout.channels + coordinates.channel;
    A grad[kSize];
    A normalized[kSize];
    gradient_vector(inputs, channels, offset, grad, normalized);
    if (grad_residual != nullptr) {
      store_rounded(grad_residual + offset, grad);
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      grad[i] = normalize_backward(grad[i], normalized[i], channels.scale[i], mean_grad[i], mean_product[i]);
    }
    store_rounded(grad_features + offset, grad);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> normalize_sites_backward(
    const std::optional<Tensor>& grad_sum, const std::optional<Tensor>& grad_activated, const Tensor& features,
    const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& residual1,
    const std::optional<Tensor>& residual2, const std::optional<Tensor>& activated, const Tensor& mean,
    const Tensor& variance, double eps, bool is_training, bool needs_residual) {
  const char* name = "normalize_sites_backward";
  const int64_t num_groups = groups_of(mean, features);
  const int64_t rows = checked_rows(features, num_groups, name);
  const int64_t channels = features.size(1);
  const Launch launch(features);
  const std::optional<Tensor> features_ = as_contiguous(features);
  const auto residual1_ = prepared(residual1, features, "normalize_sites_backward: residual1");
  const auto residual2_ = prepared(residual2, features, "normalize_sites_backward: residual2");
  const auto activated_ = prepared(activated, features, "normalize_sites_backward: activated");
  const auto grad_sum_ = prepared(grad_sum, features, "normalize_sites_backward: grad_sum");
  const auto grad_activated_ = prepared(grad_activated, features, "normalize_sites_backward: grad_activated");
  Tensor grad_features = new_result(features, true);
  Tensor grad_residual = new_result(features, needs_residual);
  Tensor grad_weight = torch::stable::new_empty(features, {channels}, statistics_type(features));
  Tensor grad_bias = torch::stable::new_empty(features, {channels}, statistics_type(features));
  if (channels == 0) {
    return {grad_features, grad_residual, grad_weight, grad_bias};
  }
  dispatch_features(features.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Accumulate<T>;
    const auto parameters = parameters_of<A>(mean, variance, weight, bias, eps, features, num_groups);
    const Gradients<T> inputs{
        {data_of<T>(features_), data_of<T>(residual1_), data_of<T>(residual2_)},
        data_of<T>(activated_),
        data_of<T>(grad_sum_),
        data_of<T>(grad_activated_)};
    T* grad_features_data = data_of_result<T>(grad_features, true);
    T* grad_residual_data = data_of_result<T>(grad_residual, needs_residual);
    const bool has_vectors = has_vector_rows<T>(
        channels, inputs.operands.features, inputs.operands.residual1, inputs.operands.residual2, inputs.activated,
        inputs.grad_sum, inputs.grad_activated, grad_features_data, grad_residual_data);
    dispatch_vector<T>(has_vectors, [&](auto vector) {
      const Layout summing = make_layout(rows, num_groups, channels, vector(), kSummingBlocks);
      Tensor parts =
          torch::stable::new_empty(features, {num_groups, summing.chunks + 1, 2, channels}, statistics_type(features));
      auto* parts_data = static_cast<A*>(parts.mutable_data_ptr());
      // The means are stored behind the partial results.
      A* means = is_training ? parts_data + num_groups * summing.chunks * 2 * channels : nullptr;
      launch(
          gradient_sums_kernel<T, vector()>, summing.num_blocks(), kThreads, inputs, parameters, summing, parts_data);
      launch(
          finish_sums_kernel<A>, finishing_blocks(summing), kThreads, parts_data, summing, means,
          static_cast<A*>(grad_weight.mutable_data_ptr()), static_cast<A*>(grad_bias.mutable_data_ptr()));
      if (rows > 0) {
        const Layout computing = make_layout(rows, num_groups, channels, vector(), kComputingBlocks);
        launch(
            gradient_kernel<T, vector()>, computing.num_blocks(), kThreads, inputs, parameters, computing, means,
            grad_features_data, grad_residual_data);
      }
    });
  });
  return {grad_features, grad_residual, grad_weight, grad_bias};
}

}  // namespace

AMMNET_CUDA_KERNELS(library) {
  library.impl("normalize_sites_backward", TORCH_BOX(&normalize_sites_backward));
}

}  // namespace ammnet_sparse
