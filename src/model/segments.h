// Cutting packed sequences into segments that fit a bounded workspace and fill the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "mamba3/config.h"
#include "mamba3/context.h"

namespace mamba3 {

// Most tokens of a segment. On a CPU (0 multiprocessors) its activations stay near the cores. On a
// GPU it fills the card: two tiles of 128 rows for each multiprocessor leave none idle in the last
// round of a product's tiles.
constexpr std::int64_t segment_tokens(std::int64_t multiprocessors) {
  return multiprocessors == 0 ? 1024 : 2 * 128 * multiprocessors;
}
// A GPU works on so many sets of blocks, one after the other, so that what the last set leaves idle
// is little of the whole.
constexpr std::int64_t kSegmentRounds = 8;

struct SegmentRule {
  std::int64_t segment_tokens = 0;  // most in a segment; a grid_tokens, if that is more
  std::int64_t grid_tokens = 0;     // a sequence is cut at multiples of it, see mamba3_scan.h
  std::int64_t piece_tokens = 0;    // what a sequence that goes on gives to a segment at least
  // Long sequences that fill the device once, which is what reading them one by one would not.
  std::int64_t sequences_at_once() const {
    return std::max(segment_tokens / (kSegmentRounds * piece_tokens), std::int64_t{1});
  }
};

// On a CPU a long sequence fills a segment alone, since all threads work on it. On a GPU a block
// walks a head of a piece, so a segment needs many pieces: as long as they can be with about
// kSegmentRounds times the one block that a multiprocessor holds. That makes 16 pieces of 2,048
// tokens for 64 heads on 132 multiprocessors. But no less than 512 tokens, since each piece reads
// and writes its state.
SegmentRule segment_rule(std::int64_t heads, std::int64_t grid_tokens,
                         std::int64_t multiprocessors);
SegmentRule segment_rule(const ModelConfig& config, const Context& ctx);

// Tokens [begin, end) of the packed ones, all of one sequence.
struct Piece {
  std::int32_t sequence = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t tokens() const { return end - begin; }
  bool operator==(const Piece&) const = default;
};

// What one pass over the layers reads.
struct Segment {
  std::vector<Piece> pieces;                   // ascending, none empty, each of another sequence
  std::vector<std::int64_t> cu_seqlens = {0};  // rows of the pass at which pieces begin and end
  std::int64_t tokens() const { return cu_seqlens.back(); }
};

// Every token of packed sequences, in order within its sequence; empty sequences appear nowhere.
// The longest rests go first. Each gives a segment its proportional share of it, but piece_tokens
// at least, and all of itself when that is no more than twice as much. So many sequences take
// turns, few give long pieces, a prompt alone gives whole segments; of a skewed pack the longest
// sequence is in every segment, beside others that keep the device busy. What is left of a segment
// is filled with a shorter piece, of grid_tokens at least or the end of a sequence: only the last
// segment has room for more.
std::vector<Segment> cut_segments(std::span<const std::int64_t> cu_seqlens,
                                  const SegmentRule& rule);

}  // namespace mamba3
