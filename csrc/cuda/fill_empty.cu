// Filling empty channels on CUDA, one warp per site. The first 27 lanes read and check one neighbor index each; then
// all lanes loop over the channels of the existing neighbors, 16 bytes per lane. A row is read up to 27 times, but
// mostly from the caches, because sites are stored in grid order.
#include "../fill_empty.h"
#include "common.h"

namespace ammnet_sparse {
namespace {

constexpr unsigned int kAllLanes = 0xFFFFFFFFu;

// Row of this lane's neighbor, -1 if there is none; `present` is the ballot of lanes with a neighbor. Warp-collective.
__device__ __forceinline__ int64_t
neighbor_of_lane(Integers neighbors, int64_t site, int64_t num_sites, unsigned int& present, unsigned int* flags) {
  const int lane = threadIdx.x % kWarp;
  int64_t row = lane < kNumNeighbors ? neighbors[site * kNumNeighbors + lane] : -1;
  if (!is_row(row, num_sites)) {
    if (row != -1) {
      report(flags, OutOfRange::kFillEmpty);
    }
    row = -1;
  }
  present = __ballot_sync(kAllLanes, row >= 0);
  return row;
}

template <typename T, int kSize>
__device__ __forceinline__ bool has_empty(const Vector<T, kSize>& values) {
  bool found = false;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    found |= is_empty(values.value[i]);
  }
  return found;
}

// Forward pass: result [N, C].
//   grid          ceil(N * 32 / 256)
//   block         8 warps, one site each; a lane handles kSize channels of each tile of 32 * kSize
//   shared memory none (warp shuffles and ballots)
//   complexity    up to 27 rows read for each row written; tiles without an empty channel read no neighbor
//   determinism   yes: sums in the order of the neighbors
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) fill_empty_kernel(
    const T* __restrict__ features, Integers neighbors, int64_t num_sites, int channels, T* __restrict__ result,
    unsigned int* flags) {
  const int64_t site = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / kWarp;
  if (site >= num_sites) {
    return;  // uniform in a warp
  }
  const int lane = threadIdx.x % kWarp;
  unsigned int present;
  const int64_t row_of_lane = neighbor_of_lane(neighbors, site, num_sites, present, flags);
  for (int tile = 0; tile < channels; tile += kWarp * kSize) {
    const int channel = tile + lane * kSize;
    const bool is_inside = channel < channels;
    Vector<T, kSize> own = {};
    if (is_inside) {
      own = load<kSize>(features + site * channels + channel);
    }
    // In rows hit by a pixel, ReLU leaves 7 to 33 % of the channels empty: lanes without one read no neighbor.
    const bool needs_sum = is_inside && has_empty(own);
    if (__any_sync(kAllLanes, needs_sum)) {
      Accumulate<T> sums[kSize] = {};
      for (unsigned int left = present; left != 0; left &= left - 1) {
        const int64_t row = __shfl_sync(kAllLanes, row_of_lane, __ffs(left) - 1);
        if (needs_sum) {
          const auto other = load<kSize>(features + row * channels + channel);
#pragma unroll
          for (int i = 0; i < kSize; ++i) {
            sums[i] += static_cast<Accumulate<T>>(other.value[i]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        own.value[i] = fill_element(own.value[i], sums[i]);
      }
    }
    if (is_inside) {
      store(result + site * channels + channel, own);
    }
  }
}

// Backward pass: each site adds the gradients of the neighbors that it helped to fill. Launch geometry, shared memory,
// complexity and determinism as in fill_empty_kernel; features and gradients of up to 27 rows are read.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) fill_empty_backward_kernel(
    const T* __restrict__ grad, const T* __restrict__ features, Integers neighbors, int64_t num_sites, int channels,
    T* __restrict__ result, unsigned int* flags) {
  const int64_t site = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / kWarp;
  if (site >= num_sites) {
    return;
  }
  const int lane = threadIdx.x % kWarp;
  unsigned int present;
  const int64_t row_of_lane = neighbor_of_lane(neighbors, site, num_sites, present, flags);
  for (int tile = 0; tile < channels; tile += kWarp * kSize) {
    const int channel = tile + lane * kSize;
    const bool is_inside = channel < channels;
    Accumulate<T> sums[kSize] = {};
    for (unsigned int left = present; left != 0; left &= left - 1) {
      const int64_t row = __shfl_sync(kAllLanes, row_of_lane, __ffs(left) - 1);
      if (is_inside) {
        const int64_t offset = row * channels + channel;
        const auto values = load<kSize>(features + offset);
        if (has_empty(values)) {  // otherwise it was not filled, and its gradient is not read
          const auto other = load<kSize>(grad + offset);
#pragma unroll
          for (int i = 0; i < kSize; ++i) {
            sums[i] += gradient_of_filled(other.value[i], values.value[i]);
          }
        }
      }
    }
    if (is_inside) {
      auto own = load<kSize>(grad + site * channels + channel);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        own.value[i] = fill_element_backward(own.value[i], sums[i]);
      }
      store(result + site * channels + channel, own);
    }
  }
}

Tensor fill_empty(const Tensor& features, const Tensor& neighbors) {
  const int64_t num_sites = features.size(0);
  const int64_t channels = features.size(1);
  check_shape(neighbors, {num_sites, kNumNeighbors}, "fill_empty: neighbors");
  const Launch launch(features);
  const Tensor features_ = as_contiguous(features);
  const Tensor neighbors_ = as_contiguous(neighbors);
  const Integers rows = integers_of(neighbors_, "fill_empty: neighbors");
  Tensor result = torch::stable::empty_like(features_);
  if (result.numel() == 0) {
    return result;
  }
  dispatch_features(features.scalar_type(), "fill_empty: features", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* source = static_cast<const T*>(features_.const_data_ptr());
    auto* target = static_cast<T*>(result.mutable_data_ptr());
    dispatch_vector<T>(has_vector_rows<T>(channels, source, target), [&](auto vector) {
      launch(
          fill_empty_kernel<T, vector()>, num_blocks(num_sites * kWarp), kThreads, source, rows, num_sites,
          static_cast<int>(channels), target, out_of_range_flags(launch));
    });
  });
  return result;
}

Tensor fill_empty_backward(const Tensor& grad, const Tensor& features, const Tensor& neighbors) {
  const int64_t num_sites = features.size(0);
  const int64_t channels = features.size(1);
  check_shape(grad, {num_sites, channels}, "fill_empty_backward: grad");
  check_shape(neighbors, {num_sites, kNumNeighbors}, "fill_empty: neighbors");
  const Launch launch(features);
  const Tensor grad_ = as_contiguous(grad);
  const Tensor features_ = as_contiguous(as_type(features, grad.scalar_type()));
  const Tensor neighbors_ = as_contiguous(neighbors);
  const Integers rows = integers_of(neighbors_, "fill_empty: neighbors");
  Tensor result = torch::stable::empty_like(grad_);
  if (result.numel() == 0) {
    return result;
  }
  dispatch_features(grad.scalar_type(), "fill_empty_backward: grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* grad_data = static_cast<const T*>(grad_.const_data_ptr());
    const auto* values = static_cast<const T*>(features_.const_data_ptr());
    auto* target = static_cast<T*>(result.mutable_data_ptr());
    dispatch_vector<T>(has_vector_rows<T>(channels, grad_data, values, target), [&](auto vector) {
      launch(
          fill_empty_backward_kernel<T, vector()>, num_blocks(num_sites * kWarp), kThreads, grad_data, values, rows,
          num_sites, static_cast<int>(channels), target, out_of_range_flags(launch));
    });
  });
  return result;
}

}  // namespace

AMMNET_CUDA_KERNELS(library) {
  library.impl("fill_empty", TORCH_BOX(&fill_empty));
  library.impl("fill_empty_backward", TORCH_BOX(&fill_empty_backward));
}

}  // namespace ammnet_sparse
