#include "model/segments.h"

#include <algorithm>

namespace mamba3 {

std::vector<Segment> cut_segments(std::span<const std::int64_t> cu_seqlens,
                                  std::int64_t segment_tokens, std::int64_t chunk_tokens) {
  const std::int64_t room = std::max(segment_tokens / chunk_tokens, std::int64_t{1}) * chunk_tokens;
  std::vector<Segment> segments;
  for (std::size_t q = 0; q + 1 < cu_seqlens.size(); ++q) {
    std::int64_t at = cu_seqlens[q];
    while (at < cu_seqlens[q + 1]) {
      const std::int64_t left = cu_seqlens[q + 1] - at;
      const std::int64_t free =
          segments.empty() ? 0 : room - (segments.back().end - segments.back().begin);
      // The whole rest, or as many whole chunks as fit.
      std::int64_t take = left <= free ? left : free / chunk_tokens * chunk_tokens;
      if (take == 0) {
        segments.push_back({at, at, {0}, {}});
        take = std::min(left, room);
      }
      Segment& segment = segments.back();
      at += take;
      segment.end = at;
      segment.cu_seqlens.push_back(segment.end - segment.begin);
      segment.sequences.push_back(static_cast<std::int32_t>(q));
    }
  }
  return segments;
}

}  // namespace mamba3
