#include "model/segments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "mamba3/error.h"

namespace mamba3 {
namespace {

using Counts = std::vector<std::int64_t>;

Counts packed(const Counts& lengths) {
  Counts cu = {0};
  for (const std::int64_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

Counts same(std::size_t sequences, std::int64_t length) {
  return Counts(sequences, length);
}

std::vector<Segment> cut(const Counts& lengths, const SegmentRule& rule) {
  return cut_segments(packed(lengths), rule);
}

Counts piece_lengths(const Segment& segment) {
  Counts out;
  for (const Piece& piece : segment.pieces) out.push_back(piece.tokens());
  return out;
}

// What every cut holds, of any pack by any rule.
void expect_sound(const Counts& lengths, const SegmentRule& rule) {
  const Counts cu = packed(lengths);
  Counts read = same(lengths.size(), 0);  // tokens of each sequence so far
  const std::vector<Segment> segments = cut_segments(cu, rule);
  for (std::size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = segments[s];
    ASSERT_FALSE(segment.pieces.empty());
    ASSERT_EQ(segment.cu_seqlens.size(), segment.pieces.size() + 1);
    EXPECT_EQ(segment.cu_seqlens[0], 0);
    const std::int64_t room = std::max(rule.segment_tokens, rule.grid_tokens);
    EXPECT_LE(segment.tokens(), room);
    if (s + 1 < segments.size()) {
      EXPECT_GT(segment.tokens(), room - 2 * rule.grid_tokens) << "room is left";
    }
    std::int64_t short_pieces = 0, before = -1;
    for (std::size_t i = 0; i < segment.pieces.size(); ++i) {
      const Piece& piece = segment.pieces[i];
      const std::int64_t q = piece.sequence;
      ASSERT_GT(q, before) << "a sequence twice, or out of order";
      before = q;
      EXPECT_GT(piece.tokens(), 0);
      EXPECT_EQ(segment.cu_seqlens[i + 1] - segment.cu_seqlens[i], piece.tokens());
      ASSERT_EQ(piece.begin, cu[q] + read[q]) << "tokens are left out or read twice";
      EXPECT_EQ(read[q] % rule.grid_tokens, 0) << "a piece begins off the grid";
      read[q] += piece.tokens();
      ASSERT_LE(read[q], lengths[q]);
      const bool ends = read[q] == lengths[q];
      short_pieces += !ends && piece.tokens() < std::min(rule.piece_tokens, room);
    }
    EXPECT_LE(short_pieces, 1) << "more short pieces than the one that fills a segment";
  }
  EXPECT_EQ(read, lengths);
}

TEST(CutSegments, CoversEveryTokenOnceAndCutsOnTheGridOnly) {
  const std::vector<Counts> packs = {
      {},
      {0},
      {0, 0, 0},
      {1},
      {15, 16, 17, 0, 31, 32, 33, 1},
      {5, 0, 295, 1, 699, 64},
      {0, 5000, 0},
      {5000, 1, 1, 1, 1, 1, 1, 1, 1, 17, 16, 15},
      {1, 2, 3, 4, 5, 6, 7, 3000},
      {997, 1009, 1013, 1019, 1021, 1031},
      same(100, 127),
      same(300, 1),
      same(40, 640),
  };
  for (const Counts& pack : packs) {
    for (const std::int64_t grid : {1, 16, 64}) {
      for (const std::int64_t room : {1, 64, 100, 128, 2048}) {
        for (const std::int64_t piece : {1, 64, 128, 2048}) {
          SCOPED_TRACE("first of " + std::to_string(pack.empty() ? 0 : pack[0]) + ", grid " +
                       std::to_string(grid) + ", room " + std::to_string(room) + ", piece " +
                       std::to_string(piece));
          expect_sound(pack, {room, grid, piece / grid * grid});
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CutSegments, NothingGivesNothing) {
  EXPECT_TRUE(cut_segments({}, {64, 16, 16}).empty());
  EXPECT_TRUE(cut({}, {64, 16, 16}).empty());
  EXPECT_TRUE(cut({0, 0}, {64, 16, 16}).empty());
  EXPECT_THROW(cut({1}, {64, 0, 16}), Error);
}

constexpr SegmentRule kCard = {16384, 256, 1024};  // of a large card

TEST(CutSegments, ManyLongSequencesTakeTurns) {
  const std::vector<Segment> segments = cut(same(128, 16384), kCard);
  EXPECT_EQ(segments.size(), 128u);
  Counts read = same(128, 0);
  for (const Segment& segment : segments) {
    const Counts lengths = piece_lengths(segment);
    const bool last_round = lengths.size() == 8;
    EXPECT_EQ(lengths, last_round ? same(8, 2048) : same(16, 1024));
    for (const Piece& piece : segment.pieces) read[piece.sequence] += piece.tokens();
    const auto [least, most] = std::minmax_element(read.begin(), read.end());
    EXPECT_LE(*most - *least, 2048) << "one is ahead";
  }
}

TEST(CutSegments, ShortSequencesAreNotCut) {
  for (const Segment& segment : cut(same(128, 2048), kCard)) {
    EXPECT_EQ(piece_lengths(segment), same(8, 2048));
  }
  const std::vector<Segment> uneven = cut(same(20, 1500), kCard);
  ASSERT_EQ(uneven.size(), 2u);
  Counts first = same(10, 1500);
  first.push_back(1280);  // fills it, on the grid
  EXPECT_EQ(piece_lengths(uneven[0]), first);
}

TEST(CutSegments, FewSequencesGiveLongPieces) {
  const std::vector<Segment> alone = cut({40000}, kCard);
  ASSERT_EQ(alone.size(), 3u);
  EXPECT_EQ(piece_lengths(alone[0]), (Counts{16384}));
  EXPECT_EQ(piece_lengths(alone[2]), (Counts{40000 - 2 * 16384}));
  for (const Segment& segment : cut({65536, 65536}, kCard)) {
    EXPECT_EQ(piece_lengths(segment), (Counts{8192, 8192}));
  }
  const std::vector<Segment> five = cut(same(5, 16384), kCard);
  EXPECT_EQ(five.size(), 5u);
  for (const Segment& segment : five) EXPECT_EQ(segment.pieces.size(), 5u);
}

TEST(CutSegments, TheLongestOfASkewedPackIsInEverySegment) {
  Counts lengths = same(127, 128);
  lengths.insert(lengths.begin() + 50, 16384);
  const std::vector<Segment> segments = cut(lengths, kCard);
  ASSERT_EQ(segments.size(), 2u);
  for (const Segment& segment : segments) {
    const Counts pieces = piece_lengths(segment);
    const std::int64_t longest = *std::max_element(pieces.begin(), pieces.end());
    EXPECT_NEAR(static_cast<double>(longest), 8192, 256);
    EXPECT_GT(pieces.size(), 50u);
  }
}

TEST(SegmentRule, PiecesFillADevice) {
  const auto piece = [](std::int64_t heads, std::int64_t multiprocessors) {
    return segment_rule(heads, 256, multiprocessors).piece_tokens;
  };
  EXPECT_EQ(piece(64, 132), 2048);
  EXPECT_EQ(piece(24, 132), 768);
  EXPECT_EQ(piece(1, 132), 512) << "no piece is too short for its state";
  EXPECT_EQ(piece(64, 16), 2048);
  EXPECT_EQ(piece(4096, 16), segment_tokens(16));
  const SegmentRule cpu = segment_rule(64, 64, 0);
  EXPECT_EQ(cpu.segment_tokens, segment_tokens(0));
  EXPECT_EQ(cpu.grid_tokens, 64);
  for (const Segment& segment : cut(same(3, 4096), cpu)) EXPECT_EQ(segment.pieces.size(), 1u);
}

}  // namespace
}  // namespace mamba3
