// Normalization on CUDA: one pass over memory finds sums of chunks of rows, a few threads add up the chunks, a second
// pass computes the result; likewise backward. Nothing waits for anything but the launch before it, and sums have a fixed
// order: the same inputs give the same bits.
#include "../normalization.h"
#include "common.h"

namespace ammnet_sparse {
namespace {

constexpr int kMaxColumns = 32;         // a warp reads 512 bytes of a row
constexpr int kRowsAtOnce = 4;          // that a thread has asked for before it uses the first
constexpr int kRowsOfThread = 8;        // at least, where there are as many
constexpr int kSummingBlocks = 512;     // each leaves a partial sum
constexpr int kComputingBlocks = 2048;
constexpr int kFinishingColumns = 8;
constexpr int kFinishingRows = kThreads / kFinishingColumns;

// How blocks lie over [G * rows, channels]: a block takes a chunk of the rows of a group and a tile of the channels. Its
// threads form rows of `columns`, a power of two; each takes a vector of channels in every so many-th row of the chunk.
struct Layout {
  int64_t rows;  // of a group
  int64_t rows_of_chunk;
  int groups;
  int chunks;  // of a group
  int tiles;
  int columns;
  int channels;

  unsigned int num_blocks() const { return static_cast<unsigned int>(groups * chunks * tiles); }
};

Layout make_layout(int64_t rows, int64_t groups, int64_t channels, int vector_size, int max_blocks) {
  Layout layout;
  layout.rows = rows;
  layout.groups = static_cast<int>(groups);
  layout.channels = static_cast<int>(channels);
  const int vectors = static_cast<int>((channels + vector_size - 1) / vector_size);
  layout.columns = 1;
  while (layout.columns < std::min(vectors, kMaxColumns)) {
    layout.columns *= 2;
  }
  layout.tiles = (vectors + layout.columns - 1) / layout.columns;
  const int64_t rows_of_block = kThreads / layout.columns * kRowsOfThread;
  const int64_t wanted = (rows + rows_of_block - 1) / rows_of_block;
  const int64_t most = std::max<int64_t>(1, max_blocks / (groups * layout.tiles));
  layout.rows_of_chunk = std::max<int64_t>(1, (rows + std::min(wanted, most) - 1) / std::max<int64_t>(1, std::min(wanted, most)));
  layout.chunks = static_cast<int>(std::max<int64_t>(1, (rows + layout.rows_of_chunk - 1) / layout.rows_of_chunk));
  return layout;
}

// What a thread does: the rows begin + row, begin + row + step, ... before end of the tensor, at `channel`.
struct Place {
  int group;
  int chunk;
  int row;
  int step;
  int channel;
  int64_t begin;
  int64_t end;

  __device__ __forceinline__ bool is_inside(const Layout& layout) const { return channel < layout.channels; }
};

template <int kSize>
__device__ __forceinline__ Place find_place(const Layout& layout) {
  const int block = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  Place place;
  place.chunk = block / layout.tiles % layout.chunks;
  place.group = block / layout.tiles / layout.chunks;
  place.row = thread / layout.columns;
  place.step = kThreads / layout.columns;
  place.channel = (block % layout.tiles * layout.columns + thread % layout.columns) * kSize;
  const int64_t first = place.group * layout.rows;
  place.begin = first + place.chunk * layout.rows_of_chunk;
  place.end = min(place.begin + layout.rows_of_chunk, first + layout.rows);
  return place;
}

__device__ __forceinline__ int64_t rows_of_chunk(const Layout& layout, int chunk) {
  return min(layout.rows_of_chunk, layout.rows - chunk * layout.rows_of_chunk);
}

// Where a part of [groups, chunks, 2, channels] begins.
__device__ __forceinline__ int64_t part_of(const Layout& layout, int group, int chunk) {
  return (static_cast<int64_t>(group) * layout.chunks + chunk) * 2 * layout.channels;
}

// parts [groups, chunks, 2, channels] = means of a chunk and sums of squared distances from them, of the differences of
// features from the first row of the group.
template <typename T, int kSize, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads)
    moments_kernel(const T* __restrict__ features, Layout layout, A* __restrict__ parts) {
  __shared__ A shared_count[kThreads];
  __shared__ A shared_mean[kSize][kThreads];
  __shared__ A shared_squares[kSize][kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const Place place = find_place<kSize>(layout);
  const bool is_inside = place.is_inside(layout);
  A count = 0;
  A mean[kSize] = {};
  A squares[kSize] = {};
  if (is_inside) {
    const auto shift = load<kSize>(features + place.group * layout.rows * layout.channels + place.channel);
    for (int64_t row = place.begin + place.row; row < place.end; row += kRowsAtOnce * place.step) {
      Vector<T, kSize> values[kRowsAtOnce] = {};
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k) {
        if (row + k * place.step < place.end) {
          values[k] = load<kSize>(features + (row + k * place.step) * layout.channels + place.channel);
        }
      }
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k) {
        if (row + k * place.step < place.end) {
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
  for (int half = place.step; half > 0; half /= 2) {
    if (half < place.step && place.row < half) {
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
  if (is_inside && place.row == 0) {
    A* part = parts + part_of(layout, place.group, place.chunk) + place.channel;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      part[i] = mean[i];
      part[layout.channels + i] = squares[i];
    }
  }
}

// Statistics of the groups from the parts of their chunks, and the running ones: the groups one after another.
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
        moments = merge_moments(
            moments, Moments<A>{shared_count[other], shared_mean[other], shared_squares[other]});
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

// What values of some channels are normalized with.
template <typename A, int kSize>
struct Channels {
  A mean[kSize];
  A inverse_std[kSize];
  A scale[kSize];
  A bias[kSize];
};

template <typename A>
struct Parameters {
  const A* mean;  // [groups, channels]
  const A* variance;
  const A* weight;
  const A* bias;
  A eps;
};

template <int kSize, typename A>
__device__ __forceinline__ Channels<A, kSize> read_channels(
    const Parameters<A>& parameters, const Layout& layout, const Place& place) {
  Channels<A, kSize> channels;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const int channel = place.channel + i;
    const int64_t statistic = static_cast<int64_t>(place.group) * layout.channels + channel;
    channels.mean[i] = parameters.mean[statistic];
    channels.inverse_std[i] = inverse_std_of(parameters.variance[statistic], parameters.eps);
    channels.scale[i] = parameters.weight[channel] * channels.inverse_std[i];
    channels.bias[i] = parameters.bias[channel];
  }
  return channels;
}

template <typename T>
struct Operands {
  const T* features;
  const T* residual1;  // null where there is none
  const T* residual2;
};

template <int kSize, typename T, typename A>
__device__ __forceinline__ void add_vector(const T* source, int64_t offset, A (&values)[kSize]) {
  if (source != nullptr) {  // the same for all threads
    const auto vector = load<kSize>(source + offset);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      values[i] += static_cast<A>(vector.value[i]);
    }
  }
}

// The sum of normalized features and residuals.
template <typename T, int kSize, typename A>
__device__ __forceinline__ void sum_vector(
    const Vector<T, kSize>& features, const Operands<T>& operands, const Channels<A, kSize>& channels, int64_t offset,
    A (&values)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    values[i] =
        normalize_and_scale(static_cast<A>(features.value[i]), channels.mean[i], channels.scale[i], channels.bias[i]);
  }
  add_vector<kSize>(operands.residual1, offset, values);
  add_vector<kSize>(operands.residual2, offset, values);
}

template <int kSize, typename T, typename A>
__device__ __forceinline__ void store_rounded(T* target, const A (&values)[kSize]) {
  Vector<T, kSize> rounded;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    rounded.value[i] = static_cast<T>(values[i]);
  }
  store(target, rounded);
}

template <typename T, int kSize, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads) apply_kernel(
    Operands<T> operands, Parameters<A> parameters, Layout layout, T* __restrict__ sum, T* __restrict__ activated) {
  const Place place = find_place<kSize>(layout);
  if (!place.is_inside(layout)) {
    return;
  }
  const auto channels = read_channels<kSize>(parameters, layout, place);
  for (int64_t row = place.begin + place.row; row < place.end; row += place.step) {
    const int64_t offset = row * layout.channels + place.channel;
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

template <typename T>
struct Gradients {
  Operands<T> operands;
  const T* activated;  // each null where there is none
  const T* grad_sum;
  const T* grad_activated;
};

// grad = the gradient of the sum, normalized = (features - mean) * inverse_std.
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

// parts [groups, chunks, 2, channels] = sums over a chunk of the gradients and of their products with the normalized
// features.
template <typename T, int kSize, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads)
    gradient_sums_kernel(Gradients<T> inputs, Parameters<A> parameters, Layout layout, A* __restrict__ parts) {
  __shared__ A shared_sums[kSize][kThreads];
  __shared__ A shared_products[kSize][kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const Place place = find_place<kSize>(layout);
  const bool is_inside = place.is_inside(layout);
  A sums[kSize] = {};
  A products[kSize] = {};
  if (is_inside) {
    const auto channels = read_channels<kSize>(parameters, layout, place);
#pragma unroll 2
    for (int64_t row = place.begin + place.row; row < place.end; row += place.step) {
      A grad[kSize];
      A normalized[kSize];
      gradient_vector(inputs, channels, row * layout.channels + place.channel, grad, normalized);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        sums[i] += grad[i];
        products[i] = multiply_add(grad[i], normalized[i], products[i]);
      }
    }
  }
  for (int half = place.step; half > 0; half /= 2) {
    if (half < place.step && place.row < half) {
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
  if (is_inside && place.row == 0) {
    A* part = parts + part_of(layout, place.group, place.chunk) + place.channel;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      part[i] = sums[i];
      part[layout.channels + i] = products[i];
    }
  }
}

// means [groups, 2, channels] of the sums of the chunks, and over all groups the gradients of bias and weight.
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

// means: null where the statistics are constants.
template <typename T, int kSize, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads) gradient_kernel(
    Gradients<T> inputs, Parameters<A> parameters, Layout layout, const A* __restrict__ means,
    T* __restrict__ grad_features, T* __restrict__ grad_residual) {
  const Place place = find_place<kSize>(layout);
  if (!place.is_inside(layout)) {
    return;
  }
  const auto channels = read_channels<kSize>(parameters, layout, place);
  A mean_grad[kSize] = {};
  A mean_product[kSize] = {};
  if (means != nullptr) {
    const A* mean = means + static_cast<int64_t>(place.group) * 2 * layout.channels + place.channel;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      mean_grad[i] = mean[i];
      mean_product[i] = mean[layout.channels + i];
    }
  }
  for (int64_t row = place.begin + place.row; row < place.end; row += place.step) {
    const int64_t offset = row * layout.channels + place.channel;
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

unsigned int finishing_blocks(const Layout& layout) {
  return static_cast<unsigned int>((layout.channels + kFinishingColumns - 1) / kFinishingColumns);
}

// A tensor that outlives its pointer: contiguous, of the shape and type of features.
std::optional<Tensor> prepared(const std::optional<Tensor>& tensor, const Tensor& features, const char* name) {
  if (!tensor.has_value()) {
    return std::nullopt;
  }
  check_shape(*tensor, {features.size(0), features.size(1)}, name);
  return as_contiguous(as_type(*tensor, features.scalar_type()));
}

template <typename T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <typename T>
T* results_of(const Tensor& tensor, bool is_wanted) {
  return is_wanted ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

Tensor new_result(const Tensor& features, bool is_wanted) {
  return is_wanted ? torch::stable::new_empty(features, {features.size(0), features.size(1)})
                   : torch::stable::new_empty(features, {0});
}

ScalarType statistics_type(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// [C] parameters or [G, C] statistics.
template <typename A>
A* checked_statistics(const Tensor& tensor, int64_t size, const Tensor& features, const char* name) {
  STD_TORCH_CHECK(
      tensor.numel() == size && tensor.is_contiguous() && tensor.scalar_type() == statistics_type(features), name,
      ": expected ", size, " contiguous values in float32 (float64 for float64 features)");
  return static_cast<A*>(tensor.mutable_data_ptr());
}

int64_t checked_rows(const Tensor& features, int64_t num_groups, const char* name) {
  STD_TORCH_CHECK(features.dim() == 2, name, ": expected features [N, C]");
  STD_TORCH_CHECK(
      num_groups >= 1 && features.size(0) % num_groups == 0, name, ": expected rows of ", num_groups,
      " equal groups, found ", features.size(0));
  return features.size(0) / num_groups;
}

int64_t groups_of(const Tensor& mean, const Tensor& features) {
  return std::max<int64_t>(1, mean.numel() / std::max<int64_t>(1, features.size(1)));
}

template <typename A>
Parameters<A> parameters_of(
    const Tensor& mean, const Tensor& variance, const Tensor& weight, const Tensor& bias, double eps,
    const Tensor& features, int64_t num_groups) {
  const int64_t channels = features.size(1);
  return {
      checked_statistics<A>(mean, num_groups * channels, features, "normalize_sites: mean"),
      checked_statistics<A>(variance, num_groups * channels, features, "normalize_sites: variance"),
      checked_statistics<A>(weight, channels, features, "normalize_sites: weight"),
      checked_statistics<A>(bias, channels, features, "normalize_sites: bias"), static_cast<A>(eps)};
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
    T* sum_data = results_of<T>(sum, with_sum);
    T* activated_data = results_of<T>(activated, with_relu);
    const bool has_vectors = has_vector_rows<T>(
        features.size(1), operands.features, operands.residual1, operands.residual2, sum_data, activated_data);
    dispatch_vector<T>(has_vectors, [&](auto vector) {
      const Layout layout = make_layout(rows, num_groups, features.size(1), vector(), kComputingBlocks);
      apply_kernel<T, vector()><<<layout.num_blocks(), kThreads, 0, launch.stream()>>>(
          operands, parameters, layout, sum_data, activated_data);
    });
  });
  launch.check();
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
  int64_t* num_batches = nullptr;
  if (num_batches_tracked.has_value()) {
    STD_TORCH_CHECK(
        num_batches_tracked->numel() == 1 && num_batches_tracked->scalar_type() == ScalarType::Long, name,
        ": expected num_batches_tracked as one int64");
    num_batches = static_cast<int64_t*>(num_batches_tracked->mutable_data_ptr());
  }
  if (channels > 0) {
    dispatch_features(features.scalar_type(), name, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = Accumulate<T>;
      const auto* source = static_cast<const T*>(features_.const_data_ptr());
      const bool is_tracked = running_mean.has_value() && running_var.has_value();
      A* running_mean_data =
          is_tracked ? checked_statistics<A>(*running_mean, channels, features, "normalize_sites: running_mean") : nullptr;
      A* running_var_data =
          is_tracked ? checked_statistics<A>(*running_var, channels, features, "normalize_sites: running_var") : nullptr;
      dispatch_vector<T>(has_vector_rows<T>(channels, source), [&](auto vector) {
        const Layout layout = make_layout(rows, num_groups, channels, vector(), kSummingBlocks);
        Tensor parts = torch::stable::new_empty(
            features, {num_groups, layout.chunks, 2, channels}, statistics_type(features));
        auto* parts_data = static_cast<A*>(parts.mutable_data_ptr());
        moments_kernel<T, vector()>
            <<<layout.num_blocks(), kThreads, 0, launch.stream()>>>(source, layout, parts_data);
        finish_moments_kernel<T><<<finishing_blocks(layout), kThreads, 0, launch.stream()>>>(
            source, parts_data, layout, static_cast<A>(momentum), static_cast<A*>(mean.mutable_data_ptr()),
            static_cast<A*>(variance.mutable_data_ptr()), running_mean_data, running_var_data, num_batches);
      });
    });
    launch.check();
  }
  auto [sum, activated] = apply_normalization(
      features_, weight, bias, residual1, residual2, mean, variance, eps, with_sum, with_relu, keep_residuals);
  return {sum, activated, mean, variance};
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
    T* grad_features_data = results_of<T>(grad_features, true);
    T* grad_residual_data = results_of<T>(grad_residual, needs_residual);
    const bool has_vectors = has_vector_rows<T>(
        channels, inputs.operands.features, inputs.operands.residual1, inputs.operands.residual2, inputs.activated,
        inputs.grad_sum, inputs.grad_activated, grad_features_data, grad_residual_data);
    dispatch_vector<T>(has_vectors, [&](auto vector) {
      const Layout summing = make_layout(rows, num_groups, channels, vector(), kSummingBlocks);
      Tensor parts =
          torch::stable::new_empty(features, {num_groups, summing.chunks + 1, 2, channels}, statistics_type(features));
      auto* parts_data = static_cast<A*>(parts.mutable_data_ptr());
      // After the parts of the chunks there is room for what they add up to.
      A* means = is_training ? parts_data + num_groups * summing.chunks * 2 * channels : nullptr;
      gradient_sums_kernel<T, vector()><<<summing.num_blocks(), kThreads, 0, launch.stream()>>>(
          inputs, parameters, summing, parts_data);
      finish_sums_kernel<A><<<finishing_blocks(summing), kThreads, 0, launch.stream()>>>(
          parts_data, summing, means, static_cast<A*>(grad_weight.mutable_data_ptr()),
          static_cast<A*>(grad_bias.mutable_data_ptr()));
      if (rows > 0) {
        const Layout computing = make_layout(rows, num_groups, channels, vector(), kComputingBlocks);
        gradient_kernel<T, vector()><<<computing.num_blocks(), kThreads, 0, launch.stream()>>>(
            inputs, parameters, computing, means, grad_features_data, grad_residual_data);
      }
    });
  });
  launch.check();
  return {grad_features, grad_residual, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CUDA, library) {
  library.impl("normalize_sites", TORCH_BOX(&normalize_sites));
  library.impl("apply_normalization", TORCH_BOX(&apply_normalization));
  library.impl("normalize_sites_backward", TORCH_BOX(&normalize_sites_backward));
}

}  // namespace ammnet_sparse
