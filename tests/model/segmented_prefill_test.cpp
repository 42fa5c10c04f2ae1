// Prompts that are read together, in pieces, against each of them alone and uncut. On the CPU and,
// where there is one, on a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <ostream>

#include "mamba3/error.h"
#include "mamba3/model.h"
#include "model/segments.h"
#include "tiny_models.h"

namespace mamba3 {
namespace {

struct Case {
  std::string name;
  DeviceKind device;
  ModelConfig config;
  ComputeDType compute;
  SegmentRule rule;
};

void PrintTo(const Case& one, std::ostream* out) {
  *out << one.name;
}

// Two layers of a shape that Hopper's tensor cores scan.
ModelConfig tuned_config(std::int64_t rank) {
  ModelConfig config = tiny_models()[0].config;
  config.width = 96;
  config.mixer.state = 128;
  config.mixer.head_dim = 64;
  config.mixer.groups = 1;
  config.mixer.mimo = rank > 1;
  config.mixer.rank = rank;
  return config;
}

std::vector<Case> cases(DeviceKind device) {
  const bool gpu = device == DeviceKind::kCuda;
  const SegmentRule rule = gpu ? SegmentRule{1024, 256, 256} : SegmentRule{256, 64, 64};
  std::vector<Case> out;
  for (const TinyModel& tiny : tiny_models()) {
    out.push_back({tiny.name, device, tiny.config, ComputeDType::kF32, rule});
  }
  if (!gpu) return out;
  out.push_back({"tuned", device, tuned_config(1), ComputeDType::kBf16, rule});
  out.push_back({"tuned_mimo", device, tuned_config(4), ComputeDType::kBf16, rule});
  // Widths at which products share norms: with one behind each product, and without an MLP.
  Case wide{"tuned_wide", device, tuned_config(1), ComputeDType::kBf16, rule};
  wide.config.width = 512;
  out.push_back(wide);
  wide.name = "tuned_wide_mimo";
  wide.config = tuned_config(4);
  wide.config.width = 512;
  wide.config.mlp_hidden = 0;
  out.push_back(wide);
  return out;
}

// What reading prompts gives.
struct Outcome {
  std::vector<float> all, last;                // [t, padded v], [q, padded v]
  std::vector<std::vector<std::byte>> states;  // of the sequences
  std::vector<std::int64_t> progress;
};

constexpr int kShort = 20;  // prompts that end together: more than the head's own kernels take

class SegmentedPrefill : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().device == DeviceKind::kCuda && gpu_count() == 0) GTEST_SKIP() << "no GPU";
    ContextOptions options;
    options.threads = 2;
    options.device.kind = GetParam().device;
    options.same_bits = true;
    ctx_.emplace(options);
    model_ = Model::random(GetParam().config, DType::kBf16, 7, {GetParam().compute, false}, *ctx_);
    v_ = model_->config().padded_vocab();
    const std::int64_t grid = GetParam().rule.grid_tokens;
    for (const std::int64_t length : {5 * grid - 7, std::int64_t{0}, std::int64_t{1}, grid - 1,
                                      grid, grid + 1, 11 * grid + 3, 2 * grid + 2, 5 * grid}) {
      cu_.push_back(cu_.back() + length);
    }
    for (int i = 0; i < kShort; ++i) cu_.push_back(cu_.back() + 3 + i % 4);
    ids_ = random_ids(cu_.back(), model_->config().vocab, 3);
  }

  std::int64_t sequences() const { return std::ssize(cu_) - 1; }

  // Sequences [begin, end), with `rule`; twice, since a call gives one kind of logits.
  Outcome read(std::int64_t begin, std::int64_t end, const SegmentRule& rule) {
    const std::span<const std::int32_t> ids =
        std::span(ids_).subspan(cu_[begin], cu_[end] - cu_[begin]);
    std::vector<std::int64_t> cu, wanted;
    std::vector<std::int32_t> slots;  // the other way round: no slot has its sequence's number
    for (std::int64_t q = begin; q <= end; ++q) cu.push_back(cu_[q] - cu_[begin]);
    for (std::int64_t q = begin; q < end; ++q) {
      slots.push_back(static_cast<std::int32_t>(sequences() - 1 - q));
    }
    for (std::int64_t i = 0; i < std::ssize(ids); ++i) wanted.push_back(i);
    Outcome out;
    out.all.assign(wanted.size() * v_, NAN);
    out.last.assign((end - begin) * v_, NAN);
    StatePool pool(model_->config(), sequences(), *ctx_);
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = cu;
    args.slots = slots;
    args.segments = &rule;
    args.progress = [&](std::int64_t done) { out.progress.push_back(done); };
    args.last_logits = {out.last.data(), {end - begin, v_}};
    model_->prefill(args, pool, *ctx_);
    for (const std::int32_t slot : slots) {
      out.states.push_back(pool.export_slot(slot, 1).serialize());
      pool.reset(slot);
    }
    args.last_logits = {};
    args.progress = {};
    args.logit_tokens = wanted;
    args.on_logits = [&](std::span<const std::int64_t> which, TensorView<const float, 2> logits) {
      for (std::int64_t i = 0; i < logits.shape[0]; ++i) {
        std::copy_n(&logits(i, 0), v_, out.all.data() + which[i] * v_);
      }
    };
    model_->prefill(args, pool, *ctx_);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      EXPECT_EQ(pool.export_slot(slots[i], 1).serialize(), out.states[i]) << i;
    }
    return out;
  }

  static SegmentRule uncut() {
    constexpr std::int64_t kEndless = std::int64_t{1} << 40;
    return {kEndless, GetParam().rule.grid_tokens, kEndless};
  }

  std::vector<std::int32_t> slots_in_order() const {
    std::vector<std::int32_t> slots(static_cast<std::size_t>(sequences()));
    std::iota(slots.begin(), slots.end(), 0);
    return slots;
  }
  PrefillArgs all_tokens(std::span<const std::int32_t> slots, const SegmentRule& rule) const {
    PrefillArgs args;
    args.ids = ids_;
    args.cu_seqlens = cu_;
    args.slots = slots;
    args.segments = &rule;
    return args;
  }

  // As bits, so that NaN equals NaN.
  static bool same_bits(const float* a, const float* b, std::int64_t count) {
    return count == 0 || std::memcmp(a, b, count * sizeof(float)) == 0;
  }

  std::optional<Context> ctx_;
  std::shared_ptr<const Model> model_;
  std::int64_t v_ = 0;
  std::vector<std::int32_t> ids_;
  std::vector<std::int64_t> cu_ = {0};
};

TEST_P(SegmentedPrefill, PiecesAndNeighboursChangeNoBit) {
  const SegmentRule rule = GetParam().rule;
  const std::vector<Segment> segments = cut_segments(cu_, rule);
  ASSERT_GE(segments.size(), 6u);
  const Outcome together = read(0, sequences(), rule);
  ASSERT_EQ(together.progress.size(), segments.size());
  EXPECT_EQ(together.progress[0], segments[0].tokens());
  EXPECT_TRUE(std::is_sorted(together.progress.begin(), together.progress.end()));
  EXPECT_EQ(together.progress.back(), cu_.back());

  for (std::int64_t q = 0; q < sequences(); ++q) {
    SCOPED_TRACE(q);
    const std::int64_t tokens = cu_[q + 1] - cu_[q];
    const Outcome alone = read(q, q + 1, uncut());
    EXPECT_EQ(alone.progress.size(), tokens > 0 ? 1u : 0u);
    EXPECT_TRUE(same_bits(alone.all.data(), together.all.data() + cu_[q] * v_, tokens * v_));
    EXPECT_TRUE(same_bits(alone.last.data(), together.last.data() + q * v_, v_));
    EXPECT_EQ(std::isnan(alone.last[0]), tokens == 0) << "an empty sequence has no last logits";
    EXPECT_EQ(alone.states[0], together.states[q]);
  }
}

// The few tokens that a caller asks for get their own logits, whatever pieces lie between them.
TEST_P(SegmentedPrefill, WantedTokensAreFoundInTheirPieces) {
  const SegmentRule rule = GetParam().rule;
  const Outcome all = read(0, sequences(), uncut());
  std::vector<std::int64_t> wanted = {0,          5,      cu_[6] - 1, cu_[6],
                                      cu_[7] - 1, cu_[8], cu_[9] - 1, cu_.back() - 1};
  std::vector<int> given(wanted.size(), 0);
  const std::vector<std::int32_t> slots = slots_in_order();
  StatePool pool(model_->config(), sequences(), *ctx_);
  PrefillArgs args = all_tokens(slots, rule);
  args.logit_tokens = wanted;
  args.on_logits = [&](std::span<const std::int64_t> which, TensorView<const float, 2> logits) {
    ASSERT_EQ(std::ssize(which), logits.shape[0]);
    for (std::int64_t i = 0; i < logits.shape[0]; ++i) {
      ++given[which[i]];
      EXPECT_TRUE(same_bits(&logits(i, 0), all.all.data() + wanted[which[i]] * v_, v_)) << which[i];
    }
  };
  model_->prefill(args, pool, *ctx_);
  EXPECT_EQ(given, std::vector<int>(wanted.size(), 1));
}

// Between two segments a caller may stop, and go on later: what was read is in the states.
TEST_P(SegmentedPrefill, StoppingLeavesStatesOfWhatWasRead) {
  const SegmentRule rule = GetParam().rule;
  const std::vector<std::int32_t> slots = slots_in_order();
  StatePool pool(model_->config(), sequences(), *ctx_);
  PrefillArgs args = all_tokens(slots, rule);
  std::int64_t stopped_at = 0;
  args.progress = [&](std::int64_t done) {
    stopped_at = done;
    throw Error(ErrorCode::kInterrupted, "stop");
  };
  EXPECT_THROW(model_->prefill(args, pool, *ctx_), Error);
  const Segment first = cut_segments(cu_, rule)[0];
  EXPECT_EQ(stopped_at, first.tokens());
  std::vector<std::int64_t> read(slots.size(), 0);
  for (const Piece& piece : first.pieces) read[piece.sequence] = piece.tokens();
  for (const std::int32_t slot : slots) EXPECT_EQ(pool.position(slot), read[slot]) << slot;
}

std::string name_of(const testing::TestParamInfo<Case>& info) {
  return info.param.name;
}
INSTANTIATE_TEST_SUITE_P(Cpu, SegmentedPrefill, testing::ValuesIn(cases(DeviceKind::kCpu)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Cuda, SegmentedPrefill, testing::ValuesIn(cases(DeviceKind::kCuda)),
                         name_of);

}  // namespace
}  // namespace mamba3
