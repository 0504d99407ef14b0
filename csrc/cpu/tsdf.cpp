// Mapping and TSDF of a depth image: the operators of data/volumes/tsdf_operators.py, with the same bits.
//
// Rows of fine voxels run along Y, which is contiguous. A task is a slab of X: nothing is added across tasks, so that
// the result does not depend on the number of threads.
#include "../common.h"

#include <cmath>
#include <memory>

// NumPy rounds products before sums, and so must this.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

namespace ammnet_sparse {
namespace {

constexpr int64_t kFine = 4;  // fine voxels along an edge of a voxel
constexpr int64_t kTruncation = 12;  // fine voxels
constexpr uint8_t kCap = kTruncation * kTruncation;
constexpr double kNearest = 0.5;  // meters
constexpr double kFarthest = 8.0;
constexpr double kMargin = 1.0;  // pixels beyond the image at which a row is skipped; rounding is far below it

struct Shape {
  int64_t x, height, y;
  int64_t size() const { return x * height * y; }
};

struct Image {
  const float* depth;
  int64_t rows, columns;
  const double* camera;  // fx, fy, cx, cy
};

const double* doubles_of(const Tensor& tensor, int64_t size, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.is_contiguous(), name, ": expected float64");
  STD_TORCH_CHECK(tensor.numel() == size, name, ": expected ", size, " numbers");
  return static_cast<const double*>(tensor.const_data_ptr());
}

Image image_of(const Tensor& depth, const Tensor& camera) {
  STD_TORCH_CHECK(
      depth.scalar_type() == ScalarType::Float && depth.dim() == 2 && depth.is_contiguous(),
      "depth: expected contiguous float32 [rows, columns]");
  return {
      static_cast<const float*>(depth.const_data_ptr()), depth.size(0), depth.size(1), doubles_of(camera, 4, "camera")};
}

// Writes for every pixel the voxel that it falls in, -1 for none.
void find_voxels(
    const Image& image, const double* pose, const double* origin, double size, const Shape& shape, int32_t* voxels) {
  const double fx = image.camera[0], fy = image.camera[1], cx = image.camera[2], cy = image.camera[3];
  const struct {
    double x, height, y;
  } end_of{static_cast<double>(shape.x), static_cast<double>(shape.height), static_cast<double>(shape.y)};
  const auto height = static_cast<int32_t>(shape.height), length = static_cast<int32_t>(shape.y);
  torch::stable::parallel_for(0, image.rows, 32, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const float* depth = image.depth + v * image.columns;
      int32_t* target = voxels + v * image.columns;
      for (int32_t u = 0; u < static_cast<int32_t>(image.columns); ++u) {
        const double d = depth[u];
        const double x = (static_cast<double>(u) - cx) * d / fx, y = (static_cast<double>(v) - cy) * d / fy;
        const double i = std::floor((pose[0] * x + pose[1] * y + pose[2] * d + pose[3] - origin[0]) / size);
        const double j = std::floor((pose[4] * x + pose[5] * y + pose[6] * d + pose[7] - origin[1]) / size);
        const double k = std::floor((pose[8] * x + pose[9] * y + pose[10] * d + pose[11] - origin[2]) / size);
        const bool is_inside =
            (d > 0.0) & (i >= 0.0) & (i < end_of.x) & (k >= 0.0) & (k < end_of.height) & (j >= 0.0) & (j < end_of.y);
        const auto x_index = static_cast<int32_t>(is_inside ? i : 0.0);
        const auto h_index = static_cast<int32_t>(is_inside ? k : 0.0);
        const auto y_index = static_cast<int32_t>(is_inside ? j : 0.0);
        const int32_t voxel = (x_index * height + h_index) * length + y_index;
        target[u] = is_inside ? voxel : -1;
      }
    }
  });
}

// Squared distances along Y to the nearest surface voxel of a row that has one, capped.
void find_distances(uint8_t* row, int64_t size) {
  int64_t distance = kTruncation;
  for (int64_t y = 0; y < size; ++y) {
    distance = row[y] != 0 ? 0 : (distance + 1 < kTruncation ? distance + 1 : kTruncation);
    row[y] = static_cast<uint8_t>(distance);
  }
  distance = kTruncation;
  for (int64_t y = size - 1; y >= 0; --y) {
    distance = row[y] == 0 ? 0 : (distance + 1 < kTruncation ? distance + 1 : kTruncation);
    const int64_t least = distance < row[y] ? distance : row[y];
    row[y] = static_cast<uint8_t>(least * least);
  }
}

// target = min(target, source + offset), without overflow: offset <= 121.
void lower(uint8_t* __restrict target, const uint8_t* __restrict source, uint8_t offset, int64_t size) {
  const uint8_t most = static_cast<uint8_t>(255 - offset);
  for (int64_t y = 0; y < size; ++y) {
    const uint8_t from = source[y] < most ? source[y] : most;
    const uint8_t value = static_cast<uint8_t>(from + offset);
    target[y] = value < target[y] ? value : target[y];
  }
}

// A row lowered by those within reach along one axis, `stride` elements apart; false if none is below the cap.
bool lower_by_neighbors(
    const uint8_t* rows, const uint8_t* is_below, int64_t position, int64_t count, int64_t row_stride,
    int64_t flag_stride, int64_t size, uint8_t* target) {
  const int64_t first = position - kTruncation + 1 > 0 ? position - kTruncation + 1 : 0;
  const int64_t end = position + kTruncation < count ? position + kTruncation : count;
  bool is_found = false;
  for (int64_t other = first; other < end; ++other) {
    if (is_below[other * flag_stride]) {
      if (!is_found) {
        std::fill(target, target + size, kCap);
        is_found = true;
      }
      lower(target, rows + other * row_stride, static_cast<uint8_t>((other - position) * (other - position)), size);
    }
  }
  return is_found;
}

// Distances within slices of constant X, of rows marked in `has_surface`; a row of `squared` is valid if `is_below`.
void find_distances_in_slices(
    uint8_t* surface, const uint8_t* has_surface, const Shape& shape, uint8_t* squared, uint8_t* is_below) {
  torch::stable::parallel_for(0, shape.x, 4, [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x) {
      const int64_t first = x * shape.height;
      for (int64_t h = 0; h < shape.height; ++h) {
        if (has_surface[first + h]) {
          find_distances(surface + (first + h) * shape.y, shape.y);
        }
      }
      for (int64_t h = 0; h < shape.height; ++h) {
        is_below[first + h] = lower_by_neighbors(
            surface + first * shape.y, has_surface + first, h, shape.height, shape.y, 1, shape.y,
            squared + (first + h) * shape.y);
      }
    }
  });
}

struct View {
  const double* rotation;  // [3, 3] world to camera
  const double* translation;
  const double* origin;
  double size;
};

// A row of fine voxels in camera coordinates: start + step * (Y of the voxel).
struct Ray {
  double x, y, z;
  double step_x, step_y, step_z;
};

Ray ray_of(const View& view, int64_t i, int64_t k) {
  const double* r = view.rotation;
  const double px = view.origin[0] + static_cast<double>(i) * view.size;
  const double pz = view.origin[2] + static_cast<double>(k) * view.size;
  return {
      r[0] * px + r[2] * pz + view.translation[0],
      r[3] * px + r[5] * pz + view.translation[1],
      r[6] * px + r[8] * pz + view.translation[2],
      r[1],
      r[4],
      r[7]};
}

// Whether no voxel of a row can be in the image: along a row in front of the camera, pixels change monotonically.
bool is_outside(const Ray& ray, const Image& image, const View& view, int64_t size) {
  double u[2], v[2], z[2];
  for (int at = 0; at < 2; ++at) {
    const double py = view.origin[1] + static_cast<double>(at * (size - 1)) * view.size;
    z[at] = ray.z + ray.step_z * py;
    u[at] = image.camera[0] * (ray.x + ray.step_x * py) / z[at] + image.camera[2];
    v[at] = image.camera[1] * (ray.y + ray.step_y * py) / z[at] + image.camera[3];
  }
  if (z[0] < 0.01 || z[1] < 0.01) {
    return z[0] <= 0.0 && z[1] <= 0.0;
  }
  const double right = static_cast<double>(image.columns) + kMargin, bottom = static_cast<double>(image.rows) + kMargin;
  return (u[0] < -kMargin && u[1] < -kMargin) || (u[0] > right && u[1] > right) ||
         (v[0] < -kMargin && v[1] < -kMargin) || (v[0] > bottom && v[1] > bottom);
}

// Depth of every voxel of a row along the optical axis, and the pixel that sees it: `none` if it is not in the image.
void project_row(
    const Ray& ray, const Image& image, const View& view, int64_t size, int32_t none, double* __restrict depths,
    int32_t* __restrict pixels) {
  const double last_row = static_cast<double>(image.rows) - 0.5, last_column = static_cast<double>(image.columns) - 0.5;
  const double fx = image.camera[0], fy = image.camera[1], cx = image.camera[2], cy = image.camera[3];
  const double start = view.origin[1], step = view.size;
  const auto columns = static_cast<int32_t>(image.columns);
  for (int32_t j = 0; j < static_cast<int32_t>(size); ++j) {
    const double py = start + static_cast<double>(j) * step;
    const double z = ray.z + ray.step_z * py;
    const double u = fx * (ray.x + ray.step_x * py) / z + cx;
    const double v = fy * (ray.y + ray.step_y * py) / z + cy;
    const bool is_seen = (z > 0.0) & (u >= -0.5) & (v >= -0.5) & (u < last_column) & (v < last_row);
    const double column = is_seen ? u + 0.5 : 0.0, row = is_seen ? v + 0.5 : 0.0;
    const int32_t pixel = static_cast<int32_t>(row) * columns + static_cast<int32_t>(column);
    depths[j] = z;
    pixels[j] = is_seen ? pixel : none;
  }
}

// Adds sign times magnitude of every voxel of a row to the voxels [Y] that contain them, in their order.
void add_row(
    const double* __restrict depths, const int32_t* __restrict pixels, const float* __restrict depth,
    const uint8_t* __restrict squared, const double* __restrict magnitude, int64_t size, double* __restrict values,
    double* __restrict tsdf) {
  for (int64_t j = 0; j < size; ++j) {
    const double d = depth[pixels[j]];
    const double distance = squared == nullptr ? magnitude[kCap] : magnitude[squared[j]];
    const double sign = d - depths[j] > -1e-4 ? distance : -distance;
    values[j] = (d >= kNearest) & (d <= kFarthest) ? sign : 0.0;
  }
  for (int64_t y = 0; y < size / kFine; ++y) {
    for (int64_t fine = 0; fine < kFine; ++fine) {
      tsdf[y] += values[y * kFine + fine];
    }
  }
}

void integrate(
    const Image& image, const std::vector<float>& depth, const View& view, const uint8_t* squared,
    const uint8_t* is_below, const double* magnitude, const Shape& shape, float* result) {
  const int64_t height = shape.height / kFine, length = shape.y / kFine;
  const auto none = static_cast<int32_t>(depth.size() - 1);
  torch::stable::parallel_for(0, shape.x / kFine, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> depths(shape.y), values(shape.y), tsdf(static_cast<size_t>(height * length));
    std::vector<int32_t> pixels(shape.y);
    std::vector<uint8_t> nearest(shape.y);
    for (int64_t x = begin; x < end; ++x) {
      std::fill(tsdf.begin(), tsdf.end(), 0.0);
      for (int64_t i = x * kFine; i < (x + 1) * kFine; ++i) {
        for (int64_t k = 0; k < shape.height; ++k) {
          const Ray ray = ray_of(view, i, k);
          if (is_outside(ray, image, view, shape.y)) {
            continue;
          }
          project_row(ray, image, view, shape.y, none, depths.data(), pixels.data());
          const bool is_near = lower_by_neighbors(
              squared + k * shape.y, is_below + k, i, shape.x, shape.height * shape.y, shape.height, shape.y,
              nearest.data());
          add_row(
              depths.data(), pixels.data(), depth.data(), is_near ? nearest.data() : nullptr, magnitude, shape.y,
              values.data(), tsdf.data() + k / kFine * length);
        }
      }
      for (int64_t cell = 0; cell < height * length; ++cell) {
        result[x * height * length + cell] =
            static_cast<float>(tsdf[static_cast<size_t>(cell)] / static_cast<double>(kFine * kFine * kFine));
      }
    }
  });
}

Tensor map_depth(
    const Tensor& depth, const Tensor& camera, const Tensor& pose, const Tensor& origin, double size, int64_t x,
    int64_t height, int64_t y) {
  const Image image = image_of(depth, camera);
  std::vector<int32_t> voxels(static_cast<size_t>(image.rows * image.columns));
  const Shape shape{x, height, y};
  find_voxels(image, doubles_of(pose, 16, "pose"), doubles_of(origin, 3, "origin"), size, shape, voxels.data());
  Tensor result = torch::stable::new_empty(depth, {x, height, y}, ScalarType::Int);
  auto* mapping = static_cast<int32_t*>(result.mutable_data_ptr());
  std::fill(mapping, mapping + shape.size(), -1);
  for (size_t pixel = 0; pixel < voxels.size(); ++pixel) {  // in order, so that the largest index stays
    if (voxels[pixel] >= 0) {
      mapping[voxels[pixel]] = static_cast<int32_t>(pixel);
    }
  }
  return result;
}

Tensor tsdf_of_depth(
    const Tensor& depth, const Tensor& camera, const Tensor& pose, const Tensor& origin, const Tensor& rotation,
    const Tensor& translation, const Tensor& magnitude, double size, int64_t x, int64_t height, int64_t y) {
  const Image image = image_of(depth, camera);
  const Shape shape{x * kFine, height * kFine, y * kFine};
  const View view{
      doubles_of(rotation, 9, "rotation"), doubles_of(translation, 3, "translation"), doubles_of(origin, 3, "origin"),
      size};
  const auto num_pixels = static_cast<size_t>(image.rows * image.columns);
  std::vector<int32_t> voxels(num_pixels);
  find_voxels(image, doubles_of(pose, 16, "pose"), view.origin, size, shape, voxels.data());
  std::vector<uint8_t> surface(static_cast<size_t>(shape.size()));
  std::vector<uint8_t> has_surface(static_cast<size_t>(shape.x * shape.height));
  for (const int32_t voxel : voxels) {
    if (voxel >= 0) {
      surface[static_cast<size_t>(voxel)] = 1;
      has_surface[static_cast<size_t>(voxel / shape.y)] = 1;
    }
  }
  const std::unique_ptr<uint8_t[]> squared(new uint8_t[static_cast<size_t>(shape.size())]);
  std::vector<uint8_t> is_below(has_surface.size());
  find_distances_in_slices(surface.data(), has_surface.data(), shape, squared.get(), is_below.data());
  std::vector<float> padded(image.depth, image.depth + num_pixels);
  padded.push_back(0.0f);  // what voxels outside the image read
  Tensor result = torch::stable::new_empty(depth, {x, height, y});
  integrate(
      image, padded, view, squared.get(), is_below.data(), doubles_of(magnitude, kCap + 1, "magnitude"), shape,
      static_cast<float*>(result.mutable_data_ptr()));
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CPU, library) {
  library.impl("map_depth", TORCH_BOX(&map_depth));
  library.impl("tsdf_of_depth", TORCH_BOX(&tsdf_of_depth));
}

}  // namespace ammnet_sparse
