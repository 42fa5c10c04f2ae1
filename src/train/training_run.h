// A training from where it stands to its last step: steps, evaluations, checkpoints and figures, in
// a folder that is an ordinary model's from the first checkpoint on.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "train/batch_source.h"
#include "train/metrics.h"
#include "train/train_checkpoint.h"
#include "train/trainer.h"

namespace mamba3 {

// All may be empty.
struct RunHooks {
  Trainer::Poll poll;  // throws Error(kInterrupted) to save and end
  std::function<void(const StepReport& step, double tokens_per_s)> on_step;
  std::function<void(std::int64_t step, const Evaluation& held_out)> on_evaluation;
  std::function<void(std::int64_t step, const std::filesystem::path& folder)> on_save;
  // Before a last save that failed is tried again. Empty: it is not tried again.
  std::function<void()> wait;
};

struct RunResult {
  StepReport last;                     // step 0: none was made
  std::int64_t steps = 0;              // of the whole training
  std::optional<Evaluation> held_out;  // the last one
  std::int64_t tokens = 0;
  double step_s = 0;  // spent in steps
};

class TrainingRun {
 public:
  // Trainer and Context must outlive it. Without `held_out` nothing is evaluated.
  TrainingRun(std::filesystem::path folder, TrainRecord record, Trainer& trainer,
              std::shared_ptr<const BatchSource> held_out, RunHooks hooks, const Context& ctx);

  // When it is interrupted or diverges, an Error says so; what was reached before is saved, unless
  // it diverged. One that has ended before adds nothing.
  RunResult run();

 private:
  void take_step();
  void keep_figures(const nlohmann::ordered_json& line);
  bool evaluation_is_due() const;
  void evaluate();
  void save_if_due();
  void save_last();
  void save_interrupted();
  void save();
  // When what failed is not tried again: says what is lost with it.
  [[noreturn]] void refuse_loss(const Error& error) const;
  std::string last_good_checkpoint() const;  // for the end of a message
  void trust_saved();
  std::string leave_diverged();  // for the end of a message
  void report() const;
  bool ended() const { return trainer_.steps() >= trainer_.options().schedule.steps; }

  std::filesystem::path folder_;
  TrainRecord record_;
  Trainer& trainer_;
  std::shared_ptr<const BatchSource> held_out_;
  RunHooks hooks_;
  const Context& ctx_;
  MetricsFile metrics_;
  std::int64_t first_step_;               // that this call begins after
  std::filesystem::path saved_;           // the newest checkpoint; empty: none
  std::int64_t saved_step_, model_step_;  // its step, and that of the model beside it
  // The newest checkpoint that the call began with, or from which it has made a step.
  std::filesystem::path trusted_;
  std::int64_t trusted_step_;
  bool retry_ = false;       // the last save failed
  bool all_figures_ = true;  // are in the file
  RunResult result_;
};

}  // namespace mamba3
