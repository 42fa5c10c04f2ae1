#include "train/training_run.h"

#include <algorithm>
#include <cmath>
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
      model_step_(trainer.steps() > 0 ? kNone : 0),
      trusted_(saved_),
      trusted_step_(saved_step_) {}

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
    trust_saved();
    if (!metrics_.flush()) {
      ctx_.log(LogLevel::kWarning, "the figures of the last steps were not written and are lost");
    }
  } catch (const DivergedError& error) {
    report();
    throw DivergedError(
        str(error.what(), leave_diverged(), "; lower --rate, or lengthen --warmup"));
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
  result_.last = trainer_.step(hooks_.poll);
  if (saved_step_ == trainer_.steps() - 1) trust_saved();
  const double seconds = seconds_since(start);
  const StepReport& report = result_.last;
  result_.tokens += report.tokens;
  result_.step_s += seconds;
  keep_figures({{"step", report.step},
                {"loss", report.loss},
                {"rate", report.rate},
                {"norm", report.norm},
                {"tokens", report.tokens},
                {"seconds", seconds},
                {"tflops_per_s", 1e-12 * training_flops_per_token(trainer_.config()) *
                                     static_cast<double>(report.tokens) / seconds}});
  if (hooks_.on_step) hooks_.on_step(report, static_cast<double>(report.tokens) / seconds);
}

void TrainingRun::keep_figures(const nlohmann::ordered_json& line) {
  const bool all = metrics_.write(line);
  if (all_figures_ && !all) {
    ctx_.log(LogLevel::kWarning,
             str("the figures of step ", trainer_.steps(),
                 " were not written to metrics.jsonl; training goes on and tries again"));
  }
  all_figures_ = all;
}

bool TrainingRun::evaluation_is_due() const {
  const std::int64_t step = trainer_.steps();
  return ended() || (step > 0 && step % record_.rhythm.eval_every == 0);
}

void TrainingRun::evaluate() {
  if (!held_out_) return;
  const auto& made = metrics_.history().evaluations;
  const bool known = !made.empty() && made.back().step == trainer_.steps();  // by an earlier call
  if (known && !ended()) {
    result_.held_out = Evaluation{made.back().loss, made.back().accuracy};
    return;
  }
  const Evaluation found = trainer_.evaluate(*held_out_, record_.rhythm.eval_blocks, hooks_.poll);
  if (!std::isfinite(found.loss)) {
    throw DivergedError(str("training diverged: after step ", trainer_.steps(),
                            " the held-out loss is ", found.loss, "; expected a number"));
  }
  result_.held_out = found;
  if (!known || made.back().loss != found.loss) {  // a training that has ended may get other texts
    keep_figures({{"step", trainer_.steps()},
                  {"held_out", found.loss},
                  {"held_out_accuracy", found.accuracy}});
  }
  if (hooks_.on_evaluation) hooks_.on_evaluation(trainer_.steps(), found);
}

// Nothing goes on after it: what was trained would be lost.
void TrainingRun::save_last() {
  constexpr int kMostAttempts = 60;
  for (int attempt = 1;; ++attempt) {
    try {
      return save();
    } catch (const DivergedError&) {
      throw;
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

// A step was made from the newest checkpoint, or its loss on held-out texts is a number.
void TrainingRun::trust_saved() {
  if (saved_ == trusted_) return;
  trusted_ = saved_;
  trusted_step_ = saved_step_;
  remove_old_checkpoints(folder_, record_.rhythm.keep);
}

// The weights that it diverged from may have been saved: then the ones before are the newest again.
std::string TrainingRun::leave_diverged() {
  if (saved_ == trusted_) return last_good_checkpoint();
  if (trusted_.empty()) {
    return str("; the only checkpoint, ", quote(saved_.string()),
               ", may be behind the step that did it");
  }
  const std::string left = quote(saved_.string());
  set_aside_later(folder_, trusted_step_);
  write_model(folder_, trusted_);
  saved_ = trusted_;
  saved_step_ = model_step_ = trusted_step_;
  return str("; ", left, " is behind the step that did it and has \".damaged\" added to its name",
             last_good_checkpoint());
}

void TrainingRun::save_if_due() {
  if (ended()) return save_last();
  const std::int64_t every = record_.rhythm.save_every;
  if (trainer_.steps() % (retry_ ? std::max<std::int64_t>(1, every / 10) : every) != 0) return;
  try {
    save();
    retry_ = false;
  } catch (const DivergedError&) {
    throw;
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
