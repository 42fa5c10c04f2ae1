// sample_rows against sample_token, on a GPU; the general behaviour of rows on the CPU too.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/gpu.h"
#include "gpu_case.h"
#include "ops/sampling/sample_rows.h"

namespace mamba3 {
namespace {

using testing::GpuArray;
using testing::on_gpu;

struct Case {
  std::int64_t vocab = 0, stride = 0;
  std::vector<float> logits;  // [rows, stride]
  std::vector<RowSampling> rows;
};

struct Outcome {
  std::vector<std::int32_t> next_ids;
  std::vector<SampledToken> tokens;
  std::vector<RowSampling> rows;
};

Outcome sample_on_gpu(const Case& c, bool alone, Context& ctx) {
  const auto count = static_cast<std::int64_t>(c.rows.size());
  const GpuArray<float> logits(ctx, c.logits);
  const GpuArray<RowSampling> rows(ctx, c.rows);
  const std::vector<std::int32_t> no_ids(c.rows.size(), -7);
  const std::vector<SampledToken> no_tokens(c.rows.size());
  const GpuArray<std::int32_t> ids(ctx, no_ids);
  const GpuArray<SampledToken> tokens(ctx, no_tokens);
  SampleRowsArgs args;
  args.logits = {logits.data(), {count, c.stride}};
  args.vocab = c.vocab;
  args.rows = rows.data();
  args.next_ids = ids.data();
  args.out = tokens.data();
  args.alone = alone;
  sample_rows(args, ctx);
  Outcome out;
  ids.copy_to(out.next_ids);
  tokens.copy_to(out.tokens);
  rows.copy_to(out.rows);
  return out;
}

SamplingParams params_of(const RowSampling& row) {
  SamplingParams params;
  params.temperature = row.temperature;
  params.top_k = row.top_k;
  params.top_p = row.top_p;
  params.min_p = row.min_p;
  return params;
}

// Every row has the id of sample_token(), or of a draw so near that the rounding of a sum decides.
void expect_the_same_choice(const Case& c, const Outcome& got) {
  constexpr double kNear = 1e-8;
  for (std::size_t i = 0; i < c.rows.size(); ++i) {
    const std::span<const float> logits(c.logits.data() + static_cast<std::int64_t>(i) * c.stride,
                                        static_cast<std::size_t>(c.vocab));
    const RowSampling& row = c.rows[i];
    const SamplingParams params = params_of(row);
    const double draw = uniform_draw(row.seed, row.stream, row.position);
    const SampledToken& token = got.tokens[i];
    const std::string what = "row " + std::to_string(i) + " v " + std::to_string(c.vocab) +
                             " temperature " + std::to_string(row.temperature) + " k " +
                             std::to_string(row.top_k) + " p " + std::to_string(row.top_p) +
                             " min-p " + std::to_string(row.min_p);
    ASSERT_EQ(token.status, SampleStatus::kOk) << what;
    const Sample want = sample_token(logits, {}, params, draw);
    if (token.id != want.id) {
      const std::int32_t below = sample_token(logits, {}, params, std::max(draw - kNear, 0.0)).id;
      const std::int32_t above =
          sample_token(logits, {}, params, std::min(draw + kNear, 1 - 0x1p-53)).id;
      EXPECT_TRUE(token.id == below || token.id == above)
          << what << ": " << token.id << " instead of " << want.id;
    }
    ASSERT_GE(token.id, 0) << what;
    ASSERT_LT(token.id, c.vocab) << what;
    const double logprob = token_logprob(logits, token.id);
    EXPECT_NEAR(token.logprob, logprob, 1e-6 * (1 + std::abs(logprob))) << what;
    EXPECT_EQ(got.next_ids[i], token.id) << what;
    EXPECT_EQ(got.rows[i].position, row.position + 1) << what;
  }
}

// A row for each way to sample.
std::vector<RowSampling> ways(std::int64_t vocab) {
  const auto v = static_cast<std::int32_t>(vocab);
  std::vector<RowSampling> rows;
  for (const float temperature : {0.0f, 1e-6f, 0.8f, 1.0f, 5.0f}) {
    for (const std::int32_t top_k : {0, 1, 2, 40, 112, 113, 1500, v - 1, v, v + 1}) {
      if (top_k < 0) continue;
      for (const float top_p : {1.0f, 0.95f, 0.3f, 1e-6f, 0.99999f}) {
        for (const float min_p : {0.0f, 0.05f, 1.0f}) {
          RowSampling row;
          row.temperature = temperature;
          row.top_k = top_k;
          row.top_p = top_p;
          row.min_p = min_p;
          row.seed = 0x123456789abcdef0u + rows.size();
          row.stream = rows.size() % 5;
          row.position = (std::uint64_t{1} << 33) + rows.size();
          rows.push_back(row);
        }
      }
    }
  }
  return rows;
}

// `make(row, id)` gives the logits; what lies behind the vocabulary is NaN.
template <class Make>
Case make_case(std::int64_t vocab, std::int64_t stride, std::vector<RowSampling> rows,
               const Make& make) {
  Case c;
  c.vocab = vocab;
  c.stride = stride;
  c.rows = std::move(rows);
  c.logits.assign(c.rows.size() * static_cast<std::size_t>(stride),
                  std::numeric_limits<float>::quiet_NaN());
  for (std::size_t row = 0; row < c.rows.size(); ++row) {
    for (std::int64_t id = 0; id < vocab; ++id) {
      c.logits[row * static_cast<std::size_t>(stride) + static_cast<std::size_t>(id)] =
          make(row, id);
    }
  }
  return c;
}

void run_both(const Case& c) {
  Context ctx(on_gpu());
  for (const bool alone : {false, true}) {
    SCOPED_TRACE(alone ? "one block a row" : "a cluster a row");
    expect_the_same_choice(c, sample_on_gpu(c, alone, ctx));
  }
}

float gaussian_like(std::size_t row, std::int64_t id, float spread) {
  std::uint32_t x = static_cast<std::uint32_t>(id) * 747796405u +
                    static_cast<std::uint32_t>(row) * 2891336453u + 12345u;
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    x = x * 1664525u + 1013904223u;
    sum += static_cast<float>(x >> 8) / 16777216.0f - 0.5f;
  }
  return spread * sum;
}

class CudaSampling : public ::testing::TestWithParam<int> {};

TEST_P(CudaSampling, ChoosesAsSampleTokenDoes) {
  SKIP_WITHOUT_GPU();
  const std::int64_t v = GetParam();
  for (const float spread : {0.5f, 6.0f}) {
    run_both(make_case(v, v + 3 - v % 3, ways(v), [&](std::size_t row, std::int64_t id) {
      return gaussian_like(row, id, spread);
    }));
  }
}

// Logits of a coarse grid: many are equal, on both sides of every filter's end; some impossible,
// some -0.
TEST_P(CudaSampling, ChoosesAmongEqualsByTheirIds) {
  SKIP_WITHOUT_GPU();
  const std::int64_t v = GetParam();
  run_both(make_case(v, (v + 7) / 8 * 8, ways(v), [&](std::size_t row, std::int64_t id) {
    if ((id * 7 + static_cast<std::int64_t>(row)) % 11 == 3 && id > 0) return -kInf;
    const float step = std::round(gaussian_like(row, id, 3.0f));
    return step == 0 && id % 2 == 0 ? -0.0f : step;
  }));
}

TEST_P(CudaSampling, EveryLogitTheSameAndOneHot) {
  SKIP_WITHOUT_GPU();
  const std::int64_t v = GetParam();
  run_both(make_case(v, v, ways(v), [&](std::size_t row, std::int64_t id) {
    if (row % 2 == 0) return -3.25f;
    return id == static_cast<std::int64_t>(row) * 977 % v ? 7.0f : -kInf;
  }));
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, CudaSampling,
                         ::testing::Values(1, 2, 5, 31, 257, 1024, 1025, 4099, 10007));

TEST(CudaSamplingRows, TheLargestVocabulariesAndExtremeLogits) {
  SKIP_WITHOUT_GPU();
  std::vector<RowSampling> few;
  for (RowSampling row : ways(40)) {
    if (row.temperature == 0.8f || (row.temperature == 0 && few.empty())) few.push_back(row);
  }
  for (const std::int64_t v : {128256, 500001}) {
    few.resize(v > 200000 ? 12 : 48);
    run_both(make_case(v, v + 1, few, [](std::size_t row, std::int64_t id) {
      return gaussian_like(row, id, 8.0f);
    }));
  }
  run_both(make_case(3000, 3000, few, [](std::size_t, std::int64_t id) {
    return id % 3 == 0 ? 3e38f : id % 3 == 1 ? -3e38f : 1e-40f;
  }));
}

// A row that cannot be sampled says why and changes nothing for the others.
TEST(CudaSamplingRows, BadRowsStopAlone) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int64_t v : {7, 5000}) {
    std::vector<RowSampling> rows(12);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i].temperature = i % 2 == 0 ? 0.0f : 1.0f;
      rows[i].seed = 9;
      rows[i].stream = i;
    }
    const auto make = [&](std::size_t row, std::int64_t id) {
      if (row == 2 && id == v - 1) return kNan;
      if (row == 3 && id == 0) return -kNan;
      if (row == 6 && id == v / 2) return kInf;
      if (row == 9) return -kInf;
      return gaussian_like(row, id, 4.0f);
    };
    const Case c = make_case(v, v, rows, make);
    const Case sound = make_case(
        v, v, rows, [&](std::size_t row, std::int64_t id) { return gaussian_like(row, id, 4.0f); });
    for (const bool alone : {false, true}) {
      const Outcome bad = sample_on_gpu(c, alone, ctx), good = sample_on_gpu(sound, alone, ctx);
      for (std::size_t row = 0; row < rows.size(); ++row) {
        const bool not_finite = row == 2 || row == 3 || row == 6;
        const SampleStatus want = not_finite ? SampleStatus::kNotFinite
                                  : row == 9 ? SampleStatus::kNoToken
                                             : SampleStatus::kOk;
        EXPECT_EQ(bad.tokens[row].status, want) << row;
        if (want == SampleStatus::kOk) {
          EXPECT_EQ(bad.tokens[row].id, good.tokens[row].id) << row;
          EXPECT_EQ(bad.tokens[row].logprob, good.tokens[row].logprob) << row;
        } else {
          EXPECT_EQ(bad.tokens[row].id, -1) << row;
          EXPECT_EQ(bad.next_ids[row], 0) << row;
        }
      }
    }
  }
}

// The CPU's rows are sample_token() itself.
TEST(SampleRows, OnTheCpuRowsAreSampledOneByOne) {
  Context ctx{ContextOptions{2, 0, {}}};
  for (const std::int64_t v : {1, 5, 257}) {
    const Case c = make_case(v, v + 2, ways(v), [](std::size_t row, std::int64_t id) {
      return gaussian_like(row, id, 3.0f);
    });
    Outcome out;
    out.rows = c.rows;
    out.next_ids.resize(c.rows.size());
    out.tokens.resize(c.rows.size());
    SampleRowsArgs args;
    args.logits = {c.logits.data(), {static_cast<std::int64_t>(c.rows.size()), c.stride}};
    args.vocab = v;
    args.rows = out.rows.data();
    args.next_ids = out.next_ids.data();
    args.out = out.tokens.data();
    sample_rows(args, ctx);
    expect_the_same_choice(c, out);
  }
}

TEST(SampleRows, OnTheCpuBadRowsStopAlone) {
  Context ctx{ContextOptions{1, 0, {}}};
  const std::vector<float> logits = {1, 2, kNan, 3, kInf, 0, -kInf, -kInf, 5, 4};
  std::vector<RowSampling> rows(5);
  std::vector<std::int32_t> next_ids(5, -7);
  std::vector<SampledToken> tokens(5);
  SampleRowsArgs args;
  args.logits = {logits.data(), {5, 2}};
  args.vocab = 2;
  args.rows = rows.data();
  args.next_ids = next_ids.data();
  args.out = tokens.data();
  sample_rows(args, ctx);
  const SampleStatus want[] = {SampleStatus::kOk, SampleStatus::kNotFinite,
                               SampleStatus::kNotFinite, SampleStatus::kNoToken, SampleStatus::kOk};
  for (int row = 0; row < 5; ++row) EXPECT_EQ(tokens[row].status, want[row]) << row;
  EXPECT_EQ(next_ids, (std::vector<std::int32_t>{1, 0, 0, 0, 0}));
  EXPECT_EQ(tokens[4].id, 0);
  args.vocab = 3;
  EXPECT_THROW(sample_rows(args, ctx), Error);
}

}  // namespace
}  // namespace mamba3
