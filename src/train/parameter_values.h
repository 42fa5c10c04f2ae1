// One fp32 number for each parameter of a model: its master weights, gradients or moments.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/memory.h"
#include "mamba3/config.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// Tensors in one piece of memory, in the order of tensor_specs(); each begins on a cache line. A
// tied head has no place of its own: it is the embedding.
class ParameterValues {
 public:
  explicit ParameterValues(const ModelConfig& config);  // zeros

  // An unknown name is refused.
  std::span<float> values(const std::string& name);
  std::span<const float> values(const std::string& name) const;
  float* at(const std::string& name) { return values(name).data(); }
  const float* at(const std::string& name) const { return values(name).data(); }
  // All of them, in order, as global_norm takes them.
  std::vector<std::span<const float>> all() const;
  // As bind_weights and the writers of checkpoints take them: views of this memory.
  std::map<std::string, TensorRef> tensors() const;
  void clear(Context& ctx);
  // Takes over the tensors of these names, widened from whatever type they have; `prefix` stands
  // before each name. One that is missing or misshapen is refused; others may be there.
  void assign(const std::map<std::string, TensorRef>& tensors, const std::string& prefix = "");

 private:
  struct Place {
    std::int64_t begin = 0;
    std::int64_t count = 0;
  };
  const Place& place_of(const std::string& name) const;

  std::vector<TensorSpec> specs_;
  std::vector<Place> places_;                   // of each spec
  std::map<std::string, std::size_t> by_name_;  // index of the spec
  Memory memory_;
  float* data_ = nullptr;
  std::int64_t elements_ = 0;
};

}  // namespace mamba3
