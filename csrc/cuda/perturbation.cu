// Perturbed labels on CUDA. A thread handles 16 bytes of voxels, at least the four voxels of one Philox evaluation, and
// evaluates Philox only for groups of four in which some voxel can change.
#include "../perturbation.h"
#include "common.h"

namespace ammnet_sparse {
namespace {

template <typename Label>
constexpr int kVoxelsOfThread = kVectorSize<Label> > kVoxelsOfGroup ? kVectorSize<Label> : kVoxelsOfGroup;

// Whether a label is not a class. Erasing accepts any label, because it looks nothing up.
template <typename Label>
__device__ __forceinline__ bool is_out_of_range(const typename Erase<Label>::Sample&, Label) {
  return false;
}
template <typename Label>
__device__ __forceinline__ bool is_out_of_range(const typename Shuffle<Label, int64_t>::Sample& change, Label label) {
  return is_object(label) && !change.needs_word(label);
}

// Whether the class map maps a class to something that is not a class. Block-collective.
template <typename Label>
__device__ __forceinline__ bool is_map_out_of_range(const typename Erase<Label>::Sample&) {
  return false;
}
template <typename Label>
__device__ __forceinline__ bool is_map_out_of_range(const typename Shuffle<Label, int64_t>::Sample& change) {
  bool is_bad = false;
#pragma unroll 1
  for (int64_t label = threadIdx.x; label < change.num_classes; label += kThreads) {
    is_bad |= !change.is_class(change.class_map[label]);
  }
  return is_bad;
}

// labels and result [B, V].
//   grid          (ceil(V / kVoxelsOfThread / 256), min(B, 65535)): blockIdx.y strides over the samples
//   block         256 threads, kVoxelsOfThread voxels each
//   shared memory none
//   complexity    one read and one write per voxel, at most one Philox evaluation per four voxels
//   determinism   yes: random words depend on (seed, voxel, sample) only, not on the launch
template <typename Label, typename Operator, bool kIsAligned>
__global__ void __launch_bounds__(kThreads) perturb_kernel(
    const Label* __restrict__ labels, Label* __restrict__ result, Operator operation, int64_t batch_size,
    int64_t num_voxels, PhiloxKey key, unsigned int* flags) {
  constexpr int kVoxels = kVoxelsOfThread<Label>;
  constexpr int kSize = kVectorSize<Label>;
  const int64_t first = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * kVoxels;
  if (first >= num_voxels && blockIdx.x != 0) {
    return;
  }
  // Aligned rows consist of whole vectors, but the tail of a row leaves the last threads fewer vectors, or none.
  const int size = static_cast<int>(min(static_cast<int64_t>(kVoxels), num_voxels - first));
  for (int64_t sample = blockIdx.y; sample < batch_size; sample += gridDim.y) {
    const int64_t offset = sample * num_voxels + first;
    const typename Operator::Sample change = operation.of_sample(sample);
    Label values[kVoxels] = {};
#pragma unroll
    for (int i = 0; i < kVoxels; i += kIsAligned ? kSize : 1) {
      if constexpr (kIsAligned) {
        if (i < size) {
          const auto vector = load<kSize>(labels + offset + i);
#pragma unroll
          for (int j = 0; j < kSize; ++j) {
            values[i + j] = vector.value[j];
          }
        }
      } else {
        values[i] = i < size ? labels[offset + i] : Label(0);
      }
    }
    bool is_bad = blockIdx.x == 0 && is_map_out_of_range<Label>(change);
#pragma unroll
    for (int group = 0; group < kVoxels; group += kVoxelsOfGroup) {
      if (group >= size) {
        continue;
      }
      bool needs_words = false;
#pragma unroll
      for (int i = 0; i < kVoxelsOfGroup; ++i) {
        needs_words |= change.needs_word(values[group + i]);
        is_bad |= group + i < size && is_out_of_range<Label>(change, values[group + i]);
      }
      if (needs_words) {
        const PhiloxWords words = words_of_voxels((first + group) / kVoxelsOfGroup, sample, Operator::kStream, key);
#pragma unroll
        for (int i = 0; i < kVoxelsOfGroup; ++i) {
          values[group + i] = change(values[group + i], words.word[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kVoxels; i += kIsAligned ? kSize : 1) {
      if (i < size) {
        if constexpr (kIsAligned) {
          Vector<Label, kSize> vector;
#pragma unroll
          for (int j = 0; j < kSize; ++j) {
            vector.value[j] = values[i + j];
          }
          store(result + offset + i, vector);
        } else {
          result[offset + i] = values[i];
        }
      }
    }
    if (is_bad) {
      report(flags, OutOfRange::kShuffleCategories);
    }
  }
}

template <typename Label, typename Operator>
void perturb(const Launch& launch, const Tensor& labels, Tensor& result, const Operator& operation, int64_t seed) {
  const int64_t batch_size = labels.size(0);
  if (labels.numel() == 0) {
    return;
  }
  const int64_t num_voxels = labels.numel() / batch_size;
  const auto* source = static_cast<const Label*>(labels.const_data_ptr());
  auto* target = static_cast<Label*>(result.mutable_data_ptr());
  const int64_t threads = (num_voxels + kVoxelsOfThread<Label> - 1) / kVoxelsOfThread<Label>;
  const dim3 blocks(num_blocks(threads), static_cast<unsigned int>(std::min<int64_t>(batch_size, 65535)));
  const auto run = [&](auto is_vectors) {
    launch(
        perturb_kernel<Label, Operator, is_vectors()>, blocks, kThreads, source, target, operation, batch_size,
        num_voxels, key_of_seed(seed), out_of_range_flags(launch));
  };
  if (has_vector_rows<Label>(num_voxels, source, target)) {
    run(std::true_type{});
  } else {
    run(std::false_type{});
  }
}

Tensor erase_voxels(const Tensor& labels, const Tensor& probability, int64_t seed) {
  check_erase(labels, probability);
  const Launch launch(labels);
  const Tensor labels_ = as_contiguous(labels);
  const Tensor probability_ = as_contiguous(probability);
  Tensor result = torch::stable::empty_like(labels_);
  dispatch_integers(labels.scalar_type(), "erase_voxels: labels", [&](auto tag) {
    using Label = typename decltype(tag)::type;
    perturb<Label>(
        launch, labels_, result, Erase<Label>{static_cast<const float*>(probability_.const_data_ptr())}, seed);
  });
  return result;
}

Tensor shuffle_categories(const Tensor& labels, const Tensor& class_map, const Tensor& probability, int64_t seed) {
  const int64_t num_classes = check_shuffle(labels, class_map, probability);
  const Launch launch(labels);
  const Tensor labels_ = as_contiguous(labels);
  const Tensor class_map_ = as_contiguous(as_type(class_map, ScalarType::Long));
  const Tensor probability_ = as_contiguous(probability);
  Tensor result = torch::stable::empty_like(labels_);
  dispatch_integers(labels.scalar_type(), "shuffle_categories: labels", [&](auto tag) {
    using Label = typename decltype(tag)::type;
    const auto shuffle = make_shuffle<Label, int64_t>(probability_, class_map_, num_classes);
    perturb<Label>(launch, labels_, result, shuffle, seed);
  });
  return result;
}

}  // namespace

AMMNET_CUDA_KERNELS(library) {
  library.impl("erase_voxels", TORCH_BOX(&erase_voxels));
  library.impl("shuffle_categories", TORCH_BOX(&shuffle_categories));
}

}  // namespace ammnet_sparse
