#include "model/weights.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <string_view>
#include <unordered_map>

#include "core/check.h"
#include "core/hash.h"
#include "core/memory.h"
#include "core/quote.h"
#include "core/thread_pool.h"

namespace mamba3 {
namespace {

constexpr char kTiedHead[] = "lm_head.weight";

// Where a named tensor goes: exactly one of the two.
struct Place {
  TensorRef* matrix = nullptr;
  Values* values = nullptr;
};

Place mixer_place(Mamba3MixerWeights& w, std::string_view name) {
  const std::unordered_map<std::string_view, Place> places = {
      {"in_proj.weight", {&w.in_proj, nullptr}},
      {"out_proj.weight", {&w.out_proj, nullptr}},
      {"dt_bias", {nullptr, &w.dt_bias}},
      {"B_bias", {nullptr, &w.in_b_bias}},
      {"C_bias", {nullptr, &w.out_c_bias}},
      {"B_norm.weight", {nullptr, &w.in_b_norm}},
      {"C_norm.weight", {nullptr, &w.out_c_norm}},
      {"D", {nullptr, &w.skip}},
      {"mimo_x", {nullptr, &w.mimo_x}},
      {"mimo_z", {nullptr, &w.mimo_z}},
      {"mimo_o", {nullptr, &w.mimo_o}},
      {"norm.weight", {nullptr, &w.out_norm}},
  };
  const auto it = places.find(name);
  return it == places.end() ? Place{} : it->second;
}

bool take_prefix(std::string_view& name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return false;
  name.remove_prefix(prefix.size());
  return true;
}

Place block_place(BlockWeights& block, std::string_view name) {
  if (name == "norm.weight") return {nullptr, &block.norm};
  if (take_prefix(name, "mixer."))
    return mixer_place(std::get<Mamba3MixerWeights>(block.mixer), name);
  auto* mlp = std::get_if<SwigluMlpWeights>(&block.mlp);
  if (mlp == nullptr) return {};
  if (name == "norm2.weight") return {nullptr, &mlp->norm};
  if (name == "mlp.fc1.weight") return {&mlp->fc1, nullptr};
  if (name == "mlp.fc2.weight") return {&mlp->fc2, nullptr};
  return {};
}

Place find_place(ModelWeights& w, std::string_view name) {
  if (name == "backbone.embedding.weight") return {&w.embedding, nullptr};
  if (name == kTiedHead) return {&w.lm_head, nullptr};
  if (name == "backbone.norm_f.weight") return {nullptr, &w.final_norm};
  if (!take_prefix(name, "backbone.layers.")) return {};
  const std::size_t dot = name.find('.');
  const std::size_t layer = std::stoul(std::string(name.substr(0, dot)));
  return block_place(w.blocks[layer], name.substr(dot + 1));
}

float half_to_float(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa != 0 ? std::nanf("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}

template <class T>
T element(const TensorRef& tensor, std::int64_t i) {
  T value;
  std::memcpy(&value, tensor.data + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

}  // namespace

std::vector<float> widen(const TensorRef& tensor) {
  std::vector<float> out(static_cast<std::size_t>(tensor.elements()));
  if (tensor.dtype == DType::kF32) {
    if (!out.empty()) std::memcpy(out.data(), tensor.data, out.size() * sizeof(float));
    return out;
  }
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    switch (tensor.dtype) {
      case DType::kBf16:
        out[i] = to_float(element<Bf16>(tensor, i));
        break;
      case DType::kF16:
        out[i] = half_to_float(element<std::uint16_t>(tensor, i));
        break;
      default:
        out[i] = static_cast<float>(element<double>(tensor, i));
    }
  }
  return out;
}

namespace {

bool is_real(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kF16 ||
         dtype == DType::kF64;
}

// What is wrong with the tensors of a file, one line each; empty when they fit.
std::vector<std::string> complaints(const ModelConfig& config,
                                    const std::map<std::string, TensorRef>& tensors) {
  std::vector<std::string> out;
  std::map<std::string, const TensorSpec*> wanted;
  const std::vector<TensorSpec> specs = tensor_specs(config);
  for (const TensorSpec& spec : specs) {
    wanted[spec.name] = &spec;
    const auto it = tensors.find(spec.name);
    if (it == tensors.end()) {
      out.push_back(str("missing ", spec.name, " ", shape_string(spec.shape)));
    } else if (it->second.shape != spec.shape) {
      out.push_back(str(spec.name, " is ", shape_string(it->second.shape), ", expected ",
                        shape_string(spec.shape)));
    } else if (!is_real(it->second.dtype)) {
      out.push_back(str(spec.name, " has type ", dtype_name(it->second.dtype)));
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (wanted.contains(name) || (config.tied_embeddings && name == kTiedHead)) continue;
    out.push_back(str("unexpected ", quote(name), " ", shape_string(tensor.shape)));
  }
  return out;
}

}  // namespace

void check_tensors(const ModelConfig& config, const std::map<std::string, TensorRef>& tensors) {
  constexpr std::size_t kMostLines = 12;
  const std::vector<std::string> lines = complaints(config, tensors);
  if (lines.empty()) return;
  std::string text;
  for (std::size_t i = 0; i < std::min(lines.size(), kMostLines); ++i) {
    text += (i > 0 ? ", " : "") + lines[i];
  }
  if (lines.size() > kMostLines) text += str(", and ", lines.size() - kMostLines, " more");
  fail(ErrorCode::kBadInput, "the weights do not fit config.json: ", text,
       "; expected exactly the tensors that the config describes; check that both files belong "
       "together");
}

namespace {

template <class Bits>
bool any_non_finite(const std::byte* data, std::int64_t count, Bits exponent_mask) {
  // No early exit: without a branch the loop is a few vector instructions.
  Bits found = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * static_cast<std::int64_t>(sizeof(Bits)), sizeof(Bits));
    found |= static_cast<Bits>((bits & exponent_mask) == exponent_mask);
  }
  return found != 0;
}

bool any_non_finite(const TensorRef& tensor, std::int64_t begin, std::int64_t end) {
  const std::byte* data = tensor.data + begin * dtype_bytes(tensor.dtype);
  switch (tensor.dtype) {
    case DType::kBf16:
      return any_non_finite<std::uint16_t>(data, end - begin, 0x7f80);
    case DType::kF16:
      return any_non_finite<std::uint16_t>(data, end - begin, 0x7c00);
    case DType::kF32:
      return any_non_finite<std::uint32_t>(data, end - begin, 0x7f800000u);
    case DType::kF64:
      return any_non_finite<std::uint64_t>(data, end - begin, 0x7ff0000000000000u);
    default:
      return false;
  }
}

}  // namespace

namespace {

// Puts tensors where a Context's ops find them.
class Placer {
 public:
  Placer(ModelWeights& weights, std::shared_ptr<Gpu> gpu)
      : weights_(weights), gpu_(std::move(gpu)) {}

  Values values(const TensorRef& tensor) {
    std::vector<float> wide = widen(tensor);
    const std::size_t count = wide.size();
    return {reinterpret_cast<const float*>(own(std::move(wide))), count};
  }

  TensorRef matrix(const TensorRef& tensor) {
    if (tensor.dtype != DType::kBf16 && tensor.dtype != DType::kF32) {
      return {own(widen(tensor)), DType::kF32, tensor.shape};
    }
    if (!gpu_) return tensor;
    return {upload(tensor.data, static_cast<std::size_t>(tensor.bytes())), tensor.dtype,
            tensor.shape};
  }

 private:
  const std::byte* own(std::vector<float> wide) {
    if (gpu_) return upload(wide.data(), wide.size() * sizeof(float));
    auto kept = std::make_shared<std::vector<float>>(std::move(wide));
    weights_.owners.push_back(kept);
    return reinterpret_cast<const std::byte*>(kept->data());
  }

  const std::byte* upload(const void* from, std::size_t bytes) {
    std::shared_ptr<std::byte[]> kept = allocate_memory(std::max<std::size_t>(bytes, 1), gpu_);
    if (!kept) {
      fail(ErrorCode::kUnavailable, "the weights do not fit into the memory of ", gpu_->info().name,
           ": ", bytes, " bytes more were needed; use a smaller model");
    }
    gpu_->copy_in(kept.get(), from, bytes);
    weights_.owners.push_back(kept);
    return kept.get();
  }

  ModelWeights& weights_;
  std::shared_ptr<Gpu> gpu_;
};

// Every tensor to its place: `values` and `matrix` give what stands there.
template <class ValuesOf, class MatrixOf>
void bind_all(const ModelConfig& config, const std::map<std::string, TensorRef>& tensors,
              ModelWeights& weights, const ValuesOf& values, const MatrixOf& matrix) {
  check_tensors(config, tensors);
  weights.blocks.resize(static_cast<std::size_t>(config.layers));
  for (BlockWeights& block : weights.blocks) {
    if (config.mlp_hidden > 0) block.mlp = SwigluMlpWeights{};
  }
  for (const TensorSpec& spec : tensor_specs(config)) {
    const TensorRef& tensor = tensors.at(spec.name);
    const Place place = find_place(weights, spec.name);
    if (place.values != nullptr) {
      *place.values = values(tensor);
    } else {
      *place.matrix = matrix(tensor);
    }
  }
  if (config.tied_embeddings) weights.lm_head = weights.embedding;
}

}  // namespace

ModelWeights bind_weights(const ModelConfig& config,
                          const std::map<std::string, TensorRef>& tensors,
                          std::shared_ptr<const void> owner, const Context& ctx) {
  ModelWeights weights;
  if (!ctx.gpu()) weights.owners.push_back(std::move(owner));
  Placer placer(weights, ctx.gpu());
  bind_all(
      config, tensors, weights, [&](const TensorRef& tensor) { return placer.values(tensor); },
      [&](const TensorRef& tensor) { return placer.matrix(tensor); });
  if (ctx.gpu()) ctx.gpu()->synchronize();  // the tensors may go now
  return weights;
}

ModelWeights view_weights(const ModelConfig& config,
                          const std::map<std::string, TensorRef>& tensors) {
  ModelWeights weights;
  bind_all(
      config, tensors, weights,
      [](const TensorRef& tensor) {
        check_input(tensor.dtype == DType::kF32, "a small tensor is ", dtype_name(tensor.dtype),
                    "; expected F32");
        return Values(reinterpret_cast<const float*>(tensor.data),
                      static_cast<std::size_t>(tensor.elements()));
      },
      [](const TensorRef& tensor) { return tensor; });
  return weights;
}

std::vector<std::string> find_non_finite(const ModelConfig& config,
                                         const std::map<std::string, TensorRef>& tensors,
                                         Context& ctx) {
  constexpr std::int64_t kPieceElements = std::int64_t{1} << 20;
  struct Piece {
    std::size_t spec;
    std::int64_t begin;
  };
  const std::vector<TensorSpec> specs = tensor_specs(config);
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const std::int64_t count = tensors.at(specs[i].name).elements();
    for (std::int64_t begin = 0; begin < count; begin += kPieceElements)
      pieces.push_back({i, begin});
  }
  std::vector<std::atomic<bool>> bad(specs.size());
  ctx.pool().run(static_cast<std::int64_t>(pieces.size()), [&](std::int64_t task, int) {
    const Piece& piece = pieces[task];
    const TensorRef& tensor = tensors.at(specs[piece.spec].name);
    const std::int64_t end = std::min(piece.begin + kPieceElements, tensor.elements());
    if (any_non_finite(tensor, piece.begin, end)) bad[piece.spec] = true;
  });
  std::vector<std::string> names;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (bad[i]) names.push_back(specs[i].name);
  }
  return names;
}

std::uint64_t model_fingerprint(const ModelConfig& config,
                                const std::map<std::string, TensorRef>& tensors) {
  constexpr std::int64_t kSampleBytes = 512;
  constexpr std::int64_t kSamples = 16;
  Hash64 hash;
  hash.update(static_cast<std::uint64_t>(config.vocab));
  hash.update(static_cast<std::uint64_t>(config.mixer.groups));
  hash.update(static_cast<std::uint64_t>(config.mixer.mimo));
  hash.update(std::bit_cast<std::uint64_t>(config.mixer.rope_fraction));
  hash.update(std::bit_cast<std::uint64_t>(config.mixer.a_floor));
  // Checkpoints from before there was a choice keep their fingerprint.
  if (config.mixer.rope != Rope::kDataDependent) {
    hash.update(static_cast<std::uint64_t>(config.mixer.rope));
  }
  hash.update(static_cast<std::uint64_t>(config.mixer.a_activation));
  for (const TensorSpec& spec : tensor_specs(config)) {
    const TensorRef& tensor = tensors.at(spec.name);
    hash.update(std::as_bytes(std::span(spec.name)));
    hash.update(static_cast<std::uint64_t>(tensor.dtype));
    for (const std::int64_t extent : tensor.shape) hash.update(static_cast<std::uint64_t>(extent));
    const std::int64_t bytes = tensor.bytes();
    const std::int64_t step = std::max(kSampleBytes, bytes / kSamples);
    for (std::int64_t at = 0; at < bytes; at += step) {
      hash.update(std::span(tensor.data + at,
                            static_cast<std::size_t>(std::min(kSampleBytes, bytes - at))));
    }
  }
  return hash.value();
}

}  // namespace mamba3
