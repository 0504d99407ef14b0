// Cross-modal modulation (equation 2), element-wise: features * (1 + sigmoid(scale)) + bias.
#pragma once

#include "common.h"

#include <cmath>
#include <cstring>

namespace ammnet_sparse {

AMMNET_HOST_DEVICE uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

AMMNET_HOST_DEVICE float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// exp(x) within 2 ulp; infinity above 88.4, and never below 1e-38. It has no branch and no call, so that loops with it
// are vectorized, and it gives the same bits wherever the compiler contracts products and sums alike.
AMMNET_HOST_DEVICE float exponential(float x) {
  x = x < -87.3f ? -87.3f : x;  // keeps NaN
  x = x > 88.8f ? 88.8f : x;
  // Adding 1.5 * 2^23 rounds to the nearest integer, which ends up in the low bits of the sum.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float power = shifted - 12582912.0f;
  const float rest = x - power * 0.693359375f + power * 2.12194440e-4f;  // log 2 in two parts
  float sum = 1.9875691500e-4f;  // Cephes' polynomial for |rest| <= log(2) / 2
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  return sum * float_of((bits_of(shifted) << 23) + 0x3F800000u);  // times 2^power
}

AMMNET_HOST_DEVICE double exponential(double x) {
  return ::exp(x);
}

template <typename A>
AMMNET_HOST_DEVICE A sigmoid(A x) {
  return A(1) / (A(1) + exponential(-x));
}

template <typename T>
AMMNET_HOST_DEVICE T modulate_element(T features, T scale, T bias) {
  using A = Accumulate<T>;
  const A gate = A(1) + sigmoid(static_cast<A>(scale));
  return static_cast<T>(static_cast<A>(features) * gate + static_cast<A>(bias));
}

// The gradient of bias equals the gradient of the result.
template <typename T>
struct ModulationGradients {
  T features;
  T scale;
};

template <typename T>
AMMNET_HOST_DEVICE ModulationGradients<T> modulate_element_backward(T grad, T features, T scale) {
  using A = Accumulate<T>;
  const A wide = static_cast<A>(grad);
  const A gate = sigmoid(static_cast<A>(scale));
  const A slope = gate - gate * gate;
  return {static_cast<T>(wide + wide * gate), static_cast<T>(slope * wide * static_cast<A>(features))};
}

}  // namespace ammnet_sparse
