// Truncated back-propagation: a pass that goes on from states that lanes carry and leaves them
// theirs, on a CPU and, where there is one, on a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "../io/file_test_util.h"
#include "core/mirror.h"
#include "model/mixer.h"
#include "ops/mamba3_common/turns.h"
#include "tiny_training.h"
#include "train/lane_states.h"
#include "train/reference_gradients.h"

namespace mamba3 {
namespace {

#define SKIP_WITHOUT_GPU() \
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU"

Context on(DeviceKind kind, int threads = 2) {
  ContextOptions options;
  options.threads = threads;
  options.device = {kind, 0};
  return Context(std::move(options));
}

std::map<std::string, TensorRef> by_name(const LaneStates::HostCopy& states) {
  std::map<std::string, TensorRef> out;
  for (const auto& [name, tensor] : states.tensors) out[name] = tensor;
  return out;
}

// A batch whose sequences belong to lanes; each token's target is the one behind it.
struct LaneBatch {
  LaneBatch(TokenBatch tokens_in, std::vector<std::int64_t> starts_in,
            std::vector<std::int64_t> ends_in, std::int64_t first_lane_in = 0)
      : tokens(std::move(tokens_in)),
        starts(std::move(starts_in)),
        ends(std::move(ends_in)),
        first_lane(first_lane_in) {}
  TrainingBatch view(LaneStates* lanes) const {
    TrainingBatch out = tokens.view();
    out.lanes = lanes;
    out.starts = starts;
    out.ends = ends;
    out.first_lane = first_lane;
    return out;
  }
  TokenBatch tokens;
  std::vector<std::int64_t> starts, ends;
  std::int64_t first_lane;
};

// A model on a device with lanes.
struct Walker {
  Walker(const Tiny& tiny_in, std::int64_t lanes_in, DeviceKind device, int threads = 2)
      : tiny(tiny_in),
        ctx(on(device, threads)),
        weights(bind_weights(tiny.config, tiny.initial.tensors, nullptr, ctx)),
        lanes(tiny.config, lanes_in, ctx.gpu()) {}

  double loss(const TrainingBatch& batch, const LossOptions& options = {}) {
    CrossEntropySums sums;
    const Mirror<CrossEntropySums> there({&sums, 1}, ctx);
    loss_of(tiny.config, weights, batch, options, there.data(), ctx);
    there.read_back();
    return sums.loss;
  }
  struct Found {
    double loss = 0;
    ParameterValues gradients;
    LaneStates::HostCopy after;
  };
  // The gradients, and what the lanes go on from then.
  Found gradients(const LaneBatch& batch, const LossOptions& options = {}) {
    ParameterValues found(tiny.config, ctx.gpu());
    CrossEntropySums sums;
    const Mirror<CrossEntropySums> there({&sums, 1}, ctx);
    loss_and_gradients(tiny.config, weights, batch.view(&lanes), options, found, there.data(), ctx);
    there.read_back();
    lanes.advance();
    return {sums.loss, found.host_copy(), lanes.host_copy()};
  }

  const Tiny& tiny;
  Context ctx;
  ModelWeights weights;
  LaneStates lanes;
};

std::vector<double> doubles(const TensorRef& tensor, std::int64_t row) {
  const std::vector<float> all = widen(tensor);
  const std::int64_t count = tensor.elements() / tensor.shape[0];
  return {all.begin() + row * count, all.begin() + (row + 1) * count};
}

// The canonical tuple of a lane.
std::vector<Mamba3RefState<double>> oracle_states(const LaneStates::HostCopy& states,
                                                  std::int64_t lane, const ModelConfig& config) {
  const auto tensors = by_name(states);
  const Mamba3Dims dims = mixer_dims(config);
  std::vector<Mamba3RefState<double>> out;
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const std::string layer = "layers." + std::to_string(l) + ".";
    auto& to = out.emplace_back(Mamba3RefState<double>::zeros(dims));
    const std::vector<double> ssm = doubles(tensors.at(layer + "ssm"), lane);
    for (std::int64_t i = 0; i < std::ssize(ssm); ++i) {
      const std::int64_t p = i % dims.head_dim, n = i / dims.head_dim % dims.state;
      const std::int64_t h = i / dims.head_dim / dims.state;
      to.ssm[(h * dims.head_dim + p) * dims.state + n] = ssm[i];
    }
    to.k = doubles(tensors.at(layer + "k"), lane);
    to.v = doubles(tensors.at(layer + "v"), lane);
    const std::int64_t angles = dims.heads * dims.angles;
    for (std::int64_t i = 0; i < angles; ++i) {
      std::uint32_t turns = 0;
      std::memcpy(&turns, tensors.at(layer + "turns").data + 4 * (lane * angles + i), 4);
      to.angle[i] = radians_of_turns(turns);
    }
  }
  return out;
}

// Numbers of the size of 1, after some hundreds of fp32 operations.
void expect_near(const std::vector<Mamba3RefState<double>>& got,
                 const std::vector<Mamba3RefState<double>>& truth) {
  for (std::size_t l = 0; l < truth.size(); ++l) {
    const auto near = [l](const char* what, const std::vector<double>& a,
                          const std::vector<double>& b) {
      ASSERT_EQ(a.size(), b.size());
      for (std::size_t i = 0; i < a.size(); ++i) {
        EXPECT_NEAR(a[i], b[i], 1e-4) << what << " " << i << " of layer " << l;
      }
    };
    near("ssm", got[l].ssm, truth[l].ssm);
    near("k", got[l].k, truth[l].k);
    near("v", got[l].v, truth[l].v);
    for (std::size_t i = 0; i < truth[l].angle.size(); ++i) {
      EXPECT_NEAR(std::sin((got[l].angle[i] - truth[l].angle[i]) / 2), 0, 1e-4) << "layer " << l;
    }
  }
}

// Turns may be patterns of NaNs.
bool same_bits(const LaneStates::HostCopy& a, const LaneStates::HostCopy& b) {
  return a.numbers.size() == b.numbers.size() &&
         std::memcmp(a.numbers.data(), b.numbers.data(), a.numbers.size() * sizeof(float)) == 0;
}

void expect_same_bits(const Walker::Found& a, const Walker::Found& b) {
  EXPECT_EQ(a.loss, b.loss);
  const auto x = a.gradients.all(), y = b.gradients.all();
  EXPECT_EQ(std::memcmp(x.data(), y.data(), x.size_bytes()), 0);
  EXPECT_TRUE(same_bits(a.after, b.after));
}

// Tokens [begin, end) of a sequence, with the targets that they have there.
TokenBatch part_of(const TokenBatch& whole, std::int64_t begin, std::int64_t end) {
  TokenBatch part({whole.ids.begin() + begin, whole.ids.begin() + end}, {end - begin});
  part.targets.assign(whole.targets.begin() + begin, whole.targets.begin() + end);
  return part;
}

constexpr std::int64_t kTokens = 150;

// Cut every `length` tokens and read one after the other.
double loss_in_windows(const Tiny& tiny, const TokenBatch& whole, std::int64_t length,
                       DeviceKind device, const LossOptions& options) {
  Walker walker(tiny, 1, device);
  double loss = 0;
  for (std::int64_t begin = 0; begin < kTokens; begin += length) {
    const std::int64_t end = std::min(kTokens, begin + length);
    const LaneBatch window(part_of(whole, begin, end), {0}, {0});
    loss += walker.loss(window.view(&walker.lanes), options);
    walker.lanes.advance();
  }
  return loss;
}

// A window goes on where the one before it has ended.
void expect_loss_of_the_whole(const std::vector<TinyModel>& models, DeviceKind device) {
  Context setup = on(DeviceKind::kCpu);
  for (const TinyModel& model : models) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, setup);
    const TokenBatch whole(random_ids(kTokens, tiny.config.vocab, 5), {kTokens});
    const double truth =
        reference_gradients<double>(tiny.config, tiny.initial.tensors, whole.view(), {}).loss;
    for (const std::int64_t length : {1, 37, 64, 149, 150}) {
      EXPECT_NEAR(loss_in_windows(tiny, whole, length, device, {}), truth, truth * 1e-6) << length;
      LossOptions bf16;
      bf16.compute = Compute::kBf16;
      EXPECT_NEAR(loss_in_windows(tiny, whole, length, device, bf16), truth, truth * kBf16Rounding)
          << length;
    }
  }
}

TEST(CarriedStates, ADocumentInWindowsHasTheLossOfTheWhole) {
  expect_loss_of_the_whole(tiny_models(), DeviceKind::kCpu);
}

TEST(CudaCarriedStates, ADocumentInWindowsHasTheLossOfTheWhole) {
  SKIP_WITHOUT_GPU();
  expect_loss_of_the_whole(all_models(), DeviceKind::kCuda);
}

// Two lanes of four, each of its own text, and then a window of each: the second lane's ends one
// document and begins another, whose states it leaves.
LaneBatch first_windows(const ModelConfig& config, std::uint32_t seed) {
  return {TokenBatch(random_ids(100, config.vocab, seed), {30, 70}), {4, 4}, {1, 0}, 1};
}
LaneBatch second_windows(const ModelConfig& config, std::uint32_t seed) {
  return {TokenBatch(random_ids(136, config.vocab, seed + 100), {1, 65, 70}), {2, 4, 1}, {2, 1}, 1};
}
constexpr std::int64_t kTargets = 133;

// What the three sequences of the second windows start from.
ReferenceStates<double> starts_of(const LaneStates::HostCopy& states, const ModelConfig& config) {
  const std::vector fresh(static_cast<std::size_t>(config.layers),
                          Mamba3RefState<double>::zeros(mixer_dims(config)));
  return {oracle_states(states, 2, config), fresh, oracle_states(states, 1, config)};
}

void expect_gradients_from_given_states(const std::vector<TinyModel>& models, DeviceKind device) {
  Context setup = on(DeviceKind::kCpu);
  for (const TinyModel& model : models) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, setup);
    Walker walker(tiny, 4, device);
    const auto first = walker.gradients(first_windows(tiny.config, 5));
    const LaneBatch batch = second_windows(tiny.config, 5);
    LossOptions options = mean_of(kTargets);
    options.z_weight = 0.01;
    const auto& tensors = tiny.initial.tensors;
    const auto starts = starts_of(first.after, tiny.config);
    ReferenceStates<double> states = starts;
    const TrainingBatch view = batch.tokens.view();
    const auto truth = reference_gradients(tiny.config, tensors, view, options, 0, &states);
    const auto plain = plain_gradient_errors(tiny.config, tensors, view, options, truth, starts);
    const auto found = walker.gradients(batch, options);
    EXPECT_NEAR(found.loss, truth.loss, truth.loss * 1e-6);
    for (const auto& [name, values] : truth.tensors) {
      expect_within(found.gradients, plain, name, values);
    }
    expect_near(oracle_states(found.after, 1, tiny.config), states[2]);
    expect_near(oracle_states(found.after, 2, tiny.config), states[1]);
  }
}

TEST(CarriedStates, GradientsOfAWindowAreThoseFromItsStates) {
  expect_gradients_from_given_states(tiny_models(), DeviceKind::kCpu);
}

TEST(CudaCarriedStates, GradientsOfAWindowAreThoseFromItsStates) {
  SKIP_WITHOUT_GPU();
  expect_gradients_from_given_states(all_models(), DeviceKind::kCuda);
}

// Each tensor's largest error over some batches, as a root mean square: on a CPU, and on a GPU.
TEST(CudaCarriedStates, InBf16GradientsAreAsGoodAsOnACpu) {
  SKIP_WITHOUT_GPU();
  Context setup = on(DeviceKind::kCpu);
  for (const TinyModel& model : all_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, setup);
    std::map<std::string, std::array<double, 2>> worst;
    for (const std::uint32_t seed : {5, 6, 7}) {
      const LaneBatch batch = second_windows(tiny.config, seed);
      LossOptions options = mean_of(kTargets);
      Walker exact(tiny, 4, DeviceKind::kCpu);
      const auto given = exact.gradients(first_windows(tiny.config, seed)).after;
      ReferenceStates<double> states = starts_of(given, tiny.config);
      const auto truth = reference_gradients(tiny.config, tiny.initial.tensors, batch.tokens.view(),
                                             options, 0, &states);
      options.compute = Compute::kBf16;
      for (const DeviceKind device : {DeviceKind::kCpu, DeviceKind::kCuda}) {
        Walker walker(tiny, 4, device);
        walker.lanes.assign(by_name(given));
        const auto found = walker.gradients(batch, options);
        EXPECT_NEAR(found.loss, truth.loss, truth.loss * kBf16Rounding);
        for (const auto& [name, values] : truth.tensors) {
          double& error = worst[name][device == DeviceKind::kCuda];
          const auto got = found.gradients.values(name);
          error = std::max(error,
                           rms_error(got, std::span<const double>(values), ErrorMetric::kRelative));
        }
      }
    }
    for (const auto& [name, errors] : worst) {
      const Comparison c = judge(errors[1], errors[0], 2 * kBf16Rounding);
      EXPECT_TRUE(c.ok) << name << ": error " << c.error << ", on a CPU " << c.naive_error;
    }
  }
}

void expect_same_bits_in_every_mode(const std::vector<TinyModel>& models, DeviceKind device) {
  Context setup = on(DeviceKind::kCpu);
  for (const TinyModel& model : models) {
    SCOPED_TRACE(model.name);
    TinyModel deep = model;
    deep.config.layers = 4;
    const Tiny tiny(deep, setup);
    for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
      const auto run = [&](Recompute recompute, int threads) {
        LossOptions options;
        options.compute = compute;
        options.recompute = recompute;
        Walker walker(tiny, 4, device, threads);
        walker.gradients(first_windows(tiny.config, 5), options);
        return walker.gradients(second_windows(tiny.config, 5), options);
      };
      const auto kept = run(Recompute::kNone, 2);
      expect_same_bits(run(Recompute::kNone, 3), kept);
      expect_same_bits(run(Recompute::kScan, 2), kept);
      expect_same_bits(run(Recompute::kBlock, 1), kept);
    }
  }
}

TEST(CarriedStates, RecomputingAndThreadsChangeNoBit) {
  expect_same_bits_in_every_mode(tiny_models(), DeviceKind::kCpu);
}

TEST(CudaCarriedStates, RecomputingAndARunChangeNoBit) {
  SKIP_WITHOUT_GPU();
  expect_same_bits_in_every_mode(all_models(), DeviceKind::kCuda);
}

// Nothing is left before the step is taken, and to no other lanes.
void expect_others_untouched(DeviceKind device) {
  Context setup = on(DeviceKind::kCpu);
  const Tiny tiny(tiny_models()[0], setup);
  Walker walker(tiny, 4, device);
  const auto first = walker.gradients(first_windows(tiny.config, 5)).after;
  const LaneBatch batch = second_windows(tiny.config, 5);
  walker.loss(batch.view(&walker.lanes));
  EXPECT_TRUE(same_bits(walker.lanes.host_copy(), first));
  walker.lanes.advance();
  const auto second = walker.lanes.host_copy();
  EXPECT_FALSE(same_bits(second, first));
  for (const auto& [name, tensor] : by_name(second)) {
    for (const std::int64_t lane : {0, 3}) {
      const std::int64_t bytes = tensor.bytes() / 4;
      EXPECT_TRUE(std::all_of(tensor.data + lane * bytes, tensor.data + (lane + 1) * bytes,
                              [](std::byte b) { return b == std::byte{0}; }))
          << name;
    }
  }
}

TEST(CarriedStates, AreThoseOfTheirLanesAndOfStepsThatWereTaken) {
  expect_others_untouched(DeviceKind::kCpu);
}

TEST(CudaCarriedStates, AreThoseOfTheirLanesAndOfStepsThatWereTaken) {
  SKIP_WITHOUT_GPU();
  expect_others_untouched(DeviceKind::kCuda);
}

// As a checkpoint passes them on, from one device to the other too.
TEST(CudaCarriedStates, GoOnOnTheOtherDevice) {
  SKIP_WITHOUT_GPU();
  Context setup = on(DeviceKind::kCpu);
  for (const TinyModel& model : all_models()) {
    const Tiny tiny(model, setup);
    Walker gpu(tiny, 4, DeviceKind::kCuda), cpu(tiny, 4, DeviceKind::kCpu);
    const auto states = gpu.gradients(first_windows(tiny.config, 5)).after;
    cpu.lanes.assign(by_name(states));
    EXPECT_TRUE(same_bits(cpu.lanes.host_copy(), states));
    Walker back(tiny, 4, DeviceKind::kCuda);
    back.lanes.assign(by_name(cpu.lanes.host_copy()));
    expect_same_bits(back.gradients(second_windows(tiny.config, 5)),
                     gpu.gradients(second_windows(tiny.config, 5)));
  }
}

TEST(CarriedStates, ComeBackBitForBitAndOnlyForAsManyLanes) {
  Context setup = on(DeviceKind::kCpu);
  for (const TinyModel& model : tiny_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, setup);
    Walker walker(tiny, 4, DeviceKind::kCpu), again(tiny, 4, DeviceKind::kCpu);
    const auto states = walker.gradients(first_windows(tiny.config, 5)).after;
    again.lanes.assign(by_name(states));
    expect_same_bits(again.gradients(second_windows(tiny.config, 5)),
                     walker.gradients(second_windows(tiny.config, 5)));
    LaneStates three(tiny.config, 3);
    expect_error("go on with the batch that the training was made with",
                 [&] { three.assign(by_name(states)); });
    auto some = by_name(states);
    some.erase("layers.1.k");
    expect_error("there is no tensor \"layers.1.k\"", [&] { again.lanes.assign(some); });
  }
}

TEST(CarriedStates, RefuseWrongBatches) {
  Context setup = on(DeviceKind::kCpu);
  const Tiny tiny(tiny_models()[0], setup);
  Walker walker(tiny, 4, DeviceKind::kCpu);
  const LaneBatch good = second_windows(tiny.config, 5);
  const auto refused = [&](const char* message, const auto& change) {
    LaneBatch batch = good;
    change(batch);
    expect_error(message, [&] { walker.loss(batch.view(&walker.lanes)); });
  };
  refused("for 2 of 3 sequences", [](LaneBatch& batch) { batch.starts.pop_back(); });
  refused("lane 5; expected 0 to 3, or 4", [](LaneBatch& batch) { batch.starts[1] = 5; });
  refused("lane -1", [](LaneBatch& batch) { batch.starts[1] = -1; });
  refused("ends with sequence 3", [](LaneBatch& batch) { batch.ends[1] = 3; });
  refused("lanes 3 to 4 of 4", [](LaneBatch& batch) { batch.first_lane = 3; });
  expect_error("or without lanes none", [&] { walker.loss(good.view(nullptr)); });
}

}  // namespace
}  // namespace mamba3
