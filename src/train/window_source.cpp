#include "train/window_source.h"

#include <algorithm>

#include "core/check.h"

namespace mamba3 {

WindowSource::WindowSource(WindowReader windows) : windows_(std::move(windows)) {}

WindowSource::WindowSource(WindowReader windows, std::uint64_t seed)
    : windows_(std::move(windows)), order_(WindowOrder(windows_.windows(), seed)) {}

std::vector<std::int64_t> WindowSource::at(std::int64_t position, std::int64_t count) const {
  std::vector<std::int64_t> numbers;
  for (std::int64_t i = position; i < position + count; ++i) {
    numbers.push_back(order_ ? order_->window(i) : i % windows_.windows());
  }
  return numbers;
}

SequenceBatch WindowSource::read(std::int64_t position, std::int64_t count) const {
  return windows_.read(at(position, count));
}

std::int64_t WindowSource::sequences_in(std::int64_t, std::int64_t tokens) const {
  return std::max<std::int64_t>(1, tokens / windows_.length());
}

std::string WindowSource::names(std::int64_t position, std::int64_t count) const {
  constexpr std::int64_t kMost = 8;
  std::string numbers;
  for (const std::int64_t window : at(position, std::min(count, kMost))) {
    numbers += str(numbers.empty() ? "" : ", ", window);
  }
  return str("windows ", numbers, count > kMost ? ", ..." : "", " of the data");
}

}  // namespace mamba3
