#include "train/training_run.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/quote.h"
#include "train/run_report.h"
#include "train/training_flops.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kNone = -1;  // of steps

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

TrainingRun::TrainingRun(std::filesystem::path folder, TrainRecord record, Trainer& trainer,
                         std::shared_ptr<const BatchSource> held_out, RunHooks hooks,
                         const Context& ctx)
    : folder_(std::move(folder)),
      record_(std::move(record)),
      trainer_(trainer),
      held_out_(std::move(held_out)),
      hooks_(std::move(hooks)),
      ctx_(ctx),
      metrics_(folder_ / "metrics.jsonl", trainer.steps()),
      first_step_(trainer.steps()),
      saved_(train_checkpoint_at(folder_, trainer.steps())),
      saved_step_(saved_.empty() && trainer.steps() > 0 ? kNone : trainer.steps()),
      model_step_(trainer.steps() > 0 ? kNone : 0) {}

RunResult TrainingRun::run() {
  try {
    if (ended()) {
      save_last();  // an earlier call may have been killed before it wrote the model
      ctx_.log(LogLevel::kInfo,
               str("the training of ", trainer_.options().schedule.steps,
                   " steps has ended, after step ", trainer_.steps(), ": no step is left"));
    }
    if (evaluation_is_due()) {  // or interrupted before it
      evaluate();
      report();
    }
    while (!ended()) {
      take_step();
      save_if_due();
      if (!evaluation_is_due()) continue;
      evaluate();
      report();
    }
  } catch (const Error& error) {
    report();
    if (error.code() == ErrorCode::kInterrupted) save_interrupted();
    throw;
  }
  result_.steps = trainer_.steps();
  return result_;
}

void TrainingRun::take_step() {
  const Clock::time_point start = Clock::now();
  try {
    result_.last = trainer_.step(hooks_.poll);
  } catch (const DivergedError& error) {
    throw DivergedError(
        str(error.what(), last_good_checkpoint(), "; lower --rate, or lengthen --warmup"));
  }
  const double seconds = seconds_since(start);
  const StepReport& report = result_.last;
  result_.tokens += report.tokens;
  result_.step_s += seconds;
  metrics_.write({{"step", report.step},
                  {"loss", report.loss},
                  {"rate", report.rate},
                  {"norm", report.norm},
                  {"tokens", report.tokens},
                  {"seconds", seconds},
                  {"tflops_per_s", 1e-12 * training_flops_per_token(trainer_.config()) *
                                       static_cast<double>(report.tokens) / seconds}});
  if (hooks_.on_step) hooks_.on_step(report, static_cast<double>(report.tokens) / seconds);
}

bool TrainingRun::evaluation_is_due() const {
  const std::int64_t step = trainer_.steps();
  return ended() || (step > 0 && step % record_.rhythm.eval_every == 0);
}

void TrainingRun::evaluate() {
  if (!held_out_) return;
  const auto& made = metrics_.history().evaluations;
  if (!made.empty() && made.back().step == trainer_.steps()) {  // by an earlier call
    result_.held_out = Evaluation{made.back().loss, made.back().accuracy};
    return;
  }
  const Evaluation found = trainer_.evaluate(*held_out_, record_.rhythm.eval_blocks, hooks_.poll);
  result_.held_out = found;
  metrics_.write({{"step", trainer_.steps()},
                  {"held_out", found.loss},
                  {"held_out_accuracy", found.accuracy}});
  if (hooks_.on_evaluation) hooks_.on_evaluation(trainer_.steps(), found);
}

// Nothing goes on after it: what was trained would be lost.
void TrainingRun::save_last() {
  constexpr int kMostAttempts = 60;
  for (int attempt = 1;; ++attempt) {
    try {
      return save();
    } catch (const Error& error) {
      if (!hooks_.wait || attempt == kMostAttempts) refuse_loss(error);
      ctx_.log(LogLevel::kWarning,
               str("the last step was not saved: ", error.what(), "; trying again soon"));
    }
    hooks_.wait();
  }
}

void TrainingRun::save_interrupted() {
  try {
    save();
  } catch (const Error& error) {
    refuse_loss(error);
  }
}

void TrainingRun::refuse_loss(const Error& error) const {
  const std::int64_t good = saved_.empty() ? first_step_ : saved_step_, last = trainer_.steps();
  fail(error.code(),
       good < last ? str("steps ", good + 1, " to ", last, " could not be saved and are lost: ")
                   : str("the model after step ", last, " was not written: "),
       error.what(), last_good_checkpoint());
}

std::string TrainingRun::last_good_checkpoint() const {
  if (saved_.empty()) return "; nothing was saved since it began";
  return str("; the last good checkpoint is ", quote(saved_.string()));
}

void TrainingRun::save_if_due() {
  if (ended()) return save_last();
  const std::int64_t every = record_.rhythm.save_every;
  if (trainer_.steps() % (retry_ ? std::max<std::int64_t>(1, every / 10) : every) != 0) return;
  try {
    save();
    retry_ = false;
  } catch (const Error& error) {
    retry_ = true;
    ctx_.log(LogLevel::kWarning, str("step ", trainer_.steps(), " was not saved: ", error.what(),
                                     "; training goes on and soon tries again"));
  }
}

// Stops no training, either.
void TrainingRun::report() const {
  const std::string name = std::filesystem::absolute(folder_).lexically_normal().filename();
  try {
    write_report(folder_, report_facts(name, trainer_.config(), record_), metrics_.history());
  } catch (const Error& error) {
    ctx_.log(LogLevel::kWarning, str("the report was not written: ", error.what()));
  }
}

void TrainingRun::save() {
  if (saved_step_ != trainer_.steps()) {
    saved_ = write_train_checkpoint(folder_, record_, trainer_);
    saved_step_ = trainer_.steps();
  }
  if (model_step_ == saved_step_) return;
  write_model(folder_, trainer_);
  model_step_ = saved_step_;
  if (hooks_.on_save) hooks_.on_save(saved_step_, saved_);
}

}  // namespace mamba3
