// What the two directions of the projection share on CUDA.
#pragma once

#include "../projection.h"
#include "common.h"

namespace ammnet_sparse {

// Contiguous tensors of integers for each site, checked to be as long as each other.
struct Sites {
  Tensor pixel;
  Tensor batch;

  Sites(const Tensor& pixel_of_site, const Tensor& batch_of_site)
      : pixel(as_contiguous(pixel_of_site)), batch(as_contiguous(batch_of_site)) {
    check_shape(batch, {pixel.numel()}, "project_features: batch_of_site");
  }
  int64_t size() const { return pixel.numel(); }
  Integers pixels() const { return integers_of(pixel, "project_features: pixel_of_site"); }
  Integers samples() const { return integers_of(batch, "project_features: batch_of_site"); }
};

}  // namespace ammnet_sparse
