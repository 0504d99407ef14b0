// Filling empty channels on the CPU. Rows are first classified by their number of empty channels: a site without any
// reads no neighbor, and in the backward pass a neighbor without any is skipped.
#include "../fill_empty.h"

namespace ammnet_sparse {
namespace {

constexpr int64_t kChannelsOfTile = 64;
constexpr int64_t kSitesOfTask = 32;

// The neighbors of one site as int64, whatever the input type.
using NeighborRow = int64_t[kNumNeighbors];

void read_neighbors(Integers neighbors, int64_t site, NeighborRow& row) {
  for (int k = 0; k < kNumNeighbors; ++k) {
    row[k] = neighbors[site * kNumNeighbors + k];
  }
}

template <typename T>
int64_t count_empty(const T* row, int64_t channels) {
  int32_t count = 0;
  for (int64_t c = 0; c < channels; ++c) {
    count += is_empty(row[c]);
  }
  return count;
}

template <typename T>
void fill_site(const T* features, int64_t num_sites, int64_t channels, int64_t site, Integers neighbors, T* result) {
  const T* own = features + site * channels;
  if (count_empty(own, channels) == 0) {
    std::copy(own, own + channels, result);
    return;
  }
  NeighborRow rows;
  read_neighbors(neighbors, site, rows);
  for (int64_t first = 0; first < channels; first += kChannelsOfTile) {
    const int64_t size = std::min(kChannelsOfTile, channels - first);
    Accumulate<T> sums[kChannelsOfTile] = {};
    for (const int64_t row : rows) {
      if (is_row(row, num_sites)) {
        const T* other = features + row * channels + first;
        for (int64_t c = 0; c < size; ++c) {
          sums[c] += static_cast<Accumulate<T>>(other[c]);
        }
      }
    }
    for (int64_t c = 0; c < size; ++c) {
      result[first + c] = fill_element(own[first + c], sums[c]);
    }
  }
}

enum class Emptiness : uint8_t { kNone, kSome, kAll };

template <typename T>
void fill_site_backward(
    const T* grad, const T* features, const std::vector<Emptiness>& emptiness, int64_t channels, int64_t site,
    Integers neighbors, T* result) {
  const auto num_sites = static_cast<int64_t>(emptiness.size());
  NeighborRow rows;
  read_neighbors(neighbors, site, rows);
  for (int64_t first = 0; first < channels; first += kChannelsOfTile) {
    const int64_t size = std::min(kChannelsOfTile, channels - first);
    Accumulate<T> sums[kChannelsOfTile] = {};
    for (const int64_t row : rows) {
      if (!is_row(row, num_sites) || emptiness[static_cast<size_t>(row)] == Emptiness::kNone) {
        continue;
      }
      const T* other = grad + row * channels + first;
      if (emptiness[static_cast<size_t>(row)] == Emptiness::kAll) {
        for (int64_t c = 0; c < size; ++c) {
          sums[c] += static_cast<Accumulate<T>>(other[c]);
        }
        continue;
      }
      const T* values = features + row * channels + first;
      for (int64_t c = 0; c < size; ++c) {
        sums[c] += gradient_of_filled(other[c], values[c]);
      }
    }
    const T* own = grad + site * channels + first;
    for (int64_t c = 0; c < size; ++c) {
      result[first + c] = fill_element_backward(own[c], sums[c]);
    }
  }
}

// Checks the neighbors before any feature is read.
Tensor checked_neighbors(const Tensor& neighbors, int64_t num_sites) {
  check_shape(neighbors, {num_sites, kNumNeighbors}, "fill_empty: neighbors");
  Tensor result = as_contiguous(neighbors);
  check_range(result, -1, num_sites - 1, "fill_empty: neighbors");
  return result;
}

Tensor fill_empty(const Tensor& features, const Tensor& neighbors) {
  const int64_t num_sites = features.size(0);
  const int64_t channels = features.size(1);
  const Tensor neighbors_ = checked_neighbors(neighbors, num_sites);
  const Tensor features_ = as_contiguous(features);
  const Integers rows = integers_of(neighbors_, "fill_empty: neighbors");
  Tensor result = torch::stable::empty_like(features_);
  dispatch_features(features.scalar_type(), "fill_empty: features", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* source = static_cast<const T*>(features_.const_data_ptr());
    auto* target = static_cast<T*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, num_sites, kSitesOfTask, [&](int64_t begin, int64_t end) {
      for (int64_t site = begin; site < end; ++site) {
        fill_site(source, num_sites, channels, site, rows, target + site * channels);
      }
    });
  });
  return result;
}

Tensor fill_empty_backward(const Tensor& grad, const Tensor& features, const Tensor& neighbors) {
  const int64_t num_sites = features.size(0);
  const int64_t channels = features.size(1);
  check_shape(grad, {num_sites, channels}, "fill_empty_backward: grad");
  const Tensor neighbors_ = checked_neighbors(neighbors, num_sites);
  const Tensor grad_ = as_contiguous(grad);
  const Tensor features_ = as_contiguous(as_type(features, grad.scalar_type()));
  const Integers rows = integers_of(neighbors_, "fill_empty: neighbors");
  Tensor result = torch::stable::empty_like(grad_);
  dispatch_features(grad.scalar_type(), "fill_empty_backward: grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* grad_data = static_cast<const T*>(grad_.const_data_ptr());
    const auto* values = static_cast<const T*>(features_.const_data_ptr());
    auto* target = static_cast<T*>(result.mutable_data_ptr());
    std::vector<Emptiness> emptiness(static_cast<size_t>(num_sites));
    torch::stable::parallel_for(0, num_sites, kSitesOfTask, [&](int64_t begin, int64_t end) {
      for (int64_t site = begin; site < end; ++site) {
        const int64_t count = count_empty(values + site * channels, channels);
        emptiness[static_cast<size_t>(site)] =
            count == 0 ? Emptiness::kNone : (count == channels ? Emptiness::kAll : Emptiness::kSome);
      }
    });
    torch::stable::parallel_for(0, num_sites, kSitesOfTask, [&](int64_t begin, int64_t end) {
      for (int64_t site = begin; site < end; ++site) {
        fill_site_backward(grad_data, values, emptiness, channels, site, rows, target + site * channels);
      }
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CPU, library) {
  library.impl("fill_empty", TORCH_BOX(&fill_empty));
  library.impl("fill_empty_backward", TORCH_BOX(&fill_empty_backward));
}

}  // namespace ammnet_sparse
