#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/thread_pool.h"
#include "train/loss_and_gradients.h"

namespace mamba3 {
namespace {

// A loss of so many times that of guessing means that training has gone astray; below so many nats
// none does: with a few symbols in the vocabulary a spike soon exceeds that.
constexpr double kDiverged = 2;
constexpr double kNeverDiverged = 10;

std::vector<Bf16> round_all(std::span<const float> values, ThreadPool& pool) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 16;
  std::vector<Bf16> out(values.size());
  const std::int64_t count = std::ssize(values);
  pool.run((count + kPiece - 1) / kPiece, [&](std::int64_t piece, int) {
    const std::int64_t end = std::min(count, (piece + 1) * kPiece);
    for (std::int64_t i = piece * kPiece; i < end; ++i) out[i] = to_bf16(values[i]);
  });
  return out;
}

}  // namespace

Trainer::Trainer(const ModelConfig& config, const TrainOptions& options,
                 std::shared_ptr<const BatchSource> data, Context& ctx)
    : config_(config),
      options_(options),
      data_(std::move(data)),
      weights_(config),
      gradients_(config),
      optimizer_(config, options.optimizer),
      ctx_(ctx) {
  check_train_options(options);
}

void Trainer::resume(std::int64_t steps, std::int64_t position, const ParameterValues& first,
                     const ParameterValues& second) {
  check_input(position >= 0, "a training cannot go on at sequence ", position,
              "; expected 0 or more");
  optimizer_.resume(steps, first, second);
  position_ = position;
}

ModelWeights Trainer::bind() {
  std::map<std::string, TensorRef> tensors = weights_.tensors();
  rounded_.clear();
  if (options_.compute == Compute::kBf16) {
    for (const TensorSpec& spec : tensor_specs(config_)) {
      if (!spec.large) continue;
      rounded_.push_back(round_all(weights_.values(spec.name), ctx_.pool()));
      tensors[spec.name] = {reinterpret_cast<const std::byte*>(rounded_.back().data()),
                            DType::kBf16, spec.shape};
    }
  }
  return bind_weights(config_, tensors, nullptr, ctx_);
}

void Trainer::for_micro_batches(const BatchSource& data, std::int64_t begin, std::int64_t count,
                                const Poll& poll, const ReadBatch& read) const {
  for (std::int64_t done = 0; done < count;) {
    if (poll) poll();
    const std::int64_t some =
        std::min(count - done, data.sequences_in(begin + done, options_.accumulate));
    read(data.read(begin + done, some).view());
    done += some;
  }
}

StepReport Trainer::step(const Poll& poll) {
  const auto targets = static_cast<double>(options_.batch * data_->targets_each());
  LossOptions loss_options;
  loss_options.compute = options_.compute;
  loss_options.z_weight = options_.z_loss;
  loss_options.recompute = options_.recompute;
  loss_options.grad_scale = 1 / targets;
  const ModelWeights bound = bind();
  gradients_.clear(ctx_);
  double loss = 0;
  std::int64_t tokens = 0;
  for_micro_batches(*data_, position_, options_.batch, poll, [&](const TrainingBatch& batch) {
    loss += loss_and_gradients(config_, bound, batch, loss_options, gradients_, ctx_).loss;
    tokens += std::ssize(batch.ids);
  });
  loss /= targets;
  if (poll) poll();
  const double guessing = std::log(static_cast<double>(config_.padded_vocab()));
  const double most = std::max(kNeverDiverged, kDiverged * guessing);
  if (!(loss <= most)) refuse_step(str("a loss of ", loss, " nats; expected at most ", most));
  const double rate = learning_rate(options_.schedule, steps());
  const double norm = optimizer_.step(gradients_, 1, rate, weights_, ctx_);
  if (!std::isfinite(norm)) refuse_step(str("gradients of norm ", norm, "; expected a number"));
  position_ += options_.batch;
  return {steps(), loss, rate, norm, tokens};
}

void Trainer::refuse_step(const std::string& found) const {
  throw DivergedError(str("training diverged: step ", steps() + 1, " (",
                          data_->names(position_, options_.batch), ") has ", found));
}

Evaluation Trainer::evaluate(const BatchSource& data, std::int64_t most, const Poll& poll) {
  const ModelWeights bound = bind();
  const std::int64_t sequences = std::min(most, data.sequences());
  Evaluation out;
  for_micro_batches(data, 0, sequences, poll, [&](const TrainingBatch& batch) {
    const CrossEntropySums sums = loss_of(config_, bound, batch, {options_.compute}, ctx_);
    out.loss += sums.loss;
    out.accuracy += static_cast<double>(sums.correct);
  });
  const auto targets = static_cast<double>(sequences * data.targets_each());
  return {out.loss / targets, out.accuracy / targets};
}

}  // namespace mamba3
