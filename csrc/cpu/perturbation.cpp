// Perturbed labels on the CPU. Blocks in which no voxel can change (most of a scene) are only copied; for the others,
// random words are generated and compared in vectorized loops.
#include "../perturbation.h"

#include <cstring>

namespace ammnet_sparse {
namespace {

constexpr int64_t kGroupsOfBlock = 8;
constexpr int64_t kVoxelsOfBlock = kGroupsOfBlock * kVoxelsOfGroup;
constexpr int64_t kBlocksOfTask = 256;

using BlockWords = uint32_t[kVoxelsOfBlock];

void make_words(int64_t first_group, int64_t sample, Stream stream, PhiloxKey key, BlockWords& words) {
  for (int64_t group = 0; group < kGroupsOfBlock; ++group) {
    const PhiloxWords made = words_of_voxels(first_group + group, sample, stream, key);
    AMMNET_UNROLL
    for (int lane = 0; lane < kVoxelsOfGroup; ++lane) {
      words[group * kVoxelsOfGroup + lane] = made.word[lane];
    }
  }
}

template <typename Label>
void apply(
    const typename Erase<Label>::Sample& erase, const Label* __restrict labels, const BlockWords& words, int64_t size,
    Label* __restrict result) {
  for (int64_t i = 0; i < size; ++i) {
    result[i] = erase(labels[i], words[i]);
  }
}

// Three loops, each of which vectorizes.
template <typename Label>
void apply(
    const typename Shuffle<Label, int32_t>::Sample& shuffle, const Label* __restrict labels, const BlockWords& words,
    int64_t size, Label* __restrict result) {
  int32_t rows[kVoxelsOfBlock];
  for (int64_t i = 0; i < size; ++i) {
    rows[i] = shuffle.row_of(labels[i]);
  }
  float chances[kVoxelsOfBlock];
  int32_t targets[kVoxelsOfBlock];
  for (int64_t i = 0; i < size; ++i) {
    chances[i] = shuffle.probability[rows[i]];
    targets[i] = shuffle.class_map[rows[i]];
  }
  for (int64_t i = 0; i < size; ++i) {
    result[i] = shuffle.change(labels[i], words[i], chances[i], targets[i]);
  }
}

// Perturbs the voxels first_voxel .. first_voxel + size - 1 of a sample, at most one block.
template <typename Label, typename Operator>
void perturb_block(
    const Label* __restrict labels, Label* __restrict result, int64_t first_voxel, int64_t size, int64_t sample,
    const typename Operator::Sample& change, PhiloxKey key) {
  auto needs_words = Label(0);  // not bool: vectorizes
  for (int64_t i = 0; i < size; ++i) {
    needs_words |= static_cast<Label>(change.needs_word(labels[i]));
  }
  if (needs_words == Label(0)) {
    std::memcpy(result, labels, static_cast<size_t>(size) * sizeof(Label));
    return;
  }
  BlockWords words;
  make_words(first_voxel / kVoxelsOfGroup, sample, Operator::kStream, key, words);
  apply<Label>(change, labels, words, size, result);
}

// labels and result [B, V], contiguous.
template <typename Label, typename Operator>
void perturb(const Tensor& labels, Tensor& result, const Operator& operation, int64_t seed) {
  const int64_t batch_size = labels.size(0);
  if (labels.numel() == 0) {
    return;
  }
  const int64_t num_voxels = labels.numel() / batch_size;
  const int64_t blocks_of_sample = (num_voxels + kVoxelsOfBlock - 1) / kVoxelsOfBlock;
  const auto* source = static_cast<const Label*>(labels.const_data_ptr());
  auto* target = static_cast<Label*>(result.mutable_data_ptr());
  const PhiloxKey key = key_of_seed(seed);
  torch::stable::parallel_for(0, batch_size * blocks_of_sample, kBlocksOfTask, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t sample = block / blocks_of_sample;
      const int64_t first = block % blocks_of_sample * kVoxelsOfBlock;
      const int64_t offset = sample * num_voxels + first;
      perturb_block<Label, Operator>(
          source + offset, target + offset, first, std::min(kVoxelsOfBlock, num_voxels - first), sample,
          operation.of_sample(sample), key);
    }
  });
}

Tensor erase_voxels(const Tensor& labels, const Tensor& probability, int64_t seed) {
  check_erase(labels, probability);
  const Tensor labels_ = as_contiguous(labels);
  const Tensor probability_ = as_contiguous(probability);
  Tensor result = torch::stable::empty_like(labels_);
  dispatch_integers(labels.scalar_type(), "erase_voxels: labels", [&](auto tag) {
    using Label = typename decltype(tag)::type;
    const Erase<Label> erase{static_cast<const float*>(probability_.const_data_ptr())};
    perturb<Label>(labels_, result, erase, seed);
  });
  return result;
}

// Throws if a label is neither a class nor ignored.
template <typename Label>
void check_classes(const Tensor& labels, int64_t num_classes, const typename Shuffle<Label, int32_t>::Sample& shuffle) {
  const auto* values = static_cast<const Label*>(labels.const_data_ptr());
  const int64_t size = labels.numel();
  auto is_bad = Label(0);  // not bool: vectorizes
  for (int64_t i = 0; i < size; ++i) {
    is_bad |= static_cast<Label>(is_object(values[i]) & !shuffle.needs_word(values[i]));
  }
  if (is_bad == Label(0)) {
    return;
  }
  int64_t smallest = 0;
  int64_t largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    if (is_object(values[i])) {
      smallest = std::min(smallest, static_cast<int64_t>(values[i]));
      largest = std::max(largest, static_cast<int64_t>(values[i]));
    }
  }
  throw_out_of_range("shuffle_categories: labels but 255", 0, num_classes - 1, smallest, largest);
}

Tensor shuffle_categories(const Tensor& labels, const Tensor& class_map, const Tensor& probability, int64_t seed) {
  const int64_t num_classes = check_shuffle(labels, class_map, probability);
  const Tensor labels_ = as_contiguous(labels);
  const Tensor probability_ = as_contiguous(probability);
  check_range(as_contiguous(class_map), 0, num_classes - 1, "shuffle_categories: class_map");
  // 32 bits, so that one gather instruction looks up eight voxels.
  const Tensor class_map_ = as_contiguous(as_type(class_map, ScalarType::Int));
  Tensor result = torch::stable::empty_like(labels_);
  dispatch_integers(labels.scalar_type(), "shuffle_categories: labels", [&](auto tag) {
    using Label = typename decltype(tag)::type;
    const auto shuffle = make_shuffle<Label, int32_t>(probability_, class_map_, num_classes);
    check_classes<Label>(labels_, num_classes, shuffle.of_sample(0));
    perturb<Label>(labels_, result, shuffle, seed);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CPU, library) {
  library.impl("erase_voxels", TORCH_BOX(&erase_voxels));
  library.impl("shuffle_categories", TORCH_BOX(&shuffle_categories));
}

}  // namespace ammnet_sparse
