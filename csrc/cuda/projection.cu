// 2D-3D projection on CUDA. `project_rows` is for channels-last maps: the lanes of a site read four contiguous rows and
// write one. `project_planes` is for all other maps, in which the channels of a cell are one plane apart: lanes are
// sites, so that neighboring sites share cache lines, and the tile is transposed in shared memory before it is written.
// Both need one launch and no atomics. The gradient is in projection_backward.cu.
#include "projection.h"

namespace ammnet_sparse {
namespace {

struct MapStrides {
  int64_t sample;
  int64_t channel;
  int64_t row;
  int64_t column;
};

template <typename A>
__device__ __forceinline__ int64_t offset_of(const SiteReads<A>& reads, int corner, const MapStrides& strides) {
  return reads.sample * strides.sample + reads.row(corner) * strides.row + reads.column(corner) * strides.column;
}

// result [N, C] from a map whose channels have unit stride.
//   grid          ceil(N * 2^lane_bits / 256)
//   block         256 threads; 2^lane_bits consecutive threads per site, each kSize channels at a time
//   shared memory none
//   complexity    four reads and one write per element
//   determinism   yes: the four taps in a fixed order
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) project_rows(
    const T* __restrict__ map, MapStrides strides, ProjectionShape shape, Integers pixel_of_site,
    Integers batch_of_site, int64_t num_sites, int lane_bits, T* __restrict__ result, unsigned int* flags) {
  using A = Accumulate<T>;
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t site = thread >> lane_bits;
  if (site >= num_sites) {
    return;
  }
  const int lanes = 1 << lane_bits;
  const int lane = static_cast<int>(thread) & (lanes - 1);
  const int channels = static_cast<int>(shape.channels);
  const SiteReads<A> reads = site_reads<A>(pixel_of_site[site], batch_of_site[site], shape);
  if (reads.is_out_of_range && lane == 0) {
    report(flags, OutOfRange::kProjectFeatures);
  }
  T* target = result + site * channels;
  if (!reads.is_hit) {
    for (int channel = lane * kSize; channel < channels; channel += lanes * kSize) {
      store(target + channel, Vector<T, kSize>{});
    }
    return;
  }
  const T* cells[4];
  A weights[4];
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    cells[corner] = map + offset_of(reads, corner, strides);
    weights[corner] = reads.weight(corner);
  }
#pragma unroll 2
  for (int channel = lane * kSize; channel < channels; channel += lanes * kSize) {
    Vector<T, kSize> values[4];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      values[corner] = load<kSize>(cells[corner] + channel);
    }
    Vector<T, kSize> sums;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      A sum = weights[0] * static_cast<A>(values[0].value[i]);
#pragma unroll
      for (int corner = 1; corner < 4; ++corner) {
        sum += weights[corner] * static_cast<A>(values[corner].value[i]);
      }
      sums.value[i] = static_cast<T>(sum);
    }
    store(target + channel, sums);
  }
}

// result [N, C] from a map of any strides.
//   grid          (ceil(N / 32), ceil(C / 32))
//   block         256 threads for a tile of 32 sites x 32 channels: when reading, the lanes of a warp are sites of one
//                 plane; when writing, they are vectors of kSize channels
//   shared memory 32 x 33 elements of T (padded against bank conflicts)
//   complexity    four reads and one write per element
//   determinism   yes: the four taps in a fixed order
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) project_planes(
    const T* __restrict__ map, MapStrides strides, ProjectionShape shape, Integers pixel_of_site,
    Integers batch_of_site, int64_t num_sites, T* __restrict__ result, unsigned int* flags) {
  using A = Accumulate<T>;
  __shared__ T tile[kWarp][kWarp + 1];
  const int column = threadIdx.x % kWarp;
  const int row = threadIdx.x / kWarp;
  const int64_t first_site = blockIdx.x * static_cast<int64_t>(kWarp);
  const int64_t first_channel = blockIdx.y * static_cast<int64_t>(kWarp);
  SiteReads<A> reads{};
  if (first_site + column < num_sites) {
    reads = site_reads<A>(pixel_of_site[first_site + column], batch_of_site[first_site + column], shape);
    if (reads.is_out_of_range && row == 0 && blockIdx.y == 0) {
      report(flags, OutOfRange::kProjectFeatures);
    }
  }
#pragma unroll
  for (int i = 0; i < kWarp; i += kThreads / kWarp) {
    const int64_t channel = first_channel + row + i;
    A sum = A(0);
    if (reads.is_hit && channel < shape.channels) {
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        sum +=
            reads.weight(corner) * static_cast<A>(map[offset_of(reads, corner, strides) + channel * strides.channel]);
      }
    }
    tile[row + i][column] = static_cast<T>(sum);
  }
  __syncthreads();
  constexpr int kVectorsOfSite = kWarp / kSize;
#pragma unroll
  for (int first = 0; first < kWarp * kVectorsOfSite; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    if (i >= kWarp * kVectorsOfSite) {
      return;
    }
    const int64_t site = first_site + i / kVectorsOfSite;
    const int channel = i % kVectorsOfSite * kSize;  // in the tile
    if (site < num_sites && first_channel + channel < shape.channels) {
      Vector<T, kSize> values;
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        values.value[j] = tile[channel + j][i / kVectorsOfSite];
      }
      store(result + site * shape.channels + first_channel + channel, values);
    }
  }
}

// log2 of the threads per site: the vectors in a row, rounded up to a power of two, at most a warp.
int lane_bits_of(int64_t channels, int vector_size) {
  int bits = 0;
  while (bits < 5 && (int64_t{1} << bits) * vector_size < channels) {
    ++bits;
  }
  return bits;
}

Tensor project_features(
    const Tensor& features, const Tensor& pixel_of_site, const Tensor& batch_of_site, int64_t image_height,
    int64_t image_width, bool align_corners) {
  const ProjectionShape shape = projection_shape(
      features.size(0), features.size(1), features.size(2), features.size(3), image_height, image_width, align_corners);
  const MapStrides strides{features.stride(0), features.stride(1), features.stride(2), features.stride(3)};
  const Launch launch(features);
  const Sites sites(pixel_of_site, batch_of_site);
  Tensor result = torch::stable::new_empty(features, {sites.size(), shape.channels});
  if (result.numel() == 0) {
    return result;
  }
  dispatch_features(features.scalar_type(), "project_features: features", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* map = static_cast<const T*>(features.const_data_ptr());
    auto* target = static_cast<T*>(result.mutable_data_ptr());
    if (strides.channel != 1 && shape.channels > 1) {
      const dim3 blocks(
          num_blocks((sites.size() + kWarp - 1) / kWarp * kThreads),
          static_cast<unsigned int>((shape.channels + kWarp - 1) / kWarp));
      dispatch_vector<T>(has_vector_rows<T>(shape.channels, target), [&](auto vector) {
        launch(
            project_planes<T, vector()>, blocks, kThreads, map, strides, shape, sites.pixels(), sites.samples(),
            sites.size(), target, out_of_range_flags(launch));
      });
      return;
    }
    const bool has_vectors = has_vector_rows<T>(shape.channels, map, target) && strides.sample % kVectorSize<T> == 0 &&
                             strides.row % kVectorSize<T> == 0 && strides.column % kVectorSize<T> == 0;
    dispatch_vector<T>(has_vectors, [&](auto vector) {
      const int lane_bits = lane_bits_of(shape.channels, vector());
      launch(
          project_rows<T, vector()>, num_blocks(sites.size() << lane_bits), kThreads, map, strides, shape,
          sites.pixels(), sites.samples(), sites.size(), lane_bits, target, out_of_range_flags(launch));
    });
  });
  return result;
}

}  // namespace

AMMNET_CUDA_KERNELS(library) {
  library.impl("project_features", TORCH_BOX(&project_features));
}

}  // namespace ammnet_sparse
