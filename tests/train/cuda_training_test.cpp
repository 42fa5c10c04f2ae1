// Training on a GPU: gradients of whole models against the oracle, equal bits, and what a training
// leaves. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <string>

#include "core/mirror.h"
#include "mamba3/error.h"
#include "tiny_training.h"
#include "train/learner.h"
#include "train/reference_gradients.h"

namespace mamba3 {
namespace {

#define SKIP_WITHOUT_GPU() \
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU"

ContextOptions on(DeviceKind kind) {
  ContextOptions options;
  options.threads = 2;
  options.device = {kind, 0};
  return options;
}

struct Found {
  CrossEntropySums sums;
  ParameterValues gradients;  // in the host's memory
};

Found gradients_on(DeviceKind device, const Tiny& tiny, const TrainingBatch& batch,
                   const LossOptions& options) {
  Context ctx(on(device));
  const ModelWeights weights = bind_weights(tiny.config, tiny.initial.tensors, nullptr, ctx);
  ParameterValues gradients(tiny.config, ctx.gpu());
  CrossEntropySums sums;
  const Mirror<CrossEntropySums> there({&sums, 1}, ctx);
  loss_and_gradients(tiny.config, weights, batch, options, gradients, there.data(), ctx);
  there.read_back();
  return {sums, gradients.host_copy()};
}

bool same_bits(const ParameterValues& a, const ParameterValues& b) {
  const ParameterValues x = a.host_copy(), y = b.host_copy();
  return std::memcmp(x.all().data(), y.all().data(), x.all().size_bytes()) == 0;
}

// One token, none, and cuts beside those of chunks.
const std::vector<std::int64_t> kLengths = {70, 0, 1, 64, 19, 129};

TokenBatch awkward_batch(const ModelConfig& config, std::uint64_t seed = 5) {
  return {random_ids(283, config.vocab, seed), kLengths};
}

TEST(CudaLossAndGradients, AgreeWithTheOracleInFp32) {
  SKIP_WITHOUT_GPU();
  Context setup(on(DeviceKind::kCpu));
  for (const TinyModel& model : all_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, setup);
    const TokenBatch batch = awkward_batch(tiny.config);
    LossOptions options = mean_of(278);
    options.z_weight = 0.01;
    const auto& tensors = tiny.initial.tensors;
    const auto truth = reference_gradients<double>(tiny.config, tensors, batch.view(), options);
    const auto plain = plain_gradient_errors(tiny.config, tensors, batch.view(), options, truth);
    const Found found = gradients_on(DeviceKind::kCuda, tiny, batch.view(), options);
    EXPECT_EQ(found.sums.rows, 278);
    EXPECT_NEAR(found.sums.loss, truth.loss, truth.loss * 1e-6);
    EXPECT_NEAR(found.sums.squared_z, truth.squared_z, truth.squared_z * 1e-6);
    for (const auto& [name, values] : truth.tensors) {
      expect_within(found.gradients, plain, name, values);
    }
  }
}

// The errors of each tensor's gradient with bf16 products, as root mean squares: on a CPU, where
// linears round what they read and the scan, on some processors, what its products do; and on a
// GPU.
struct Bf16Errors {
  double cpu = 0, gpu = 0;
};

// Raises `worst` to the errors of one batch.
void raise(std::map<std::string, Bf16Errors>& worst, const Tiny& tiny, const TokenBatch& batch) {
  LossOptions options = mean_of(278);
  const auto truth =
      reference_gradients<double>(tiny.config, tiny.initial.tensors, batch.view(), options);
  options.compute = Compute::kBf16;
  const Found cpu = gradients_on(DeviceKind::kCpu, tiny, batch.view(), options);
  const Found gpu = gradients_on(DeviceKind::kCuda, tiny, batch.view(), options);
  EXPECT_NEAR(gpu.sums.loss, truth.loss, truth.loss * kBf16Rounding);
  for (const auto& tensor : truth.tensors) {
    const auto error = [&tensor](const Found& found) {
      return rms_error(std::span<const float>(found.gradients.values(tensor.first)),
                       std::span<const double>(tensor.second), ErrorMetric::kRelative);
    };
    Bf16Errors& errors = worst[tensor.first];
    errors.cpu = std::max(errors.cpu, error(cpu));
    errors.gpu = std::max(errors.gpu, error(gpu));
  }
}

// Over some batches: the gradient of a tensor of two numbers may be close in one by luck.
TEST(CudaLossAndGradients, InBf16AreAsGoodAsOnACpu) {
  SKIP_WITHOUT_GPU();
  Context setup(on(DeviceKind::kCpu));
  for (const TinyModel& model : all_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, setup);
    std::map<std::string, Bf16Errors> worst;
    for (const std::uint64_t seed : {5, 6, 7}) raise(worst, tiny, awkward_batch(tiny.config, seed));
    for (const auto& [name, errors] : worst) {
      const Comparison c = judge(errors.gpu, errors.cpu, 2 * kBf16Rounding);
      EXPECT_TRUE(c.ok) << name << ": error " << c.error << ", on a CPU " << c.naive_error;
    }
  }
}

TEST(CudaLossAndGradients, RecomputingChangesNoBit) {
  SKIP_WITHOUT_GPU();
  Context setup(on(DeviceKind::kCpu));
  for (const TinyModel& model : all_models()) {
    SCOPED_TRACE(model.name);
    TinyModel deep = model;
    deep.config.layers = 4;
    const Tiny tiny(deep, setup);
    const TokenBatch batch = awkward_batch(tiny.config);
    for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
      LossOptions options = mean_of(278);
      options.compute = compute;
      const Found kept = gradients_on(DeviceKind::kCuda, tiny, batch.view(), options);
      for (const Recompute recompute : {Recompute::kScan, Recompute::kBlock}) {
        options.recompute = recompute;
        const Found again = gradients_on(DeviceKind::kCuda, tiny, batch.view(), options);
        EXPECT_EQ(again.sums.loss, kept.sums.loss);
        EXPECT_TRUE(same_bits(again.gradients, kept.gradients));
      }
    }
  }
}

TEST(CudaLossAndGradients, TheLossAloneIsTheSame) {
  SKIP_WITHOUT_GPU();
  Context ctx(on(DeviceKind::kCuda));
  Context setup(on(DeviceKind::kCpu));
  for (const TinyModel& model : all_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, setup);
    const TokenBatch batch = awkward_batch(tiny.config);
    const ModelWeights weights = bind_weights(tiny.config, tiny.initial.tensors, nullptr, ctx);
    ParameterValues gradients(tiny.config, ctx.gpu());
    for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
      CrossEntropySums sums[2];
      const Mirror<CrossEntropySums> there(sums, ctx);
      LossOptions options;
      options.compute = compute;
      loss_of(tiny.config, weights, batch.view(), options, there.data(), ctx);
      loss_and_gradients(tiny.config, weights, batch.view(), options, gradients, there.data() + 1,
                         ctx);
      there.read_back();
      EXPECT_EQ(sums[0].loss, sums[1].loss);
      EXPECT_EQ(sums[0].correct, sums[1].correct);
      EXPECT_EQ(sums[0].rows, 278);
    }
  }
}

TEST(CudaLossAndGradients, AssignedEqualAddedToZeros) {
  SKIP_WITHOUT_GPU();
  Context ctx(on(DeviceKind::kCuda));
  Context setup(on(DeviceKind::kCpu));
  for (const TinyModel& model : all_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, setup);
    const ModelWeights weights = bind_weights(tiny.config, tiny.initial.tensors, nullptr, ctx);
    ParameterValues nans(tiny.config);
    for (const TensorSpec& spec : tensor_specs(tiny.config)) {
      std::ranges::fill(nans.values(spec.name), std::numeric_limits<float>::quiet_NaN());
    }
    const TokenBatch first = awkward_batch(tiny.config), second = awkward_batch(tiny.config, 6);
    for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
      LossOptions options;
      options.compute = compute;
      CrossEntropySums sums;
      const Mirror<CrossEntropySums> there({&sums, 1}, ctx);
      ParameterValues added(tiny.config, ctx.gpu()), assigned(tiny.config, ctx.gpu());
      assigned.assign(nans.tensors());
      for (ParameterValues* to : {&added, &assigned}) {
        options.accumulate_gradients = to == &added;
        loss_and_gradients(tiny.config, weights, first.view(), options, *to, there.data(), ctx);
        options.accumulate_gradients = true;
        loss_and_gradients(tiny.config, weights, second.view(), options, *to, there.data(), ctx);
      }
      const ParameterValues x = added.host_copy(), y = assigned.host_copy();
      EXPECT_TRUE(std::ranges::equal(x.all(), y.all()));
    }
  }
}

TEST(CudaLossAndGradients, RefuseWrongIds) {
  SKIP_WITHOUT_GPU();
  Context ctx(on(DeviceKind::kCuda));
  const Tiny tiny(tiny_models()[0], ctx);
  ParameterValues gradients(tiny.config, ctx.gpu());
  CrossEntropySums sums;
  const Mirror<CrossEntropySums> there({&sums, 1}, ctx);
  for (const std::int32_t bad : {-1, 104}) {
    TokenBatch batch({1, 2, 3, 4}, {4});
    batch.ids[2] = bad;
    EXPECT_THROW(loss_and_gradients(tiny.config, tiny.weights, batch.view(), {}, gradients,
                                    there.data(), ctx),
                 Error);
    batch.ids[2] = 1;
    batch.targets[1] = bad == -1 ? -2 : bad;
    EXPECT_THROW(loss_and_gradients(tiny.config, tiny.weights, batch.view(), {}, gradients,
                                    there.data(), ctx),
                 Error);
  }
}

// A model that learns a few sequences by heart, two micro-batches a step.
struct Pupil {
  Pupil(const TinyModel& model, Compute compute, DeviceKind device)
      : ctx(on(device)),
        learner(model.config, options(compute), {}, ctx),
        first(random_ids(90, model.config.vocab, 3), {70, 20}),
        second(random_ids(40, model.config.vocab, 4), {40}) {
    learner.assign(init_tensors(model.config, DType::kF32, 1, ctx).tensors);
  }
  static LossOptions options(Compute compute) {
    LossOptions out;
    out.compute = compute;
    return out;
  }
  double step() {
    learner.clear();
    learner.add(first.view(), 1 / 127.0);
    learner.add(second.view(), 1 / 127.0);
    const Learner::Figures found = learner.figures();
    EXPECT_EQ(found.sums.rows, 127);
    EXPECT_GT(found.norm, 0);
    learner.update(found.norm, 5e-3);
    return found.sums.loss / 127;
  }
  double steps(int count) {
    double loss = 0;
    for (int i = 0; i < count; ++i) loss = step();
    return loss;
  }
  // As a checkpoint passes it on.
  void go_on_from(const Pupil& other) {
    std::map<std::string, TensorRef> moments;
    const ParameterValues weights = other.learner.weights().host_copy();
    const ParameterValues m = other.learner.optimizer().first().host_copy();
    const ParameterValues s = other.learner.optimizer().second().host_copy();
    for (const auto& [name, tensor] : m.tensors()) moments["first." + name] = tensor;
    for (const auto& [name, tensor] : s.tensors()) moments["second." + name] = tensor;
    learner.assign(weights.tensors());
    learner.resume(other.learner.steps(), moments);
  }
  void expect_same(const Pupil& other) const {
    EXPECT_TRUE(same_bits(learner.weights(), other.learner.weights()));
    EXPECT_TRUE(same_bits(learner.optimizer().first(), other.learner.optimizer().first()));
    EXPECT_TRUE(same_bits(learner.optimizer().second(), other.learner.optimizer().second()));
  }

  Context ctx;
  Learner learner;
  TokenBatch first, second;
};

TEST(CudaTraining, TwoRunsAndAResumedOneHaveTheSameBits) {
  SKIP_WITHOUT_GPU();
  for (const TinyModel& model : all_models()) {
    SCOPED_TRACE(model.name);
    for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
      Pupil one(model, compute, DeviceKind::kCuda), two(model, compute, DeviceKind::kCuda);
      Pupil before(model, compute, DeviceKind::kCuda), after(model, compute, DeviceKind::kCuda);
      EXPECT_EQ(one.steps(4), two.steps(4));
      two.expect_same(one);
      before.steps(2);
      after.go_on_from(before);
      after.steps(2);
      after.expect_same(one);
    }
  }
}

TEST(CudaTraining, LearnsAsOnACpu) {
  SKIP_WITHOUT_GPU();
  for (const TinyModel& model : all_models()) {
    SCOPED_TRACE(model.name);
    Pupil cpu(model, Compute::kF32, DeviceKind::kCpu), gpu(model, Compute::kF32, DeviceKind::kCuda);
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(gpu.step(), cpu.step(), 1e-3);
    // Each goes on with what the other left.
    Pupil cpu_after(model, Compute::kF32, DeviceKind::kCpu);
    Pupil gpu_after(model, Compute::kF32, DeviceKind::kCuda);
    cpu_after.go_on_from(gpu);
    gpu_after.go_on_from(cpu);
    const double loss = cpu.step();
    EXPECT_NEAR(cpu_after.step(), loss, 1e-3);
    EXPECT_NEAR(gpu_after.step(), loss, 1e-3);
  }
}

TEST(CudaTraining, LearnsByHeart) {
  SKIP_WITHOUT_GPU();
  for (const TinyModel& model : all_models()) {
    SCOPED_TRACE(model.name);
    Pupil pupil(model, Compute::kBf16, DeviceKind::kCuda);
    const double first = pupil.step();
    EXPECT_LT(pupil.steps(80), 0.1 * first);
  }
}

}  // namespace
}  // namespace mamba3
