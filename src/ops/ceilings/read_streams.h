// Reading memory as fast as one thread can.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace mamba3 {

// How a block is read. Which way is fastest depends on the processor: some are quicker at fetching
// ahead by themselves than when they are told to.
struct ReadPattern {
  bool eight_streams;  // or four
  bool fetch_ahead;
};

inline constexpr std::array<ReadPattern, 3> kReadPatterns{
    {{true, true}, {true, false}, {false, false}}};

// Reads `bytes` (a multiple of 512) as streams of equal length, side by side. Returns the sum of
// all 64-bit words, so that no read can be left out.
std::uint64_t read_streams(const std::byte* data, std::int64_t bytes, const ReadPattern& pattern);

}  // namespace mamba3
