#include "train/task_source.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace mamba3 {
namespace {

// Far above what is trained on; expressions of this length nest deeply, but not too deeply.
constexpr std::int64_t kMostLength = 1 << 16;
// Streams of random words: weights have those from 0 on.
constexpr std::uint64_t kTrainingStream = std::uint64_t{1} << 61;
constexpr std::uint64_t kEvaluationStream = std::uint64_t{1} << 62;
constexpr std::uint64_t kEvaluationSeed = 0;

class TaskSource : public BatchSource {
 public:
  TaskSource(const TaskOptions& options, std::int64_t sequences_a_stage, std::uint64_t seed,
             std::uint64_t stream)
      : options_(options), sequences_a_stage_(sequences_a_stage), seed_(seed), stream_(stream) {
    check_task_options(options);
  }

  SequenceBatch read(std::int64_t position, std::int64_t count) const override {
    SequenceBatch batch;
    for (std::int64_t i = position; i < position + count; ++i) {
      const TaskSequence sequence =
          task_sequence(options_.task, options_.multiplication, options_.min_length, longest(i),
                        {seed_, stream_ + static_cast<std::uint64_t>(i)});
      batch.ids.insert(batch.ids.end(), sequence.ids.begin(), sequence.ids.end());
      batch.targets.resize(batch.ids.size(), kIgnoredTarget);
      batch.targets.back() = sequence.answer;
      batch.cu_seqlens.push_back(std::ssize(batch.ids));
    }
    return batch;
  }
  std::int64_t sequences() const override { return kEndless; }
  std::int64_t sequences_in(std::int64_t position, std::int64_t tokens) const override {
    return std::max<std::int64_t>(1, tokens / longest(position));
  }
  std::int64_t targets_each() const override { return 1; }
  std::string names(std::int64_t position, std::int64_t count) const override {
    return str("sequences ", position, " to ", position + count - 1, " of ",
               task_name(options_.task));
  }

 private:
  std::int64_t longest(std::int64_t position) const {
    const std::int64_t last = std::ssize(options_.stages) - 1;
    return options_.stages[std::min(last, position / sequences_a_stage_)];
  }

  TaskOptions options_;
  std::int64_t sequences_a_stage_;
  std::uint64_t seed_, stream_;
};

}  // namespace

void check_task_options(const TaskOptions& options) {
  const auto check_length = [&](const char* what, std::int64_t length) {
    check_input(length >= options.min_length && length <= kMostLength, what, " has sequences of ",
                length, "; expected ", options.min_length, " to ", kMostLength);
  };
  check_input(options.min_length >= 3, "the shortest sequence has a length of ", options.min_length,
              "; expected at least 3");
  check_input(!options.stages.empty(), "the curriculum has no stage; expected at least one");
  for (const std::int64_t longest : options.stages) check_length("a stage", longest);
  check_length("an evaluation", options.eval_length);
  check_input(options.stage_steps >= 1, "a stage has ", options.stage_steps,
              " steps; expected at least 1");
}

nlohmann::ordered_json to_json(const TaskOptions& options) {
  return {{"task", task_name(options.task)},    {"multiplication", options.multiplication},
          {"min_length", options.min_length},   {"stages", options.stages},
          {"stage_steps", options.stage_steps}, {"eval_length", options.eval_length}};
}

TaskOptions task_options_from(const nlohmann::json& json) {
  TaskOptions options;
  options.task = task_named(json.at("task").get<std::string>());
  json.at("multiplication").get_to(options.multiplication);
  json.at("min_length").get_to(options.min_length);
  json.at("stages").get_to(options.stages);
  json.at("stage_steps").get_to(options.stage_steps);
  json.at("eval_length").get_to(options.eval_length);
  check_task_options(options);
  return options;
}

std::shared_ptr<const BatchSource> training_sequences(const TaskOptions& options,
                                                      std::int64_t batch, std::uint64_t seed) {
  return std::make_shared<TaskSource>(options, options.stage_steps * batch, seed, kTrainingStream);
}

std::shared_ptr<const BatchSource> evaluation_sequences(const TaskOptions& options) {
  TaskOptions one_length = options;
  one_length.min_length = options.eval_length;
  one_length.stages = {options.eval_length};
  return std::make_shared<TaskSource>(one_length, BatchSource::kEndless, kEvaluationSeed,
                                      kEvaluationStream);
}

}  // namespace mamba3
