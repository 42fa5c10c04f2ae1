// The few tensors that cannot be used where they lie in a file.
#pragma once

#include <cstdint>
#include <vector>

#include "io/tensor_file.h"

namespace mamba3 {

// A tensor as a file describes it: elements at `data`, strides counted in elements, all checked to
// lie inside the file.
struct StridedTensor {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> stride;
};

// Points into the file where alignment and strides allow, else copies into `out.copies`.
// `copied_bytes` counts the copies; they may not exceed `most_bytes`, so that a small file cannot
// ask for much memory by strides of zero.
TensorRef place_tensor(const StridedTensor& tensor, const std::string& name, TensorFile& out,
                       std::int64_t& copied_bytes, std::int64_t most_bytes);

std::vector<std::int64_t> contiguous_strides(const std::vector<std::int64_t>& shape);
// Number of elements, or -1 when an extent is negative or their product (those of zero left out)
// does not fit in 63 bits.
std::int64_t checked_elements(const std::vector<std::int64_t>& shape);

}  // namespace mamba3
