#include "train/state_tracking.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "mamba3/error.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "train/task_source.h"

namespace mamba3 {
namespace {

std::string text_of(Task task, const std::vector<std::int32_t>& ids) {
  std::string text;
  for (const std::int32_t id : ids) text += task_symbols(task).at(static_cast<std::size_t>(id));
  return text;
}

// Reads an expression as C would, by its text: a grammar of its own, and integers without a modulus
// (the sums of products of 256 digits fit into no integer: those are taken modulo a multiple of 5).
class Evaluator {
 public:
  explicit Evaluator(const std::string& text) : text_(text) {}

  // Up to "=".
  std::int64_t value() {
    const std::int64_t result = sum();
    EXPECT_EQ(text_.substr(at_), "=") << text_;
    return (result % 5 + 5) % 5;
  }

 private:
  static constexpr std::int64_t kLarge = 5'000'000;

  std::int64_t sum() {
    std::int64_t total = product();
    while (text_[at_] == '+' || text_[at_] == '-') {
      const bool plus = text_[at_++] == '+';
      const std::int64_t next = product();
      total = (plus ? total + next : total - next) % kLarge;
    }
    return total;
  }
  std::int64_t product() {
    std::int64_t total = factor();
    while (text_[at_] == '*') {
      ++at_;
      total = total * factor() % kLarge;
    }
    return total;
  }
  std::int64_t factor() {
    const char first = text_[at_++];
    if (first == '-') return -factor();
    if (first != '(') return first - '0';
    const std::int64_t inside = sum();
    EXPECT_EQ(text_[at_++], ')') << text_;
    return inside;
  }

  std::string text_;
  std::size_t at_ = 0;
};

std::int64_t expected_answer(Task task, const std::string& text) {
  if (task != Task::kParity) return Evaluator(text).value();
  return std::ranges::count(text, '1') % 2;
}

constexpr Task kTasks[] = {Task::kParity, Task::kModularArithmetic,
                           Task::kModularArithmeticBrackets};

TEST(StateTracking, AnswersAreThoseOfAnEvaluator) {
  for (const Task task : kTasks) {
    for (std::uint64_t i = 0; i < 3000; ++i) {
      const bool multiplication = i % 2 == 0;
      const TaskSequence sequence = task_sequence(task, multiplication, 3, 3 + i % 300, {7, i});
      const std::string text = text_of(task, sequence.ids);
      ASSERT_EQ(sequence.answer, expected_answer(task, text)) << text;
      ASSERT_TRUE(multiplication || text.find('*') == std::string::npos) << text;
    }
  }
}

TEST(StateTracking, TheEvaluatorIsRight) {
  EXPECT_EQ(Evaluator("4=").value(), 4);
  EXPECT_EQ(Evaluator("2+3*4=").value(), 4);
  EXPECT_EQ(Evaluator("1-2-3=").value(), 1);
  EXPECT_EQ(Evaluator("((-2)*(1+3))=").value(), 2);
}

// Every length as often as another one, with the least and the largest among them.
TEST(StateTracking, LengthsAreEven) {
  for (const Task task : kTasks) {
    std::map<std::int64_t, int> seen;
    for (std::uint64_t i = 0; i < 20000; ++i) {
      ++seen[std::ssize(task_sequence(task, true, 3, 12, {1, i}).ids) + 1];
    }
    const bool odd = task == Task::kModularArithmetic;
    EXPECT_EQ(seen.begin()->first, 3);
    EXPECT_EQ(seen.rbegin()->first, odd ? 11 : 12);
    EXPECT_EQ(std::ssize(seen), odd ? 5 : 10);
    const double mean = 20000.0 / static_cast<double>(seen.size());
    for (const auto& [length, count] : seen) EXPECT_NEAR(count, mean, 5 * std::sqrt(mean));
  }
}

TEST(StateTracking, SymbolsAndAnswersAreEven) {
  std::map<std::int32_t, int> symbols, answers;
  for (std::uint64_t i = 0; i < 4000; ++i) {
    const TaskSequence sequence = task_sequence(Task::kModularArithmetic, false, 41, 41, {3, i});
    for (const std::int32_t id : sequence.ids) ++symbols[id];
    ++answers[sequence.answer];
  }
  for (std::int32_t digit = 0; digit < 5; ++digit) {
    EXPECT_NEAR(symbols[digit], 4000 * 20 / 5, 500);
    EXPECT_NEAR(answers[digit], 800, 130);
  }
  EXPECT_NEAR(symbols[5], symbols[6], 900);  // + and -
}

TEST(StateTracking, SequencesAreFunctionsOfSeedAndNumber) {
  for (const Task task : kTasks) {
    std::set<std::vector<std::int32_t>> all;
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      for (std::uint64_t i = 0; i < 50; ++i) {
        const auto ids = task_sequence(task, true, 60, 60, {seed, i}).ids;
        EXPECT_EQ(ids, task_sequence(task, true, 60, 60, {seed, i}).ids);
        all.insert(ids);
      }
    }
    EXPECT_EQ(all.size(), 150u);
  }
}

TEST(StateTracking, ScaledAccuracyIsZeroByGuessing) {
  EXPECT_DOUBLE_EQ(scaled_accuracy(Task::kParity, 0.5), 0);
  EXPECT_DOUBLE_EQ(scaled_accuracy(Task::kModularArithmetic, 0.2), 0);
  for (const Task task : kTasks) EXPECT_DOUBLE_EQ(scaled_accuracy(task, 1), 100);
}

TEST(StateTracking, RefusesUnknownNamesAndLengths) {
  EXPECT_EQ(task_named("modular-arithmetic"), Task::kModularArithmetic);
  EXPECT_THROW(task_named("sorting"), Error);
  EXPECT_THROW(task_sequence(Task::kParity, true, 2, 9, {}), Error);
  EXPECT_THROW(task_sequence(Task::kParity, true, 9, 8, {}), Error);
}

TaskOptions small_task() {
  TaskOptions options;
  options.stages = {10, 30};
  options.stage_steps = 2;
  options.eval_length = 50;
  return options;
}

std::int64_t longest_of(const SequenceBatch& batch) {
  std::int64_t longest = 0;
  for (std::size_t i = 1; i < batch.cu_seqlens.size(); ++i) {
    longest = std::max(longest, batch.cu_seqlens[i] - batch.cu_seqlens[i - 1] + 1);
  }
  return longest;
}

TEST(TaskSource, StagesFollowEachOther) {
  const auto source = training_sequences(small_task(), 64, 5);
  for (const std::int64_t step : {0, 1}) EXPECT_EQ(longest_of(source->read(step * 64, 64)), 10);
  for (const std::int64_t step : {2, 3, 9}) {
    EXPECT_GT(longest_of(source->read(step * 64, 64)), 25);
    EXPECT_LE(longest_of(source->read(step * 64, 64)), 30);
  }
  const SequenceBatch held_out = evaluation_sequences(small_task())->read(100, 20);
  EXPECT_EQ(std::ssize(held_out.ids), 20 * 49);
}

TEST(TaskSource, PiecesAreTheWhole) {
  const auto source = training_sequences(small_task(), 8, 5);
  const SequenceBatch whole = source->read(10, 20);
  SequenceBatch joined;
  for (const auto& [begin, count] : {std::pair(10, 1), std::pair(11, 12), std::pair(23, 7)}) {
    const SequenceBatch piece = source->read(begin, count);
    joined.ids.insert(joined.ids.end(), piece.ids.begin(), piece.ids.end());
    joined.targets.insert(joined.targets.end(), piece.targets.begin(), piece.targets.end());
  }
  EXPECT_EQ(joined.ids, whole.ids);
  EXPECT_EQ(joined.targets, whole.targets);
}

// One target, the answer, at the last symbol of each.
TEST(TaskSource, OnlyTheAnswerCounts) {
  const SequenceBatch batch = training_sequences(small_task(), 8, 5)->read(0, 8);
  for (std::size_t i = 1; i < batch.cu_seqlens.size(); ++i) {
    std::int32_t parity = 0;
    for (std::int64_t t = batch.cu_seqlens[i - 1]; t < batch.cu_seqlens[i]; ++t) {
      parity ^= batch.ids[t];
      const bool last = t + 1 == batch.cu_seqlens[i];
      EXPECT_EQ(batch.targets[t], last ? parity : kIgnoredTarget);
    }
  }
}

TEST(TaskSource, OptionsComeBackFromJson) {
  TaskOptions options = small_task();
  options.task = Task::kModularArithmeticBrackets;
  options.multiplication = false;
  const nlohmann::json json = to_json(options);
  EXPECT_EQ(to_json(task_options_from(json)), nlohmann::ordered_json(to_json(options)));
  nlohmann::json empty = json;
  empty["stages"] = nlohmann::json::array();
  EXPECT_THROW(task_options_from(empty), Error);
}

}  // namespace
}  // namespace mamba3
