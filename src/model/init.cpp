#include "model/init.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <string_view>

#include "core/check.h"
#include "core/memory.h"
#include "core/thread_pool.h"
#include "mamba3/sampling.h"

namespace mamba3 {
namespace {

constexpr double kEmbeddingDeviation = 0.02;
constexpr double kDtMin = 1e-3, kDtMax = 1e-1, kDtFloor = 1e-4;
constexpr std::int64_t kPieceElements = std::int64_t{1} << 16;
constexpr auto kAlignBytes = static_cast<std::int64_t>(kCacheLineBytes);

enum class Kind { kOnes, kNormal, kUniform, kDtBias, kOneOverRank };

// How one tensor is drawn; `scale` is the bound of kUniform.
struct Draw {
  Kind kind;
  double scale;
};

Draw draw_of(const TensorSpec& spec, const ModelConfig& config) {
  const std::string_view name = spec.name;
  if (name == "backbone.embedding.weight") return {Kind::kNormal, kEmbeddingDeviation};
  if (name.ends_with(".dt_bias")) return {Kind::kDtBias, 0};
  if (name.ends_with(".mimo_x") || name.ends_with(".mimo_o")) return {Kind::kOneOverRank, 0};
  if (!spec.large) return {Kind::kOnes, 0};  // norms, biases, D, mimo_z
  double bound = 1.0 / std::sqrt(static_cast<double>(spec.shape[1]));
  if (name.ends_with(".out_proj.weight") || name.ends_with(".fc2.weight")) {
    bound /= std::sqrt(static_cast<double>(config.layers));
  }
  return {Kind::kUniform, bound};
}

// Softplus of the result is log-uniform in [kDtMin, kDtMax].
double dt_bias(double uniform) {
  const double log_dt = std::log(kDtMin) + uniform * (std::log(kDtMax) - std::log(kDtMin));
  const double dt = std::max(std::exp(log_dt), kDtFloor);
  return dt + std::log(-std::expm1(-dt));
}

double value_at(const Draw& draw, const ModelConfig& config, std::uint64_t seed,
                std::uint64_t stream, std::int64_t index) {
  const auto at = static_cast<std::uint64_t>(index);
  switch (draw.kind) {
    case Kind::kOnes:
      return 1.0;
    case Kind::kOneOverRank:
      return 1.0 / static_cast<double>(config.mixer.rank);
    case Kind::kDtBias:
      return dt_bias(uniform_draw(seed, stream, at));
    case Kind::kUniform:
      return draw.scale * (2.0 * uniform_draw(seed, stream, at) - 1.0);
    case Kind::kNormal:
      break;
  }
  // Box-Muller; 1 - u is in (0, 1].
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform_draw(seed, stream, 2 * at)));
  return draw.scale * radius *
         std::cos(2.0 * std::numbers::pi * uniform_draw(seed, stream, 2 * at + 1));
}

bool always_f32(std::string_view name) {
  return name.ends_with(".dt_bias") || name.ends_with(".D") || name.ends_with("_bias") ||
         name.ends_with(".mimo_x") || name.ends_with(".mimo_z") || name.ends_with(".mimo_o");
}

void store(std::byte* data, DType dtype, std::int64_t index, double value) {
  const auto rounded = static_cast<float>(value);
  if (dtype == DType::kBf16) {
    const Bf16 narrow = to_bf16(rounded);
    std::memcpy(data + index * 2, &narrow, 2);
  } else {
    std::memcpy(data + index * 4, &rounded, 4);
  }
}

}  // namespace

InitialTensors init_tensors(const ModelConfig& config, DType dtype, std::uint64_t seed,
                            Context& ctx) {
  check_input(dtype == DType::kBf16 || dtype == DType::kF32, "weights of type ", dtype_name(dtype),
              " cannot be initialised; expected BF16 or F32");
  const std::vector<TensorSpec> specs = tensor_specs(config);
  InitialTensors out;
  std::int64_t total_bytes = 0;
  std::vector<std::int64_t> offsets;
  for (const TensorSpec& spec : specs) {
    TensorRef ref{nullptr, always_f32(spec.name) ? DType::kF32 : dtype, spec.shape};
    offsets.push_back(total_bytes);
    total_bytes += (ref.bytes() + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
    out.tensors.emplace(spec.name, std::move(ref));
  }
  std::shared_ptr<std::byte[]> memory = allocate_memory(static_cast<std::size_t>(total_bytes));
  if (!memory) {
    fail(ErrorCode::kUnavailable, "no memory for ", total_bytes,
         " bytes of weights; choose a smaller preset");
  }
  out.memory = memory;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const Draw draw = draw_of(specs[i], config);
    TensorRef& ref = out.tensors.at(specs[i].name);
    std::byte* data = memory.get() + offsets[i];
    ref.data = data;
    const std::int64_t count = ref.elements();
    ctx.pool().run((count + kPieceElements - 1) / kPieceElements, [&](std::int64_t piece, int) {
      const std::int64_t end = std::min(count, (piece + 1) * kPieceElements);
      for (std::int64_t j = piece * kPieceElements; j < end; ++j) {
        store(data, ref.dtype, j, value_at(draw, config, seed, i, j));
      }
    });
  }
  return out;
}

}  // namespace mamba3
