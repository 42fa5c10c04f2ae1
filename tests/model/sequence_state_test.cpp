#include "mamba3/state.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <utility>

#include "mamba3/error.h"
#include "tiny_models.h"

namespace mamba3 {
namespace {

constexpr std::uint64_t kFingerprint = 42;

SequenceState filled(const ModelConfig& config) {
  SequenceState state(config, kFingerprint);
  state.set_position(1234567890123);
  state.set_pending_id(5);
  float value = 0.25f;
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const auto parts = state.parts(l);
    for (std::int64_t i = 0; i < config.heads() * config.mixer.angles(); ++i)
      parts.turns[i] = 0x9e3779b9u * (i + 1);
    for (std::int64_t i = 0; i < config.heads() * config.mixer.head_dim * config.mixer.state; ++i) {
      parts.ssm[i] = value += 0.5f;
    }
  }
  return state;
}

TEST(SequenceState, BytesSurviveARoundTrip) {
  for (const TinyModel& tiny : tiny_models()) {
    const SequenceState state = filled(tiny.config);
    const auto bytes = state.serialize();
    const auto again = SequenceState::deserialize(bytes, tiny.config, kFingerprint, "memory");
    EXPECT_EQ(again.serialize(), bytes);
    EXPECT_EQ(again.position(), 1234567890123);
    EXPECT_EQ(again.pending_id(), 5);
  }
}

TEST(SequenceState, EveryFlippedBitAndEveryCutIsRefused) {
  const ModelConfig config = tiny_models()[0].config;
  const auto bytes = filled(config).serialize();
  for (std::size_t i = 0; i < bytes.size(); i += i < 128 ? 1 : 97) {
    auto spoilt = bytes;
    spoilt[i] ^= std::byte{0x40};
    EXPECT_THROW(SequenceState::deserialize(spoilt, config, kFingerprint, "spoilt"), Error)
        << "byte " << i;
  }
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, std::size_t{95}, bytes.size() / 3, bytes.size() - 1}) {
    const std::span<const std::byte> cut(bytes.data(), size);
    EXPECT_THROW(SequenceState::deserialize(cut, config, kFingerprint, "cut"), Error) << size;
  }
  auto longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_THROW(SequenceState::deserialize(longer, config, kFingerprint, "longer"), Error);
}

TEST(SequenceState, AnotherModelIsRefusedWithTheReason) {
  const auto models = tiny_models();
  const auto bytes = filled(models[0].config).serialize();
  for (const auto& [config, fingerprint] :
       {std::pair{models[0].config, kFingerprint + 1}, std::pair{models[1].config, kFingerprint}}) {
    try {
      SequenceState::deserialize(bytes, config, fingerprint, "foreign");
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBadInput);
      EXPECT_NE(std::string(error.what()).find("another model"), std::string::npos) << error.what();
    }
  }
}

TEST(SequenceState, CanonicalTupleGoesOutAndIn) {
  const ModelConfig config = tiny_models()[1].config;
  const SequenceState state = filled(config);
  SequenceState copy(config, kFingerprint);
  for (std::int64_t l = 0; l < config.layers; ++l) {
    LayerState layer = state.export_layer(l);
    // Any number of full turns may be on top.
    for (float& angle : layer.angle) angle -= static_cast<float>(4 * std::numbers::pi);
    copy.import_layer(l, layer);
    const auto from = std::as_const(state).parts(l), to = std::as_const(copy).parts(l);
    for (std::size_t i = 0; i < layer.angle.size(); ++i) {
      const auto apart = static_cast<std::int32_t>(from.turns[i] - to.turns[i]);
      EXPECT_LT(std::abs(apart * 2 * std::numbers::pi / 4294967296.0), 5e-6);
    }
    EXPECT_EQ(layer.ssm, copy.export_layer(l).ssm);
  }
  LayerState wrong = state.export_layer(0);
  wrong.k.pop_back();
  EXPECT_THROW(copy.import_layer(0, wrong), Error);
}

}  // namespace
}  // namespace mamba3
