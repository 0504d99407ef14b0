// One-hot features of sites on CUDA. Memory traffic is dominated by the result: neighboring threads read the same
// label.
#include "../one_hot.h"
#include "common.h"

namespace ammnet_sparse {
namespace {

// result [N, num_classes].
//   grid          ceil(N * num_classes / kSize / 256)
//   block         256 threads; a thread writes 16 bytes, which may span several sites, and reads the label of each
//   shared memory none
//   complexity    one write per element
//   determinism   yes: no sums
template <typename T, typename Label>
__global__ void __launch_bounds__(kThreads) one_hot_kernel(
    const Label* __restrict__ labels, int64_t num_labels, const int64_t* __restrict__ linear, int64_t num_elements,
    int num_classes, T* __restrict__ result, unsigned int* flags) {
  constexpr int kSize = kVectorSize<T>;
  const int64_t first = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * kSize;
  if (first >= num_elements) {
    return;
  }
  int64_t site = first / num_classes;
  int column = static_cast<int>(first - site * num_classes);
  Column found = column_of_site(labels, num_labels, linear[site], num_classes);
  bool is_out_of_range = found.is_out_of_range;
  const int size = static_cast<int>(min(static_cast<int64_t>(kSize), num_elements - first));
  Vector<T, kSize> values;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if (column == num_classes && i < size) {
      column = 0;
      found = column_of_site(labels, num_labels, linear[++site], num_classes);
      is_out_of_range |= found.is_out_of_range;
    }
    values.value[i] = static_cast<T>(column == found.column ? 1.0f : 0.0f);
    ++column;
  }
  if (size == kSize) {
    store(result + first, values);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i < size) {
        result[first + i] = values.value[i];
      }
    }
  }
  if (is_out_of_range) {
    report(flags, OutOfRange::kOneHotSites);
  }
}

Tensor one_hot_sites(const Tensor& labels, const Tensor& linear, int64_t num_classes, ScalarType dtype) {
  const Launch launch(labels);
  const Tensor labels_ = as_contiguous(labels);
  const Tensor linear_ = as_contiguous(as_type(linear, ScalarType::Long));
  Tensor result = torch::stable::new_empty(labels, {linear_.numel(), num_classes}, dtype);
  const int64_t size = result.numel();
  if (size == 0) {
    return result;
  }
  dispatch_features(dtype, "one_hot_sites: dtype", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t num_vectors = (size + kVectorSize<T> - 1) / kVectorSize<T>;
    dispatch_integers(labels.scalar_type(), "one_hot_sites: labels", [&](auto label_tag) {
      using Label = typename decltype(label_tag)::type;
      launch(
          one_hot_kernel<T, Label>, num_blocks(num_vectors), kThreads,
          static_cast<const Label*>(labels_.const_data_ptr()), labels_.numel(),
          static_cast<const int64_t*>(linear_.const_data_ptr()), size, static_cast<int>(num_classes),
          static_cast<T*>(result.mutable_data_ptr()), out_of_range_flags(launch));
    });
  });
  return result;
}

}  // namespace

AMMNET_CUDA_KERNELS(library) {
  library.impl("one_hot_sites", TORCH_BOX(&one_hot_sites));
}

}  // namespace ammnet_sparse
