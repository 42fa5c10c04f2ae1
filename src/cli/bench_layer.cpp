#include "cli/bench_layer.h"

#include <algorithm>
#include <numeric>

#include "cli/bench_timing.h"
#include "model/mixer.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_ring_ops.h"
#include "ops/mamba3_step/mamba3_step.h"

namespace mamba3::cli {
namespace {

ModelConfig one_layer(ModelConfig config) {
  config.layers = 1;
  config.vocab = 128;
  return config;
}

ModelWeights random_weights(const ModelConfig& config, Context& ctx) {
  check_layers(config, ctx);
  const InitialTensors tensors = init_tensors(config, DType::kBf16, ctx.seed(), ctx);
  return bind_weights(config, tensors.tensors, tensors.memory, ctx);
}

std::vector<std::int32_t> first_numbers(std::int64_t count) {
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

// Slots of `batch` sequences at a time, the next ones at each call.
class SlotsInTurn {
 public:
  SlotsInTurn(const ModelConfig& config, std::int64_t batch, BenchMemory& memory)
      : batch_(batch),
        turns_(copies_beyond_caches(config.state_bytes() * batch)),
        slots_(memory.place(first_numbers(batch * turns_))) {}
  std::int64_t turns() const { return turns_; }
  std::int64_t count() const { return batch_ * turns_; }
  std::span<const std::int32_t> of_call(std::int64_t call) const {
    return slots_.subspan(static_cast<std::size_t>(call % turns_ * batch_),
                          static_cast<std::size_t>(batch_));
  }

 private:
  std::int64_t batch_, turns_;
  std::span<const std::int32_t> slots_;
};

}  // namespace

BenchLayer::BenchLayer(ModelConfig config, Compute compute, Context& ctx)
    : config_(one_layer(std::move(config))),
      compute_(compute),
      ctx_(ctx),
      dims_(mixer_dims(config_)),
      weights_(random_weights(config_, ctx)) {}

Mamba3Params BenchLayer::params() const {
  return mixer_params(std::get<Mamba3MixerWeights>(block().mixer));
}

bool BenchLayer::has_bf16_activations() const {
  return compute_ == Compute::kBf16 && mamba3_scan_takes_bf16(dims_, ctx_);
}

double BenchLayer::scan_seconds(const std::vector<std::int64_t>& lengths, std::int64_t repeat) {
  std::vector<std::int64_t> bounds{0};
  for (const std::int64_t length : lengths) bounds.push_back(bounds.back() + length);
  const std::int64_t tokens = bounds.back(), sequences = std::ssize(lengths);
  const std::int64_t inner = config_.inner();
  const bool bf16 = has_bf16_activations();
  const std::int64_t wide = config_.in_proj_rows() - (bf16 ? 2 * inner : 0);  // in fp32
  BenchMemory memory(ctx_);
  const TensorView<float, 2> projected = memory.random_rows(tokens, wide);
  Mamba3Columns columns = split_columns(projected.data, wide, dims_, bf16);
  if (bf16) {
    columns.z_bf16 = memory.random_bf16(tokens * 2 * inner);
    columns.x_bf16 = columns.z_bf16 + inner;
    columns.zx_stride = 2 * inner;
  }
  const Matrix y = memory.random_matrix(tokens, inner, bf16);
  const StatePool::Impl pool(config_, sequences, ctx_.gpu(), {0, false});
  const Mamba3ScanArgs args{dims_,
                            params(),
                            columns,
                            memory.place(bounds),
                            memory.place(first_numbers(sequences)),
                            pool.layer(0),
                            y,
                            compute_ == Compute::kBf16};
  return time_calls(ctx_, repeat, [&](std::int64_t) { mamba3_scan(args, ctx_); });
}

Traffic BenchLayer::scan_traffic(const std::vector<std::int64_t>& lengths) const {
  const auto tokens = static_cast<double>(std::accumulate(lengths.begin(), lengths.end(), 0L));
  const double states = static_cast<double>(config_.state_bytes() * std::ssize(lengths));
  const auto inner = static_cast<double>(config_.inner());
  const double narrow = has_bf16_activations() ? 2 : 4;  // bytes of z, x and y
  const double others = static_cast<double>(config_.in_proj_rows()) - 2 * inner;
  return {states + tokens * (4 * others + 2 * narrow * inner), states + tokens * narrow * inner};
}

// Chunks of so many rows, ranks of a token side by side: scores and their products with x grow with
// the chunk, reading and updating the state does not. Shorter ones do not fill a tensor core.
double BenchLayer::scan_flops(std::int64_t tokens) const {
  constexpr double kRows = 64;
  const auto n = static_cast<double>(dims_.state), p = static_cast<double>(dims_.head_dim);
  const double head_token = static_cast<double>(dims_.rank) * (2 * kRows * (n + p) + 4 * n * p);
  return head_token * static_cast<double>(dims_.heads * tokens);
}

bool BenchLayer::has_ring() const {
  return ctx_.gpu() && mamba3_ring_fits(dims_, *ctx_.gpu());
}

double BenchLayer::step_seconds(std::int64_t batch, std::int64_t ring_tokens, std::int64_t repeat) {
  BenchMemory memory(ctx_);
  const TensorView<float, 2> projected = memory.random_rows(batch, config_.in_proj_rows());
  const TensorView<float, 2> y(memory.floats(batch * config_.inner()), {batch, config_.inner()});
  const SlotsInTurn slots(config_, batch, memory);
  const StatePool::Impl pool(config_, slots.count(), ctx_.gpu(), {ring_tokens, false});
  const Mamba3States states = pool.layer(0);
  const Mamba3Columns columns = split_columns(projected.data, projected.stride[0], dims_);
  return time_calls(
      ctx_, repeat,
      [&](std::int64_t call) {
        const std::span<const std::int32_t> rows = slots.of_call(call);
        mamba3_step({dims_, params(), columns, rows, states, y}, ctx_);
        if (ring_tokens > 1) mamba3_ring_advance({states.ring, rows}, *ctx_.gpu());
      },
      std::max<std::int64_t>(ring_tokens, 1) * slots.turns());
}

double BenchLayer::mixer_step_seconds(std::int64_t batch, std::int64_t repeat) {
  BenchMemory memory(ctx_);
  const std::int64_t d = config_.width, e = config_.in_proj_rows(), inner = config_.inner();
  const auto& weights = std::get<Mamba3MixerWeights>(block().mixer);
  const TensorView<float, 2> x = memory.random_rows(batch, d);
  const TensorView<float, 2> projected(memory.floats(batch * e), {batch, e});
  const TensorView<float, 2> y(memory.floats(batch * inner), {batch, inner});
  const TensorView<float, 2> out(memory.floats(batch * d), {batch, d});
  const SlotsInTurn slots(config_, batch, memory);
  const StatePool::Impl pool(config_, slots.count(), ctx_.gpu(), {has_ring() ? 1 : 0, false});
  const Mamba3Columns columns = split_columns(projected.data, projected.stride[0], dims_);
  return time_calls(ctx_, repeat, [&](std::int64_t call) {
    linear({x, weights.in_proj, projected, compute_, LinearPath::kSkinny}, ctx_);
    mamba3_step({dims_, params(), columns, slots.of_call(call), pool.layer(0), y}, ctx_);
    linear({y, weights.out_proj, out, compute_, LinearPath::kSkinny}, ctx_);
  });
}

Traffic BenchLayer::step_traffic(std::int64_t batch, std::int64_t ring_tokens) const {
  const auto rows = static_cast<double>(batch);
  const double states = rows * static_cast<double>(config_.state_bytes());
  Traffic traffic{states, states};
  if (ring_tokens > 1) {  // one entry is written, (k - 1) / 2 are read on average
    const auto k = static_cast<double>(ring_tokens);
    const double entry = rows * static_cast<double>(ring_bytes(dims_, 1));
    traffic = {states + entry * (k - 1) / 2, states / k + entry};
  }
  traffic.read += rows * sizeof(float) * static_cast<double>(config_.in_proj_rows());
  traffic.written += rows * sizeof(float) * static_cast<double>(config_.inner());
  return traffic;
}

}  // namespace mamba3::cli
