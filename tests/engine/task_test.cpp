#include "engine/task.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/check.h"

namespace mamba3 {
namespace {

TaskItem item_of(const std::string& json) {
  return to_task_item(parse_request_line(json, "t.jsonl line 3"));
}

ScoreResult result_of(double logprob, bool is_greedy = false) {
  ScoreResult result;
  result.logprob = logprob;
  result.is_greedy = is_greedy;
  return result;
}

TEST(Task, AQuestionIsFollowedByAnswer) {
  const TaskItem item =
      item_of(R"({"query": "Passage: p\nQuestion: why?\n\n", "choices": ["a", " b"], "gold": 1})");
  EXPECT_EQ(item.kind, TaskKind::kChoices);
  EXPECT_EQ(item.gold, 1);
  ASSERT_EQ(item.pairs.size(), 2u);
  EXPECT_EQ(item.pairs[0].context, "Passage: p\nQuestion: why?\nAnswer:");
  EXPECT_EQ(item.pairs[0].continuation, " a");
  EXPECT_EQ(item.pairs[1].continuation, "  b") << "the choice keeps its own blank";
}

TEST(Task, OtherQueriesStayAsTheyAre) {
  for (const char* query : {"They said Question: x", "question: x", "The sea"}) {
    const TaskItem item =
        item_of(std::string(R"({"query": ")") + query + R"(", "choices": ["a"], "gold": 0})");
    EXPECT_EQ(item.pairs[0].context, query);
  }
}

TEST(Task, LengthsAreCodePointsAndBytesWithoutTheDelimiter) {
  const TaskItem item = item_of(R"({"query": "q", "choices": ["\u00fcb\ud83c\udf0a"], "gold": 0})");
  EXPECT_EQ(item.pairs[0].answer_characters, 3);
  EXPECT_EQ(item.pairs[0].answer_bytes, 7);
}

TEST(Task, PartialScoringHasOneContinuationAndManyContexts) {
  const TaskItem item =
      item_of(R"({"context_options": ["x is", "y is"], "continuation": "z", "gold": 0})");
  EXPECT_EQ(item.kind, TaskKind::kContexts);
  ASSERT_EQ(item.pairs.size(), 2u);
  EXPECT_EQ(item.pairs[1].context, "y is");
  EXPECT_EQ(item.pairs[1].continuation, " z");
}

TEST(Task, RefusesItemsWithoutAnAnswer) {
  for (const char* json :
       {R"({"query": "q", "choices": [], "gold": 0})", R"({"query": "q", "choices": ["a"]})",
        R"({"query": "q", "choices": ["a"], "gold": 1})",
        R"({"query": "q", "choices": ["a"], "gold": -1})", R"({"query": "q", "gold": 1})",
        R"({"query": "q", "choices": ["a", ""], "gold": 0})", R"({"context": "a"})", "{}",
        R"({"context_options": ["a"], "gold": 0})"}) {
    try {
      item_of(json);
      FAIL() << json;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("t.jsonl line 3"), std::string::npos);
    }
  }
}

TEST(TaskMeter, LengthChangesTheChoice) {
  const TaskItem item =
      item_of(R"({"query": "q", "choices": ["aaaa", "\u00fc\u00fc"], "gold": 1})");
  const ScoreResult results[] = {result_of(-3.0), result_of(-2.0)};
  TaskMeter meter;
  meter.add(item, results);
  // -2 > -3; by characters -3/4 > -2/2; by bytes -3/4 < -2/4.
  EXPECT_EQ(meter.scores().acc, 1.0);
  EXPECT_EQ(meter.scores().acc_norm, 0.0);
  EXPECT_EQ(meter.scores().acc_norm_bytes, 1.0);
  EXPECT_FALSE(meter.scores().perplexity.has_value());
  EXPECT_EQ(meter.scores().sum_loglik, -5.0);
}

TEST(TaskMeter, TheFirstOfEqualChoicesCounts) {
  const ScoreResult results[] = {result_of(-2.0), result_of(-2.0)};
  TaskMeter meter;
  meter.add(item_of(R"({"query": "q", "choices": ["a", "b"], "gold": 0})"), results);
  meter.add(item_of(R"({"query": "q", "choices": ["a", "b"], "gold": 1})"), results);
  EXPECT_EQ(meter.scores().items, 2);
  EXPECT_EQ(meter.scores().acc, 0.5);
}

TEST(TaskMeter, ClozeCountsGreedyItemsAndPerplexityOfAnItem) {
  const TaskItem item = item_of(R"({"context": "a", "continuation": "b"})");
  const ScoreResult right = result_of(-1.0, true), wrong = result_of(-3.0, false);
  TaskMeter meter;
  meter.add(item, &right);
  meter.add(item, &wrong);
  EXPECT_EQ(meter.scores().acc, 0.5);
  EXPECT_DOUBLE_EQ(*meter.scores().perplexity, std::exp(2.0));
  EXPECT_FALSE(meter.scores().acc_norm.has_value());
}

}  // namespace
}  // namespace mamba3
