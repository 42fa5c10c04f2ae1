#include "ops/adamw/adamw.h"

#include "gradient_case.h"
#include "ops/adamw/adamw_ref.h"
#include "ops/global_norm/global_norm.h"
#include "ops/global_norm/global_norm_ref.h"

namespace mamba3 {
namespace {

using testing::doubles;
using testing::expect_within;

AdamwArgs hyper_parameters() {
  AdamwArgs args;
  args.rate = 3e-3;
  args.decay = 0.1;
  args.grad_scale = 0.3;
  return args;
}

// A tensor with its moments; gradients change from step to step.
struct Tensor {
  explicit Tensor(std::int64_t count)
      : weights(random_floats(count, 1)),
        first(static_cast<std::size_t>(count)),
        second(static_cast<std::size_t>(count)),
        rounded(static_cast<std::size_t>(count)) {}
  static std::vector<float> grad(std::int64_t count, std::int64_t step) {
    return random_floats(count, 100 + static_cast<std::uint64_t>(step), 1e-2f);
  }
  void run(AdamwArgs args, Context& ctx) {
    const auto count = std::ssize(weights);
    const auto gradient = grad(count, args.step);
    args.count = count;
    args.weights = weights.data();
    args.grad = gradient.data();
    args.first = first.data();
    args.second = second.data();
    args.rounded = rounded.data();
    adamw(args, ctx);
  }
  std::vector<float> weights, first, second;
  std::vector<Bf16> rounded;
};

TEST(Adamw, AgreesWithTheOracle) {
  for_each_target([] {
    Context ctx(with_threads(2));
    for (const std::int64_t count : {0, 1, 7, 16, 65, 40000}) {
      for (const double decay : {0.0, 0.1}) {
        Tensor tensor(count);
        auto weights = doubles(tensor.weights), first = doubles(tensor.first), second = first;
        auto plain_weights = tensor.weights, plain_first = tensor.first, plain_second = plain_first;
        AdamwArgs args = hyper_parameters();
        args.decay = decay;
        for (args.step = 1; args.step <= 12; ++args.step) {
          const auto grad = Tensor::grad(count, args.step);
          adamw_ref(args, doubles(grad), weights, first, second);
          adamw_ref(args, grad, plain_weights, plain_first, plain_second);
          tensor.run(args, ctx);
        }
        expect_within(tensor.weights, plain_weights, weights, "weights");
        expect_within(tensor.first, plain_first, first, "first");
        expect_within(tensor.second, plain_second, second, "second");
        for (std::size_t i = 0; i < tensor.rounded.size(); ++i) {
          ASSERT_EQ(tensor.rounded[i].bits, to_bf16(tensor.weights[i]).bits);
        }
      }
    }
  });
}

// What the first step is known to do: every weight moves by the rate, against its gradient.
TEST(Adamw, TheFirstStepMovesByTheRate) {
  Context ctx(with_threads(1));
  AdamwArgs args = hyper_parameters();
  args.decay = 0;
  Tensor tensor(100);
  const auto before = tensor.weights;
  const auto grad = Tensor::grad(100, 1);
  tensor.run(args, ctx);
  for (std::size_t i = 0; i < before.size(); ++i) {
    const double move = grad[i] > 0 ? -args.rate : args.rate;
    EXPECT_NEAR(tensor.weights[i], before[i] + move, args.rate * 1e-3);
  }
}

TEST(Adamw, DecayIsDecoupled) {
  Context ctx(with_threads(1));
  AdamwArgs args = hyper_parameters();
  Tensor with(100), without(100);
  const auto before = with.weights;
  with.run(args, ctx);
  args.decay = 0;
  without.run(args, ctx);
  EXPECT_TRUE(same_bits(with.first, without.first) && same_bits(with.second, without.second));
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_NEAR(with.weights[i], without.weights[i] - 3e-4 * before[i], 1e-6);
  }
}

TEST(Adamw, AnElementsBitsDependOnNothingElse) {
  constexpr std::int64_t kCount = 40003;
  Context two(with_threads(2)), one(with_threads(1));
  const AdamwArgs args = hyper_parameters();
  Tensor all(kCount), again(kCount);
  all.run(args, two);
  again.run(args, one);
  EXPECT_TRUE(same_bits(all.weights, again.weights));
  // The last element takes another way through the vectors when it stands alone.
  Tensor last(kCount);
  const auto grad = Tensor::grad(kCount, 1);
  AdamwArgs single = args;
  single.count = 1;
  single.weights = &last.weights[kCount - 1];
  single.grad = &grad[kCount - 1];
  single.first = &last.first[kCount - 1];
  single.second = &last.second[kCount - 1];
  adamw(single, one);
  EXPECT_EQ(last.weights[kCount - 1], all.weights[kCount - 1]);
}

TEST(Adamw, RefusesWrongArguments) {
  Context ctx(with_threads(1));
  float number = 0;
  AdamwArgs good = hyper_parameters();
  good.count = 1;
  good.weights = good.first = good.second = &number;
  good.grad = &number;
  const auto refused = [&](auto&& change) {
    AdamwArgs args = good;
    change(args);
    return error_of([&] { adamw(args, ctx); });
  };
  EXPECT_NE(refused([](auto& a) { a.step = 0; }).find("step is 0"), std::string::npos);
  EXPECT_NE(refused([](auto& a) { a.beta2 = 1; }).find("beta2 is 1"), std::string::npos);
  refused([](auto& a) { a.rate = kNan; });
  refused([](auto& a) { a.decay = -1; });
  refused([](auto& a) { a.grad_scale = kNan; });
  refused([](auto& a) { a.second = nullptr; });
}

TEST(GlobalNorm, IsTheNormOfAllTogetherOnAnyNumberOfThreads) {
  for_each_target([] {
    const auto a = random_floats(200001, 1), b = random_floats(7, 2, 1e15f),
               c = random_floats(0, 3);
    const std::vector<std::span<const float>> few = {a, c}, more = {a, b, c};
    for (const auto& tensors : {few, more}) {
      double first = 0;
      for (const int threads : {1, 2, 3}) {
        Context ctx(with_threads(threads));
        double norm = -1;
        global_norm({tensors, &norm}, ctx);
        const double expected = global_norm_ref(tensors);
        EXPECT_NEAR(norm, expected, expected * 1e-12);
        if (threads == 1) first = norm;
        EXPECT_EQ(norm, first);
      }
    }
  });
}

TEST(GlobalNorm, ShowsNanAndInfinity) {
  Context ctx(with_threads(2));
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const std::size_t at : {std::size_t{0}, std::size_t{131070}, std::size_t{199999}}) {
      auto values = random_floats(200000, 1);
      values[at] = bad;
      const std::vector<std::span<const float>> tensors = {values};
      double norm = 0;
      global_norm({tensors, &norm}, ctx);
      EXPECT_EQ(std::isnan(norm), std::isnan(bad));
      EXPECT_FALSE(std::isfinite(norm));
    }
  }
}

}  // namespace
}  // namespace mamba3
