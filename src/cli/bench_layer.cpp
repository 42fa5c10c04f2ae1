#include "cli/bench_layer.h"

#include <algorithm>
#include <numeric>

#include "cli/bench_timing.h"
#include "model/mixer.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"
#include "ops/mamba3_step/mamba3_ring_ops.h"
#include "ops/mamba3_step/mamba3_step.h"
#include "train/layer_states.h"

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

// Random rows of some sequences, for mamba3_scan and its way back.
class ScanCase {
 public:
  ScanCase(const BenchLayer& layer, Compute compute, const std::vector<std::int64_t>& lengths,
           Context& ctx)
      : config_(layer.config()),
        dims_(layer.dims()),
        bf16_(layer.has_bf16_activations()),
        ctx_(ctx),
        memory_(ctx) {
    std::vector<std::int64_t> bounds{0};
    for (const std::int64_t length : lengths) bounds.push_back(bounds.back() + length);
    const std::int64_t sequences = std::ssize(lengths);
    tokens_ = bounds.back();
    args_.dims = dims_;
    args_.params = layer.params();
    args_.columns = random_columns();
    args_.cu_seqlens = memory_.place(bounds);
    args_.slots = memory_.place(first_numbers(sequences));
    args_.states = random_states(sequences).states();
    args_.y = memory_.random_matrix(tokens_, config_.inner(), bf16_);
    args_.bf16_products = compute == Compute::kBf16;
    grad_states_ = random_states(sequences).gradients();
  }

  void forward() { mamba3_scan(args_, ctx_); }

  Mamba3ScanBackwardArgs backward_args() {
    Mamba3ScanBackwardArgs back;
    back.dims = dims_;
    back.params = args_.params;
    back.columns = args_.columns;
    back.cu_seqlens = args_.cu_seqlens;
    back.slots = args_.slots;
    back.states = args_.states;
    back.grad_y = memory_.random_matrix(tokens_, config_.inner(), bf16_);
    back.grad_columns = column_gradients();
    back.grad_states = grad_states_;
    back.grad_params = param_gradients();
    back.bf16_products = bf16_;
    return back;
  }

 private:
  Mamba3Columns random_columns() {
    const std::int64_t inner = config_.inner();
    const std::int64_t wide = config_.in_proj_rows() - (bf16_ ? 2 * inner : 0);  // in fp32
    Mamba3Columns columns =
        split_columns(memory_.random_floats(tokens_ * wide), wide, dims_, bf16_);
    if (bf16_) {
      columns.z_bf16 = memory_.random_bf16(tokens_ * 2 * inner);
      columns.x_bf16 = columns.z_bf16 + inner;
      columns.zx_stride = 2 * inner;
    }
    return columns;
  }

  LayerStates random_states(std::int64_t sequences) {
    return {dims_, sequences, memory_.random_floats(sequences * LayerStates::row_elements(dims_))};
  }

  Mamba3ColumnGradients column_gradients() {
    const std::int64_t e = config_.in_proj_rows();
    if (!bf16_) return split_column_gradients(memory_.floats(tokens_ * e), e, dims_);
    Mamba3ColumnGradients out;
    out.rows_bf16 = memory_.random_bf16(tokens_ * e);
    out.row_stride = e;
    return out;
  }

  Mamba3ParamGradients param_gradients() {
    const std::int64_t h = dims_.heads, rank = h * dims_.rank, n = dims_.state, p = dims_.head_dim;
    const auto sums = [&](std::int64_t count) { return memory_.random_floats(count); };
    Mamba3ParamGradients out{sums(h), sums(h), sums(rank * n), sums(rank * n), sums(n), sums(n)};
    if (dims_.mimo) {
      for (float** part : {&out.mimo_x, &out.mimo_z, &out.mimo_o}) *part = sums(rank * p);
    }
    if (dims_.out_norm) out.out_norm = sums(h * p);
    return out;
  }

  const ModelConfig& config_;
  Mamba3Dims dims_;
  bool bf16_;
  Context& ctx_;
  BenchMemory memory_;
  std::int64_t tokens_ = 0;
  Mamba3ScanArgs args_;
  Mamba3StateGradients grad_states_;
};

}  // namespace

BenchLayer::BenchLayer(const ModelConfig& config, Compute compute, Context& ctx)
    : config_(one_layer(config)),
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
  ScanCase scan(*this, compute_, lengths, ctx_);
  return time_calls(ctx_, repeat, [&](std::int64_t) { scan.forward(); });
}

double BenchLayer::scan_and_back_seconds(const std::vector<std::int64_t>& lengths,
                                         std::int64_t repeat) {
  ScanCase scan(*this, compute_, lengths, ctx_);
  const Mamba3ScanBackwardArgs back = scan.backward_args();
  return time_calls(ctx_, repeat, [&](std::int64_t) {
    scan.forward();
    mamba3_scan_backward(back, ctx_);
  });
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
