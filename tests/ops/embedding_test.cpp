#include "ops/embedding/embedding.h"

#include "ops/embedding/embedding_ref.h"
#include "ops/op_test_helpers.h"

namespace mamba3 {
namespace {

TEST(Embedding, EveryBf16Pattern) {
  std::vector<std::uint16_t> table(1 << 16);
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::uint16_t>(i);
  std::vector<std::int32_t> ids(1 << 10);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
  PaddedRows y(1 << 10, 64, 3);
  const EmbeddingArgs args{
      ids, {reinterpret_cast<const std::byte*>(table.data()), DType::kBf16, {1 << 10, 64}}, y.view};
  Context ctx(with_threads(2));
  embedding(args, ctx);
  const auto expected = embedding_ref(args);
  const auto values = y.values();
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_TRUE(std::isnan(expected[i]) ? std::isnan(values[i]) : values[i] == expected[i]) << i;
    ASSERT_TRUE(std::isnan(expected[i]) || std::signbit(values[i]) == std::signbit(expected[i]));
  }
  EXPECT_TRUE(y.gap_untouched());
}

TEST(Embedding, AwkwardSizesAndRepeatedIds) {
  Context ctx(with_threads(2));
  for (const std::int64_t d : {1, 7, 65}) {
    const auto table = random_floats(11 * d, 5);
    const std::vector<std::int32_t> ids = {10, 0, 0, 3, 10, 7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0};
    PaddedRows y(static_cast<std::int64_t>(ids.size()), d, 2);
    const EmbeddingArgs args{
        ids, {reinterpret_cast<const std::byte*>(table.data()), DType::kF32, {11, d}}, y.view};
    embedding(args, ctx);
    const auto expected = embedding_ref(args);
    const auto values = y.values();
    for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], expected[i]);
  }
}

TEST(Embedding, RefusesIdsOutsideTheTable) {
  Context ctx(with_threads(1));
  const auto table = random_floats(10, 5);
  PaddedRows y(3, 2, 0);
  for (const std::int32_t bad : {-1, 5, std::numeric_limits<std::int32_t>::min(),
                                 std::numeric_limits<std::int32_t>::max()}) {
    const std::vector<std::int32_t> ids = {4, 0, bad};
    const std::string message = error_of([&] {
      embedding(
          {ids, {reinterpret_cast<const std::byte*>(table.data()), DType::kF32, {5, 2}}, y.view},
          ctx);
    });
    EXPECT_NE(message.find("token 2 has the id " + std::to_string(bad)), std::string::npos);
  }
}

TEST(Embedding, RefusesOtherTypesAndShapes) {
  Context ctx(with_threads(1));
  const auto table = random_floats(10, 5);
  const auto* data = reinterpret_cast<const std::byte*>(table.data());
  const std::vector<std::int32_t> ids = {1};
  PaddedRows y(1, 2, 0);
  EXPECT_NE(error_of([&] {
              embedding({ids, {data, DType::kF16, {5, 2}}, y.view}, ctx);
            }).find("F16"),
            std::string::npos);
  error_of([&] { embedding({ids, {data, DType::kF32, {10}}, y.view}, ctx); });
  error_of([&] { embedding({ids, {data, DType::kF32, {3, 3}}, y.view}, ctx); });
  embedding({{}, {data, DType::kF32, {5, 2}}, y.view.slice(0, 0)}, ctx);
}

}  // namespace
}  // namespace mamba3
