#include "train/window_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "mamba3/error.h"

namespace mamba3 {
namespace {

std::vector<std::int64_t> epoch(std::int64_t windows, std::uint64_t seed, std::int64_t number) {
  const WindowOrder order(windows, seed);
  std::vector<std::int64_t> out;
  for (std::int64_t i = 0; i < windows; ++i) out.push_back(order.window(number * windows + i));
  return out;
}

TEST(WindowOrder, EveryWindowComesOnceAnEpoch) {
  for (const std::int64_t windows : {1, 2, 3, 4, 5, 16, 17, 255, 1000, 4099}) {
    for (const std::int64_t number : {0, 1, 7}) {
      auto all = epoch(windows, 3, number);
      std::sort(all.begin(), all.end());
      for (std::int64_t i = 0; i < windows; ++i) ASSERT_EQ(all[i], i) << windows;
    }
  }
}

TEST(WindowOrder, SeedsAndEpochsDiffer) {
  EXPECT_NE(epoch(1000, 3, 0), epoch(1000, 4, 0));
  EXPECT_NE(epoch(1000, 3, 0), epoch(1000, 3, 1));
  EXPECT_EQ(epoch(1000, 3, 1), epoch(1000, 3, 1));
}

// Neighbours in the data are no neighbours in the order, as in a fair shuffle.
TEST(WindowOrder, Shuffles) {
  const auto all = epoch(10000, 11, 0);
  double distance = 0;
  std::int64_t neighbours = 0;
  for (std::size_t i = 1; i < all.size(); ++i) {
    const std::int64_t step = std::llabs(all[i] - all[i - 1]);
    distance += static_cast<double>(step);
    neighbours += step == 1;
  }
  EXPECT_NEAR(distance / 9999, 10000.0 / 3, 100);  // of two random windows
  EXPECT_LT(neighbours, 12);                       // 2 are expected
}

TEST(WindowOrder, RefusesNothingToRead) {
  EXPECT_THROW(WindowOrder(0, 1), Error);
  EXPECT_THROW(WindowOrder(5, 1).window(-1), Error);
}

}  // namespace
}  // namespace mamba3
