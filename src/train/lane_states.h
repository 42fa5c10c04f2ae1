// Truncated back-propagation through time: the states that the lanes of a training carry from one
// window into the next, without their gradients.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/memory.h"
#include "io/tensor_file.h"
#include "mamba3/config.h"
#include "train/layer_states.h"

namespace mamba3 {

// Of all layers, in the memory of a device: those that a step goes on from, and beside them those
// that it leaves, so that a step that is not taken has changed nothing.
class LaneStates {
 public:
  // Fresh ones, on a GPU unless it is null.
  LaneStates(const ModelConfig& config, std::int64_t lanes, std::shared_ptr<Gpu> gpu = nullptr);
  static std::size_t bytes(const ModelConfig& config, std::int64_t lanes);

  std::int64_t lanes() const { return lanes_; }
  // Row i is that of lane i, and row lanes() a fresh one.
  TensorView<const float, 2> before(std::int64_t layer) const { return rows(before_, layer); }
  // The same rows of what a step leaves; the last one is not to be written.
  TensorView<float, 2> after(std::int64_t layer) const { return rows(!before_, layer); }
  // A step that has left all lanes' states was taken: the next one goes on from there.
  void advance() { before_ = !before_; }

  // What before() has, in the host's memory.
  struct HostCopy {
    std::vector<NamedTensor> tensors;  // layers.L.ssm [lanes, h, n, p], .k, .v, .turns
    std::vector<float> numbers;        // that they point into
  };
  HostCopy host_copy() const;
  // Goes on from such, bit for bit. One that is missing or misshapen is refused.
  void assign(const std::map<std::string, TensorRef>& tensors);

 private:
  TensorView<float, 2> rows(int which, std::int64_t layer) const;

  Mamba3Dims dims_;
  std::int64_t layers_, lanes_;
  std::shared_ptr<Gpu> gpu_;
  Memory memory_;  // [2, l, lanes + 1, row]
  int before_ = 0;
};

}  // namespace mamba3
