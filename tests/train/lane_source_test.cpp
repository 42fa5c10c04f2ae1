#include "train/lane_source.h"

#include <algorithm>

#include "byte_tokens.h"

namespace mamba3 {
namespace {

// Document i is i % 40 times the letter i, and 256 in front: none, one and several begin in a
// window.
std::shared_ptr<const TokenCache> cache_of(const TempFolder& folder, int documents) {
  std::string text;
  for (int i = 0; i < documents; ++i) {
    text += std::string(static_cast<std::size_t>(i * 7 % 40 + 1), static_cast<char>('A' + i % 50)) +
            "\n<|endoftext|>\n";
  }
  return cache_of_text(folder, text);
}

struct Lanes {
  Lanes(TokenSelection tokens_in, std::int64_t length_in, std::int64_t lanes)
      : tokens(std::move(tokens_in)),
        length(length_in),
        source(WindowReader(tokens, length, "text"), lanes) {}
  TokenSelection tokens;
  std::int64_t length;
  LaneSource source;
};

std::vector<std::int32_t> ids_of(const TokenSelection& tokens, std::int64_t begin,
                                 std::int64_t count) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  tokens.copy(begin, ids);
  return ids;
}

TEST(LaneSource, ALaneReadsItsPartInOrder) {
  const TempFolder folder;
  const Lanes data(cache_of(folder, 100), 16, 3);
  const LaneSource& source = data.source;
  const std::int64_t each = source.sequences() / 3;
  ASSERT_GE(each, 10);
  EXPECT_EQ(each, (data.tokens.tokens() - 1) / 16 / 3);
  EXPECT_EQ(source.lanes(), 3);
  for (std::int64_t lane = 0; lane < 3; ++lane) {
    std::vector<std::int32_t> ids, targets;
    for (std::int64_t step = 0; step < each; ++step) {
      const SequenceBatch batch = source.read(step * 3 + lane, 1);
      EXPECT_EQ(batch.first_lane, lane);
      ids.insert(ids.end(), batch.ids.begin(), batch.ids.end());
      targets.insert(targets.end(), batch.targets.begin(), batch.targets.end());
    }
    EXPECT_EQ(ids, ids_of(data.tokens, lane * each * 16, each * 16));
    EXPECT_EQ(targets, ids_of(data.tokens, lane * each * 16 + 1, each * 16));
  }
}

// Pieces begin at 256, with fresh states, and at the window's beginning with the lane's.
TEST(LaneSource, DocumentsBeginWithFreshStates) {
  const TempFolder folder;
  const Lanes data(cache_of(folder, 100), 16, 3);
  const std::int64_t steps = data.source.sequences() / 3;
  bool whole = false, several = false, at_begin = false;
  for (std::int64_t step = 0; step < 2 * steps; ++step) {
    const SequenceBatch batch = data.source.read(step * 3, 3);
    ASSERT_EQ(batch.ids.size(), 48u);
    std::vector<std::int64_t> bounds, starts, ends;
    for (std::int64_t i = 0; i < 48; ++i) {
      const bool begins = batch.ids[i] == 256, goes_on = !begins && step % steps > 0;
      if (!begins && i % 16 != 0) continue;
      bounds.push_back(i);
      starts.push_back(goes_on ? i / 16 : 3);
      at_begin |= begins && i % 16 == 0;
    }
    bounds.push_back(48);
    for (std::int64_t i = 0; i + 1 < std::ssize(bounds); ++i) {
      if (bounds[i + 1] % 16 == 0) ends.push_back(i);
      whole |= bounds[i + 1] - bounds[i] == 16;
    }
    several |= bounds.size() > 6;
    EXPECT_EQ(batch.cu_seqlens, bounds);
    EXPECT_EQ(batch.starts, starts);
    EXPECT_EQ(batch.ends, ends);
    EXPECT_LE(std::ssize(batch.starts), data.source.most_pieces(3));
  }
  EXPECT_TRUE(whole && several && at_begin);
}

TEST(LaneSource, MostPiecesAreThoseOfTheFullestMicroBatch) {
  const TempFolder folder;
  const Lanes data(cache_of(folder, 100), 16, 5);
  for (const std::int64_t lanes : {1, 2, 5}) {
    std::int64_t most = 0;
    for (std::int64_t at = 0; at < data.source.sequences(); at += 5) {
      for (std::int64_t first = 0; first < 5; first += lanes) {
        const SequenceBatch batch = data.source.read(at + first, std::min(lanes, 5 - first));
        most = std::max(most, std::ssize(batch.starts));
      }
    }
    EXPECT_EQ(data.source.most_pieces(lanes), most) << lanes;
  }
}

TEST(LaneSource, AMicroBatchEndsWithTheStep) {
  const TempFolder folder;
  const Lanes data(cache_of(folder, 100), 16, 5);
  EXPECT_EQ(data.source.sequences_in(0, 1), 1);
  EXPECT_EQ(data.source.sequences_in(0, 33), 2);
  EXPECT_EQ(data.source.sequences_in(0, 1000), 5);
  EXPECT_EQ(data.source.sequences_in(13, 1000), 2);
  expect_error("lanes of one step", [&] { data.source.read(3, 3); });
  EXPECT_EQ(data.source.names(13, 2), "window 2 of lanes 3 to 4");
}

TEST(LaneSource, LessThanAWindowForEachLaneIsRefused) {
  const TempFolder folder;
  expect_error("at least one for each of 200 lanes",
               [&] { Lanes(cache_of(folder, 100), 16, 200); });
}

}  // namespace
}  // namespace mamba3
