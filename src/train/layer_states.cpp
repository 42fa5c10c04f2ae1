#include "train/layer_states.h"

#include "core/memory.h"

namespace mamba3 {
namespace {

std::int64_t whole_lines(std::int64_t elements) {
  constexpr auto kLine = static_cast<std::int64_t>(kCacheLineBytes / sizeof(float));
  return (elements + kLine - 1) / kLine * kLine;
}

}  // namespace

std::int64_t StatePart::elements() const {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

std::vector<StatePart> LayerStates::parts(const Mamba3Dims& dims) {
  std::vector<StatePart> parts = {
      {"ssm", DType::kF32, 0, {dims.heads, dims.state, dims.head_dim}},
      {"k", DType::kF32, 0, {dims.rank, dims.heads, dims.state}},
      {"v", DType::kF32, 0, {dims.heads, dims.head_dim}},
      {"turns", DType::kI32, 0, {dims.heads, dims.angles}},
  };
  for (std::size_t i = 1; i < parts.size(); ++i) {
    parts[i].begin = parts[i - 1].begin + whole_lines(parts[i - 1].elements());
  }
  return parts;
}

std::int64_t LayerStates::row_elements(const Mamba3Dims& dims) {
  const StatePart last = parts(dims).back();
  return last.begin + whole_lines(last.elements());
}

LayerStates::LayerStates(const Mamba3Dims& dims, std::int64_t slots, float* data)
    : data_(data), slots_(slots), row_(row_elements(dims)) {
  const std::vector<StatePart> all = parts(dims);
  k_ = all[1].begin;
  v_ = all[2].begin;
  turns_ = all[3].begin;
}

Mamba3States LayerStates::states() const {
  Mamba3States out;
  out.ssm = data_;
  out.k = data_ + k_;
  out.v = data_ + v_;
  out.turns = reinterpret_cast<std::uint32_t*>(data_ + turns_);
  out.slots = slots_;
  out.turns_stride = out.ssm_stride = out.k_stride = out.v_stride = row_;
  return out;
}

Mamba3StateGradients LayerStates::gradients() const {
  Mamba3StateGradients out;
  out.ssm = data_;
  out.k = data_ + k_;
  out.v = data_ + v_;
  out.angle = data_ + turns_;
  out.slots = slots_;
  out.angle_stride = out.ssm_stride = out.k_stride = out.v_stride = row_;
  return out;
}

}  // namespace mamba3
