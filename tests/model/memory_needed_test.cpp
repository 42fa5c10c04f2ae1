// What a batch needs and which batch fits, against what is really allocated where that is known.
#include "model/memory_needed.h"

#include <gtest/gtest.h>

#include "core/check.h"
#include "core/host_memory.h"
#include "mamba3/error.h"
#include "model/mixer.h"
#include "model/state_pool.h"
#include "ops/mamba3_common/mamba3_ring.h"
#include "tiny_models.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kMultiprocessors = 132;

GpuInfo card(std::int64_t free_bytes) {
  GpuInfo info;
  info.name = "Imaginary 9000";
  info.free_bytes = free_bytes;
  info.multiprocessors = kMultiprocessors;
  return info;
}

std::string refusal(const ModelSize& size, std::int64_t batch, std::int64_t free_bytes) {
  try {
    check_memory(size, batch, card(free_bytes));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
    return error.what();
  }
  return "";
}

TEST(MemoryNeeded, ASlotIsNoSmallerThanWhatAPoolTakes) {
  for (const TinyModel& tiny : tiny_models()) {
    const StatePool::Impl pool(tiny.config, 1, nullptr);
    const auto taken =
        static_cast<std::int64_t>(pool.slot_values_bytes() + pool.slot_turns_bytes());
    EXPECT_GE(slot_bytes(tiny.config), taken) << tiny.name;
    EXPECT_LE(slot_bytes(tiny.config), taken + tiny.config.layers * 4 * 64) << tiny.name;
  }
}

TEST(MemoryNeeded, RingsAreCountedOnAGpu) {
  const ModelConfig config = preset("siso-1.5b");
  const ModelSize size{config, 0};
  const auto states = [&](std::int64_t multiprocessors) {
    return memory_needed(size, 2, multiprocessors).states_bytes -
           memory_needed(size, 1, multiprocessors).states_bytes;
  };
  EXPECT_EQ(states(0), slot_bytes(config));
  EXPECT_EQ(states(kMultiprocessors) - states(0),
            config.layers * ring_bytes(mixer_dims(config), kMostRingTokens));
}

TEST(MemoryNeeded, WeightsAreCountedAsTheDeviceHoldsThem) {
  const ModelConfig config = preset("siso-1.5b");
  const std::int64_t bf16 = resident_bytes(config, DType::kBf16);
  const std::int64_t fp32 = resident_bytes(config, DType::kF32);
  EXPECT_EQ(fp32, 4 * config.parameters());
  EXPECT_GT(bf16, 2 * config.parameters()) << "small tensors are fp32";
  EXPECT_LT(bf16, 2 * config.parameters() + (std::int64_t{4} << 20));
  EXPECT_EQ(resident_bytes(config, DType::kF64), fp32);
}

TEST(MemoryNeeded, TheLargestBatchFitsAndOneMoreDoesNot) {
  const ModelConfig config = preset("mimo-1.5b");
  const ModelSize size{config, resident_bytes(config, DType::kBf16)};
  struct Card {
    std::int64_t gigabytes, multiprocessors;
  };
  for (const Card& card : {Card{8, 34}, Card{24, 128}, Card{80, kMultiprocessors}}) {
    const std::int64_t free_bytes = card.gigabytes * 1'000'000'000;
    const std::int64_t batch = largest_batch(size, free_bytes, card.multiprocessors);
    ASSERT_GE(batch, 1);
    EXPECT_LE(memory_needed(size, batch, card.multiprocessors).total_bytes(), free_bytes);
    EXPECT_GT(memory_needed(size, batch + 1, card.multiprocessors).total_bytes(), free_bytes);
  }
  EXPECT_GE(largest_batch(size, 79'000'000'000, kMultiprocessors), 256);
  EXPECT_EQ(largest_batch(size, size.weights_bytes, kMultiprocessors), 0);
}

TEST(MemoryNeeded, ARefusalSaysWhatIsNeededAndWhatFits) {
  const ModelConfig config = preset("siso-1.5b");
  const ModelSize size{config, resident_bytes(config, DType::kBf16)};
  EXPECT_EQ(refusal(size, 128, 79'000'000'000), "");
  const std::string batch = refusal(size, 4096, 79'000'000'000);
  EXPECT_NE(batch.find("a batch of 4096 needs"), std::string::npos) << batch;
  EXPECT_NE(batch.find("weights 2.99 GB"), std::string::npos) << batch;
  EXPECT_NE(batch.find("Imaginary 9000 has free, 79.00 GB"), std::string::npos) << batch;
  const std::int64_t fits = largest_batch(size, 79'000'000'000, kMultiprocessors);
  EXPECT_NE(batch.find("a batch of " + std::to_string(fits) + " fits"), std::string::npos);
  EXPECT_NE(refusal(size, 1, 3'000'000'000).find("not even one sequence"), std::string::npos);
  EXPECT_THROW(memory_needed(size, 0, 0), Error);
}

TEST(MemoryNeeded, StatesThatFindNoRoomAreRefusedWithHowManyDo) {
  const std::int64_t free_bytes = available_memory_bytes();
  if (free_bytes > std::int64_t{1} << 50) GTEST_SKIP() << "the system does not say how much it has";
  const ModelConfig config = preset("siso-1.5b");
  const std::int64_t most = free_bytes / config.state_bytes();
  Context ctx(ContextOptions{});
  try {
    const StatePool pool(config, 2 * most + 2, ctx);
    FAIL() << "of " << most << " states at most, twice as many were taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
    const std::string reason = error.what();
    EXPECT_NE(reason.find(str("the states of ", 2 * most + 2, " sequences need")),
              std::string::npos);
    EXPECT_NE(reason.find(" sequences fit"), std::string::npos) << reason;
  }
}

}  // namespace
}  // namespace mamba3
