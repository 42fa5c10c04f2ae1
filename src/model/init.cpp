#include "model/init.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <string_view>

#include "core/check.h"
#include "core/memory.h"
#include "core/thread_pool.h"
#include "ops/sampling/philox.h"

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

constexpr std::int64_t kAtOnce = 4;  // elements from one set of random words

// (0, 1)
double uniform(std::uint32_t word) {
  return (static_cast<double>(word) + 0.5) * 0x1p-32;
}

// Box-Muller, in fp32: two numbers from two words.
void normal_pair(double deviation, std::uint32_t a, std::uint32_t b, float* out) {
  const auto scale = static_cast<float>(deviation);
  const float radius = scale * std::sqrt(-2.0f * std::log(static_cast<float>(uniform(a))));
  const float angle = static_cast<float>(2.0 * std::numbers::pi * uniform(b));
  out[0] = radius * std::cos(angle);
  out[1] = radius * std::sin(angle);
}

// Elements [kAtOnce * index, kAtOnce * (index + 1)) of the tensor that `stream` numbers.
void draw_values(const Draw& draw, const ModelConfig& config, std::uint64_t seed,
                 std::uint64_t stream, std::int64_t index, float (&out)[kAtOnce]) {
  if (draw.kind == Kind::kOnes || draw.kind == Kind::kOneOverRank) {
    const double rank = draw.kind == Kind::kOnes ? 1.0 : static_cast<double>(config.mixer.rank);
    std::fill_n(out, kAtOnce, static_cast<float>(1.0 / rank));
    return;
  }
  const auto words = random_words(seed, stream, static_cast<std::uint64_t>(index));
  if (draw.kind == Kind::kNormal) {
    normal_pair(draw.scale, words[0], words[1], out);
    normal_pair(draw.scale, words[2], words[3], out + 2);
    return;
  }
  for (std::size_t i = 0; i < words.size(); ++i) {
    const double u = uniform(words[i]);
    out[i] =
        static_cast<float>(draw.kind == Kind::kDtBias ? dt_bias(u) : draw.scale * (2.0 * u - 1.0));
  }
}

bool always_f32(std::string_view name) {
  return name.ends_with(".dt_bias") || name.ends_with(".D") || name.ends_with("_bias") ||
         name.ends_with(".mimo_x") || name.ends_with(".mimo_z") || name.ends_with(".mimo_o");
}

// Elements [begin, end) of a tensor at `data`; begin is a multiple of kAtOnce.
void fill(const Draw& draw, const ModelConfig& config, std::uint64_t seed, std::uint64_t stream,
          std::int64_t begin, std::int64_t end, DType dtype, std::byte* data) {
  float values[kAtOnce];
  for (std::int64_t at = begin; at < end; at += kAtOnce) {
    draw_values(draw, config, seed, stream, at / kAtOnce, values);
    const auto count = static_cast<std::size_t>(std::min(kAtOnce, end - at));
    if (dtype == DType::kF32) {
      std::memcpy(data + at * 4, values, count * 4);
      continue;
    }
    Bf16 narrow[kAtOnce];
    for (std::int64_t i = 0; i < kAtOnce; ++i) narrow[i] = to_bf16(values[i]);
    std::memcpy(data + at * 2, narrow, count * 2);
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
      fill(draw, config, seed, i, piece * kPieceElements, end, ref.dtype, data);
    });
  }
  return out;
}

}  // namespace mamba3
