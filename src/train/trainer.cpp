#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/thread_pool.h"
#include "train/loss_and_gradients.h"

namespace mamba3 {
namespace {

// A loss of so many times that of guessing means that training has gone astray.
constexpr double kDiverged = 2;

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

std::string list(std::span<const std::int64_t> numbers) {
  constexpr std::size_t kMost = 8;
  std::string out;
  for (const std::int64_t number : numbers.first(std::min(numbers.size(), kMost))) {
    out += str(out.empty() ? "" : ", ", number);
  }
  return numbers.size() > kMost ? out + ", ..." : out;
}

}  // namespace

Trainer::Trainer(const ModelConfig& config, const TrainOptions& options, WindowReader data,
                 Context& ctx)
    : config_(config),
      options_(options),
      data_(std::move(data)),
      order_(data_.windows(), options.seed),
      weights_(config),
      gradients_(config),
      optimizer_(config, options.optimizer),
      ctx_(ctx) {
  check_train_options(options);
}

void Trainer::resume(std::int64_t steps, std::int64_t position, const ParameterValues& first,
                     const ParameterValues& second) {
  check_input(position >= 0, "a training cannot go on at window ", position,
              "; expected 0 or more");
  optimizer_.resume(steps, first, second);
  position_ = position;
}

std::vector<std::int64_t> Trainer::next_windows() const {
  std::vector<std::int64_t> windows;
  for (std::int64_t i = 0; i < options_.batch; ++i) {
    windows.push_back(order_.window(position_ + i));
  }
  return windows;
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

StepReport Trainer::step(const Poll& poll) {
  const std::vector<std::int64_t> windows = next_windows();
  const auto at_once = static_cast<std::size_t>(data_.windows_in(options_.accumulate));
  const auto tokens = static_cast<double>(options_.tokens_per_step());
  LossOptions loss_options;
  loss_options.compute = options_.compute;
  loss_options.z_weight = options_.z_loss;
  loss_options.recompute = options_.recompute;
  loss_options.grad_scale = 1 / tokens;
  const ModelWeights bound = bind();
  gradients_.clear(ctx_);
  double loss = 0;
  for (std::size_t begin = 0; begin < windows.size(); begin += at_once) {
    if (poll) poll();
    const std::span rest = std::span(windows).subspan(begin);
    const WindowBatch batch = data_.read(rest.first(std::min(at_once, rest.size())));
    loss += loss_and_gradients(config_, bound, batch.view(), loss_options, gradients_, ctx_).loss;
  }
  loss /= tokens;
  if (poll) poll();
  const double most = kDiverged * std::log(static_cast<double>(config_.padded_vocab()));
  if (!(loss <= most)) refuse_step(str("a loss of ", loss, " nats; expected at most ", most));
  const double rate = learning_rate(options_.schedule, steps());
  const double norm = optimizer_.step(gradients_, 1, rate, weights_, ctx_);
  if (!std::isfinite(norm)) refuse_step(str("gradients of norm ", norm, "; expected a number"));
  position_ += options_.batch;
  return {steps(), loss, rate, norm};
}

void Trainer::refuse_step(const std::string& found) const {
  fail(ErrorCode::kBadInput, "training diverged: step ", steps() + 1, " (windows ",
       list(next_windows()), " of the data) has ", found);
}

double Trainer::loss_of_windows(const WindowReader& data, std::int64_t most, const Poll& poll) {
  const ModelWeights bound = bind();
  const std::int64_t windows = std::min(most, data.windows());
  const std::int64_t at_once = data.windows_in(options_.accumulate);
  double loss = 0;
  for (std::int64_t begin = 0; begin < windows; begin += at_once) {
    if (poll) poll();
    std::vector<std::int64_t> some;
    for (std::int64_t i = begin; i < std::min(windows, begin + at_once); ++i) some.push_back(i);
    loss += loss_of(config_, bound, data.read(some).view(), {options_.compute}, ctx_).loss;
  }
  return loss / static_cast<double>(windows * data.length());
}

}  // namespace mamba3
