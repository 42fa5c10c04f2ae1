#include "mamba3/sampling.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "ops/op_test_helpers.h"

namespace mamba3 {
namespace {

// Every filter and penalty off.
SamplingParams plain(float temperature = 1) {
  SamplingParams params;
  params.temperature = temperature;
  params.top_k = 0;
  params.top_p = 1;
  params.min_p = 0;
  return params;
}

double logprob_ref(const std::vector<float>& logits, std::int64_t id) {
  long double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<long double>(logit) - logits[id]);
  return static_cast<double>(-std::log(sum));
}

// The ids that can come out at all, by a fine comb of draws.
std::vector<std::int32_t> reachable(const std::vector<float>& logits, const SamplingParams& params,
                                    const std::vector<std::int32_t>& seen = {}) {
  std::vector<std::int32_t> out;
  for (int i = 0; i < 4096; ++i) {
    out.push_back(sample_token(logits, seen, params, i / 4096.0).id);
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

std::vector<float> logs(std::vector<double> probabilities) {
  std::vector<float> out;
  for (const double p : probabilities) out.push_back(static_cast<float>(std::log(p) + 3));
  return out;
}

using Ids = std::vector<std::int32_t>;

TEST(UniformDraw, IsPhiloxByItsPublishedTestVectors) {
  // Random123's known answers for philox4x32-10: counter and key all zeros, all ones, digits of pi.
  EXPECT_EQ(uniform_draw(0, 0, 0), static_cast<double>(0xe169c58d6627e8d5u >> 11) * 0x1p-53);
  EXPECT_EQ(uniform_draw(~0ull, ~0ull, ~0ull),
            static_cast<double>(0x41c83b0e408f276du >> 11) * 0x1p-53);
  EXPECT_EQ(uniform_draw(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u),
            static_cast<double>(0x94fdccebd16cfe09u >> 11) * 0x1p-53);
}

TEST(UniformDraw, EveryArgumentMattersAndDrawsAreUniform) {
  std::vector<int> bins(64);
  const int draws = 1 << 16;
  for (int i = 0; i < draws; ++i) {
    // A third of the draws each along the position, the stream and the seed.
    const std::uint64_t at = static_cast<std::uint64_t>(i) / 3;
    const double u = uniform_draw(i % 3 == 0 ? at : 5, i % 3 == 1 ? at : 6, i % 3 == 2 ? at : 7);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ++bins[static_cast<int>(u * 64)];
  }
  double chi_square = 0;
  for (const int count : bins) chi_square += (count - draws / 64.0) * (count - draws / 64.0);
  chi_square /= draws / 64.0;
  EXPECT_LT(chi_square, 103.4);  // 63 degrees of freedom: exceeded once in 1,000
}

TEST(Sampling, GreedyTakesTheFirstOfEqualLogits) {
  for_each_target([] {
    for (const std::int64_t v : {1, 2, 17, 64, 1000}) {
      for (const std::int64_t best : {std::int64_t{0}, v / 2, v - 1}) {
        std::vector<float> logits(static_cast<std::size_t>(v), -2.5f);
        logits[best] = logits[v - 1] = 1;
        EXPECT_EQ(sample_token(logits, {}, plain(0), 0.99).id, best);
      }
    }
  });
}

TEST(Sampling, LogprobIsOfTheRawDistribution) {
  for_each_target([] {
    for (const std::int64_t v : {1, 2, 7, 15, 16, 17, 1000, 4096, 128256}) {
      const auto logits = random_floats(v, 3, 5);
      for (const std::int64_t id : {std::int64_t{0}, v / 3, v - 1}) {
        EXPECT_NEAR(token_logprob(logits, static_cast<std::int32_t>(id)), logprob_ref(logits, id),
                    2e-9);
      }
      SamplingParams params;
      params.repeat_penalty = 1.3f;
      params.temperature = 0.3f;
      const Ids seen = {0};
      const Sample sample = sample_token(logits, seen, params, 0.7);
      EXPECT_EQ(sample.logprob, static_cast<float>(token_logprob(logits, sample.id)));
    }
  });
}

TEST(Sampling, LogprobOfLargeAndImpossibleLogits) {
  const std::vector<float> logits = {3e38f, -kInf, -3e38f, 3e38f};
  EXPECT_NEAR(token_logprob(logits, 0), -std::log(2.0), 1e-12);
  EXPECT_EQ(token_logprob(logits, 1), -HUGE_VAL);
  EXPECT_EQ(token_logprob({{-kInf, 5.0f, -kInf}}, 1), 0);
}

TEST(Sampling, OnePossibleTokenIsFine) {
  std::vector<float> logits(100, -kInf);
  logits[42] = -7;
  for (const float temperature : {0.0f, 1e-3f, 1.0f, 100.0f}) {
    for (const float top_p : {0.5f, 1.0f}) {
      for (const std::int32_t top_k : {0, 1, 50}) {
        SamplingParams params = plain(temperature);
        params.top_p = top_p;
        params.top_k = top_k;
        for (const double draw : {0.0, 0.5, 1 - 0x1p-53}) {
          const Sample sample = sample_token(logits, {}, params, draw);
          EXPECT_EQ(sample.id, 42);
          EXPECT_EQ(sample.logprob, 0);
        }
      }
    }
  }
}

TEST(Sampling, RefusesLogitsThatAreNoDistribution) {
  for (const std::int64_t v : {3, 100}) {
    for (const std::int64_t at : {std::int64_t{1}, v - 1}) {
      for (const float bad : {kNan, -kNan, kInf}) {
        auto logits = random_floats(v, 1);
        logits[at] = bad;
        const std::string message = error_of([&] { sample_token(logits, {}, plain(0), 0); });
        EXPECT_NE(message.find("token " + std::to_string(at)), std::string::npos) << message;
        error_of([&] { token_logprob(logits, 0); });
      }
    }
    const std::vector<float> none(static_cast<std::size_t>(v), -kInf);
    error_of([&] { sample_token(none, {}, plain(), 0); });
  }
  error_of([&] { sample_token({}, {}, plain(), 0); });
}

TEST(Sampling, RefusesParametersOutOfRange) {
  const std::vector<float> logits = {1, 2, 3};
  const auto refuses = [&](auto change, double draw = 0.5) {
    SamplingParams params;
    change(params);
    error_of([&] { sample_token(logits, {}, params, draw); });
  };
  refuses([](SamplingParams& p) { p.temperature = -1; });
  refuses([](SamplingParams& p) { p.temperature = kNan; });
  refuses([](SamplingParams& p) { p.temperature = kInf; });
  refuses([](SamplingParams& p) { p.top_k = -1; });
  refuses([](SamplingParams& p) { p.top_p = 0; });
  refuses([](SamplingParams& p) { p.top_p = 1.01f; });
  refuses([](SamplingParams& p) { p.top_p = kNan; });
  refuses([](SamplingParams& p) { p.min_p = -0.1f; });
  refuses([](SamplingParams& p) { p.min_p = 1.1f; });
  refuses([](SamplingParams& p) { p.repeat_penalty = 0; });
  refuses([](SamplingParams& p) { p.presence_penalty = kNan; });
  refuses([](SamplingParams& p) { p.frequency_penalty = kInf; });
  refuses([](SamplingParams&) {}, 1.0);
  refuses([](SamplingParams&) {}, -0.1);
  SamplingParams penalty;
  penalty.repeat_penalty = 2;
  for (const std::int32_t bad : {-1, 3}) {
    error_of([&] { sample_token(logits, Ids{0, bad}, penalty, 0); });
  }
  error_of([&] { token_logprob(logits, 3); });
  error_of([&] { token_logprob(logits, -1); });
}

TEST(Sampling, PenaltiesChangeSeenTokensOnly) {
  // Greedy: which token wins tells the arithmetic.
  const auto best = [](const std::vector<float>& logits, const Ids& seen, float repeat,
                       float presence, float frequency) {
    SamplingParams params = plain(0);
    params.repeat_penalty = repeat;
    params.presence_penalty = presence;
    params.frequency_penalty = frequency;
    return sample_token(logits, seen, params, 0).id;
  };
  EXPECT_EQ(best({4.0f, 2.1f}, {0}, 2, 0, 0), 1);        // 4 / 2 < 2.1
  EXPECT_EQ(best({4.0f, 1.9f}, {0, 0, 0}, 2, 0, 0), 0);  // once, however often seen
  EXPECT_EQ(best({-1.0f, -1.9f}, {0}, 2, 0, 0), 1);      // -1 * 2 < -1.9
  EXPECT_EQ(best({4.0f, 2.9f}, {0, 0}, 1, 1, 0), 0);     // 4 - 1 > 2.9
  EXPECT_EQ(best({4.0f, 3.1f}, {0, 0}, 1, 1, 0), 1);
  EXPECT_EQ(best({4.0f, 2.1f}, {0, 0}, 1, 0, 1), 1);  // 4 - 2 < 2.1
  EXPECT_EQ(best({4.0f, 1.9f}, {0, 0}, 1, 0, 1), 0);
  EXPECT_EQ(best({4.0f, -1.4f}, {0, 0}, 2, 1.5f, 1), 1);  // 4 / 2 - 1.5 - 2 = -1.5 < -1.4
}

TEST(Sampling, TopKKeepsTheLowestIdsOfEquals) {
  const std::vector<float> logits = {1, 3, 2, 3, 2, 2, 0};
  SamplingParams params = plain();
  const std::vector<Ids> kept = {{1}, {1, 3}, {1, 2, 3}, {1, 2, 3, 4}, {1, 2, 3, 4, 5}};
  for (std::int32_t k = 1; k <= 5; ++k) {
    params.top_k = k;
    EXPECT_EQ(reachable(logits, params), kept[k - 1]);
  }
  for (const std::int32_t k : {0, 7, 1000}) {
    params.top_k = k;
    EXPECT_EQ(reachable(logits, params), (Ids{0, 1, 2, 3, 4, 5, 6}));
  }
}

TEST(Sampling, TopPKeepsTheFewestThatReachIt) {
  const auto logits = logs({0.1, 0.4, 0.2, 0.3});
  SamplingParams params = plain();
  for (const auto& [p, kept] : std::map<float, Ids>{{0.01f, {1}},
                                                    {0.39f, {1}},
                                                    {0.41f, {1, 3}},
                                                    {0.69f, {1, 3}},
                                                    {0.71f, {1, 2, 3}},
                                                    {0.89f, {1, 2, 3}},
                                                    {0.91f, {0, 1, 2, 3}},
                                                    {1.0f, {0, 1, 2, 3}}}) {
    params.top_p = p;
    EXPECT_EQ(reachable(logits, params), kept) << p;
  }
  // After top-k its share is of what top-k kept: 0.4 of 0.7.
  params.top_k = 2;
  params.top_p = 0.56f;
  EXPECT_EQ(reachable(logits, params), (Ids{1}));
  params.top_p = 0.58f;
  EXPECT_EQ(reachable(logits, params), (Ids{1, 3}));
}

TEST(Sampling, MinPIsAShareOfTheMostLikely) {
  const auto logits = logs({0.1, 0.4, 0.2, 0.3});
  SamplingParams params = plain();
  for (const auto& [p, kept] : std::map<float, Ids>{{0.24f, {0, 1, 2, 3}},
                                                    {0.26f, {1, 2, 3}},
                                                    {0.49f, {1, 2, 3}},
                                                    {0.51f, {1, 3}},
                                                    {0.76f, {1}},
                                                    {1.0f, {1}}}) {
    params.min_p = p;
    params.top_p = 1;
    EXPECT_EQ(reachable(logits, params), kept) << p;
    params.top_p = 0.999f;
    EXPECT_EQ(reachable(logits, params), kept) << p;
  }
}

// min-p looks at the distribution after temperature, like the other two filters.
TEST(Sampling, FiltersFollowTemperature) {
  const auto logits = logs({0.8, 0.2});  // at temperature 2: 2/3 and 1/3
  SamplingParams params = plain(2);
  params.min_p = 0.45f;
  EXPECT_EQ(reachable(logits, params), (Ids{0, 1}));
  params.min_p = 0.55f;
  EXPECT_EQ(reachable(logits, params), (Ids{0}));
  params.min_p = 0;
  params.top_p = 0.7f;
  EXPECT_EQ(reachable(logits, params), (Ids{0, 1}));
  params.top_p = 0.65f;
  EXPECT_EQ(reachable(logits, params), (Ids{0}));
}

// The shortcuts that leave out hopeless tokens early change nothing: against sorting everything.
TEST(Sampling, FiltersOfLargeVocabulariesAgreeWithAFullSort) {
  const std::int64_t v = 5000;
  for (const float spread : {0.1f, 1.0f, 4.0f}) {
    const auto logits = random_floats(v, 11, spread);
    std::vector<std::int32_t> order(v);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
    std::vector<double> weights;
    for (const float logit : logits) weights.push_back(std::exp(static_cast<double>(logit)));
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (const float p : {0.05f, 0.5f, 0.95f, 0.999f}) {
      std::vector<double> kept(v);
      double sum = 0;
      for (std::int64_t i = 0; i < v && sum < p * total; ++i) {
        kept[order[i]] = weights[order[i]];
        sum += weights[order[i]];
      }
      SamplingParams params = plain();
      params.top_p = p;
      double below = 0;
      for (std::int64_t id = 0; id < v; ++id) {
        if (kept[id] > 0 && id % 50 == 0) {
          const double middle = (below + kept[id] / 2) / sum;
          ASSERT_EQ(sample_token(logits, {}, params, middle).id, id) << p << " " << spread;
        }
        below += kept[id];
      }
    }
  }
}

TEST(Sampling, DrawsFollowTheDistribution) {
  const auto logits = random_floats(50, 5, 1.5f);
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    SamplingParams params = plain(temperature);
    std::vector<double> expected;
    for (const float logit : logits) {
      expected.push_back(std::exp(static_cast<double>(logit) / temperature));
    }
    const double total = std::accumulate(expected.begin(), expected.end(), 0.0);
    std::vector<int> counts(50);
    const int draws = 40000;
    for (int i = 0; i < draws; ++i) {
      ++counts[sample_token(logits, {}, params, uniform_draw(1, 2, i)).id];
    }
    double chi_square = 0;
    for (int id = 0; id < 50; ++id) {
      const double mean = draws * expected[id] / total;
      chi_square += (counts[id] - mean) * (counts[id] - mean) / mean;
    }
    EXPECT_LT(chi_square, 85.4) << temperature;  // 49 degrees of freedom: once in 1,000
  }
}

TEST(Sampling, TheEndsOfTheDrawAndOfTheTemperature) {
  const std::vector<float> logits = {0, 0, 0, 0};
  EXPECT_EQ(sample_token(logits, {}, plain(), 0).id, 0);
  EXPECT_EQ(sample_token(logits, {}, plain(), 0.2499).id, 0);
  EXPECT_EQ(sample_token(logits, {}, plain(), 0.2501).id, 1);
  EXPECT_EQ(sample_token(logits, {}, plain(), 1 - 0x1p-53).id, 3);
  const std::vector<float> apart = {1, 2, 1.5f};
  for (const float tiny : {1e-45f, 1e-38f, 1e-6f}) {
    for (const float top_p : {0.9f, 1.0f}) {
      SamplingParams params = plain(tiny);
      params.top_p = top_p;
      EXPECT_EQ(reachable(apart, params), (Ids{1}));
    }
  }
  EXPECT_EQ(reachable(apart, plain(3e38f)), (Ids{0, 1, 2}));
}

}  // namespace
}  // namespace mamba3
