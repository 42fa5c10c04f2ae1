#include "train/parameter_values.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/quote.h"
#include "core/transfer.h"
#include "model/weights.h"

namespace mamba3 {
namespace {

ParameterGroup group_of(const TensorSpec& spec) {
  if (spec.large) return ParameterGroup::kMatrices;
  return decays(spec.name) ? ParameterGroup::kOtherDecaying : ParameterGroup::kPlain;
}

std::int64_t elements_of(const TensorSpec& spec) {
  std::int64_t count = 1;
  for (const std::int64_t extent : spec.shape) count *= extent;
  return count;
}

// Up to where the next tensor begins.
std::int64_t room_for(std::int64_t count) {
  constexpr auto kLine = static_cast<std::int64_t>(kCacheLineBytes / sizeof(float));
  return (count + kLine - 1) / kLine * kLine;
}

}  // namespace

bool decays(const std::string& name) {
  constexpr const char* kNot[] = {".dt_bias",    ".D",           "_bias",
                                  "norm.weight", "norm2.weight", "norm_f.weight"};
  return std::none_of(std::begin(kNot), std::end(kNot),
                      [&](const char* end) { return name.ends_with(end); });
}

std::int64_t parameter_elements(const ModelConfig& config, ParameterGroup group) {
  std::int64_t elements = 0;
  for (const TensorSpec& spec : tensor_specs(config)) {
    if (group_of(spec) == group) elements += room_for(elements_of(spec));
  }
  return elements;
}

std::int64_t parameter_elements(const ModelConfig& config) {
  std::int64_t elements = 0;
  for (const ParameterGroup group : kParameterGroups) elements += parameter_elements(config, group);
  return elements;
}

ParameterValues::ParameterValues(const ModelConfig& config, std::shared_ptr<Gpu> gpu)
    : ParameterValues(tensor_specs(config), std::move(gpu)) {}

ParameterValues::ParameterValues(std::vector<TensorSpec> specs, std::shared_ptr<Gpu> gpu)
    : gpu_(std::move(gpu)), specs_(std::move(specs)), places_(specs_.size()) {
  for (const ParameterGroup group : kParameterGroups) {
    Place& whole = groups_[static_cast<std::size_t>(group)];
    whole.begin = elements_;
    for (std::size_t i = 0; i < specs_.size(); ++i) {
      if (group_of(specs_[i]) != group) continue;
      places_[i] = {elements_, elements_of(specs_[i])};
      elements_ += room_for(places_[i].count);
      by_name_.emplace(specs_[i].name, i);
    }
    whole.count = elements_ - whole.begin;
  }
  const std::size_t bytes = static_cast<std::size_t>(elements_) * sizeof(float);
  memory_ = allocate_memory(bytes, gpu_);
  if (!memory_) {
    fail(ErrorCode::kUnavailable, "no memory for ", bytes,
         " bytes of weights, gradients or moments", gpu_ ? " on the GPU" : "",
         "; choose a smaller model");
  }
  data_ = reinterpret_cast<float*>(memory_.get());
  set_zero(gpu_.get(), data_, bytes);
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

std::span<float> ParameterValues::group(ParameterGroup group) {
  const Place& place = groups_[static_cast<std::size_t>(group)];
  return {data_ + place.begin, static_cast<std::size_t>(place.count)};
}

std::span<const float> ParameterValues::group(ParameterGroup group) const {
  const Place& place = groups_[static_cast<std::size_t>(group)];
  return {data_ + place.begin, static_cast<std::size_t>(place.count)};
}

std::map<std::string, TensorRef> ParameterValues::tensors() const {
  std::map<std::string, TensorRef> out;
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const auto* data = reinterpret_cast<const std::byte*>(data_ + places_[i].begin);
    out[specs_[i].name] = {data, DType::kF32, specs_[i].shape};
  }
  return out;
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
    const std::vector<float> wide = widen(tensor);
    copy_from_host(gpu_.get(), data_ + places_[i].begin, wide.data(), wide.size() * sizeof(float));
  }
}

ParameterValues ParameterValues::host_copy() const {
  ParameterValues copy(specs_, nullptr);
  copy_to_host(gpu_.get(), copy.data_, data_, all().size_bytes());
  return copy;
}

}  // namespace mamba3
