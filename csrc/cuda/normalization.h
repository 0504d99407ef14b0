// What the normalization kernels share: how blocks lie over rows and channels, and one vector of a row.
#pragma once

#include "../normalization_arguments.h"
#include "common.h"

namespace ammnet_sparse {

constexpr int kMaxColumns = 32;  // a warp reads 512 bytes of a row
constexpr int kRowsAtOnce = 4;  // that a thread has asked for before it uses the first
constexpr int kRowsOfThread = 8;  // at least, where there are as many
constexpr int kSummingBlocks = 512;  // each leaves a partial sum
constexpr int kComputingBlocks = 2048;
constexpr int kFinishingColumns = 8;
constexpr int kFinishingRows = kThreads / kFinishingColumns;

// How blocks lie over [G * rows, channels]: a block takes a chunk of the rows of a group and a tile of the channels.
// Its threads form rows of `columns`, a power of two; each takes a vector of channels in every so many-th row of the
// chunk.
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
  // Fewer than wanted may be enough; without rows one chunk is empty.
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

inline unsigned int finishing_blocks(const Layout& layout) {
  return static_cast<unsigned int>((layout.channels + kFinishingColumns - 1) / kFinishingColumns);
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
  const T* residual1;  // null if there is none
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
