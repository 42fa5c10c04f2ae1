#include "model/segments.h"

#include <algorithm>
#include <set>

#include "core/check.h"
#include "core/gpu.h"
#include "model/mixer.h"
#include "ops/mamba3_scan/mamba3_scan.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kFewestPieceTokens = 512;

std::int64_t round_down(std::int64_t count, std::int64_t unit) {
  return count / unit * unit;
}
std::int64_t round_up(std::int64_t count, std::int64_t unit) {
  return round_down(count + unit - 1, unit);
}

// What is left of a sequence. The longest comes first.
struct Rest {
  std::int64_t tokens;
  std::int32_t sequence;
  bool operator<(const Rest& other) const {
    return tokens != other.tokens ? tokens > other.tokens : sequence < other.sequence;
  }
};

class Cutter {
 public:
  Cutter(std::span<const std::int64_t> cu_seqlens, const SegmentRule& rule)
      : cu_seqlens_(cu_seqlens),
        grid_(rule.grid_tokens),
        left_(cu_seqlens.empty() ? 0 : cu_seqlens.back()) {
    check_input(grid_ >= 1, "prompts are to be cut at multiples of ", grid_,
                " tokens; expected 1 or more");
    const std::int64_t most = round_up(left_, grid_);  // more room would not be used
    room_ = std::max(round_down(std::min(rule.segment_tokens, most), grid_), grid_);
    piece_ = std::clamp(round_down(rule.piece_tokens, grid_), grid_, room_);
    for (std::size_t q = 0; q + 1 < cu_seqlens.size(); ++q) {
      const std::int64_t tokens = cu_seqlens[q + 1] - cu_seqlens[q];
      if (tokens > 0) rests_.insert({tokens, static_cast<std::int32_t>(q)});
    }
  }

  bool done() const { return rests_.empty(); }

  Segment next() {
    Segment segment;
    std::vector<Rest> later;  // a sequence is in a segment once
    std::int64_t free = room_;
    while (free > 0) {
      // Without room for a cut, only a whole rest fits.
      const auto at = free >= grid_ ? rests_.begin() : rests_.lower_bound({free, 0});
      if (at == rests_.end()) break;
      const Rest rest = *at;
      rests_.erase(at);
      const std::int64_t take = share(rest.tokens, free);
      const std::int64_t begin = cu_seqlens_[rest.sequence + 1] - rest.tokens;
      segment.pieces.push_back({rest.sequence, begin, begin + take});
      free -= take;
      if (take < rest.tokens) later.push_back({rest.tokens - take, rest.sequence});
    }
    rests_.insert(later.begin(), later.end());
    std::sort(segment.pieces.begin(), segment.pieces.end(),
              [](const Piece& a, const Piece& b) { return a.sequence < b.sequence; });
    for (const Piece& piece : segment.pieces) {
      segment.cu_seqlens.push_back(segment.tokens() + piece.tokens());
    }
    left_ -= segment.tokens();
    return segment;
  }

 private:
  // Of a rest, into room for all of it or for a grid_tokens. Proportional shares are rounded up, so
  // together they fill a segment.
  std::int64_t share(std::int64_t rest, std::int64_t free) const {
    const std::int64_t proportional = (rest * room_ + left_ - 1) / left_;
    std::int64_t wanted = std::max(piece_, round_up(proportional, grid_));
    if (rest <= std::max(wanted, 2 * piece_)) wanted = rest;
    return wanted <= free ? wanted : round_down(free, grid_);
  }

  std::span<const std::int64_t> cu_seqlens_;
  std::int64_t grid_;
  std::int64_t left_;  // tokens, of the segment that is being filled too
  std::int64_t room_, piece_;
  std::set<Rest> rests_;
};

}  // namespace

SegmentRule segment_rule(std::int64_t heads, std::int64_t grid_tokens,
                         std::int64_t multiprocessors) {
  const std::int64_t tokens = segment_tokens(multiprocessors);
  if (multiprocessors == 0) return {tokens, grid_tokens, tokens};
  const std::int64_t exact = tokens * heads / (kSegmentRounds * multiprocessors);
  const std::int64_t nearest = round_down(exact + grid_tokens / 2, grid_tokens);
  return {tokens, grid_tokens,
          std::clamp(nearest, round_up(kFewestPieceTokens, grid_tokens), tokens)};
}

SegmentRule segment_rule(const ModelConfig& config, const Context& ctx) {
  const Mamba3Dims dims = mixer_dims(config);
  return segment_rule(dims.heads, mamba3_scan_grid_tokens(dims, ctx),
                      ctx.gpu() ? ctx.gpu()->info().multiprocessors : 0);
}

std::vector<Segment> cut_segments(std::span<const std::int64_t> cu_seqlens,
                                  const SegmentRule& rule) {
  std::vector<Segment> segments;
  Cutter cutter(cu_seqlens, rule);
  while (!cutter.done()) segments.push_back(cutter.next());
  return segments;
}

}  // namespace mamba3
