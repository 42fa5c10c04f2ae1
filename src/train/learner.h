// A model that learns, in the memory of a Context's device: its weights, their gradients, what the
// optimizer remembers, and the copies of its matrices that a pass in bf16 reads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "core/memory.h"
#include "core/transfer.h"
#include "mamba3/config.h"
#include "mamba3/context.h"
#include "model/weights.h"
#include "train/lane_states.h"
#include "train/loss_and_gradients.h"
#include "train/optimizer.h"
#include "train/parameter_values.h"

namespace mamba3 {

// Batches on their way to a GPU, in memory that it reads by itself. On a CPU they stay where they
// are.
class BatchStage {
 public:
  explicit BatchStage(std::shared_ptr<Gpu> gpu) : gpu_(std::move(gpu)) {}

  TrainingBatch stage(const TrainingBatch& batch);
  // Everything that was staged has been read.
  void reuse() { used_bytes_ = 0; }

 private:
  template <class T>
  std::span<const T> put(std::span<const T> numbers);

  std::shared_ptr<Gpu> gpu_;
  PinnedMemory memory_;
  std::size_t size_bytes_ = 0, used_bytes_ = 0;
};

// A step is clear(), add() of each of its micro-batches, at least one, figures() and, if these are
// to be taken, update(). On a GPU all but figures() and sums() return before their work is done.
class Learner {
 public:
  // Weights are zero until they are assigned, states of `lanes` fresh. The Context must outlive it.
  Learner(const ModelConfig& config, const LossOptions& loss, const OptimizerOptions& optimizer,
          Context& ctx, std::int64_t lanes = 0);

  void assign(const std::map<std::string, TensorRef>& weights);
  // As Optimizer::resume and, where there are lanes, LaneStates::assign.
  void resume(std::int64_t steps, const std::map<std::string, TensorRef>& moments,
              const std::map<std::string, TensorRef>& states = {});

  void clear();
  // Adds the gradient of grad_scale times the loss, and the loss to the sums. Where sequences start
  // from states of lanes, these are the learner's own.
  void add(const TrainingBatch& batch, double grad_scale);
  // The loss alone.
  void measure(const TrainingBatch& batch);
  // Of all batches since the last call or clear(), in their order. Waits.
  CrossEntropySums sums();
  struct Figures {
    CrossEntropySums sums;
    double norm = 0;  // of the gradients
  };
  Figures figures();
  // By gradients of this norm, which figures() has given. Lanes go on from where they were left.
  void update(double norm, double rate);

  const ModelConfig& config() const { return config_; }
  std::int64_t steps() const { return optimizer_.steps(); }
  const ParameterValues& weights() const { return weights_; }
  const ParameterValues& gradients() const { return gradients_; }
  const Optimizer& optimizer() const { return optimizer_; }
  const LaneStates* lanes() const { return lanes_ ? &*lanes_ : nullptr; }

 private:
  TrainingBatch stage(const TrainingBatch& batch);
  std::map<std::string, TensorRef> pass_tensors() const;
  CrossEntropySums* next_sums();
  void read_sums();

  ModelConfig config_;
  LossOptions loss_;
  Context& ctx_;
  ParameterValues weights_, gradients_;
  bool has_gradients_ = false;  // of this step
  Optimizer optimizer_;
  std::optional<LaneStates> lanes_;
  Memory rounded_;  // the matrices in bf16, as weights_ has them in fp32; or none
  ModelWeights bound_;
  BatchStage stage_;
  Memory device_figures_;     // the norm, then the sums of batches
  std::int64_t pending_ = 0;  // batches whose sums are there
  CrossEntropySums sums_;     // of those before
  double norm_ = 0;
};

}  // namespace mamba3
