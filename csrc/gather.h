// Rows of features concatenated in the order in which the taps of a convolution read them.
//
// Gather: features [M, C], table [N, T] int32 or int64 (rows of features, -1 for none) -> [N, T * C], zeros for none.
// Backward: grad [N, T * C], inverse [M, T] (rows of grad, -1 for none) -> [M, C], sums over the taps.
// Sums of rows: features [N, C], table [M, T] (rows of features, -1 for none) -> [M, C], scaled sums over T.
// The rows of a table need not be contiguous: `stride` is the distance between them.
#pragma once

#include "common.h"

namespace ammnet_sparse {

// A table [rows, taps] of integers whose rows have unit stride.
struct TapTable {
  const void* data;
  int64_t stride;
  int64_t num_taps;
  bool is_long;

  AMMNET_HOST_DEVICE int64_t at(int64_t row, int64_t tap) const {
    const int64_t index = row * stride + tap;
    return is_long ? static_cast<const int64_t*>(data)[index] : static_cast<const int32_t*>(data)[index];
  }
};

// Converts a table for `tap_table_of`: int32 or int64, rows with unit stride.
inline Tensor as_tap_table(const Tensor& table) {
  const bool is_wide = table.scalar_type() == ScalarType::Int || table.scalar_type() == ScalarType::Long;
  const Tensor typed = is_wide ? table : torch::stable::to(table, ScalarType::Int);
  return typed.size(1) > 1 && typed.stride(1) != 1 ? torch::stable::contiguous(typed) : typed;
}

// View of a tensor from `as_tap_table`, which must outlive the result.
inline TapTable tap_table_of(const Tensor& table) {
  return {table.const_data_ptr(), table.stride(0), table.size(1), table.scalar_type() == ScalarType::Long};
}

}  // namespace ammnet_sparse
