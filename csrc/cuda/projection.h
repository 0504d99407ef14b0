// Shared by the forward and backward projection on CUDA.
#pragma once

#include "../projection.h"
#include "common.h"

namespace ammnet_sparse {

// Pixel and sample indices of the sites, contiguous and of equal length (checked).
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
