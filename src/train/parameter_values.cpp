#include "train/parameter_values.h"

#include <algorithm>

#include "core/check.h"
#include "core/quote.h"
#include "core/thread_pool.h"
#include "model/weights.h"

namespace mamba3 {

ParameterValues::ParameterValues(const ModelConfig& config) : specs_(tensor_specs(config)) {
  constexpr auto kLine = static_cast<std::int64_t>(kCacheLineBytes / sizeof(float));
  for (const TensorSpec& spec : specs_) {
    Place place{elements_, 1};
    for (const std::int64_t extent : spec.shape) place.count *= extent;
    elements_ += (place.count + kLine - 1) / kLine * kLine;
    by_name_.emplace(spec.name, places_.size());
    places_.push_back(place);
  }
  const std::size_t bytes = static_cast<std::size_t>(elements_) * sizeof(float);
  memory_ = allocate_memory(bytes, nullptr);
  if (!memory_) {
    fail(ErrorCode::kUnavailable, "no memory for ", bytes,
         " bytes of gradients or weights; choose a smaller model");
  }
  data_ = reinterpret_cast<float*>(memory_.get());
  std::fill_n(data_, elements_, 0.0f);
}

const ParameterValues::Place& ParameterValues::place_of(const std::string& name) const {
  const auto it = by_name_.find(name);
  check_input(it != by_name_.end(), "the model has no tensor ", name);
  return places_[it->second];
}

std::span<float> ParameterValues::values(const std::string& name) {
  const Place& place = place_of(name);
  return {data_ + place.begin, static_cast<std::size_t>(place.count)};
}

std::span<const float> ParameterValues::values(const std::string& name) const {
  const Place& place = place_of(name);
  return {data_ + place.begin, static_cast<std::size_t>(place.count)};
}

std::vector<std::span<const float>> ParameterValues::all() const {
  std::vector<std::span<const float>> out;
  for (const Place& place : places_) {
    out.emplace_back(data_ + place.begin, static_cast<std::size_t>(place.count));
  }
  return out;
}

std::map<std::string, TensorRef> ParameterValues::tensors() const {
  std::map<std::string, TensorRef> out;
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const auto* data = reinterpret_cast<const std::byte*>(data_ + places_[i].begin);
    out[specs_[i].name] = {data, DType::kF32, specs_[i].shape};
  }
  return out;
}

void ParameterValues::clear(Context& ctx) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 18;
  ctx.pool().run((elements_ + kPiece - 1) / kPiece, [this](std::int64_t piece, int) {
    const std::int64_t begin = piece * kPiece;
    std::fill(data_ + begin, data_ + std::min<std::int64_t>(elements_, begin + kPiece), 0.0f);
  });
}

void ParameterValues::assign(const std::map<std::string, TensorRef>& tensors,
                             const std::string& prefix) {
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const std::string name = prefix + specs_[i].name;
    const auto found = tensors.find(name);
    check_input(found != tensors.end(), "there is no tensor ", quote(name),
                "; expected all tensors of the model; check the files");
    const TensorRef& tensor = found->second;
    check_input(tensor.shape == specs_[i].shape, "tensor ", quote(name), " is ",
                shape_string(tensor.shape), "; expected ", shape_string(specs_[i].shape),
                "; check that weights and config.json belong together");
    std::ranges::copy(widen(tensor), data_ + places_[i].begin);
  }
}

}  // namespace mamba3
