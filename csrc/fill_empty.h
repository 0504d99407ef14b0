// Fills channels that are exactly zero with the mean of their 3x3x3 neighborhood.
//
//   features   [N, C]
//   neighbors  [N, 27] integer: rows of the neighboring sites, column 13 is the site itself; -1 for none
//   result     [N, C]
//
// Neighbors are summed in the order of the columns; the mean includes zeros and absent sites.
#pragma once

#include "common.h"

namespace ammnet_sparse {

constexpr int kNumNeighbors = 27;

AMMNET_HOST_DEVICE bool is_row(int64_t row, int64_t num_sites) {
  return row >= 0 && row < num_sites;
}

template <typename T>
AMMNET_HOST_DEVICE bool is_empty(T value) {
  return static_cast<Accumulate<T>>(value) == Accumulate<T>(0);  // includes -0
}

template <typename T>
AMMNET_HOST_DEVICE T fill_element(T value, Accumulate<T> sum_of_neighbors) {
  return is_empty(value) ? static_cast<T>(sum_of_neighbors / Accumulate<T>(kNumNeighbors)) : value;
}

// Gradient that a neighbor passes back: only channels that were filled do. Neighborhood is symmetric, so the sites that
// read a site are its own neighbors.
template <typename T>
AMMNET_HOST_DEVICE Accumulate<T> gradient_of_filled(T grad, T value) {
  return is_empty(value) ? static_cast<Accumulate<T>>(grad) : Accumulate<T>(0);
}

template <typename T>
AMMNET_HOST_DEVICE T fill_element_backward(T grad, Accumulate<T> sum_of_filled) {
  return static_cast<T>(static_cast<Accumulate<T>>(grad) + sum_of_filled / Accumulate<T>(kNumNeighbors));
}

}  // namespace ammnet_sparse
