#include "ops/ceilings/read_streams.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/ceilings/read_streams.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <std::int64_t kStreams, bool kFetchAhead>
HWY_INLINE std::uint64_t sum_of(const std::byte* data, std::int64_t bytes) {
  constexpr std::int64_t kAheadBytes = 2048;
  constexpr std::int64_t kLineBytes = 64;
  const hn::ScalableTag<std::uint64_t> du64;
  const auto vector_bytes = static_cast<std::int64_t>(hn::Lanes(du64) * sizeof(std::uint64_t));
  const std::int64_t stream_bytes = bytes / kStreams;
  auto sum = hn::Zero(du64);
  for (std::int64_t i = 0; i < stream_bytes; i += kLineBytes) {
    for (std::int64_t stream = 0; stream < kStreams; ++stream) {
      const std::byte* at = data + stream * stream_bytes + i;
      if constexpr (kFetchAhead) __builtin_prefetch(at + kAheadBytes, 0, 2);
      for (std::int64_t j = 0; j < kLineBytes; j += vector_bytes) {
        sum = hn::Add(sum, hn::LoadU(du64, reinterpret_cast<const std::uint64_t*>(at + j)));
      }
    }
  }
  return hn::GetLane(hn::SumOfLanes(du64, sum));
}

std::uint64_t sum_streams(const std::byte* data, std::int64_t bytes, const ReadPattern& pattern) {
  if (!pattern.eight_streams) return sum_of<4, false>(data, bytes);
  return pattern.fetch_ahead ? sum_of<8, true>(data, bytes) : sum_of<8, false>(data, bytes);
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(sum_streams);

}  // namespace

std::uint64_t read_streams(const std::byte* data, std::int64_t bytes, const ReadPattern& pattern) {
  return HWY_DYNAMIC_DISPATCH(sum_streams)(data, bytes, pattern);
}

}  // namespace mamba3
#endif  // HWY_ONCE
