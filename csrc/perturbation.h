// Perturbed labels (equations 5 and 6): the new label of one voxel, given its random word.
//
//   labels       [B, V] integer: 0 empty, 255 ignored, otherwise a class
//   probability  erase [B], shuffle [B, K] float32
//   class_map    [B, K] integer: the class that replaces each class
#pragma once

#include "common.h"
#include "philox.h"

namespace ammnet_sparse {

constexpr int64_t kEmpty = 0;
constexpr int64_t kIgnored = 255;

// A Philox evaluation serves four voxels.
constexpr int kVoxelsOfGroup = 4;

template <typename Label>
AMMNET_HOST_DEVICE bool is_object(Label label) {
  if constexpr (sizeof(Label) == 1 && std::is_signed_v<Label>) {
    return label != 0;  // int8 cannot represent 255
  } else {
    // Branch-free, so that the compiler vectorizes it.
    return (label != static_cast<Label>(kEmpty)) & (label != static_cast<Label>(kIgnored));
  }
}

template <typename Label>
struct Erase {
  static constexpr Stream kStream = Stream::kEraseVoxels;

  const float* probability;

  // The operation for one sample of the batch.
  struct Sample {
    float probability;

    AMMNET_HOST_DEVICE Label operator()(Label label, uint32_t word) const {
      const bool is_erased = is_object(label) & (uniform(word) < probability);
      return is_erased ? static_cast<Label>(kEmpty) : label;
    }
    // Whether the voxel can change and so needs its random word.
    AMMNET_HOST_DEVICE bool needs_word(Label label) const { return is_object(label); }
  };

  AMMNET_HOST_DEVICE Sample of_sample(int64_t sample) const { return {probability[sample]}; }
};

// Class is the integer type of class_map: 32 bits on the CPU, for vectorization.
template <typename Label, typename Class>
struct Shuffle {
  static constexpr Stream kStream = Stream::kShuffleCategories;

  const float* probability;
  const Class* class_map;
  Class num_classes;
  Label last_class;  // largest label that is a class

  struct Sample {
    const float* probability;  // [K] of this sample
    const Class* class_map;  // [K] of this sample
    Class num_classes;
    Label last_class;

    AMMNET_HOST_DEVICE bool needs_word(Label label) const {
      using Unsigned = std::make_unsigned_t<Label>;  // makes negative labels large
      return is_object(label) & (static_cast<Unsigned>(label) <= static_cast<Unsigned>(last_class));
    }
    AMMNET_HOST_DEVICE bool is_class(Class label) const { return (label >= 0) & (label < num_classes); }

    // Row to look up; 0 for a label that is not a class, which avoids a branch.
    AMMNET_HOST_DEVICE Class row_of(Label label) const {
      return static_cast<Class>(needs_word(label)) * static_cast<Class>(label);
    }
    // The voxel is unchanged if its label or the target is not a class.
    AMMNET_HOST_DEVICE Label change(Label label, uint32_t word, float chance, Class target) const {
      const bool is_changed = needs_word(label) & (uniform(word) < chance) & is_class(target);
      return is_changed ? static_cast<Label>(target) : label;
    }
    AMMNET_HOST_DEVICE Label operator()(Label label, uint32_t word) const {
      const Class row = row_of(label);
      return change(label, word, probability[row], class_map[row]);
    }
  };

  AMMNET_HOST_DEVICE Sample of_sample(int64_t sample) const {
    return {probability + sample * num_classes, class_map + sample * num_classes, num_classes, last_class};
  }
};

inline void check_erase(const Tensor& labels, const Tensor& probability) {
  check_shape(probability, {labels.size(0)}, "erase_voxels: probability");
  STD_TORCH_CHECK(probability.scalar_type() == ScalarType::Float, "erase_voxels: probability: expected float32");
}

// Returns the number of classes.
inline int64_t check_shuffle(const Tensor& labels, const Tensor& class_map, const Tensor& probability) {
  const int64_t num_classes = class_map.size(1);
  check_shape(class_map, {labels.size(0), num_classes}, "shuffle_categories: class_map");
  check_shape(probability, {labels.size(0), num_classes}, "shuffle_categories: probability");
  STD_TORCH_CHECK(probability.scalar_type() == ScalarType::Float, "shuffle_categories: probability: expected float32");
  STD_TORCH_CHECK(
      num_classes >= 1 && num_classes <= std::numeric_limits<int32_t>::max(),
      "shuffle_categories: class_map: expected at least one class, found ", num_classes);
  return num_classes;
}

template <typename Label, typename Class>
Shuffle<Label, Class> make_shuffle(const Tensor& probability, const Tensor& class_map, int64_t num_classes) {
  const auto largest = static_cast<int64_t>(std::numeric_limits<Label>::max());
  return {
      static_cast<const float*>(probability.const_data_ptr()), static_cast<const Class*>(class_map.const_data_ptr()),
      static_cast<Class>(num_classes), static_cast<Label>(std::min(num_classes - 1, largest))};
}

}  // namespace ammnet_sparse
