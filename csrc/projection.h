// 2D-3D projection: the cells of the feature map that a site reads, and their bilinear weights.
//
//   features       [B, C, h, w]
//   pixel_of_site  [N] integer: row * image_width + column, -1 if no pixel hits the site
//   batch_of_site  [N] integer: 0 .. B - 1
//   result         [N, C], zeros for sites without a pixel
//
// The position between cells is a ratio of integers, so the weights are rounded only once.
#pragma once

#include "common.h"

namespace ammnet_sparse {

// Limits that keep (2 * pixel + 1) * cells within 32 bits.
constexpr int64_t kMaxImageSide = 65535;
constexpr int64_t kMaxMapSide = 32767;

struct ProjectionShape {
  int64_t batch_size;
  int64_t channels;
  uint32_t height;  // of the feature map
  uint32_t width;
  uint32_t image_height;
  uint32_t image_width;
  bool align_corners;
};

// Throws if a side is out of range.
inline ProjectionShape projection_shape(
    int64_t batch_size, int64_t channels, int64_t height, int64_t width, int64_t image_height, int64_t image_width,
    bool align_corners) {
  STD_TORCH_CHECK(
      height >= 1 && width >= 1 && height <= kMaxMapSide && width <= kMaxMapSide,
      "project_features: expected a feature map of 1 .. ", kMaxMapSide, " cells a side, found ", height, " x ", width);
  STD_TORCH_CHECK(
      image_height >= 1 && image_width >= 1 && image_height <= kMaxImageSide && image_width <= kMaxImageSide,
      "project_features: expected an image of 1 .. ", kMaxImageSide, " pixels a side, found ", image_height, " x ",
      image_width);
  return {
      batch_size,
      channels,
      static_cast<uint32_t>(height),
      static_cast<uint32_t>(width),
      static_cast<uint32_t>(image_height),
      static_cast<uint32_t>(image_width),
      align_corners};
}

// The two cells that are read along one axis. `upper` (lower + 1, or `lower` itself at the border) has weight
// `fraction`.
template <typename A>
struct LineReads {
  uint32_t lower;
  uint32_t upper;
  A fraction;
};

template <typename A>
AMMNET_HOST_DEVICE LineReads<A> line_reads(uint32_t position, uint32_t size, uint32_t image_size, bool align_corners) {
  uint32_t numerator;
  uint32_t denominator;
  if (align_corners) {
    numerator = position * (size - 1);
    denominator = image_size > 1 ? image_size - 1 : 1;
  } else {
    const uint32_t scaled = (2 * position + 1) * size;
    numerator = scaled > image_size ? scaled - image_size : 0;
    denominator = 2 * image_size;
  }
  const uint32_t lower = numerator / denominator;
  const A fraction = static_cast<A>(numerator - lower * denominator) / static_cast<A>(denominator);
  return {lower, lower + 1 < size ? lower + 1 : lower, fraction};
}

// Weight of a line (row or column) of the map for a site at `fraction` between its lower and upper line. is_upper: the
// line is the site's upper one. is_last: the line is at the border, where lower and upper coincide.
template <typename A>
AMMNET_HOST_DEVICE A weight_of_line(A fraction, bool is_upper, bool is_last) {
  return is_upper ? fraction : (is_last ? A(1) : A(1) - fraction);
}

// The four cells of a site: (upper left, upper right, lower left, lower right) are rows.lower with columns.lower,
// rows.lower with columns.upper, and so on.
template <typename A>
struct SiteReads {
  bool is_hit;
  bool is_out_of_range;
  int64_t sample;
  LineReads<A> rows;
  LineReads<A> columns;

  AMMNET_HOST_DEVICE A weight(int corner) const {
    return (corner & 2 ? rows.fraction : A(1) - rows.fraction) *
           (corner & 1 ? columns.fraction : A(1) - columns.fraction);
  }
  AMMNET_HOST_DEVICE uint32_t row(int corner) const { return corner & 2 ? rows.upper : rows.lower; }
  AMMNET_HOST_DEVICE uint32_t column(int corner) const { return corner & 1 ? columns.upper : columns.lower; }
};

// [B, h, w, C] as [B, C, h, w], a view. torch::stable::permute would need the headers of PyTorch 2.14 to build.
inline Tensor as_channels_first(const Tensor& map) {
  return torch::stable::transpose(torch::stable::transpose(map, 1, 3), 2, 3);
}

template <typename A>
AMMNET_HOST_DEVICE SiteReads<A> site_reads(int64_t pixel, int64_t sample, const ProjectionShape& shape) {
  SiteReads<A> reads{};
  const int64_t num_pixels = static_cast<int64_t>(shape.image_height) * shape.image_width;
  const bool is_sample = sample >= 0 && sample < shape.batch_size;
  reads.is_hit = is_sample && pixel >= 0 && pixel < num_pixels;
  reads.is_out_of_range = !is_sample || pixel < -1 || pixel >= num_pixels;
  if (reads.is_hit) {
    const auto position = static_cast<uint32_t>(pixel);
    const uint32_t row = position / shape.image_width;
    reads.sample = sample;
    reads.rows = line_reads<A>(row, shape.height, shape.image_height, shape.align_corners);
    reads.columns =
        line_reads<A>(position - row * shape.image_width, shape.width, shape.image_width, shape.align_corners);
  }
  return reads;
}

}  // namespace ammnet_sparse
