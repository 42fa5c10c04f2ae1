#include <gtest/gtest.h>

#include <atomic>

#include "mamba3/engine.h"
#include "mamba3/error.h"
#include "model/tiny_models.h"

namespace mamba3 {
namespace {

class GenerateTest : public testing::TestWithParam<int> {
 protected:
  GenerateTest() {
    checkpoint.model = Model::random(tiny_models()[GetParam()].config, DType::kBf16, 3, {}, ctx);
  }
  GenerateRequest greedy(std::vector<std::int32_t> prompt, std::int64_t tokens) const {
    GenerateRequest request;
    request.prompt_ids = std::move(prompt);
    request.max_tokens = tokens;
    request.sampling.temperature = 0;
    return request;
  }
  GenerateResult run(const GenerateRequest& request, const GenerateHooks& hooks = {}) {
    return generate(checkpoint, request, hooks, ctx);
  }
  std::vector<std::int32_t> prompt(std::int64_t count) const {
    return random_ids(count, checkpoint.model->config().vocab, 21);
  }

  Context ctx{ContextOptions{2, 0, {}}};
  Checkpoint checkpoint;
};

TEST_P(GenerateTest, ContinuingASavedStateEqualsNotStopping) {
  const auto whole = run(greedy(prompt(70), 20));
  auto first = run(greedy(prompt(70), 8));
  EXPECT_EQ(first.state.position(), 77) << "the last sampled id is pending, not read";
  GenerateRequest rest = greedy({}, 12);
  rest.state = SequenceState::deserialize(first.state.serialize(), checkpoint.model->config(),
                                          checkpoint.model->fingerprint(), "memory");
  const auto second = run(rest);
  auto joined = first.samples[0].ids;
  joined.insert(joined.end(), second.samples[0].ids.begin(), second.samples[0].ids.end());
  EXPECT_EQ(joined, whole.samples[0].ids);
  auto logprobs = first.samples[0].logprobs;
  const auto& others = second.samples[0].logprobs;
  logprobs.insert(logprobs.end(), others.begin(), others.end());
  EXPECT_EQ(logprobs, whole.samples[0].logprobs) << "not bit for bit";
}

TEST_P(GenerateTest, ASavedStateMayOnlyBeRead) {
  GenerateRequest rest = greedy({}, 0);
  rest.state = run(greedy(prompt(9), 3)).state;
  const auto read = run(rest);
  EXPECT_EQ(read.prefill_tokens, 1);
  EXPECT_EQ(read.state.position(), 12);
  EXPECT_EQ(read.state.pending_id(), -1);
}

TEST_P(GenerateTest, SamplesOfOnePromptDoNotDependOnEachOther) {
  GenerateRequest request = greedy(prompt(9), 15);
  request.sampling.temperature = 1.0f;
  request.seed = 5;
  request.samples = 4;
  const auto four = run(request);
  request.samples = 2;
  const auto two = run(request);
  EXPECT_EQ(four.samples[0].ids, two.samples[0].ids);
  EXPECT_EQ(four.samples[1].ids, two.samples[1].ids);
  EXPECT_NE(four.samples[0].ids, four.samples[1].ids);
  EXPECT_EQ(four.decode_tokens, 60);
}

TEST_P(GenerateTest, EndsAtEosUnlessToldNotTo) {
  GenerateRequest request = greedy(prompt(5), 10);
  const auto free = run(request);
  checkpoint.eos_ids = {free.samples[0].ids[3]};
  const auto ended = run(request);
  EXPECT_EQ(ended.samples[0].reason, FinishReason::kEos);
  EXPECT_LE(ended.samples[0].ids.size(), 4u);
  request.ignore_eos = true;
  EXPECT_EQ(run(request).samples[0].ids, free.samples[0].ids);
}

TEST_P(GenerateTest, AnInterruptKeepsWhatWasProduced) {
  std::atomic<bool> stop{true};
  GenerateHooks hooks;
  EXPECT_THROW(
      {
        hooks.interrupted = &stop;
        run(greedy(prompt(5), 10), hooks);
      },
      Error);
  stop = false;
  hooks.on_prefill = [&](std::int64_t, std::int64_t) {};
  hooks.interrupted = &stop;
  EXPECT_EQ(run(greedy(prompt(5), 10), hooks).samples[0].reason, FinishReason::kLength);
}

TEST_P(GenerateTest, ReadingOnlyPreparesAState) {
  const auto read = run(greedy(prompt(33), 0));
  EXPECT_TRUE(read.samples[0].ids.empty());
  EXPECT_EQ(read.state.position(), 33);
  EXPECT_EQ(read.state.pending_id(), -1);
}

TEST_P(GenerateTest, RefusesRequestsThatMeanNothing) {
  EXPECT_THROW(run(greedy({}, 5)), Error);
  GenerateRequest request = greedy({1}, 5);
  request.samples = 0;
  EXPECT_THROW(run(request), Error);
  request.samples = 1;
  request.stop = {"text"};
  EXPECT_THROW(run(request), Error) << "stop texts need a tokenizer";
}

TEST_P(GenerateTest, ScoresAgreeWithGeneratedLogprobsAndWithEachOtherHoweverPacked) {
  const auto generated = run(greedy(prompt(20), 30));
  ScoreRequest request;
  request.ids = prompt(20);
  request.first_scored = 20;
  const auto& ids = generated.samples[0].ids;
  request.ids.insert(request.ids.end(), ids.begin(), ids.end());
  const auto alone = score(checkpoint, {request}, {}, ctx);
  EXPECT_TRUE(alone[0].is_greedy);
  ASSERT_EQ(alone[0].token_logprobs.size(), ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    EXPECT_NEAR(alone[0].token_logprobs[i], generated.samples[0].logprobs[i], 2e-4);
  }
  ScoreRequest other;
  other.ids = prompt(700);
  const std::vector<ScoreRequest> many = {other, {{1}, 1}, request, other, {{}, 1}, request};
  const auto packed = score(checkpoint, many, {}, ctx);
  EXPECT_EQ(packed[2].token_logprobs, alone[0].token_logprobs);
  EXPECT_EQ(packed[5].token_logprobs, alone[0].token_logprobs);
  EXPECT_EQ(packed[0].token_logprobs, packed[3].token_logprobs);
  EXPECT_TRUE(packed[1].token_logprobs.empty());
  EXPECT_EQ(packed[0].token_logprobs.size(), 699u);
}

INSTANTIATE_TEST_SUITE_P(Tiny, GenerateTest, testing::Values(0, 1, 2),
                         [](const auto& tiny) { return tiny_models()[tiny.param].name; });

}  // namespace
}  // namespace mamba3
