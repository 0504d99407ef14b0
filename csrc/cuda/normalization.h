// Shared by the normalization kernels: the launch geometry over rows and channels, and the arithmetic of one vector.
#pragma once

#include "../normalization_arguments.h"
#include "common.h"

namespace ammnet_sparse {

constexpr int kMaxColumns = 32;  // then a warp reads 512 bytes of a row
constexpr int kRowsAtOnce = 4;  // loads in flight per thread
constexpr int kRowsOfThread = 8;  // minimum work per thread, if there are enough rows
constexpr int kSummingBlocks = 512;  // maximum; each writes one partial sum
constexpr int kComputingBlocks = 2048;
constexpr int kFinishingColumns = 8;
constexpr int kFinishingRows = kThreads / kFinishingColumns;

// Launch geometry over [G * rows, channels]. A block handles one chunk of a group's rows and one tile of the channels.
// Its 256 threads are arranged as (256 / columns) x columns, `columns` a power of two: a thread handles one vector of
// channels, in rows that are 256 / columns apart.
struct Layout {
  int64_t rows;  // per group
  int64_t rows_of_chunk;
  int groups;
  int chunks;  // per group
  int tiles;
  int columns;
  int channels;

  unsigned int num_blocks() const { return static_cast<unsigned int>(groups * chunks * tiles); }
};

inline Layout make_layout(int64_t rows, int64_t groups, int64_t channels, int vector_size, int max_blocks) {
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
  const int64_t chunks = std::max<int64_t>(1, std::min(wanted, max_blocks / (groups * layout.tiles)));
  layout.rows_of_chunk = std::max<int64_t>(1, (rows + chunks - 1) / chunks);
  // Rounding up may leave fewer chunks than wanted; without rows there is one empty chunk.
  layout.chunks = static_cast<int>(std::max<int64_t>(1, (rows + layout.rows_of_chunk - 1) / layout.rows_of_chunk));
  return layout;
}

// Work item of a thread: the rows begin + row, begin + row + step, ... < end of the tensor, from `channel` on.
struct Coordinates {
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
__device__ __forceinline__ Coordinates find_coordinates(const Layout& layout) {
  const int block = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  Coordinates coordinates;
  coordinates.chunk = block / layout.tiles % layout.chunks;
  coordinates.group = block / layout.tiles / layout.chunks;
  coordinates.row = thread / layout.columns;
  coordinates.step = kThreads / layout.columns;
  coordinates.channel = (block % layout.tiles * layout.columns + thread % layout.columns) * kSize;
  const int64_t first = coordinates.group * layout.rows;
  coordinates.begin = first + coordinates.chunk * layout.rows_of_chunk;
  coordinates.end = min(coordinates.begin + layout.rows_of_chunk, first + layout.rows);
  return coordinates;
}

__device__ __forceinline__ int64_t rows_of_chunk(const Layout& layout, int chunk) {
  return min(layout.rows_of_chunk, layout.rows - chunk * layout.rows_of_chunk);
}

// Offset of a chunk's entry in partial results [groups, chunks, 2, channels].
__device__ __forceinline__ int64_t part_of(const Layout& layout, int group, int chunk) {
  return (static_cast<int64_t>(group) * layout.chunks + chunk) * 2 * layout.channels;
}

inline unsigned int finishing_blocks(const Layout& layout) {
  return static_cast<unsigned int>((layout.channels + kFinishingColumns - 1) / kFinishingColumns);
}

// Statistics and affine parameters of kSize channels of a group.
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
    const Parameters<A>& parameters, const Layout& layout, const Coordinates& coordinates) {
  Channels<A, kSize> channels;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const int channel = coordinates.channel + i;
    const int64_t statistic = static_cast<int64_t>(coordinates.group) * layout.channels + channel;
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
  const T* residual1;  // null if there is none
  const T* residual2;
};

template <int kSize, typename T, typename A>
__device__ __forceinline__ void add_vector(const T* source, int64_t offset, A (&values)[kSize]) {
  if (source != nullptr) {  // uniform
    const auto vector = load<kSize>(source + offset);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      values[i] += static_cast<A>(vector.value[i]);
    }
  }
}

// values = normalized features + residuals.
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

}  // namespace ammnet_sparse
