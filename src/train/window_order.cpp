#include "train/window_order.h"

#include "core/check.h"
#include "core/hash.h"

namespace mamba3 {
namespace {

constexpr int kRounds = 6;

}  // namespace

WindowOrder::WindowOrder(std::int64_t windows, std::uint64_t seed)
    : windows_(windows), seed_(seed), half_bits_(1) {
  check_input(windows >= 1, windows,
              " windows of data; expected at least one: more text or shorter "
              "windows");
  while (half_bits_ < 31 && (std::int64_t{1} << (2 * half_bits_)) < windows) ++half_bits_;
}

// A Feistel network permutes the numbers of 2 half_bits bits; those beyond the windows are sent
// through it again, until one is a window: a permutation of the windows alone.
std::int64_t WindowOrder::window(std::int64_t position) const {
  check_input(position >= 0, "position ", position, " in the data; expected 0 or more");
  const std::uint64_t epoch = static_cast<std::uint64_t>(position / windows_);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  auto at = static_cast<std::uint64_t>(position % windows_);
  do {
    std::uint64_t left = at >> half_bits_, right = at & mask;
    for (int round = 0; round < kRounds; ++round) {
      Hash64 hash;
      hash.update(seed_);
      hash.update(epoch);
      hash.update(static_cast<std::uint64_t>(round));
      hash.update(right);
      const std::uint64_t next = left ^ (hash.value() >> 32 & mask);
      left = right;
      right = next;
    }
    at = left << half_bits_ | right;
  } while (at >= static_cast<std::uint64_t>(windows_));
  return static_cast<std::int64_t>(at);
}

}  // namespace mamba3
