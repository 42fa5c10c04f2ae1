#include "train/lane_states.h"

#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/quote.h"
#include "core/transfer.h"
#include "model/mixer.h"

namespace mamba3 {
namespace {

std::string tensor_name(std::int64_t layer, const StatePart& part) {
  return str("layers.", layer, ".", part.name);
}

std::vector<std::int64_t> tensor_shape(std::int64_t lanes, const StatePart& part) {
  std::vector<std::int64_t> shape = part.shape;
  shape.insert(shape.begin(), lanes);
  return shape;
}

}  // namespace

LaneStates::LaneStates(const ModelConfig& config, std::int64_t lanes, std::shared_ptr<Gpu> gpu)
    : dims_(mixer_dims(config)), layers_(config.layers), lanes_(lanes), gpu_(std::move(gpu)) {
  const std::size_t size = bytes(config, lanes);
  memory_ = allocate_memory(size, gpu_);
  if (!memory_) {
    fail(ErrorCode::kUnavailable, "no memory for ", size, " bytes of the states of ", lanes,
         " lanes", gpu_ ? " on the GPU" : "", "; choose a smaller batch");
  }
  set_zero(gpu_.get(), memory_.get(), size);
}

std::size_t LaneStates::bytes(const ModelConfig& config, std::int64_t lanes) {
  return static_cast<std::size_t>(2 * config.layers * (lanes + 1) *
                                  LayerStates::row_elements(mixer_dims(config))) *
         sizeof(float);
}

TensorView<float, 2> LaneStates::rows(int which, std::int64_t layer) const {
  const std::int64_t row = LayerStates::row_elements(dims_);
  auto* numbers = reinterpret_cast<float*>(memory_.get());
  return {numbers + (which * layers_ + layer) * (lanes_ + 1) * row, {lanes_ + 1, row}};
}

LaneStates::HostCopy LaneStates::host_copy() const {
  const std::vector<StatePart> parts = LayerStates::parts(dims_);
  std::int64_t elements = 0;
  for (const StatePart& part : parts) elements += part.elements();
  HostCopy out;
  out.numbers.resize(static_cast<std::size_t>(layers_ * lanes_ * elements));
  float* to = out.numbers.data();
  std::vector<float> layer(static_cast<std::size_t>(before(0).slice(0, lanes_).elements()));
  for (std::int64_t l = 0; l < layers_; ++l) {
    copy_to_host(gpu_.get(), layer.data(), before(l).data, layer.size() * sizeof(float));
    for (const StatePart& part : parts) {
      out.tensors.push_back(
          {tensor_name(l, part),
           {reinterpret_cast<const std::byte*>(to), part.dtype, tensor_shape(lanes_, part)}});
      for (std::int64_t i = 0; i < lanes_; ++i, to += part.elements()) {
        const float* from = layer.data() + i * before(l).stride[0] + part.begin;
        std::memcpy(to, from, static_cast<std::size_t>(part.elements()) * sizeof(float));
      }
    }
  }
  return out;
}

void LaneStates::assign(const std::map<std::string, TensorRef>& tensors) {
  std::vector<float> layer(static_cast<std::size_t>(before(0).slice(0, lanes_).elements()));
  for (std::int64_t l = 0; l < layers_; ++l) {
    for (const StatePart& part : LayerStates::parts(dims_)) {
      const std::string name = tensor_name(l, part);
      const auto found = tensors.find(name);
      check_input(found != tensors.end(), "there is no tensor ", quote(name),
                  "; expected the states of all lanes; check the files");
      const TensorRef& tensor = found->second;
      const std::vector<std::int64_t> shape = tensor_shape(lanes_, part);
      check_input(tensor.shape == shape && tensor.dtype == part.dtype, "tensor ", quote(name),
                  " is ", dtype_name(tensor.dtype), " ", shape_string(tensor.shape), "; expected ",
                  dtype_name(part.dtype), " ", shape_string(shape),
                  "; go on with the batch that the training was made with");
      const auto bytes = static_cast<std::size_t>(part.elements()) * sizeof(float);
      for (std::int64_t i = 0; i < lanes_ && bytes > 0; ++i) {
        float* to = layer.data() + i * before(l).stride[0] + part.begin;
        std::memcpy(to, tensor.data + static_cast<std::size_t>(i) * bytes, bytes);
      }
    }
    float* to = rows(before_, l).data;
    copy_from_host(gpu_.get(), to, layer.data(), layer.size() * sizeof(float));
  }
}

}  // namespace mamba3
