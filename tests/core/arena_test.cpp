#include "core/arena.h"

#include <gtest/gtest.h>

namespace mamba3 {
namespace {

TEST(Arena, ScopesGiveBackWhatTheyTook) {
  Arena arena;
  void* first = nullptr;
  {
    ArenaScope scope(arena);
    first = scope.allocate<float>(1000);
    ArenaScope inner(arena);
    EXPECT_NE(inner.allocate<float>(1), first);
  }
  ArenaScope scope(arena);
  EXPECT_EQ(scope.allocate<float>(1000), first);
}

TEST(Arena, AlignsAndKeepsBlocksWhenItGrows) {
  Arena arena;
  const std::size_t big = std::size_t{5} << 20;
  for (int round = 0; round < 3; ++round) {
    ArenaScope scope(arena);
    for (int i = 0; i < 4; ++i) {
      auto* p = scope.allocate<std::byte>(static_cast<std::int64_t>(big) + i);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % Arena::kAlignBytes, 0u);
      p[0] = p[big - 1] = std::byte{1};
    }
  }
  const std::size_t grown = arena.capacity_bytes();
  ArenaScope scope(arena);
  scope.allocate<std::byte>(static_cast<std::int64_t>(big));
  EXPECT_EQ(arena.capacity_bytes(), grown);
}

TEST(Arena, RoomThatWasReservedIsFoundBehindOtherBlocks) {
  Arena arena;
  const std::size_t big = std::size_t{5} << 20;
  arena.reserve(big);
  {
    ArenaScope scope(arena);
    scope.allocate<std::byte>(static_cast<std::int64_t>(big));
    scope.allocate<std::byte>(1);  // a block more
  }
  const std::size_t grown = arena.capacity_bytes();
  arena.reserve(big);
  EXPECT_EQ(arena.capacity_bytes(), grown);
}

}  // namespace
}  // namespace mamba3
