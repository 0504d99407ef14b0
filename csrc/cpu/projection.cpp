// 2D-3D projection on the CPU.
//
// Forward: a task is a tile of channels of some sites. From a channels-last map, a site reads four short rows. From a
// channels-first map, it reads its cells in so few planes that they stay in the cache, and still writes whole cache
// lines. Backward: a task is a tile of channels of all sites, so that no two tasks write to the same sum. Each sum is
// accumulated in the order of the sites, whatever the number of threads.
#include "../projection.h"

namespace ammnet_sparse {
namespace {

constexpr int64_t kSitesOfBlock = 256;
constexpr int64_t kChannelsOfTile = 64;
constexpr int64_t kPlanesOfTile = 16;  // a cache line of float32

// Offsets of the cells that a site reads from the first element of the map.
template <typename A>
struct Reads {
  bool is_hit;
  int64_t offsets[4];
  A weights[4];
};

struct MapStrides {
  int64_t sample;
  int64_t channel;
  int64_t row;
  int64_t column;
};

// Checks the indices before the map is read or written.
struct Sites {
  Tensor pixel;
  Tensor batch;

  Sites(const Tensor& pixel_of_site, const Tensor& batch_of_site, const ProjectionShape& shape)
      : pixel(as_contiguous(pixel_of_site)), batch(as_contiguous(batch_of_site)) {
    check_shape(batch, {pixel.numel()}, "project_features: batch_of_site");
    const int64_t num_pixels = static_cast<int64_t>(shape.image_height) * shape.image_width;
    check_range(pixel, -1, num_pixels - 1, "project_features: pixel_of_site");
    check_range(batch, 0, shape.batch_size - 1, "project_features: batch_of_site");
  }

  template <typename A>
  std::vector<Reads<A>> reads(const ProjectionShape& shape, const MapStrides& strides) const {
    const Integers pixels = integers_of(pixel, "project_features: pixel_of_site");
    const Integers samples = integers_of(batch, "project_features: batch_of_site");
    std::vector<Reads<A>> result(static_cast<size_t>(pixel.numel()));
    torch::stable::parallel_for(0, pixel.numel(), 2048, [&](int64_t begin, int64_t end) {
      for (int64_t site = begin; site < end; ++site) {
        const SiteReads<A> found = site_reads<A>(pixels[site], samples[site], shape);
        Reads<A>& reads = result[static_cast<size_t>(site)];
        reads.is_hit = found.is_hit;
        for (int corner = 0; found.is_hit && corner < 4; ++corner) {
          reads.offsets[corner] =
              found.sample * strides.sample + found.row(corner) * strides.row + found.column(corner) * strides.column;
          reads.weights[corner] = found.weight(corner);
        }
      }
    });
    return result;
  }
};

// Computes `size` channels of one site. kIsChannelsLast: the channels have unit stride.
template <bool kIsChannelsLast, typename T>
void project_site(const T* map, const Reads<Accumulate<T>>& reads, int64_t channel_stride, int64_t size, T* result) {
  using A = Accumulate<T>;
  const int64_t stride = kIsChannelsLast ? 1 : channel_stride;
  const T* __restrict cell0 = map + reads.offsets[0];
  const T* __restrict cell1 = map + reads.offsets[1];
  const T* __restrict cell2 = map + reads.offsets[2];
  const T* __restrict cell3 = map + reads.offsets[3];
  T* __restrict target = result;
  for (int64_t c = 0; c < size; ++c) {
    target[c] = static_cast<T>(
        reads.weights[0] * static_cast<A>(cell0[c * stride]) + reads.weights[1] * static_cast<A>(cell1[c * stride]) +
        reads.weights[2] * static_cast<A>(cell2[c * stride]) + reads.weights[3] * static_cast<A>(cell3[c * stride]));
  }
}

template <typename T>
void project(
    const T* map, const std::vector<Reads<Accumulate<T>>>& reads, int64_t channels, int64_t channel_stride, T* result) {
  const bool is_channels_last = channel_stride == 1;
  const int64_t tile = is_channels_last ? channels : kPlanesOfTile;
  const auto num_sites = static_cast<int64_t>(reads.size());
  const int64_t num_tiles = channels == 0 ? 0 : (channels + tile - 1) / tile;
  const int64_t num_blocks = (num_sites + kSitesOfBlock - 1) / kSitesOfBlock;
  torch::stable::parallel_for(0, num_tiles * num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t channel = task / num_blocks * tile;
      const int64_t size = std::min(tile, channels - channel);
      const int64_t first = task % num_blocks * kSitesOfBlock;
      const int64_t last = std::min(first + kSitesOfBlock, num_sites);
      for (int64_t site = first; site < last; ++site) {
        T* target = result + site * channels + channel;
        const auto& from = reads[static_cast<size_t>(site)];
        if (!from.is_hit) {
          std::fill(target, target + size, static_cast<T>(0.0f));
        } else if (is_channels_last) {
          project_site<true>(map + channel, from, 1, size, target);
        } else {
          project_site<false>(map + channel * channel_stride, from, channel_stride, size, target);
        }
      }
    }
  });
}

template <typename T>
void add_site(
    const T* __restrict grad, int64_t offset, Accumulate<T> weight, int64_t size, Accumulate<T>* __restrict map) {
  for (int64_t c = 0; c < size; ++c) {
    map[offset + c] += weight * static_cast<Accumulate<T>>(grad[c]);
  }
}

template <typename T>
void project_backward(
    const T* grad, const std::vector<Reads<Accumulate<T>>>& reads, int64_t channels, Accumulate<T>* map) {
  // Whole cache lines, so that no two tasks write to the same one.
  const int64_t share = channels / static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t tile = std::clamp((share + 15) / 16 * 16, int64_t{16}, kChannelsOfTile);
  torch::stable::parallel_for(0, (channels + tile - 1) / tile, 1, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin * tile; channel < std::min(end * tile, channels); channel += tile) {
      const int64_t size = std::min(tile, channels - channel);
      for (size_t site = 0; site < reads.size(); ++site) {
        const auto& from = reads[site];
        for (int corner = 0; from.is_hit && corner < 4; ++corner) {
          add_site(
              grad + static_cast<int64_t>(site) * channels + channel, from.offsets[corner], from.weights[corner], size,
              map + channel);
        }
      }
    }
  });
}

Tensor project_features(
    const Tensor& features, const Tensor& pixel_of_site, const Tensor& batch_of_site, int64_t image_height,
    int64_t image_width, bool align_corners) {
  const ProjectionShape shape = projection_shape(
      features.size(0), features.size(1), features.size(2), features.size(3), image_height, image_width, align_corners);
  const MapStrides strides{features.stride(0), features.stride(1), features.stride(2), features.stride(3)};
  const Sites sites(pixel_of_site, batch_of_site, shape);
  Tensor result = torch::stable::new_empty(features, {pixel_of_site.size(0), shape.channels});
  dispatch_features(features.scalar_type(), "project_features: features", [&](auto tag) {
    using T = typename decltype(tag)::type;
    project(
        static_cast<const T*>(features.const_data_ptr()), sites.reads<Accumulate<T>>(shape, strides), shape.channels,
        strides.channel, static_cast<T*>(result.mutable_data_ptr()));
  });
  return result;
}

Tensor project_features_backward(
    const Tensor& grad, const Tensor& pixel_of_site, const Tensor& batch_of_site, int64_t batch_size, int64_t height,
    int64_t width, int64_t image_height, int64_t image_width, bool align_corners, bool /* always */) {
  const ProjectionShape shape =
      projection_shape(batch_size, grad.size(1), height, width, image_height, image_width, align_corners);
  check_shape(grad, {pixel_of_site.size(0), shape.channels}, "project_features_backward: grad");
  const MapStrides strides{height * width * shape.channels, 1, width * shape.channels, shape.channels};
  const Sites sites(pixel_of_site, batch_of_site, shape);
  const Tensor grad_ = as_contiguous(grad);
  return dispatch_features(grad.scalar_type(), "project_features_backward: grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Accumulate<T>;
    const ScalarType wide = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    Tensor map = torch::stable::new_zeros(grad, {batch_size, height, width, shape.channels}, wide);
    project_backward(
        static_cast<const T*>(grad_.const_data_ptr()), sites.reads<A>(shape, strides), shape.channels,
        static_cast<A*>(map.mutable_data_ptr()));
    return as_channels_first(as_type(map, grad.scalar_type()));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CPU, library) {
  library.impl("project_features", TORCH_BOX(&project_features));
  library.impl("project_features_backward", TORCH_BOX(&project_features_backward));
}

}  // namespace ammnet_sparse
