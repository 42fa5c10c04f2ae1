#include "engine/task.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace mamba3 {
namespace {

std::int64_t code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

// A query is followed by "Answer:" when one of its lines is a question.
std::string context_of_query(std::string query) {
  while (!query.empty() && query.back() == '\n') query.pop_back();
  const std::string mark = "Question: ";
  const bool question = query.starts_with(mark) || query.find("\n" + mark) != std::string::npos;
  return question ? query + "\nAnswer:" : query;
}

TaskPair make_pair(std::string context, const std::string& answer) {
  return {std::move(context), " " + answer, code_points(answer),
          static_cast<std::int64_t>(answer.size())};
}

void check_gold(const TaskItem& item, const RequestLine& line) {
  const auto choices = static_cast<std::int64_t>(item.pairs.size());
  check_input(choices > 0 && line.gold && *line.gold >= 0 && *line.gold < choices, line.where,
              " has ", choices, " choices and ",
              line.gold ? str("\"gold\" ", *line.gold) : std::string("no \"gold\""),
              "; expected \"gold\" to be the number of a choice, from 0; correct the line");
}

// The first of the largest.
template <class Value>
std::int64_t best_of(std::size_t count, Value&& value) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < count; ++i) {
    if (value(i) > value(best)) best = i;
  }
  return static_cast<std::int64_t>(best);
}

}  // namespace

TaskItem to_task_item(const RequestLine& line) {
  TaskItem item;
  if (line.query && line.choices) {
    item.kind = TaskKind::kChoices;
    const std::string context = context_of_query(*line.query);
    for (const std::string& choice : *line.choices) {
      check_input(!choice.empty(), line.where,
                  " has an empty choice; expected text, since scores are divided by its length; "
                  "correct the line");
      item.pairs.push_back(make_pair(context, choice));
    }
  } else if (line.context_options && line.continuation) {
    item.kind = TaskKind::kContexts;
    for (const std::string& context : *line.context_options) {
      item.pairs.push_back(make_pair(context, *line.continuation));
    }
  } else if (line.context && line.continuation) {
    item.pairs.push_back(make_pair(*line.context, *line.continuation));
    return item;
  } else {
    fail(ErrorCode::kBadInput, line.where,
         " is no item of a test set; expected {\"query\", \"choices\", \"gold\"}, "
         "{\"context_options\", \"continuation\", \"gold\"} or {\"context\", \"continuation\"}; "
         "correct the line");
  }
  check_gold(item, line);
  item.gold = *line.gold;
  return item;
}

void TaskMeter::add(const TaskItem& item, const ScoreResult* results) {
  kind_ = item.kind;
  ++items_;
  const std::size_t count = item.pairs.size();
  for (std::size_t i = 0; i < count; ++i) sum_loglik_ += results[i].logprob;
  if (item.kind == TaskKind::kCloze) {
    right_ += results[0].is_greedy ? 1 : 0;
    return;
  }
  const auto loglik = [&](std::size_t i) { return results[i].logprob; };
  const auto per_character = [&](std::size_t i) {
    return results[i].logprob / static_cast<double>(item.pairs[i].answer_characters);
  };
  const auto per_byte = [&](std::size_t i) {
    return results[i].logprob / static_cast<double>(item.pairs[i].answer_bytes);
  };
  right_ += best_of(count, loglik) == item.gold ? 1 : 0;
  if (item.kind != TaskKind::kChoices) return;
  right_norm_ += best_of(count, per_character) == item.gold ? 1 : 0;
  right_norm_bytes_ += best_of(count, per_byte) == item.gold ? 1 : 0;
}

TaskScores TaskMeter::scores() const {
  TaskScores scores;
  scores.items = items_;
  scores.sum_loglik = sum_loglik_;
  if (items_ == 0) return scores;
  const auto all = static_cast<double>(items_);
  scores.acc = static_cast<double>(right_) / all;
  if (kind_ == TaskKind::kChoices) {
    scores.acc_norm = static_cast<double>(right_norm_) / all;
    scores.acc_norm_bytes = static_cast<double>(right_norm_bytes_) / all;
  }
  if (kind_ == TaskKind::kCloze) scores.perplexity = std::exp(-sum_loglik_ / all);
  return scores;
}

}  // namespace mamba3
