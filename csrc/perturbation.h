// Perturbed labels (equations 5 and 6): what becomes of one voxel, given its random word.
//
//   labels       [B, V] integer: 0 empty, 255 ignored, else a class
//   probability  erase [B], shuffle [B, K] float32
//   class_map    [B, K] int64: the class that each class becomes
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
    return label != 0;  // 255 does not exist
  } else {
    // Without a branch, for the sake of vector code.
    return (label != static_cast<Label>(kEmpty)) & (label != static_cast<Label>(kIgnored));
  }
}

template <typename Label>
struct Erase {
  static constexpr Stream kStream = Stream::kEraseVoxels;

  const float* probability;

  // Of one sample.
  struct Sample {
    float probability;

    AMMNET_HOST_DEVICE Label operator()(Label label, uint32_t word) const {
      const bool is_erased = is_object(label) & (uniform(word) < probability);
      return is_erased ? static_cast<Label>(kEmpty) : label;
    }
    // Whether the voxel may change and so needs its random word.
    AMMNET_HOST_DEVICE bool needs_word(Label label) const { return is_object(label); }
  };

  AMMNET_HOST_DEVICE Sample of_sample(int64_t sample) const { return {probability[sample]}; }
};

template <typename Label>
struct Shuffle {
  static constexpr Stream kStream = Stream::kShuffleCategories;

  const float* probability;
  const int64_t* class_map;
  int64_t num_classes;

  struct Sample {
    const float* probability;  // of the sample's classes
    const int64_t* class_map;  // likewise
    int64_t num_classes;

    AMMNET_HOST_DEVICE bool needs_word(Label label) const {
      return is_object(label) & is_class(static_cast<int64_t>(label), num_classes);
    }
    // A label or a target that is no class leaves the voxel as it is. Without branches, which would be taken at random:
    // row 0 is read in place of what is no row, and a mask picks the result.
    AMMNET_HOST_DEVICE Label operator()(Label label, uint32_t word) const {
      const bool has_class = needs_word(label);
      const int64_t row = static_cast<int64_t>(label) & -static_cast<int64_t>(has_class);
      const int64_t target = class_map[row];
      const bool is_changed = has_class & (uniform(word) < probability[row]) & is_class(target, num_classes);
      const int64_t wide = static_cast<int64_t>(label);
      return static_cast<Label>(wide ^ ((wide ^ target) & -static_cast<int64_t>(is_changed)));
    }
  };

  AMMNET_HOST_DEVICE Sample of_sample(int64_t sample) const {
    return {probability + sample * num_classes, class_map + sample * num_classes, num_classes};
  }
  AMMNET_HOST_DEVICE static bool is_class(int64_t label, int64_t num_classes) {
    return (label >= 0) & (label < num_classes);
  }
};

}  // namespace ammnet_sparse
