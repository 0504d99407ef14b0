// One-hot features of sites, directly from labels.
//
//   labels  [B, V] integer: a class in 0 .. num_classes - 1, or 255 (ignored)
//   linear  [N] integer: b * V + v, or -1 for a site without a label
//   result  [N, num_classes]
#pragma once

#include "common.h"
#include "perturbation.h"

namespace ammnet_sparse {

constexpr int64_t kNoColumn = -1;

struct Column {
  int64_t column;  // of the 1; kNoColumn for a row of zeros
  bool is_out_of_range;  // site index or label
};

// Labels is Integers, or a pointer to integers of a static type.
template <typename Labels>
AMMNET_HOST_DEVICE Column column_of_site(Labels labels, int64_t num_labels, int64_t linear, int64_t num_classes) {
  if (linear < 0 || linear >= num_labels) {
    return {kNoColumn, linear != -1};
  }
  const auto label = static_cast<int64_t>(labels[linear]);
  if (label >= 0 && label < num_classes) {
    return {label, false};
  }
  return {kNoColumn, label != kIgnored};
}

}  // namespace ammnet_sparse
