// Gradient of the 2D-3D projection on CUDA. Each cell of the map has a linked list of the sites whose upper left tap it
// is; a site is inserted with one atomic exchange. `gather_gradients` then traverses four lists per cell and writes the
// cell once, in its own type. Atomic additions into the map would need three passes over mostly zeros (zeroing, adding
// in float32, rounding). In deterministic mode the lists are built from sorted sites.
#include "projection.h"

namespace ammnet_sparse {
namespace {

// End-of-list marker.
constexpr int32_t kEnd = -1;

// Node of a linked list, one per site: the next site (kEnd for none), and the site's position between cells.
template <typename A>
struct alignas(16) Node {
  int32_t next;
  A row_fraction;
  A column_fraction;
};

// Index of a site's upper left cell, (sample * h + row) * w + column.
template <typename A>
__device__ __forceinline__ int32_t first_cell(const SiteReads<A>& reads, const ProjectionShape& shape) {
  return static_cast<int32_t>((reads.sample * shape.height + reads.rows.lower) * shape.width + reads.columns.lower);
}

// Inserts each site at the head of its cell's list. `heads` must be filled with kEnd.
//   grid          ceil(N / 256)
//   block         256 threads, one site each
//   shared memory none
//   complexity    one atomic exchange and one 16-byte store per site
//   determinism   no: the order within a list depends on the scheduling
template <typename A>
__global__ void __launch_bounds__(kThreads) link_sites(
    ProjectionShape shape, Integers pixel_of_site, Integers batch_of_site, int64_t num_sites,
    int32_t* __restrict__ heads, Node<A>* __restrict__ nodes, unsigned int* flags) {
  const int64_t site = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (site >= num_sites) {
    return;
  }
  const SiteReads<A> reads = site_reads<A>(pixel_of_site[site], batch_of_site[site], shape);
  if (reads.is_out_of_range) {
    report(flags, OutOfRange::kProjectFeatures);
  }
  if (reads.is_hit) {
    const int32_t next = atomicExch(heads + first_cell(reads, shape), static_cast<int32_t>(site));
    store_whole(nodes + site, {next, reads.rows.fraction, reads.columns.fraction});
  }
}

// cells [N]: sort key of each site, its upper left cell, or num_cells for a site without a pixel. Initializes the nodes
// without `next`, which link_sorted_sites sets.
//   grid, block   as link_sites; no shared memory, no atomics
//   determinism   yes
template <typename A>
__global__ void __launch_bounds__(kThreads) find_first_cells(
    ProjectionShape shape, Integers pixel_of_site, Integers batch_of_site, int64_t num_sites, int32_t num_cells,
    int32_t* __restrict__ cells, Node<A>* __restrict__ nodes, unsigned int* flags) {
  const int64_t site = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (site >= num_sites) {
    return;
  }
  const SiteReads<A> reads = site_reads<A>(pixel_of_site[site], batch_of_site[site], shape);
  if (reads.is_out_of_range) {
    report(flags, OutOfRange::kProjectFeatures);
  }
  cells[site] = reads.is_hit ? first_cell(reads, shape) : num_cells;
  store_whole(nodes + site, {kEnd, reads.rows.fraction, reads.columns.fraction});
}

// The lists of link_sites, but each in the order of the sites. sorted, order: result of a stable sort of the keys.
//   grid, block   as link_sites; no shared memory, no atomics
//   determinism   yes
template <typename A>
__global__ void __launch_bounds__(kThreads) link_sorted_sites(
    const int32_t* __restrict__ sorted, const int64_t* __restrict__ order, int64_t num_sites, int32_t num_cells,
    int32_t* __restrict__ heads, Node<A>* __restrict__ nodes) {
  const int64_t position = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (position >= num_sites || sorted[position] == num_cells) {
    return;
  }
  const int32_t cell = sorted[position];
  const auto site = static_cast<int32_t>(order[position]);
  if (position == 0 || sorted[position - 1] != cell) {
    heads[cell] = site;
  }
  if (position + 1 < num_sites && sorted[position + 1] == cell) {
    nodes[site].next = static_cast<int32_t>(order[position + 1]);
  }
}

// map [B, h, w, C]. The sites that read a cell are in four lists: its own, and those of the cells to the left, above,
// and above to the left. A warp traverses them simultaneously, so that four loads are in flight.
//   grid          (ceil(cells * 32 / 256), ceil(C / (32 * kSize * kTiles)))
//   block         8 warps, one cell each; a lane handles kSize channels of kTiles tiles
//   shared memory none
//   complexity    four reads of grad per site, one write per element of the map; most cells are read by no site and
//                 cost four 32-bit loads and the zeros
//   determinism   as the order of the lists
template <typename T, int kSize, int kTiles>
__global__ void __launch_bounds__(kThreads) gather_gradients(
    const T* __restrict__ grad, ProjectionShape shape, uint32_t num_cells, const int32_t* __restrict__ heads,
    const Node<Accumulate<T>>* __restrict__ nodes, T* __restrict__ map) {
  using A = Accumulate<T>;
  constexpr int kTile = kWarp * kSize;
  const uint32_t cell = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int first = static_cast<int>(blockIdx.y) * kTiles * kTile + static_cast<int>(threadIdx.x % kWarp) * kSize;
  const int channels = static_cast<int>(shape.channels);
  if (cell >= num_cells || first >= channels) {
    return;
  }
  const uint32_t line = cell / shape.width;
  const uint32_t column = cell - line * shape.width;
  const uint32_t row = line % shape.height;
  int32_t sites[4];
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const bool is_below = corner & 2;
    const bool is_right = corner & 1;
    const bool exists = !(is_below && row == 0) && !(is_right && column == 0);
    sites[corner] = exists ? heads[cell - (is_below ? shape.width : 0) - (is_right ? 1 : 0)] : kEnd;
  }
  A sums[kTiles][kSize] = {};
  while ((sites[0] & sites[1] & sites[2] & sites[3]) != kEnd) {
    Node<A> nodes_here[4] = {};
    Vector<T, kSize> values[4][kTiles] = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (sites[corner] != kEnd) {
        nodes_here[corner] = nodes[sites[corner]];
        const T* source = grad + static_cast<int64_t>(sites[corner]) * channels + first;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          if (tile == 0 || first + tile * kTile < channels) {
            values[corner][tile] = load<kSize>(source + tile * kTile);
          }
        }
      }
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (sites[corner] != kEnd) {
        const A weight = weight_of_line(nodes_here[corner].row_fraction, corner & 2, row + 1 == shape.height) *
                         weight_of_line(nodes_here[corner].column_fraction, corner & 1, column + 1 == shape.width);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int i = 0; i < kSize; ++i) {
            sums[tile][i] += weight * static_cast<A>(values[corner][tile].value[i]);
          }
        }
        sites[corner] = nodes_here[corner].next;
      }
    }
  }
  T* target = map + static_cast<int64_t>(cell) * channels + first;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (tile == 0 || first + tile * kTile < channels) {
      Vector<T, kSize> rounded;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        rounded.value[i] = static_cast<T>(sums[tile][i]);
      }
      store(target + tile * kTile, rounded);
    }
  }
}

// Calls function(std::integral_constant<int, S>{}) with S, the tiles of channels per traversal: two if the row has two
// and the register budget allows it, otherwise one.
template <int kSize, typename Function>
void dispatch_tiles(int64_t channels, Function&& function) {
  if constexpr (kSize <= 4) {
    if (channels > kWarp * kSize) {
      function(std::integral_constant<int, 2>{});
      return;
    }
  }
  function(std::integral_constant<int, 1>{});
}

// values [N] in ascending order, and their original indices; stable. Called through the dispatcher, because
// torch::stable::sort needs the headers of PyTorch 2.15.
std::tuple<Tensor, Tensor> sort_stably(const Tensor& values) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[] = {from(values), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// heads [B * h * w]: first site of each cell's list; writes the lists into `nodes` [N].
template <typename A>
Tensor build_lists(
    const Launch& launch, const Tensor& grad, const Sites& sites, const ProjectionShape& shape, bool deterministic,
    Node<A>* nodes) {
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
    launch(
        link_sites<A>, blocks, kThreads, shape, sites.pixels(), sites.samples(), sites.size(), heads_data, nodes,
        out_of_range_flags(launch));
    return heads;
  }
  const auto end_of_cells = static_cast<int32_t>(num_cells);
  Tensor cells = torch::stable::new_empty(grad, {sites.size()}, ScalarType::Int);
  launch(
      find_first_cells<A>, blocks, kThreads, shape, sites.pixels(), sites.samples(), sites.size(), end_of_cells,
      static_cast<int32_t*>(cells.mutable_data_ptr()), nodes, out_of_range_flags(launch));
  const auto [sorted, order] = sort_stably(cells);
  launch(
      link_sorted_sites<A>, blocks, kThreads, static_cast<const int32_t*>(sorted.const_data_ptr()),
      static_cast<const int64_t*>(order.const_data_ptr()), sites.size(), end_of_cells, heads_data, nodes);
  return heads;
}

// map [B, h, w, C]
Tensor gather(
    const Launch& launch, const Tensor& grad, const Sites& sites, const ProjectionShape& shape, bool deterministic) {
  Tensor map = torch::stable::new_empty(grad, {shape.batch_size, shape.height, shape.width, shape.channels});
  dispatch_features(grad.scalar_type(), "project_features_backward: grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Accumulate<T>;
    const Tensor bytes =
        torch::stable::new_empty(grad, {sites.size() * static_cast<int64_t>(sizeof(Node<A>))}, ScalarType::Byte);
    auto* nodes = static_cast<Node<A>*>(bytes.mutable_data_ptr());
    const Tensor heads = build_lists<A>(launch, grad, sites, shape, deterministic, nodes);
    const auto* grad_data = static_cast<const T*>(grad.const_data_ptr());
    auto* target = static_cast<T*>(map.mutable_data_ptr());
    dispatch_vector<T>(has_vector_rows<T>(shape.channels, grad_data, target), [&](auto vector) {
      dispatch_tiles<vector()>(shape.channels, [&](auto tiles) {
        const int64_t channels_of_warp = int64_t{kWarp} * vector() * tiles();
        const dim3 blocks(
            num_blocks(heads.numel() * kWarp),
            static_cast<unsigned int>((shape.channels + channels_of_warp - 1) / channels_of_warp));
        launch(
            gather_gradients<T, vector(), tiles()>, blocks, kThreads, grad_data, shape,
            static_cast<uint32_t>(heads.numel()), static_cast<const int32_t*>(heads.const_data_ptr()), nodes, target);
      });
    });
  });
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

AMMNET_CUDA_KERNELS(library) {
  library.impl("project_features_backward", TORCH_BOX(&project_features_backward));
}

}  // namespace ammnet_sparse
