#include "ops/embedding_backward/embedding_backward.h"

#include <limits>

#include "core/arena.h"
#include "gradient_case.h"
#include "ops/embedding_backward/embedding_backward_ref.h"

namespace mamba3 {
namespace {

using testing::doubles;
using testing::expect_within;
using testing::random_ids;

TEST(EmbeddingBackward, AgreesWithTheOracle) {
  Context ctx(with_threads(2));
  for (const std::int64_t d : {1, 7, 65}) {
    for (const std::int64_t v : {1, 11, 500}) {
      for (const std::int64_t rows : {0, 1, 2, 33, 700}) {
        const auto ids = random_ids(rows, v);
        const PaddedRows grad_y(random_floats(rows * d, 5), rows, d, 2);
        const PaddedRows grad_table(random_floats(v * d, 6), v, d, 3);
        auto plain = grad_table.values();
        auto truth = doubles(plain);
        embedding_backward_ref(ids, grad_y.values(), d, plain);
        embedding_backward_ref(ids, doubles(grad_y.values()), d, truth);
        embedding_backward({ids, grad_y.view, grad_table.view}, ctx);
        expect_within(grad_table.values(), plain, truth, std::to_string(rows));
        // Rows are added in their order, as the plain run adds them.
        EXPECT_TRUE(same_bits(grad_table.values(), plain));
        EXPECT_TRUE(grad_table.gap_untouched());
      }
    }
  }
}

TEST(EmbeddingBackward, BitsDependOnNoThread) {
  constexpr std::int64_t kRows = 5000, kV = 300, kD = 33;
  const auto ids = random_ids(kRows, kV);
  const PaddedRows grad_y(random_floats(kRows * kD, 5), kRows, kD, 0);
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    Context ctx(with_threads(threads));
    const PaddedRows grad_table(std::vector<float>(kV * kD), kV, kD, 0);
    const EmbeddingBackwardArgs args{ids, grad_y.view, grad_table.view};
    embedding_backward(args, ctx);
    if (first.empty()) first = grad_table.values();
    EXPECT_TRUE(same_bits(grad_table.values(), first));
    EXPECT_LE(ctx.workspace().peak_bytes(), embedding_backward_workspace_bytes(args, ctx));
  }
}

TEST(EmbeddingBackward, RefusesWrongIdsAndShapes) {
  Context ctx(with_threads(1));
  const PaddedRows grad_y(3, 2, 0), grad_table(5, 2, 0);
  for (const std::int32_t bad : {-1, 5, std::numeric_limits<std::int32_t>::max()}) {
    const std::vector<std::int32_t> ids = {4, 0, bad};
    const std::string message = error_of([&] {
      embedding_backward({ids, grad_y.view, grad_table.view}, ctx);
    });
    EXPECT_NE(message.find("token 2 has the id " + std::to_string(bad)), std::string::npos);
  }
  const std::vector<std::int32_t> two = {4, 0};
  error_of([&] { embedding_backward({two, grad_y.view, grad_table.view}, ctx); });
}

}  // namespace
}  // namespace mamba3
