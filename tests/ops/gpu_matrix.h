// Rows with gaps of NaN and their copy in a GPU's memory, in fp32 or rounded to bf16.
#pragma once

#include <vector>

#include "core/matrix.h"
#include "gpu_case.h"

namespace mamba3::testing {

inline float through_bf16(float value) {
  return to_float(to_bf16(value));
}

inline std::vector<float> through_bf16(std::vector<float> values) {
  for (float& value : values) value = through_bf16(value);
  return values;
}

inline std::vector<Bf16> as_bf16(const std::vector<float>& values) {
  std::vector<Bf16> out;
  for (const float value : values) out.push_back(to_bf16(value));
  return out;
}

class GpuMatrix {
 public:
  GpuMatrix(Context& ctx, PaddedRows& rows, DType dtype = DType::kF32)
      : rows_(rows),
        wide_(ctx, all(dtype == DType::kF32 ? rows.storage : std::vector<float>())),
        narrow_(ctx, all(as_bf16(dtype == DType::kBf16 ? rows.storage : std::vector<float>()))) {
    view.dtype = dtype;
    view.data = dtype == DType::kF32 ? static_cast<void*>(wide_.data()) : narrow_.data();
    view.shape = rows.view.shape;
    view.stride = rows.view.stride;
  }
  // Back to where they came from.
  void fetch() {
    if (view.dtype == DType::kF32) return wide_.copy_to(rows_.storage);
    std::vector<Bf16> out;
    narrow_.copy_to(out);
    for (std::size_t i = 0; i < out.size(); ++i) rows_.storage[i] = to_float(out[i]);
  }

 private:
  PaddedRows& rows_;
  GpuArray<float> wide_;
  GpuArray<Bf16> narrow_;

 public:
  Matrix view;
};

// Weights [n, k] in either precision.
class GpuWeights {
 public:
  GpuWeights(Context& ctx, const std::vector<float>& w, std::int64_t n, std::int64_t k, DType dtype)
      : narrow_(as_bf16(w)),
        memory_(ctx, dtype == DType::kBf16 ? std::as_bytes(std::span(narrow_))
                                           : std::as_bytes(std::span(w))),
        ref{memory_.data(), dtype, {n, k}} {}

 private:
  std::vector<Bf16> narrow_;
  GpuArray<std::byte> memory_;

 public:
  TensorRef ref;
};

}  // namespace mamba3::testing
