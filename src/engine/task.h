// Test sets with known answers, in the forms of LLM Foundry's local data, scored as
// lm-evaluation-harness 0.4 does.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/requests.h"

namespace mamba3 {

// kChoices {"query", "choices", "gold"}: several continuations of one context.
// kContexts {"context_options", "continuation", "gold"}: one continuation of several contexts.
// kCloze {"context", "continuation"}: one pair; right when every token is the argmax.
enum class TaskKind : std::uint8_t { kChoices, kContexts, kCloze };

struct TaskPair {
  std::string context;
  std::string continuation;            // begins with the delimiter, one blank
  std::int64_t answer_characters = 0;  // Unicode code points, without the delimiter
  std::int64_t answer_bytes = 0;
};

struct TaskItem {
  TaskKind kind = TaskKind::kCloze;
  std::vector<TaskPair> pairs;
  std::int64_t gold = 0;
};
TaskItem to_task_item(const RequestLine& line);

struct TaskScores {
  std::int64_t items = 0;
  double acc = 0;
  std::optional<double> acc_norm;        // loglik / characters: kChoices
  std::optional<double> acc_norm_bytes;  // loglik / bytes: kChoices
  std::optional<double> perplexity;      // exp(-mean loglik of an item): kCloze
  double sum_loglik = 0;
};

// Takes items of one kind, each with the results of its pairs.
class TaskMeter {
 public:
  void add(const TaskItem& item, const ScoreResult* results);  // one result a pair
  TaskScores scores() const;

 private:
  std::optional<TaskKind> kind_;
  std::int64_t items_ = 0;
  std::int64_t right_ = 0;
  std::int64_t right_norm_ = 0;
  std::int64_t right_norm_bytes_ = 0;
  double sum_loglik_ = 0;
};

}  // namespace mamba3
