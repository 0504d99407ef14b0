// 2D-3D projection on CUDA.
//
// Forward: `project_rows` for a channels-last map, whose cells are rows of 16-byte vectors: the lanes of a site read
// four rows and write one. `project_planes` for any other map, where a cell's channels lie a plane apart: the lanes are
// sites, so that neighbouring sites share what they read, and the result is turned in shared memory to be written in
// rows. Neither needs an atomic or a second launch.
//
// Backward: `gather_gradients`. Every site joins the chain of the cell that it reads first, with one atomic exchange;
// then every cell of the map adds up the sites of four chains and is written once, in its own type. Added with atomics,
// the map would have to be zeroed, added to in float32, and rounded: three passes over what is mostly zero. Where the
// order of sums must be fixed, the chains are made from sorted sites.
#include "../projection.h"
#include "common.h"

namespace ammnet_sparse {
namespace {

// Of a chain of sites.
constexpr int32_t kEnd = -1;

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

// A block for 32 sites and 32 channels: the lanes of a warp are sites that read one plane, then channels in groups of
// kSize that are written together.
template <typename T, int kSize>
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
  constexpr int kVectorsOfSite = kWarp / kSize;
#pragma unroll
  for (int first = 0; first < kWarp * kVectorsOfSite; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    if (i >= kWarp * kVectorsOfSite) {
      return;
    }
    const int64_t site = first_site + i / kVectorsOfSite;
    const int place = i % kVectorsOfSite * kSize;
    if (site < num_sites && first_channel + place < shape.channels) {
      Vector<T, kSize> values;
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        values.value[j] = turned[place + j][i / kVectorsOfSite];
      }
      store(result + site * shape.channels + first_channel + place, values);
    }
  }
}

// A site in the chain of its first cell: the site behind it (-1 at the end), and how far it lies between cells.
template <typename A>
struct alignas(16) Link {
  int32_t next;
  A row_fraction;
  A column_fraction;
};

// The cell that a site reads first, (sample * h + row) * w + column.
template <typename A>
__device__ __forceinline__ int32_t first_cell(const SiteReads<A>& reads, const ProjectionShape& shape) {
  return static_cast<int32_t>((reads.sample * shape.height + reads.rows.lower) * shape.width + reads.columns.lower);
}

// Puts each site in front of the chain of its first cell. heads: -1 before.
template <typename A>
__global__ void __launch_bounds__(kThreads) chain_sites(
    ProjectionShape shape, Integers pixel_of_site, Integers batch_of_site, int64_t num_sites,
    int32_t* __restrict__ heads, Link<A>* __restrict__ links, unsigned int* flags) {
  const int64_t site = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (site >= num_sites) {
    return;
  }
  const SiteReads<A> reads = site_reads<A>(pixel_of_site[site], batch_of_site[site], shape);
  if (reads.is_out_of_range) {
    report(flags, OutOfRange::kProjectFeatures);
  }
  if (reads.is_hit) {
    const int32_t behind = atomicExch(heads + first_cell(reads, shape), static_cast<int32_t>(site));
    store_whole(links + site, {behind, reads.rows.fraction, reads.columns.fraction});
  }
}

// The first cell of each site, for sorting; behind all cells where it reads none. next: left for chain_sorted.
template <typename A>
__global__ void __launch_bounds__(kThreads) find_first_cells(
    ProjectionShape shape, Integers pixel_of_site, Integers batch_of_site, int64_t num_sites, int32_t num_cells,
    int32_t* __restrict__ cells, Link<A>* __restrict__ links, unsigned int* flags) {
  const int64_t site = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (site >= num_sites) {
    return;
  }
  const SiteReads<A> reads = site_reads<A>(pixel_of_site[site], batch_of_site[site], shape);
  if (reads.is_out_of_range) {
    report(flags, OutOfRange::kProjectFeatures);
  }
  cells[site] = reads.is_hit ? first_cell(reads, shape) : num_cells;
  store_whole(links + site, {kEnd, reads.rows.fraction, reads.columns.fraction});
}

// The same chains as of chain_sites, but each in the order of the sites. sorted, order: of the cells, stable.
template <typename A>
__global__ void __launch_bounds__(kThreads) chain_sorted(
    const int32_t* __restrict__ sorted, const int64_t* __restrict__ order, int64_t num_sites, int32_t num_cells,
    int32_t* __restrict__ heads, Link<A>* __restrict__ links) {
  const int64_t place = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (place >= num_sites || sorted[place] == num_cells) {
    return;
  }
  const int32_t cell = sorted[place];
  const auto site = static_cast<int32_t>(order[place]);
  if (place == 0 || sorted[place - 1] != cell) {
    heads[cell] = site;
  }
  if (place + 1 < num_sites && sorted[place + 1] == cell) {
    links[site].next = static_cast<int32_t>(order[place + 1]);
  }
}

// A warp for each cell of map [B, h, w, C] and each `tile` of its channels. Sites that read a cell have it, the one to
// the left, the one above, or the one above that, as their first: four chains, walked side by side so that their loads
// are under way together.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) gather_gradients(
    const T* __restrict__ grad, ProjectionShape shape, const int32_t* __restrict__ heads,
    const Link<Accumulate<T>>* __restrict__ links, int tiles_of_cell, T* __restrict__ map) {
  using A = Accumulate<T>;
  const int64_t warp = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / kWarp;
  const int64_t cell = warp / tiles_of_cell;
  const auto tile = static_cast<int>(warp - cell * tiles_of_cell);
  const int channel = (tile * kWarp + static_cast<int>(threadIdx.x % kWarp)) * kSize;
  if (cell >= shape.batch_size * shape.height * shape.width || channel >= shape.channels) {
    return;
  }
  const auto column = static_cast<uint32_t>(cell % shape.width);
  const auto row = static_cast<uint32_t>(cell / shape.width % shape.height);
  int32_t sites[4];
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const bool is_below = corner & 2;
    const bool is_right = corner & 1;
    const bool exists = !(is_below && row == 0) && !(is_right && column == 0);
    sites[corner] = exists ? heads[cell - (is_below ? shape.width : 0) - (is_right ? 1 : 0)] : kEnd;
  }
  A sums[kSize] = {};
  while ((sites[0] & sites[1] & sites[2] & sites[3]) != kEnd) {
    Link<A> here[4] = {};
    Vector<T, kSize> values[4] = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (sites[corner] != kEnd) {
        here[corner] = links[sites[corner]];
        values[corner] = load<kSize>(grad + sites[corner] * shape.channels + channel);
      }
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (sites[corner] != kEnd) {
        const A weight = weight_of_line(here[corner].row_fraction, corner & 2, row + 1 == shape.height) *
                         weight_of_line(here[corner].column_fraction, corner & 1, column + 1 == shape.width);
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          sums[i] += weight * static_cast<A>(values[corner].value[i]);
        }
        sites[corner] = here[corner].next;
      }
    }
  }
  Vector<T, kSize> rounded;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    rounded.value[i] = static_cast<T>(sums[i]);
  }
  store(map + cell * shape.channels + channel, rounded);
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
      dispatch_vector<T>(has_vector_rows<T>(shape.channels, target), [&](auto vector) {
        project_planes<T, vector()><<<blocks, kThreads, 0, launch.stream()>>>(
            map, strides, shape, sites.pixels(), sites.samples(), sites.size(), target, out_of_range_flags(launch));
      });
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

// values [N] in rising order, and which element each was; equal ones stay in their order. By way of the dispatcher:
// torch::stable::sort would need the headers of PyTorch 2.15 to build.
std::tuple<Tensor, Tensor> sort_stably(const Tensor& values) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[] = {from(values), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// heads [B * h * w]: the first site of each cell's chain, through `links` [N].
template <typename A>
Tensor chain(
    const Launch& launch, const Tensor& grad, const Sites& sites, const ProjectionShape& shape, bool deterministic,
    Link<A>* links) {
  const int64_t num_cells = shape.batch_size * shape.height * shape.width;
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(
      num_cells < kLargest && sites.size() < kLargest, "project_features_backward: expected fewer than ", kLargest,
      " cells and sites, found ", num_cells, " and ", sites.size());
  Tensor heads = torch::stable::new_empty(grad, {num_cells}, ScalarType::Int);
  torch::stable::fill_(heads, kEnd);
  auto* heads_data = static_cast<int32_t*>(heads.mutable_data_ptr());
  const unsigned int blocks = num_blocks(sites.size());
  if (!deterministic) {
    chain_sites<A><<<blocks, kThreads, 0, launch.stream()>>>(
        shape, sites.pixels(), sites.samples(), sites.size(), heads_data, links, out_of_range_flags(launch));
    launch.check();
    return heads;
  }
  const auto end_of_cells = static_cast<int32_t>(num_cells);
  Tensor cells = torch::stable::new_empty(grad, {sites.size()}, ScalarType::Int);
  find_first_cells<A><<<blocks, kThreads, 0, launch.stream()>>>(
      shape, sites.pixels(), sites.samples(), sites.size(), end_of_cells,
      static_cast<int32_t*>(cells.mutable_data_ptr()), links, out_of_range_flags(launch));
  launch.check();
  const auto [sorted, order] = sort_stably(cells);
  chain_sorted<A><<<blocks, kThreads, 0, launch.stream()>>>(
      static_cast<const int32_t*>(sorted.const_data_ptr()), static_cast<const int64_t*>(order.const_data_ptr()),
      sites.size(), end_of_cells, heads_data, links);
  launch.check();
  return heads;
}

// [B, h, w, C]
Tensor gather(
    const Launch& launch, const Tensor& grad, const Sites& sites, const ProjectionShape& shape, bool deterministic) {
  Tensor map = torch::stable::new_empty(grad, {shape.batch_size, shape.height, shape.width, shape.channels});
  dispatch_features(grad.scalar_type(), "project_features_backward: grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Accumulate<T>;
    const Tensor bytes = torch::stable::new_empty(
        grad, {sites.size() * static_cast<int64_t>(sizeof(Link<A>))}, ScalarType::Byte);
    auto* links = static_cast<Link<A>*>(bytes.mutable_data_ptr());
    const Tensor heads = chain<A>(launch, grad, sites, shape, deterministic, links);
    const auto* grad_data = static_cast<const T*>(grad.const_data_ptr());
    auto* target = static_cast<T*>(map.mutable_data_ptr());
    dispatch_vector<T>(has_vector_rows<T>(shape.channels, grad_data, target), [&](auto vector) {
      const int64_t tile = kWarp * vector();
      const int64_t tiles_of_cell = (shape.channels + tile - 1) / tile;
      const unsigned int blocks = num_blocks(heads.numel() * tiles_of_cell * kWarp);
      gather_gradients<T, vector()><<<blocks, kThreads, 0, launch.stream()>>>(
          grad_data, shape, static_cast<const int32_t*>(heads.const_data_ptr()), links,
          static_cast<int>(tiles_of_cell), target);
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
                                  : gather(launch, grad_, sites, shape, deterministic);
  return as_channels_first(map);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CUDA, library) {
  library.impl("project_features", TORCH_BOX(&project_features));
  library.impl("project_features_backward", TORCH_BOX(&project_features_backward));
}

}  // namespace ammnet_sparse
