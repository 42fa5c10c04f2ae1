// What passes between ops: a matrix of fp32 or bf16 numbers whose type is known only at run time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/check.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// [rows, columns], unit inner stride, rows `stride[0]` elements apart. Owns nothing.
template <bool kConst>
struct BasicMatrix {
  template <class T>
  using Qualified = std::conditional_t<kConst, const T, T>;

  Qualified<void>* data = nullptr;
  DType dtype = DType::kF32;
  std::array<std::int64_t, 2> shape{};
  std::array<std::int64_t, 2> stride{};

  BasicMatrix() = default;
  template <class T>
  requires(std::is_same_v<std::remove_const_t<T>, float> ||
           std::is_same_v<std::remove_const_t<T>, Bf16>)
      BasicMatrix(const TensorView<T, 2>& view)  // NOLINT(google-explicit-constructor)
      : data(view.data), dtype(dtype_of<T>()), shape(view.shape), stride(view.stride) {}
  template <bool kOther>
  requires(kConst && !kOther)
      BasicMatrix(const BasicMatrix<kOther>& other)  // NOLINT(google-explicit-constructor)
      : data(other.data), dtype(other.dtype), shape(other.shape), stride(other.stride) {}

  // Rows [begin, end).
  BasicMatrix slice(std::int64_t begin, std::int64_t end) const {
    BasicMatrix out = *this;
    using Byte = Qualified<std::byte>;
    out.data = static_cast<Byte*>(data) + begin * stride[0] * dtype_bytes(dtype);
    out.shape[0] = end - begin;
    return out;
  }
  bool is_bf16() const { return dtype == DType::kBf16; }
  std::int64_t elements() const { return shape[0] * shape[1]; }

  // The numbers where they are fp32; a path that reads no other type refuses them here.
  Qualified<float>* floats() const {
    if (dtype != DType::kF32) {
      fail(ErrorCode::kUnavailable, "a matrix of ", dtype_name(dtype),
           " was given to an op that takes F32 here; only a GPU keeps activations in BF16");
    }
    return static_cast<Qualified<float>*>(data);
  }
  Qualified<float>* row(std::int64_t index) const { return floats() + index * stride[0]; }
};

using Matrix = BasicMatrix<false>;
using ConstMatrix = BasicMatrix<true>;

// Weights [n, k], bf16 or fp32, contiguous.
inline ConstMatrix matrix_of(const TensorRef& w) {
  ConstMatrix out;
  out.data = w.data;
  out.dtype = w.dtype;
  out.shape = {w.shape[0], w.shape[1]};
  out.stride = {w.shape[1], 1};
  return out;
}

// Whether rows so many bytes apart all begin on 16 bytes, for what copies such pieces.
inline bool begins_on_pieces(const void* rows, std::int64_t stride_bytes) {
  constexpr std::int64_t kPiece = 16;  // bytes
  return (reinterpret_cast<std::uintptr_t>(rows) | static_cast<std::uintptr_t>(stride_bytes)) %
             kPiece ==
         0;
}

}  // namespace mamba3
