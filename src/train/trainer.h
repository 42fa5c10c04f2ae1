// A training: weights, moments, the position in the data and the states that its lanes carry, and
// the steps that change them. What a step gives depends on the step, the options and the data
// alone, not on when it is taken or on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "mamba3/error.h"
#include "train/batch_source.h"
#include "train/learner.h"
#include "train/train_options.h"

namespace mamba3 {

// The reason why a training that went astray was ended.
struct DivergedError : Error {
  explicit DivergedError(const std::string& message) : Error(ErrorCode::kBadInput, message) {}
};

struct StepReport {
  std::int64_t step = 0;  // how many were made with this one
  double loss = 0;        // nats per target, before the update
  double rate = 0;
  double norm = 0;          // of the gradients, before they are clipped
  std::int64_t tokens = 0;  // that were read
};

// Over all targets of some sequences.
struct Evaluation {
  double loss = 0;      // nats per target
  double accuracy = 0;  // share of the targets that have the largest logit
};

class Trainer {
 public:
  // Called between micro-batches; may throw, and nothing of the step has then happened.
  using Poll = std::function<void()>;

  // Weights are zero until they are assigned or resumed. The Context must outlive it. Data with
  // lanes are refused without options.carry_states, or where they are not as many as its batch.
  Trainer(const ModelConfig& config, const TrainOptions& options,
          std::shared_ptr<const BatchSource> data, Context& ctx);

  void assign(const std::map<std::string, TensorRef>& weights) { learner_.assign(weights); }
  // Goes on after `steps` updates with the moments and the lanes' states that they left, as
  // Learner::resume takes them, at `position` sequences.
  void resume(std::int64_t steps, std::int64_t position,
              const std::map<std::string, TensorRef>& moments,
              const std::map<std::string, TensorRef>& states);

  // Refuses (DivergedError) to go on when the loss or the gradients are not finite or the loss is
  // far above that of guessing, with the step and its sequences; nothing has then changed.
  StepReport step(const Poll& poll = {});
  // Over the first `most` sequences, or all when there are fewer: as `score --block --blocks`
  // counts windows.
  Evaluation evaluate(const BatchSource& data, std::int64_t most, const Poll& poll = {});

  const ModelConfig& config() const { return learner_.config(); }
  const TrainOptions& options() const { return options_; }
  std::int64_t steps() const { return learner_.steps(); }
  std::int64_t position() const { return position_; }  // sequences read since the beginning
  // In the memory of the Context's device.
  const ParameterValues& weights() const { return learner_.weights(); }
  const Optimizer& optimizer() const { return learner_.optimizer(); }
  const LaneStates* lanes() const { return learner_.lanes(); }  // null without

 private:
  // How many sequences from `begin` on, at most `most`, options().accumulate lets be read at once.
  std::int64_t micro_batch(const BatchSource& data, std::int64_t begin, std::int64_t most) const;
  std::vector<SequenceBatch> read_step(std::int64_t position) const;
  [[noreturn]] void refuse_step(const std::string& found) const;

  TrainOptions options_;
  std::shared_ptr<const BatchSource> data_;
  Learner learner_;
  std::int64_t position_ = 0;
  // What the step at `ahead_position_` reads, read while the device was at work on the one before.
  std::vector<SequenceBatch> ahead_;
  std::int64_t ahead_position_ = -1;
};

}  // namespace mamba3
