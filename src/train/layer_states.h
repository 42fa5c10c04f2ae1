// States of one layer for some sequences, or gradients of such: a row of numbers for each, which is
// copied as one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mamba3/tensor.h"
#include "ops/mamba3_common/mamba3_args.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

namespace mamba3 {

// A part of a row.
struct StatePart {
  const char* name;                 // "ssm"
  DType dtype;                      // of 4 bytes
  std::int64_t begin;               // in elements, a multiple of those in a cache line
  std::vector<std::int64_t> shape;  // of a sequence, as Mamba3States has it
  std::int64_t elements() const;
};

class LayerStates {
 public:
  // ssm, k, v, turns.
  static std::vector<StatePart> parts(const Mamba3Dims& dims);
  // Of a row, with what fills its last cache line.
  static std::int64_t row_elements(const Mamba3Dims& dims);

  LayerStates() = default;
  // In `data`, slots * row_elements().
  LayerStates(const Mamba3Dims& dims, std::int64_t slots, float* data);

  Mamba3States states() const;
  Mamba3StateGradients gradients() const;
  TensorView<float, 2> rows() const { return {data_, {slots_, row_}}; }
  std::span<float> numbers() const { return {data_, static_cast<std::size_t>(slots_ * row_)}; }

 private:
  float* data_ = nullptr;
  std::int64_t slots_ = 0, row_ = 0;
  std::int64_t k_ = 0, v_ = 0, turns_ = 0;  // where these begin in a row; ssm is the first
};

}  // namespace mamba3
