// One fp32 number for each parameter of a model: its master weights, gradients or moments.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/memory.h"
#include "mamba3/config.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// Whether weight decay is for a tensor of this name: matrices, the embedding, mimo_x, mimo_z and
// mimo_o; not dt_bias, D, biases and norms.
bool decays(const std::string& name);

// Parameters that an optimizer treats alike: the large matrices, what else decays, the rest.
enum class ParameterGroup : std::uint8_t { kMatrices, kOtherDecaying, kPlain };
constexpr std::array kParameterGroups{ParameterGroup::kMatrices, ParameterGroup::kOtherDecaying,
                                      ParameterGroup::kPlain};

// Tensors in one piece of the memory of a device, group by group, inside each in the order of
// tensor_specs(); each begins on a cache line, and what lies between them stays zero. A tied head
// has no place of its own: it is the embedding. Spans and pointers are of that memory: on a GPU the
// host does not read them.
class ParameterValues {
 public:
  // Zeros, on a GPU unless it is null.
  explicit ParameterValues(const ModelConfig& config, std::shared_ptr<Gpu> gpu = nullptr);

  // An unknown name is refused.
  std::span<float> values(const std::string& name);
  std::span<const float> values(const std::string& name) const;
  float* at(const std::string& name) { return values(name).data(); }
  const float* at(const std::string& name) const { return values(name).data(); }
  std::span<float> group(ParameterGroup group);
  std::span<const float> group(ParameterGroup group) const;
  std::span<const float> all() const { return {data_, static_cast<std::size_t>(elements_)}; }
  // Views of this memory.
  std::map<std::string, TensorRef> tensors() const;
  // Takes over the tensors of these names, which lie in the host's memory, widened from whatever
  // type they have; `prefix` stands before each name. One that is missing or misshapen is refused;
  // others may be there.
  void assign(const std::map<std::string, TensorRef>& tensors, const std::string& prefix = "");

  bool on_gpu() const { return gpu_ != nullptr; }
  ParameterValues host_copy() const;

 private:
  struct Place {
    std::int64_t begin = 0;
    std::int64_t count = 0;
  };
  ParameterValues(std::vector<TensorSpec> specs, std::shared_ptr<Gpu> gpu);
  const Place& place_of(const std::string& name) const;

  std::shared_ptr<Gpu> gpu_;
  std::vector<TensorSpec> specs_;
  std::vector<Place> places_;  // of each spec
  std::array<Place, kParameterGroups.size()> groups_;
  std::map<std::string, std::size_t> by_name_;  // index of the spec
  Memory memory_;
  float* data_ = nullptr;
  std::int64_t elements_ = 0;
};

// Elements of a ParameterValues, those between the tensors too; of one group.
std::int64_t parameter_elements(const ModelConfig& config);
std::int64_t parameter_elements(const ModelConfig& config, ParameterGroup group);

}  // namespace mamba3
