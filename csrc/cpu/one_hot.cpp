// One-hot features of sites on the CPU.
#include "../one_hot.h"

namespace ammnet_sparse {
namespace {

// Throws if a site reads a label that is neither a class nor ignored.
void check_labels_of_sites(
    Integers labels, int64_t num_labels, Integers linear, int64_t num_sites, int64_t num_classes) {
  bool is_bad = false;
  int64_t smallest = num_classes;
  int64_t largest = 0;
  for (int64_t site = 0; site < num_sites; ++site) {
    const int64_t place = linear[site];
    int64_t label = place == -1 ? kEmpty : labels[place];
    label = label == kIgnored ? kEmpty : label;
    smallest = std::min(smallest, label);
    largest = std::max(largest, label);
    is_bad |= column_of_site(labels, num_labels, place, num_classes).is_out_of_range;
  }
  if (is_bad) {
    throw_out_of_range("one_hot_sites: labels but 255", 0, num_classes - 1, smallest, largest);
  }
}

Tensor one_hot_sites(const Tensor& labels, const Tensor& linear, int64_t num_classes, ScalarType dtype) {
  const Tensor labels_ = as_contiguous(labels);
  const Tensor linear_ = as_contiguous(linear);
  const int64_t num_labels = labels_.numel();
  const int64_t num_sites = linear_.numel();
  check_range(linear_, -1, num_labels - 1, "one_hot_sites: linear");
  const Integers label_values = integers_of(labels_, "one_hot_sites: labels");
  const Integers linear_values = integers_of(linear_, "one_hot_sites: linear");
  check_labels_of_sites(label_values, num_labels, linear_values, num_sites, num_classes);

  Tensor result = torch::stable::new_empty(labels, {num_sites, num_classes}, dtype);
  dispatch_features(dtype, "one_hot_sites: dtype", [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* rows = static_cast<T*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, num_sites, 4096, [&](int64_t begin, int64_t end) {
      std::fill(rows + begin * num_classes, rows + end * num_classes, static_cast<T>(0.0f));
      for (int64_t site = begin; site < end; ++site) {
        const int64_t column = column_of_site(label_values, num_labels, linear_values[site], num_classes).column;
        if (column != kNoColumn) {
          rows[site * num_classes + column] = static_cast<T>(1.0f);
        }
      }
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ammnet_sparse, CPU, library) {
  library.impl("one_hot_sites", TORCH_BOX(&one_hot_sites));
}

}  // namespace ammnet_sparse
