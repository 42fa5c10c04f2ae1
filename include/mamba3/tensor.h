// Element types and tensor views. Views own nothing; extents and strides are 64-bit and counted in
// elements.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace mamba3 {

enum class DType : std::uint8_t { kF64, kF32, kF16, kBf16, kI64, kI32, kI16, kI8, kU8, kBool };

std::int64_t dtype_bytes(DType dtype);
const char* dtype_name(DType dtype);  // "F32", "BF16", ...: the safetensors names

// A bfloat16 number: the upper half of a float.
struct Bf16 {
  std::uint16_t bits;
};

inline float to_float(Bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}
inline float to_float(float value) {
  return value;
}

// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
inline Bf16 to_bf16(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

template <class T>
constexpr DType dtype_of() {
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<U, double>) return DType::kF64;
  if constexpr (std::is_same_v<U, float>) return DType::kF32;
  if constexpr (std::is_same_v<U, Bf16>) return DType::kBf16;
  if constexpr (std::is_same_v<U, std::int64_t>) return DType::kI64;
  if constexpr (std::is_same_v<U, std::int32_t>) return DType::kI32;
  if constexpr (std::is_same_v<U, std::uint8_t>) return DType::kU8;
  static_assert(std::is_same_v<U, double> || std::is_same_v<U, float> || std::is_same_v<U, Bf16> ||
                    std::is_same_v<U, std::int64_t> || std::is_same_v<U, std::int32_t> ||
                    std::is_same_v<U, std::uint8_t>,
                "no DType has such numbers");
}

// A typed view of `Rank` dimensions. `view(i, j)` is an element, `view.row(i)` the view one rank
// lower.
template <class T, int Rank>
struct TensorView {
  T* data = nullptr;
  std::array<std::int64_t, Rank> shape{};
  std::array<std::int64_t, Rank> stride{};

  TensorView() = default;
  // Contiguous, row-major.
  TensorView(T* data_in, const std::array<std::int64_t, Rank>& shape_in)
      : data(data_in), shape(shape_in) {
    std::int64_t step = 1;
    for (int i = Rank - 1; i >= 0; --i) {
      stride[i] = step;
      step *= shape[i];
    }
  }
  TensorView(T* data_in, const std::array<std::int64_t, Rank>& shape_in,
             const std::array<std::int64_t, Rank>& stride_in)
      : data(data_in), shape(shape_in), stride(stride_in) {}
  // A view of mutable elements is also a view of const ones.
  template <class U>
  requires(std::is_same_v<const U, T> && !std::is_const_v<U>)
      TensorView(const TensorView<U, Rank>& other)  // NOLINT(google-explicit-constructor)
      : data(other.data), shape(other.shape), stride(other.stride) {}

  template <class... Index>
  requires(sizeof...(Index) == Rank) T& operator()(Index... index) const {
    const std::array<std::int64_t, Rank> at{static_cast<std::int64_t>(index)...};
    std::int64_t offset = 0;
    for (int i = 0; i < Rank; ++i) offset += at[i] * stride[i];
    return data[offset];
  }

  TensorView<T, Rank - 1> row(std::int64_t index) const requires(Rank > 1) {
    TensorView<T, Rank - 1> out;
    out.data = data + index * stride[0];
    for (int i = 1; i < Rank; ++i) {
      out.shape[i - 1] = shape[i];
      out.stride[i - 1] = stride[i];
    }
    return out;
  }

  // Rows [begin, end) of the first dimension.
  TensorView slice(std::int64_t begin, std::int64_t end) const {
    TensorView out = *this;
    out.data = data + begin * stride[0];
    out.shape[0] = end - begin;
    return out;
  }

  std::int64_t elements() const {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    return count;
  }
  bool contiguous() const {
    std::int64_t step = 1;
    for (int i = Rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && stride[i] != step) return false;
      step *= shape[i];
    }
    return true;
  }
};

// A contiguous, row-major tensor whose type is known only at run time: what checkpoints hold.
struct TensorRef {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;

  std::int64_t elements() const {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    return count;
  }
  std::int64_t bytes() const { return elements() * dtype_bytes(dtype); }
};

std::string shape_string(const std::vector<std::int64_t>& shape);  // "[2, 3]"
template <std::size_t Rank>
std::string shape_string(const std::array<std::int64_t, Rank>& shape) {
  return shape_string(std::vector<std::int64_t>(shape.begin(), shape.end()));
}

}  // namespace mamba3
