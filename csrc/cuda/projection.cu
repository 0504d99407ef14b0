// 2D-3D projection on CUDA.
//
// Forward: `project_rows` for a channels-last map, whose cells are rows of 16-byte vectors: the lanes of a site read
// four rows and write one. `project_planes` for any other map, where a cell's channels lie a plane apart: the lanes are
// sites, so that neighbouring sites share what they read, and the result is turned in shared memory to be written in
// rows. Neither needs an atomic or a second launch.
//
// Backward: atomic additions of whole vectors into float32, or, where the order of sums must be fixed,
// `gather_gradients`: sites sorted by the cell they read first, and every cell of the map adds up the sites that read
// it, in order, and writes once.
#include "../projection.h"
#include "common.h"

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

// 2^lane_bits neighbouring threads for each site. The stride of the channels is one.
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

// A block of 32 x 8 threads for 32 sites and 32 channels.
template <typename T>
__global__ void __launch_bounds__(kThreads) project_planes(
    const T* __restrict__ map, MapStrides strides, ProjectionShape shape, Integers pixel_of_site,
    Integers batch_of_site, int64_t num_sites, T* __restrict__ result, unsigned int* flags) {
  using A = Accumulate<T>;
  __shared__ T turned[kWarp][kWarp + 1];
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
        sum += reads.weight(corner) *
               static_cast<A>(map[offset_of(reads, corner, strides) + channel * strides.channel]);
      }
    }
    turned[row + i][column] = static_cast<T>(sum);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarp; i += kThreads / kWarp) {
    const int64_t site = first_site + row + i;
    if (site < num_sites && first_channel + column < shape.channels) {
      result[site * shape.channels + first_channel + column] = turned[column][row + i];
    }
  }
}

// Adds kSize neighbouring values; the address is aligned to 16 bytes where kSize is more than one.
template <int kSize>
__device__ __forceinline__ void add(double* target, const double (&values)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    atomicAdd(target + i, values[i]);
  }
}

template <int kSize>
__device__ __forceinline__ void add(float* target, const float (&values)[kSize]) {
#if __CUDA_ARCH__ >= 900
  constexpr bool kHasVectorAdd = kSize % 4 == 0;
#else
  constexpr bool kHasVectorAdd = false;
#endif
  if constexpr (kHasVectorAdd) {
#pragma unroll
    for (int i = 0; i < kSize; i += 4) {
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                   :
                   : "l"(__cvta_generic_to_global(target + i)), "f"(values[i]), "f"(values[i + 1]),
                     "f"(values[i + 2]), "f"(values[i + 3])
                   : "memory");
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      atomicAdd(target + i, values[i]);
    }
  }
}

// grad [N, C]; map [B, h, w, C], zero before. Threads as in project_rows.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) scatter_gradients(
    const T* __restrict__ grad, MapStrides strides, ProjectionShape shape, Integers pixel_of_site,
    Integers batch_of_site, int64_t num_sites, int lane_bits, Accumulate<T>* __restrict__ map, unsigned int* flags) {
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
  if (!reads.is_hit) {
    return;
  }
  for (int channel = lane * kSize; channel < channels; channel += lanes * kSize) {
    const auto values = load<kSize>(grad + site * channels + channel);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const A weight = reads.weight(corner);
      if (weight == A(0)) {
        continue;  // at the border, or on a cell: an atomic less
      }
      A products[kSize];
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        products[i] = weight * static_cast<A>(values.value[i]);
      }
      add(map + offset_of(reads, corner, strides) + channel, products);
    }
  }
}

// The first cell that each site reads, (sample * h + row) * w + column; behind all cells where it reads none.
__global__ void __launch_bounds__(kThreads) find_first_cells(
    ProjectionShape shape, Integers pixel_of_site, Integers batch_of_site, int64_t num_sites,
    int64_t* __restrict__ cells, unsigned int* flags) {
  const int64_t site = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (site >= num_sites) {
    return;
  }
  const auto reads = site_reads<float>(pixel_of_site[site], batch_of_site[site], shape);
  if (reads.is_out_of_range) {
    report(flags, OutOfRange::kProjectFeatures);
  }
  cells[site] = reads.is_hit
                    ? (reads.sample * shape.height + reads.rows.lower) * shape.width + reads.columns.lower
                    : shape.batch_size * shape.height * shape.width;
}

// starts[cell]: the first place in `sorted` that is not below `cell`.
__global__ void __launch_bounds__(kThreads) find_starts(
    const int64_t* __restrict__ sorted, int64_t num_sites, int64_t num_starts, int64_t* __restrict__ starts) {
  const int64_t cell = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (cell >= num_starts) {
    return;
  }
  int64_t low = 0;
  int64_t high = num_sites;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < cell) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[cell] = low;
}

// The weight with which a site reads a line (row or column) of the map.
template <typename A>
__device__ __forceinline__ A weight_of_line(const LineReads<A>& reads, uint32_t line) {
  return (reads.lower == line ? A(1) - reads.fraction : A(0)) + (reads.upper == line ? reads.fraction : A(0));
}

// A warp for each cell of map [B, h, w, C]. Sites that read a cell have it, the one above, the one to the left, or the
// one above that, as their first.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) gather_gradients(
    const T* __restrict__ grad, ProjectionShape shape, Integers pixel_of_site, Integers batch_of_site,
    const int64_t* __restrict__ order, const int64_t* __restrict__ starts, T* __restrict__ map) {
  using A = Accumulate<T>;
  const int64_t cell = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / kWarp;
  if (cell >= shape.batch_size * shape.height * shape.width) {
    return;
  }
  const int channels = static_cast<int>(shape.channels);
  const auto column = static_cast<uint32_t>(cell % shape.width);
  const auto row = static_cast<uint32_t>(cell / shape.width % shape.height);
  for (int channel = (threadIdx.x % kWarp) * kSize; channel < channels; channel += kWarp * kSize) {
    A sums[kSize] = {};
    for (int corner = 0; corner < 4; ++corner) {
      const bool is_above = corner & 2;
      const bool is_left = corner & 1;
      if ((is_above && row == 0) || (is_left && column == 0)) {
        continue;
      }
      const int64_t first_cell = cell - (is_above ? shape.width : 0) - (is_left ? 1 : 0);
      for (int64_t place = starts[first_cell]; place < starts[first_cell + 1]; ++place) {
        const int64_t site = order[place];
        const auto reads = site_reads<A>(pixel_of_site[site], batch_of_site[site], shape);
        const A weight = weight_of_line(reads.rows, row) * weight_of_line(reads.columns, column);
        const auto values = load<kSize>(grad + site * channels + channel);
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          sums[i] += weight * static_cast<A>(values.value[i]);
        }
      }
    }
    Vector<T, kSize> rounded;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      rounded.value[i] = static_cast<T>(sums[i]);
    }
    store(map + cell * channels + channel, rounded);
  }
}

// Threads for each site: as many as there are vectors in a row, rounded to a power of two, at most a warp.
int lane_bits_of(int64_t channels, int vector_size) {
  int bits = 0;
  while (bits < 5 && (int64_t{1} << bits) * vector_size < channels) {
    ++bits;
  }
  return bits;
}

struct Sites {
  Tensor pixel;
  Tensor batch;

  Sites(const Tensor& pixel_of_site, const Tensor& batch_of_site)
      : pixel(as_contiguous(pixel_of_site)), batch(as_contiguous(batch_of_site)) {
    check_shape(batch, {pixel.numel()}, "project_features: batch_of_site");
  }
  int64_t size() const { return pixel.numel(); }
  Integers pixels() const { return integers_of(pixel, "project_features: pixel_of_site"); }
  Integers samples() const { return integers_of(batch, "project_features: batch_of_site"); }
};

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
      project_planes<T><<<blocks, kThreads, 0, launch.stream()>>>(
          map, strides, shape, sites.pixels(), sites.samples(), sites.size(), target, out_of_range_flags(launch));
      return;
    }
    const bool has_vectors = has_vector_rows<T>(shape.channels, map, target) &&
                             strides.sample % kVectorSize<T> == 0 && strides.row % kVectorSize<T> == 0 &&
                             strides.column % kVectorSize<T> == 0;
    dispatch_vector<T>(has_vectors, [&](auto vector) {
      const int lane_bits = lane_bits_of(shape.channels, vector());
      project_rows<T, vector()><<<num_blocks(sites.size() << lane_bits), kThreads, 0, launch.stream()>>>(
          map, strides, shape, sites.pixels(), sites.samples(), sites.size(), lane_bits, target,
          out_of_range_flags(launch));
    });
  });
  launch.check();
  return result;
}

// [B, h, w, C]
Tensor scatter(const Launch& launch, const Tensor& grad, const Sites& sites, const ProjectionShape& shape) {
  return dispatch_features(grad.scalar_type(), "project_features_backward: grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Accumulate<T>;
    const ScalarType wide = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    Tensor map =
        torch::stable::new_zeros(grad, {shape.batch_size, shape.height, shape.width, shape.channels}, wide);
    const auto* grad_data = static_cast<const T*>(grad.const_data_ptr());
    auto* target = static_cast<A*>(map.mutable_data_ptr());
    const MapStrides strides{
        shape.height * shape.width * shape.channels, 1, shape.width * shape.channels, shape.channels};
    dispatch_vector<T>(has_vector_rows<T>(shape.channels, grad_data, target), [&](auto vector) {
      const int lane_bits = lane_bits_of(shape.channels, vector());
      scatter_gradients<T, vector()><<<num_blocks(sites.size() << lane_bits), kThreads, 0, launch.stream()>>>(
          grad_data, strides, shape, sites.pixels(), sites.samples(), sites.size(), lane_bits, target,
          out_of_range_flags(launch));
    });
    launch.check();
    return as_type(map, grad.scalar_type());
  });
}

// The same in an order that does not depend on how threads happen to run.
Tensor gather(const Launch& launch, const Tensor& grad, const Sites& sites, const ProjectionShape& shape) {
  const int64_t num_cells = shape.batch_size * shape.height * shape.width;
  Tensor cells = torch::stable::new_empty(grad, {sites.size()}, ScalarType::Long);
  find_first_cells<<<num_blocks(sites.size()), kThreads, 0, launch.stream()>>>(
      shape, sites.pixels(), sites.samples(), sites.size(), static_cast<int64_t*>(cells.mutable_data_ptr()),
      out_of_range_flags(launch));
  launch.check();
  const auto [sorted, order] = torch::stable::sort(cells, std::optional<bool>(true), 0, false);
  Tensor starts = torch::stable::new_empty(grad, {num_cells + 1}, ScalarType::Long);
  find_starts<<<num_blocks(num_cells + 1), kThreads, 0, launch.stream()>>>(
      static_cast<const int64_t*>(sorted.const_data_ptr()), sites.size(), num_cells + 1,
      static_cast<int64_t*>(starts.mutable_data_ptr()));
  launch.check();
  Tensor map = torch::stable::new_empty(grad, {shape.batch_size, shape.height, shape.width, shape.channels});
  const auto* order_data = static_cast<const int64_t*>(order.const_data_ptr());
  dispatch_features(grad.scalar_type(), "project_features_backward: grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* grad_data = static_cast<const T*>(grad.const_data_ptr());
    auto* target = static_cast<T*>(map.mutable_data_ptr());
    dispatch_vector<T>(has_vector_rows<T>(shape.channels, grad_data, target), [&](auto vector) {
      gather_gradients<T, vector()><<<num_blocks(num_cells * kWarp), kThreads, 0, launch.stream()>>>(
          grad_data, shape, sites.pixels(), sites.samples(), order_data,
          static_cast<const int64_t*>(starts.const_data_ptr()), target);
    });
  });
  launch.check();
  return map;
}

Tensor project_features_backward(
    const Tensor& grad, const Tensor& pixel_of_site, const Tensor& batch_of_site, int64_t batch_size, int64_t height,
    int64_t width, int64_t image_height, int64_t image_width, bool align_corners, bool deterministic) {
  const ProjectionShape shape =
      projection_shape(batch_size, grad.size(1), height, width, image_height, image_width, align_corners);
  check_shape(grad, {pixel_of_site.size(0), shape.channels}, "project_features_backward: grad");
  const Launch launch(grad);
  const Sites sites(pixel_of_site, batch_of_site);
  const Tensor grad_ = as_contiguous(grad);
  Tensor map = grad_.numel() == 0 ? torch::stable::new_zeros(grad, {batch_size, height, width, shape.channels})
               : deterministic    ? gather(launch, grad_, sites, shape)
                                  : scatter(launch, grad_, sites, shape);
  return torch::stable::permute(map, {0, 3, 1, 2});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CUDA, library) {
  library.impl("project_features", TORCH_BOX(&project_features));
  library.impl("project_features_backward", TORCH_BOX(&project_features_backward));
}

}  // namespace ammnet_sparse
