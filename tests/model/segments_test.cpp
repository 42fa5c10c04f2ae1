#include "model/segments.h"

#include <gtest/gtest.h>

namespace mamba3 {
namespace {

TEST(CutSegments, CoversEveryTokenOnceAndCutsOnTheChunkGridOnly) {
  const std::vector<std::int64_t> cu = {0, 0, 5, 5, 300, 301, 1000, 1064};
  for (const std::int64_t chunk : {1, 16, 64}) {
    for (const std::int64_t room : {1, 64, 100, 128, 2048}) {
      std::int64_t at = 0;
      for (const Segment& segment : cut_segments(cu, room, chunk)) {
        EXPECT_EQ(segment.begin, at);
        EXPECT_LE(segment.end - segment.begin, std::max(room, chunk));
        ASSERT_EQ(segment.cu_seqlens.size(), segment.sequences.size() + 1);
        for (std::size_t i = 0; i < segment.sequences.size(); ++i) {
          const std::int32_t q = segment.sequences[i];
          const std::int64_t begin = segment.begin + segment.cu_seqlens[i];
          EXPECT_GT(segment.cu_seqlens[i + 1], segment.cu_seqlens[i]);
          EXPECT_EQ((begin - cu[q]) % chunk, 0) << "a piece begins off the grid";
          EXPECT_LE(segment.begin + segment.cu_seqlens[i + 1], cu[q + 1]);
        }
        at = segment.end;
      }
      EXPECT_EQ(at, cu.back());
    }
  }
}

TEST(CutSegments, NothingGivesNothing) {
  EXPECT_TRUE(cut_segments(std::vector<std::int64_t>{0}, 64, 16).empty());
  EXPECT_TRUE(cut_segments(std::vector<std::int64_t>{0, 0, 0}, 64, 16).empty());
}

}  // namespace
}  // namespace mamba3
