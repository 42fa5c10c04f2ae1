// Cutting packed sequences into segments that fit a bounded workspace.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mamba3 {

// Long inputs are read in segments: large enough that weights are streamed seldom, small enough
// that a segment's activations stay near the cores.
constexpr std::int64_t kSegmentTokens = 1024;
constexpr std::int64_t kGpuSegmentTokens = 16384;  // fills a large card

// A run of packed tokens, with the sequences it touches.
struct Segment {
  std::int64_t begin = 0;  // packed tokens [begin, end)
  std::int64_t end = 0;
  std::vector<std::int64_t> cu_seqlens;  // of the pieces, from 0
  std::vector<std::int32_t> sequences;   // index of each piece's sequence
};

// Pieces of a sequence are cut only at multiples of chunk_tokens from its start, where a cut
// changes no bit. Every segment holds at most max(segment_tokens, chunk_tokens) tokens; empty
// sequences appear in none.
std::vector<Segment> cut_segments(std::span<const std::int64_t> cu_seqlens,
                                  std::int64_t segment_tokens, std::int64_t chunk_tokens);

}  // namespace mamba3
