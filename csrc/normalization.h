// Batch normalization of site features with residuals and ReLU: the arithmetic of one element.
//
// features [G * n, C]: group g has the rows g * n .. (g + 1) * n - 1 and its own statistics, mean and biased variance
// [G, C]. weight and bias [C] are shared by the groups. Residuals, sum and activated have the shape of features:
//
//     sum       = (features - mean) / sqrt(variance + eps) * weight + bias [+ residual1 [+ residual2]]
//     activated = max(sum, 0)
//
// Features may be float16 or bfloat16; statistics and parameters have the accumulation type.
#pragma once

#include "common.h"

#include <cmath>

namespace ammnet_sparse {

AMMNET_HOST_DEVICE float multiply_add(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
AMMNET_HOST_DEVICE double multiply_add(double a, double b, double c) {
  return ::fma(a, b, c);
}
AMMNET_HOST_DEVICE float square_root(float value) {
  return ::sqrtf(value);
}
AMMNET_HOST_DEVICE double square_root(double value) {
  return ::sqrt(value);
}

// Mean of `count` values and the sum of their squared deviations from it.
template <typename A>
struct Moments {
  A count;
  A mean;
  A squares;
};

// Adds one value (Welford); `inverse_count` is 1 / count, the new value included. Plain sums of squares would cancel if
// the mean is large compared with the deviation.
template <typename A>
AMMNET_HOST_DEVICE void add_value(A value, A inverse_count, A& mean, A& squares) {
  const A delta = value - mean;
  mean = multiply_add(delta, inverse_count, mean);
  squares = multiply_add(delta, value - mean, squares);
}

// Moments of the union of two sets of values (Chan et al.). Either may be empty.
template <typename A>
AMMNET_HOST_DEVICE Moments<A> merge_moments(const Moments<A>& first, const Moments<A>& second) {
  const A count = first.count + second.count;
  const A share = count > A(0) ? second.count / count : A(0);
  const A delta = second.mean - first.mean;
  return {
      count, multiply_add(delta, share, first.mean),
      first.squares + multiply_add(delta * delta * first.count, share, second.squares)};
}

// Updated running statistic: running + momentum * (value - running).
template <typename A>
AMMNET_HOST_DEVICE A track(A running, A value, A momentum) {
  return multiply_add(momentum, value - running, running);
}

template <typename A>
AMMNET_HOST_DEVICE A inverse_std_of(A variance, A eps) {
  return A(1) / square_root(variance + eps);
}

// scale is weight * inverse_std. Subtracting the mean first is exact if the mean is large.
template <typename A>
AMMNET_HOST_DEVICE A normalize_and_scale(A value, A mean, A scale, A bias) {
  return multiply_add(value - mean, scale, bias);
}

// NaN is propagated, as in torch.
template <typename A>
AMMNET_HOST_DEVICE A relu(A value) {
  return value < A(0) ? A(0) : value;
}

// The gradient of `value` from that of its ReLU.
template <typename A>
AMMNET_HOST_DEVICE A relu_backward(A value, A grad) {
  return value <= A(0) ? A(0) : grad;
}

// Gradient of a feature. `normalized` is (features - mean) * inverse_std; mean_grad and mean_product are the means of
// grad and of grad * normalized over the group's rows, both zero if the statistics are constants.
template <typename A>
AMMNET_HOST_DEVICE A normalize_backward(A grad, A normalized, A scale, A mean_grad, A mean_product) {
  return scale * (grad - multiply_add(normalized, mean_product, mean_grad));
}

}  // namespace ammnet_sparse
