// Gathering taps on the CPU: copies of rows, and sums of rows without atomics.
#include "../gather.h"

#include <atomic>
#include <cstring>

namespace ammnet_sparse {
namespace {

constexpr int64_t kBytesOfTask = 1 << 16;
constexpr int64_t kTile = 64;  // channels summed at a time, in registers and L1 cache

int64_t rows_of_task(int64_t bytes_of_row) {
  return std::max<int64_t>(1, kBytesOfTask / std::max<int64_t>(1, bytes_of_row));
}

[[noreturn]] void throw_bad_row(const char* name, int64_t num_rows, int64_t found) {
  throw_out_of_range(name, -1, num_rows - 1, std::min<int64_t>(found, -1), std::max<int64_t>(found, -1));
}

// An out-of-range row, reported by one of the threads.
class BadRow {
 public:
  void report(int64_t row) {
    found_.store(row, std::memory_order_relaxed);
    is_found_.store(true);
  }
  void check(const char* name, int64_t num_rows) const {
    if (is_found_.load()) {
      throw_bad_row(name, num_rows, found_.load());
    }
  }

 private:
  std::atomic<bool> is_found_{false};
  std::atomic<int64_t> found_{0};
};

// kSize: bytes of a row, copied without a call to memcpy; 0: any size.
template <int kSize>
void gather_rows(
    const char* features, int64_t num_rows, int64_t row_size, const TapTable& table, int64_t begin, int64_t end,
    char* result, BadRow& bad) {
  const int64_t size = kSize ? kSize : row_size;
  char* target = result + begin * table.num_taps * size;
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t tap = 0; tap < table.num_taps; ++tap, target += size) {
      const int64_t row = table.at(n, tap);
      if (row >= 0 && row < num_rows) {
        std::memcpy(target, features + row * size, size);
      } else {
        std::memset(target, 0, size);
        if (row != -1) {
          bad.report(row);
        }
      }
    }
  }
}

Tensor gather_taps(const Tensor& features, const Tensor& table, std::optional<Tensor> /* inverse */) {
  const Tensor features_ = as_contiguous(features);
  const Tensor table_ = as_tap_table(table);
  const TapTable rows = tap_table_of(table_);
  const int64_t num_rows = features.size(0);
  const int64_t num_targets = table.size(0);
  const int64_t channels = features.size(1);
  Tensor result = torch::stable::new_empty(features_, {num_targets, rows.num_taps * channels});
  if (result.numel() == 0) {
    return result;
  }
  const int64_t row_size = channels * features_.element_size();
  const auto* source = static_cast<const char*>(features_.const_data_ptr());
  auto* target = static_cast<char*>(result.mutable_data_ptr());
  BadRow bad;
  torch::stable::parallel_for(0, num_targets, rows_of_task(rows.num_taps * row_size), [&](int64_t begin, int64_t end) {
    const auto gather = [&](auto size) {
      gather_rows<size()>(source, num_rows, row_size, rows, begin, end, target, bad);
    };
    switch (row_size) {
      case 4:
        return gather(std::integral_constant<int, 4>{});
      case 12:
        return gather(std::integral_constant<int, 12>{});
      case 64:
        return gather(std::integral_constant<int, 64>{});
      case 128:
        return gather(std::integral_constant<int, 128>{});
      case 256:
        return gather(std::integral_constant<int, 256>{});
      default:
        return gather(std::integral_constant<int, 0>{});
    }
  });
  bad.check("gather_taps: table", num_rows);
  return result;
}

// A tap reads the element `row * row_stride + tap * tap_stride + channel`.
template <typename T>
void add_rows(
    const T* values, int64_t num_rows, int64_t row_stride, int64_t tap_stride, int64_t channels, const TapTable& table,
    Accumulate<T> scale, int64_t begin, int64_t end, T* result, BadRow& bad) {
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t first = 0; first < channels; first += kTile) {
      const int64_t size = std::min(kTile, channels - first);
      Accumulate<T> sums[kTile] = {};
      for (int64_t tap = 0; tap < table.num_taps; ++tap) {
        const int64_t row = table.at(m, tap);
        if (row >= 0 && row < num_rows) {
          const T* source = values + row * row_stride + tap * tap_stride + first;
          for (int64_t i = 0; i < size; ++i) {
            sums[i] += static_cast<Accumulate<T>>(source[i]);
          }
        } else if (row != -1) {
          bad.report(row);
        }
      }
      for (int64_t i = 0; i < size; ++i) {
        result[m * channels + first + i] = static_cast<T>(sums[i] * scale);
      }
    }
  }
}

// [M, channels]: sums over the taps of `table` of rows of `channels` elements.
Tensor sum_taps(
    const Tensor& values, const Tensor& table, int64_t channels, int64_t tap_stride, double scale, const char* name) {
  const Tensor values_ = as_contiguous(values);
  const Tensor table_ = as_tap_table(table);
  const TapTable rows = tap_table_of(table_);
  const int64_t num_rows = values.size(0);
  const int64_t row_stride = values.size(1);
  Tensor result = torch::stable::new_empty(values_, {table.size(0), channels});
  if (result.numel() == 0) {
    return result;
  }
  BadRow bad;
  dispatch_features(values.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* source = static_cast<const T*>(values_.const_data_ptr());
    auto* target = static_cast<T*>(result.mutable_data_ptr());
    const int64_t row_size = (rows.num_taps + 1) * channels * static_cast<int64_t>(sizeof(T));
    torch::stable::parallel_for(0, table.size(0), rows_of_task(row_size), [&](int64_t begin, int64_t end) {
      add_rows(
          source, num_rows, row_stride, tap_stride, channels, rows, static_cast<Accumulate<T>>(scale), begin, end,
          target, bad);
    });
  });
  bad.check(name, num_rows);
  return result;
}

Tensor gather_taps_backward(const Tensor& grad, const Tensor& inverse) {
  const int64_t num_taps = inverse.size(1);
  STD_TORCH_CHECK(
      num_taps > 0 && grad.size(1) % num_taps == 0,
      "gather_taps_backward: grad: expected a number of columns that the taps divide");
  const int64_t channels = grad.size(1) / num_taps;
  return sum_taps(grad, inverse, channels, channels, 1.0, "gather_taps: inverse");
}

Tensor sum_rows(const Tensor& features, const Tensor& table, const Tensor& /* owner */, double scale) {
  return sum_taps(features, table, features.size(1), 0, scale, "sum_rows: table");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CPU, library) {
  library.impl("gather_taps", TORCH_BOX(&gather_taps));
  library.impl("gather_taps_backward", TORCH_BOX(&gather_taps_backward));
  library.impl("sum_rows", TORCH_BOX(&sum_rows));
}

}  // namespace ammnet_sparse
