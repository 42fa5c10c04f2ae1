#include "ops/round_bf16/round_bf16.h"

#include "op_test_helpers.h"

namespace mamba3 {
namespace {

TEST(RoundBf16, RoundsEachNumber) {
  for_each_target([] {
    for (const std::int64_t count : {0, 1, 7, 64, 65536, 131077}) {
      const auto values = random_floats(count, 1);
      for (const int threads : {1, 3}) {
        Context ctx(with_threads(threads));
        std::vector<Bf16> rounded(values.size());
        round_bf16({count, values.data(), rounded.data()}, ctx);
        for (std::size_t i = 0; i < values.size(); ++i) {
          ASSERT_EQ(rounded[i].bits, to_bf16(values[i]).bits) << i << " of " << count;
        }
      }
    }
  });
}

TEST(RoundBf16, RefusesMissingMemory) {
  Context ctx(with_threads(1));
  EXPECT_NE(error_of([&] {
              round_bf16({3, nullptr, nullptr}, ctx);
            }).find("expected 3 of each"),
            std::string::npos);
}

}  // namespace
}  // namespace mamba3
