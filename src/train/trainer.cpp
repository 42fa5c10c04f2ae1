#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/arena.h"
#include "core/check.h"
#include "train/training_memory.h"

namespace mamba3 {
namespace {

// Nats above which training has gone astray. A model of a few symbols can be sure of itself and
// wrong of half of them, when sequences become longer than those it knows, and come back.
double most_loss(std::int64_t symbols) {
  constexpr std::int64_t kFew = 128;
  return symbols <= kFew ? 100 : 2 * std::log(static_cast<double>(symbols));
}

}  // namespace

Trainer::Trainer(const ModelConfig& config, const TrainOptions& options,
                 std::shared_ptr<const BatchSource> data, Context& ctx)
    : options_(options),
      data_(std::move(data)),
      learner_(config, loss_options(options), options.optimizer, ctx, data_->lanes()) {
  check_train_options(options);
  const std::int64_t lanes = options.carry_states ? options.batch : 0;
  check_input(data_->lanes() == lanes, "the data have ", data_->lanes(),
              " lanes that carry states; expected ", lanes);
  // Later steps may have more tokens or pieces. What grows step by step leaves blocks behind that
  // are too small, and on a GPU each new one may wait for all trainings that share it.
  const TrainingMemory need = training_memory_needed(config, options, ctx, data_.get());
  ctx.workspace().reserve(static_cast<std::size_t>(need.pass_bytes));
}

void Trainer::resume(std::int64_t steps, std::int64_t position,
                     const std::map<std::string, TensorRef>& moments,
                     const std::map<std::string, TensorRef>& states) {
  check_input(position >= 0, "a training cannot go on at sequence ", position,
              "; expected 0 or more");
  learner_.resume(steps, moments, states);
  position_ = position;
}

std::int64_t Trainer::micro_batch(const BatchSource& data, std::int64_t begin,
                                  std::int64_t most) const {
  return std::min(most, data.sequences_in(begin, options_.accumulate));
}

std::vector<SequenceBatch> Trainer::read_step(std::int64_t position) const {
  std::vector<SequenceBatch> out;
  for (std::int64_t done = 0; done < options_.batch;) {
    const std::int64_t some = micro_batch(*data_, position + done, options_.batch - done);
    out.push_back(data_->read(position + done, some));
    done += some;
  }
  return out;
}

StepReport Trainer::step(const Poll& poll) {
  if (ahead_position_ != position_) ahead_ = read_step(position_);
  const std::vector<SequenceBatch> batches = std::exchange(ahead_, {});
  ahead_position_ = -1;
  const auto targets = static_cast<double>(options_.batch * data_->targets_each());
  std::int64_t tokens = 0;
  learner_.clear();
  for (const SequenceBatch& batch : batches) {
    if (poll) poll();
    learner_.add(batch.view(), 1 / targets);
    tokens += std::ssize(batch.ids);
  }
  ahead_ = read_step(position_ + options_.batch);
  ahead_position_ = position_ + options_.batch;
  if (poll) poll();
  const Learner::Figures found = learner_.figures();
  const double loss = found.sums.loss / targets;
  const double most = most_loss(config().padded_vocab());
  if (!(loss <= most)) refuse_step(str("a loss of ", loss, " nats; expected at most ", most));
  if (!std::isfinite(found.norm)) {
    refuse_step(str("gradients of norm ", found.norm, "; expected a number"));
  }
  const double rate = learning_rate(options_.schedule, steps());
  learner_.update(found.norm, rate);
  position_ += options_.batch;
  return {steps(), loss, rate, found.norm, tokens};
}

void Trainer::refuse_step(const std::string& found) const {
  throw DivergedError(str("training diverged: step ", steps() + 1, " (",
                          data_->names(position_, options_.batch), ") has ", found));
}

Evaluation Trainer::evaluate(const BatchSource& data, std::int64_t most, const Poll& poll) {
  const std::int64_t sequences = std::min(most, data.sequences());
  for (std::int64_t done = 0; done < sequences;) {
    if (poll) poll();
    const std::int64_t some = micro_batch(data, done, sequences - done);
    learner_.measure(data.read(done, some).view());
    done += some;
  }
  const CrossEntropySums sums = learner_.sums();
  const auto targets = static_cast<double>(sequences * data.targets_each());
  return {sums.loss / targets, static_cast<double>(sums.correct) / targets};
}

}  // namespace mamba3
