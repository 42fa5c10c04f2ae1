// A training: weights, moments and the position in the data, and the steps that change them. What a
// step gives depends on the step, the options and the data alone, not on when it is taken or on the
// number of threads.
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
#include "train/optimizer.h"
#include "train/parameter_values.h"
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

  // Weights are zero until they are assigned or resumed. The Context must outlive it.
  Trainer(const ModelConfig& config, const TrainOptions& options,
          std::shared_ptr<const BatchSource> data, Context& ctx);

  void assign(const std::map<std::string, TensorRef>& weights) { weights_.assign(weights); }
  // Goes on after `steps` updates with these moments, at `position` sequences.
  void resume(std::int64_t steps, std::int64_t position, const ParameterValues& first,
              const ParameterValues& second);

  // Refuses (DivergedError) to go on when the loss or the gradients are not finite or the loss is
  // far above that of guessing, with the step and its sequences; nothing has then changed.
  StepReport step(const Poll& poll = {});
  // Over the first `most` sequences, or all when there are fewer: as `score --block --blocks`
  // counts windows.
  Evaluation evaluate(const BatchSource& data, std::int64_t most, const Poll& poll = {});

  const ModelConfig& config() const { return config_; }
  const TrainOptions& options() const { return options_; }
  std::int64_t steps() const { return optimizer_.steps(); }
  std::int64_t position() const { return position_; }  // sequences read since the beginning
  const ParameterValues& weights() const { return weights_; }
  const Optimizer& optimizer() const { return optimizer_; }

 private:
  using ReadBatch = std::function<void(const TrainingBatch&)>;
  // Sequences [begin, begin + count) in as many pieces as options().accumulate asks for.
  void for_micro_batches(const BatchSource& data, std::int64_t begin, std::int64_t count,
                         const Poll& poll, const ReadBatch& read) const;
  ModelWeights bind();
  [[noreturn]] void refuse_step(const std::string& found) const;

  ModelConfig config_;
  TrainOptions options_;
  std::shared_ptr<const BatchSource> data_;
  ParameterValues weights_, gradients_;
  std::vector<std::vector<Bf16>> rounded_;  // the matrices, where they are multiplied in bf16
  Optimizer optimizer_;
  std::int64_t position_ = 0;
  Context& ctx_;
};

}  // namespace mamba3
