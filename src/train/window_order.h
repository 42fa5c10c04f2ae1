// Which window of the data comes when: a shuffle of all windows in every epoch that is computed and
// not stored, so that a position is one number, whoever reads and however many do.
#pragma once

#include <cstdint>

namespace mamba3 {

class WindowOrder {
 public:
  // `windows` of one epoch, at least 1.
  WindowOrder(std::int64_t windows, std::uint64_t seed);

  // The window at a position since the beginning of training; in each epoch every window comes
  // once.
  std::int64_t window(std::int64_t position) const;

 private:
  std::int64_t windows_;
  std::uint64_t seed_;
  int half_bits_;
};

}  // namespace mamba3
