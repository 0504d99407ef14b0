// Gathering taps on CUDA. Each thread handles 16 bytes of the result: copies depend on the element size only, sums loop
// over the taps.
#include "../gather.h"
#include "common.h"

namespace ammnet_sparse {
namespace {

// The unit that a thread copies with one load and one store.
template <int kBytes>
using Unit = std::conditional_t<kBytes == 2, Vector<uint16_t, 1>, Vector<uint32_t, std::max(kBytes / 4, 1)>>;

// result [N, T * C]: row `table[n, t]` of features for each tap, zeros for -1.
//   grid          ceil(num_units / 256)
//   block         256 threads, one unit (16, 8, 4 or 2 bytes) of the result each
//   shared memory none
//   complexity    reads and writes each byte of the result once; neighboring threads read one row (coalesced)
//   determinism   yes: no sums
// `Index` is 32 bits wide if the number of units allows it: a 64-bit division would take longer than the copy.
template <int kBytes, typename Index>
__global__ void __launch_bounds__(kThreads) gather_taps_kernel(
    const Unit<kBytes>* __restrict__ features, int64_t num_rows, Index units_of_row, TapTable table, Index num_units,
    Unit<kBytes>* __restrict__ result, unsigned int* flags) {
  const int64_t wide_index = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (wide_index >= static_cast<int64_t>(num_units)) {
    return;
  }
  const Index index = static_cast<Index>(wide_index);
  const Index pair = index / units_of_row;
  const Index unit = index - pair * units_of_row;
  const Index num_taps = static_cast<Index>(table.num_taps);
  const Index target = pair / num_taps;
  const int64_t row = table.at(target, pair - target * num_taps);
  Unit<kBytes> value = {};
  if (row >= 0 && row < num_rows) {
    value = features[row * units_of_row + unit];
  } else if (row != -1) {
    report(flags, OutOfRange::kGatherTaps);
  }
  store_whole(result + wide_index, value);
}

// result [M, channels]: the sum over the taps of rows of `values`, times `scale`. A tap reads the element
// `row * row_stride + tap * tap_stride + channel`.
//   grid          ceil(M * channels / kSize / 256)
//   block         256 threads, one vector of kSize channels of one sum each
//   shared memory none
//   complexity    at most T rows read for each row written
//   determinism   yes: each sum is accumulated by one thread, in the order of the taps
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) sum_taps_kernel(
    const T* __restrict__ values, int64_t num_rows, int64_t row_stride, int64_t tap_stride, uint32_t channels,
    TapTable table, int64_t num_sums, Accumulate<T> scale, T* __restrict__ result, unsigned int* flags) {
  const uint32_t vectors_of_row = channels / kSize;
  const int64_t index = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t sum = index / vectors_of_row;
  if (sum >= num_sums) {
    return;
  }
  const uint32_t channel = static_cast<uint32_t>(index - sum * vectors_of_row) * kSize;
  const int num_taps = static_cast<int>(table.num_taps);
  Accumulate<T> sums[kSize] = {};
  for (int tap = 0; tap < num_taps; ++tap) {
    const int64_t row = table.at(sum, tap);
    if (row >= 0 && row < num_rows) {
      const auto read = load<kSize>(values + row * row_stride + tap * tap_stride + channel);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        sums[i] += static_cast<Accumulate<T>>(read.value[i]);
      }
    } else if (row != -1) {
      report(flags, OutOfRange::kGatherTaps);
    }
  }
  Vector<T, kSize> total;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    total.value[i] = static_cast<T>(sums[i] * scale);
  }
  store(result + sum * channels + channel, total);
}

template <int kBytes>
void launch_gather(
    const Launch& launch, const void* features, int64_t num_rows, int64_t row_size, const TapTable& table,
    int64_t num_targets, void* result) {
  const int64_t units_of_row = row_size / kBytes;
  const int64_t num_units = num_targets * table.num_taps * units_of_row;
  const auto* source = static_cast<const Unit<kBytes>*>(features);
  auto* target = static_cast<Unit<kBytes>*>(result);
  unsigned int* flags = out_of_range_flags(launch);
  if (num_units <= std::numeric_limits<int32_t>::max()) {
    launch(
        gather_taps_kernel<kBytes, uint32_t>, num_blocks(num_units), kThreads, source, num_rows,
        static_cast<uint32_t>(units_of_row), table, static_cast<uint32_t>(num_units), target, flags);
  } else {
    launch(
        gather_taps_kernel<kBytes, int64_t>, num_blocks(num_units), kThreads, source, num_rows, units_of_row, table,
        num_units, target, flags);
  }
}

Tensor gather_taps(const Tensor& features, const Tensor& table, std::optional<Tensor> /* inverse */) {
  const Launch launch(features);
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
  const int64_t element_size = features_.element_size();
  const int64_t row_size = channels * element_size;
  const void* source = features_.const_data_ptr();
  void* target = result.mutable_data_ptr();
  if (row_size % 16 == 0 && is_aligned(source) && is_aligned(target)) {
    launch_gather<16>(launch, source, num_rows, row_size, rows, num_targets, target);
  } else if (element_size == 8) {
    launch_gather<8>(launch, source, num_rows, row_size, rows, num_targets, target);
  } else if (element_size == 4) {
    launch_gather<4>(launch, source, num_rows, row_size, rows, num_targets, target);
  } else {
    launch_gather<2>(launch, source, num_rows, row_size, rows, num_targets, target);
  }
  return result;
}

// [M, channels]: sums over the taps of `table` of rows of `channels` elements.
Tensor sum_taps(
    const Tensor& values, const Tensor& table, int64_t channels, int64_t tap_stride, double scale, const char* name) {
  const Launch launch(values);
  const Tensor values_ = as_contiguous(values);
  const Tensor table_ = as_tap_table(table);
  const TapTable rows = tap_table_of(table_);
  const int64_t row_stride = values.size(1);
  const int64_t num_sums = table.size(0);
  Tensor result = torch::stable::new_empty(values_, {num_sums, channels});
  if (result.numel() == 0) {
    return result;
  }
  dispatch_features(values.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* source = static_cast<const T*>(values_.const_data_ptr());
    auto* target = static_cast<T*>(result.mutable_data_ptr());
    // If the rows of the result consist of whole vectors, so do the rows of each tap.
    dispatch_vector<T>(has_vector_rows<T>(channels, source, target), [&](auto vector) {
      const int64_t num_vectors = num_sums * (channels / vector());
      launch(
          sum_taps_kernel<T, vector()>, num_blocks(num_vectors), kThreads, source, values.size(0), row_stride,
          tap_stride, static_cast<uint32_t>(channels), rows, num_sums, static_cast<Accumulate<T>>(scale), target,
          out_of_range_flags(launch));
    });
  });
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

AMMNET_CUDA_KERNELS(library) {
  library.impl("gather_taps", TORCH_BOX(&gather_taps));
  library.impl("gather_taps_backward", TORCH_BOX(&gather_taps_backward));
  library.impl("sum_rows", TORCH_BOX(&sum_rows));
}

}  // namespace ammnet_sparse
