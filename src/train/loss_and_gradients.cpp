#include "train/loss_and_gradients.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/check.h"
#include "core/transfer.h"
#include "model/mixer.h"
#include "model/stream.h"
#include "ops/embedding/embedding.h"
#include "ops/embedding_backward/embedding_backward.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/linear/fused_linear.h"
#include "ops/linear_backward/linear_backward.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rms_norm_backward/rms_norm_backward.h"
#include "ops/swiglu/swiglu.h"
#include "ops/swiglu_backward/swiglu_backward.h"
#include "train/pass_workspace.h"

namespace mamba3 {
namespace {

constexpr const char* kEmbedding = "backbone.embedding.weight";

// The first pass leaves one block in the arena with room for itself and its ops: what grows step by
// step leaves blocks behind that are too small.
Carver carve(const ModelConfig& config, const PassShape& shape, Compute compute, ArenaScope& scope,
             Context& ctx) {
  Arena& arena = ctx.workspace();
  if (arena.capacity_bytes() == 0) {
    arena.reserve(pass_workspace_bytes(config, shape, compute, ctx));
  }
  const auto bytes = static_cast<std::int64_t>(pass_bytes(config, shape));
  return Carver(scope.allocate<std::byte>(bytes));
}

// One batch on its way through the model and back.
class Pass {
 public:
  Pass(const ModelConfig& config, const ModelWeights& weights, const TrainingBatch& batch,
       const LossOptions& options, ParameterValues* gradients, CrossEntropySums* sums, Context& ctx)
      : config_(config),
        weights_(weights),
        options_(options),
        gradients_(gradients),
        sums_(sums),
        lanes_(batch.lanes),
        first_lane_(batch.first_lane),
        ctx_(ctx),
        dims_(mixer_dims(config)),
        shape_(pass_shape(config, std::ssize(batch.ids), std::ssize(batch.cu_seqlens) - 1, options,
                          gradients != nullptr, ctx)),
        scope_(ctx.workspace()),
        carver_(carve(config, shape_, options.compute, scope_, ctx)),
        memory_(config, shape_, carver_) {
    std::vector<std::int32_t> slots(static_cast<std::size_t>(shape_.sequences));
    std::iota(slots.begin(), slots.end(), 0);
    ids_ = place(batch.ids, memory_.ids);
    targets_ = place(batch.targets, memory_.targets);
    cu_seqlens_ = place(batch.cu_seqlens, memory_.cu_seqlens);
    copy_from_host(ctx.gpu().get(), memory_.slots, slots.data(), slots.size() * sizeof(slots[0]));
    slots_ = {memory_.slots, slots.size()};
    starts_ = place(batch.starts, memory_.starts);
    ends_ = place(batch.ends, memory_.ends);
  }

  void run() {
    Rows residual = memory_.tapes[0].before_mixer;
    embedding({ids_, weights_.embedding, residual}, ctx_);
    for (std::int64_t l = 0; l < config_.layers; ++l) {
      residual = forward(l, residual);
    }
    join(residual, memory_.last, weights_.final_norm);
    if (gradients_ != nullptr && !options_.accumulate_gradients) clear_added();
    loss();
    if (gradients_ == nullptr) return;
    for (std::int64_t l = config_.layers - 1; l >= 0; --l) {
      if (l + 1 < config_.layers) restore(l);
      backward(l);
    }
    embedding_backward(
        {ids_, memory_.grad_stream, matrix(kEmbedding, config_.padded_vocab(), config_.width)},
        ctx_);
  }

 private:
  // Numbers of the host where ops read them: as they are, or copied to `to`.
  template <class T>
  std::span<const T> place(std::span<const T> numbers, T* to) {
    if (!ctx_.gpu() || numbers.empty()) return numbers;
    ctx_.gpu()->copy_in(to, numbers.data(), numbers.size_bytes());
    return {to, numbers.size()};
  }
  Rows matrix(const std::string& name, std::int64_t n, std::int64_t k) const {
    return {gradients_->at(name), {n, k}};
  }
  void clear(std::span<float> numbers) const {
    set_zero(ctx_.gpu().get(), numbers.data(), numbers.size_bytes());
  }

  // Products assign the gradients of matrices, which are nearly all; what else there is, and an
  // embedding that is not the head as well, is only ever added to.
  void clear_added() const {
    clear(gradients_->group(ParameterGroup::kOtherDecaying));
    clear(gradients_->group(ParameterGroup::kPlain));
    if (!config_.tied_embeddings) clear(gradients_->values(kEmbedding));
  }

  // A tape whose shared parts a later block has used: as it was after this one. The last block's
  // needs none.
  void restore(std::int64_t layer) {
    if (options_.recompute == Recompute::kScan) scan(layer);
    if (options_.recompute != Recompute::kBlock) return;
    const BlockTape& tape = memory_.tapes[layer];
    join(tape.before_mixer, tape.before_mixer, weights_.blocks[layer].norm);
    inside(layer);
  }

  // to = residual + what the half block before, if one waits, has left in `hidden`; normed = its
  // norm.
  void join(const Rows& residual, const Rows& to, Values norm) {
    RmsNormArgs args;
    args.residual = residual;
    if (has_hidden_) args.hidden = memory_.hidden;
    args.weight = norm.data();
    args.eps = kModelNormEps;
    args.y = memory_.normed;
    if (to.data != residual.data) args.sum = to;
    rms_norm(args, ctx_);
    has_hidden_ = false;
  }

  void product(const Matrix& x, const TensorRef& w, const Matrix& y) const {
    linear({x, w, y, options_.compute, LinearPath::kGemm}, ctx_);
  }

  // Returns the residual stream as it stands before the last half block's output joins it.
  Rows forward(std::int64_t layer, const Rows& residual) {
    const BlockWeights& block = weights_.blocks[layer];
    const BlockTape& tape = memory_.tapes[layer];
    join(residual, tape.before_mixer, block.norm);
    inside(layer);
    leave_states(layer);
    const auto* mlp = std::get_if<SwigluMlpWeights>(&block.mlp);
    if (mlp == nullptr) {
      give(tape.mixed, std::get<Mamba3MixerWeights>(block.mixer).out_proj);
      return tape.before_mixer;
    }
    swiglu({tape.wide, memory_.gated}, ctx_);
    give(memory_.gated, mlp->fc2);
    return tape.before_mlp;
  }

  // From the first norm's output to what the block's last product reads.
  void inside(std::int64_t layer) {
    const BlockWeights& block = weights_.blocks[layer];
    const BlockTape& tape = memory_.tapes[layer];
    const auto& mixer = std::get<Mamba3MixerWeights>(block.mixer);
    project(mixer, tape);
    scan(layer);
    const auto* mlp = std::get_if<SwigluMlpWeights>(&block.mlp);
    if (mlp == nullptr) return;
    give(tape.mixed, mixer.out_proj);
    join(tape.before_mixer, tape.before_mlp, mlp->norm);
    product(memory_.normed, mlp->fc1, tape.wide);
  }

  void project(const Mamba3MixerWeights& mixer, const BlockTape& tape) const {
    if (tape.zx.data == nullptr) return product(memory_.normed, mixer.in_proj, tape.columns);
    FusedLinearArgs args;
    args.x = memory_.normed;
    args.w = mixer.in_proj;
    args.y = tape.zx;
    args.rest = tape.columns;
    args.compute = options_.compute;
    args.path = LinearPath::kGemm;
    fused_linear(args, ctx_);
  }

  // Those that the sequences start from.
  void set_states(std::int64_t layer) const {
    if (lanes_ == nullptr) return clear(memory_.states.numbers());
    gather_rows({lanes_->before(layer), starts_, memory_.states.rows()}, ctx_);
  }

  // What a scan has left.
  void leave_states(std::int64_t layer) const {
    if (lanes_ == nullptr) return;
    const Rows to = lanes_->after(layer).slice(first_lane_, first_lane_ + std::ssize(ends_));
    gather_rows({memory_.states.rows(), ends_, to}, ctx_);
  }

  void scan(std::int64_t layer) const {
    const BlockTape& tape = memory_.tapes[layer];
    const auto& mixer = std::get<Mamba3MixerWeights>(weights_.blocks[layer].mixer);
    set_states(layer);
    mamba3_scan({dims_, mixer_params(mixer), columns(tape), cu_seqlens_, slots_,
                 memory_.states.states(), tape.mixed, options_.compute == Compute::kBf16},
                ctx_);
  }

  // The product that ends a half block waits for the next norm.
  void give(const Matrix& x, const TensorRef& w) {
    product(x, w, memory_.hidden);
    has_hidden_ = true;
  }

  Mamba3Columns columns(const BlockTape& tape) const {
    const bool apart = tape.zx.data != nullptr;
    Mamba3Columns out = split_columns(tape.columns.data, tape.columns.stride[0], dims_, apart);
    if (!apart) return out;
    out.z_bf16 = static_cast<const Bf16*>(tape.zx.data);
    out.x_bf16 = out.z_bf16 + config_.inner();
    out.zx_stride = tape.zx.stride[0];
    return out;
  }

  // Leaves the gradient of the residual stream before the last norm.
  void loss() {
    CrossEntropyArgs args;
    args.x = memory_.normed;
    args.w = weights_.lm_head;
    args.targets = targets_;
    args.z_weight = options_.z_weight;
    args.grad_scale = options_.grad_scale;
    args.sums = sums_;
    args.compute = options_.compute;
    args.accumulate_w = options_.accumulate_gradients;
    if (gradients_ == nullptr) return cross_entropy(args, ctx_);
    const char* head = config_.tied_embeddings ? kEmbedding : "lm_head.weight";
    args.grad_x = memory_.grad_normed;
    args.grad_w = matrix(head, config_.padded_vocab(), config_.width);
    cross_entropy(args, ctx_);
    const Rows& stream = memory_.grad_stream;
    clear({stream.data, static_cast<std::size_t>(stream.elements())});
    norm_backward(memory_.last, weights_.final_norm, "backbone.norm_f.weight");
  }

  // From grad_normed to the gradient of the stream.
  void norm_backward(const Rows& residual, Values weight, const std::string& name) const {
    RmsNormBackwardArgs args;
    args.residual = residual;
    args.weight = weight.data();
    args.eps = kModelNormEps;
    args.grad_y = memory_.grad_normed;
    args.grad_residual = memory_.grad_stream;
    args.grad_weight = gradients_->at(name);
    if (shape_.bf16_activations) args.rounded = memory_.grad_half;
    rms_norm_backward(args, ctx_);
  }

  // Of x and of the weights of that name; either may be left out.
  void product_backward(const Matrix& x, const TensorRef& w, const std::string& name,
                        const Matrix& grad_y, const Matrix& grad_x) const {
    LinearBackwardArgs args;
    args.x = x;
    args.w = w;
    args.grad_y = grad_y;
    args.grad_x = grad_x;
    if (x.data != nullptr) args.grad_w = matrix(name, w.shape[0], w.shape[1]);
    args.compute = options_.compute;
    args.accumulate_w = options_.accumulate_gradients;
    linear_backward(args, ctx_);
  }

  // grad_stream: that of the stream after the block; becomes that before it.
  void backward(std::int64_t layer) {
    const BlockWeights& block = weights_.blocks[layer];
    if (const auto* mlp = std::get_if<SwigluMlpWeights>(&block.mlp)) {
      mlp_backward(*mlp, block_name(layer), memory_.tapes[layer]);
    }
    mixer_backward(layer);
  }
  static std::string block_name(std::int64_t layer) {
    return "backbone.layers." + std::to_string(layer) + ".";
  }

  void mlp_backward(const SwigluMlpWeights& mlp, const std::string& name, const BlockTape& tape) {
    // What fc2 read is computed again beside the gradients of what it comes from.
    const std::string fc2 = name + "mlp.fc2.weight";
    product_backward({}, mlp.fc2, fc2, memory_.grad_half, memory_.grad_gated);
    swiglu_backward({tape.wide, memory_.grad_gated, tape.wide, memory_.gated}, ctx_);
    product_backward(memory_.gated, mlp.fc2, fc2, memory_.grad_half, {});
    join(tape.before_mlp, tape.before_mlp, mlp.norm);
    product_backward(memory_.normed, mlp.fc1, name + "mlp.fc1.weight", tape.wide,
                     memory_.grad_normed);
    norm_backward(tape.before_mlp, mlp.norm, name + "norm2.weight");
  }

  void mixer_backward(std::int64_t layer) {
    const std::string name = block_name(layer);
    const BlockTape& tape = memory_.tapes[layer];
    const Values norm = weights_.blocks[layer].norm;
    const auto& mixer = std::get<Mamba3MixerWeights>(weights_.blocks[layer].mixer);
    product_backward(tape.mixed, mixer.out_proj, name + "mixer.out_proj.weight", memory_.grad_half,
                     memory_.grad_mixed);
    scan_backward(layer);
    join(tape.before_mixer, tape.before_mixer, norm);
    product_backward(memory_.normed, mixer.in_proj, name + "mixer.in_proj.weight",
                     memory_.grad_projected, memory_.grad_normed);
    norm_backward(tape.before_mixer, norm, name + "norm.weight");
  }

  // No later sequence's gradient comes in by the last states, and that of the first goes nowhere.
  void scan_backward(std::int64_t layer) const {
    set_states(layer);
    clear(memory_.grad_states.numbers());
    Mamba3ScanBackwardArgs args;
    args.dims = dims_;
    args.params = mixer_params(std::get<Mamba3MixerWeights>(weights_.blocks[layer].mixer));
    args.columns = columns(memory_.tapes[layer]);
    args.cu_seqlens = cu_seqlens_;
    args.slots = slots_;
    args.states = memory_.states.states();
    args.grad_y = memory_.grad_mixed;
    args.grad_columns = column_gradients();
    args.grad_states = memory_.grad_states.gradients();
    args.grad_params = param_gradients(block_name(layer) + "mixer.");
    args.bf16_products = shape_.bf16_activations;
    mamba3_scan_backward(args, ctx_);
  }

  Mamba3ColumnGradients column_gradients() const {
    const Matrix& rows = memory_.grad_projected;
    if (!rows.is_bf16()) return split_column_gradients(rows.floats(), rows.stride[0], dims_);
    Mamba3ColumnGradients out;
    out.rows_bf16 = static_cast<Bf16*>(rows.data);
    out.row_stride = rows.stride[0];
    out.zero_columns = rows.shape[1] - config_.in_proj_rows();
    return out;
  }

  Mamba3ParamGradients param_gradients(const std::string& name) const {
    Mamba3ParamGradients out;
    out.dt_bias = gradients_->at(name + "dt_bias");
    out.skip = gradients_->at(name + "D");
    out.in_b_bias = gradients_->at(name + "B_bias");
    out.out_c_bias = gradients_->at(name + "C_bias");
    out.in_b_norm = gradients_->at(name + "B_norm.weight");
    out.out_c_norm = gradients_->at(name + "C_norm.weight");
    if (dims_.mimo) {
      out.mimo_x = gradients_->at(name + "mimo_x");
      out.mimo_z = gradients_->at(name + "mimo_z");
      out.mimo_o = gradients_->at(name + "mimo_o");
    }
    if (dims_.out_norm) out.out_norm = gradients_->at(name + "norm.weight");
    return out;
  }

  const ModelConfig& config_;
  const ModelWeights& weights_;
  const LossOptions& options_;
  ParameterValues* gradients_;  // null: only the loss is wanted
  CrossEntropySums* sums_;
  LaneStates* lanes_;  // null: all sequences start from fresh states
  std::int64_t first_lane_;
  Context& ctx_;
  Mamba3Dims dims_;
  PassShape shape_;
  ArenaScope scope_;
  Carver carver_;
  PassMemory memory_;
  std::span<const std::int32_t> ids_, targets_, slots_;
  std::span<const std::int64_t> cu_seqlens_, starts_, ends_;
  bool has_hidden_ = false;
};

void check_ids(const TrainingBatch& batch, std::int64_t vocab) {
  for (std::size_t i = 0; i < batch.ids.size(); ++i) {
    const std::int32_t id = batch.ids[i], target = batch.targets[i];
    check_input(id >= 0 && id < vocab, "token ", i, " of a batch has the id ", id,
                "; expected 0 to ", vocab - 1);
    check_input(target == kIgnoredTarget || (target >= 0 && target < vocab), "token ", i,
                " of a batch has the target ", target, "; expected 0 to ", vocab - 1, ", or ",
                kIgnoredTarget, " to ignore it");
  }
}

void check_lanes(const TrainingBatch& batch) {
  const std::int64_t sequences = std::ssize(batch.cu_seqlens) - 1;
  const std::int64_t lanes = batch.lanes == nullptr ? 0 : batch.lanes->lanes();
  check_input(std::ssize(batch.starts) == (batch.lanes == nullptr ? 0 : sequences),
              "states are given for ", batch.starts.size(), " of ", sequences,
              " sequences to start from; expected all, or without lanes none");
  check_input(batch.first_lane >= 0 && batch.first_lane + std::ssize(batch.ends) <= lanes,
              "sequences end lanes ", batch.first_lane, " to ",
              batch.first_lane + std::ssize(batch.ends) - 1, " of ", lanes);
  for (const std::int64_t lane : batch.starts) {
    check_input(lane >= 0 && lane <= lanes, "a sequence starts from the states of lane ", lane,
                "; expected 0 to ", lanes - 1, ", or ", lanes, " for fresh ones");
  }
  for (const std::int64_t sequence : batch.ends) {
    check_input(sequence >= 0 && sequence < sequences, "a lane ends with sequence ", sequence,
                "; expected 0 to ", sequences - 1);
  }
}

void check(const TrainingBatch& batch, const ModelConfig& config) {
  check_input(batch.ids.size() == batch.targets.size(), "a batch has ", batch.ids.size(),
              " ids and ", batch.targets.size(), " targets; expected as many");
  const auto& bounds = batch.cu_seqlens;
  check_input(!bounds.empty() && bounds.front() == 0 && bounds.back() == std::ssize(batch.ids) &&
                  std::ranges::is_sorted(bounds),
              "the sequences of a batch do not begin at 0, follow each other and end at ",
              batch.ids.size());
  check_ids(batch, config.padded_vocab());
  check_lanes(batch);
}

}  // namespace

PassShape pass_shape(const ModelConfig& config, std::int64_t tokens, std::int64_t sequences,
                     const LossOptions& options, bool gradients, const Context& ctx) {
  const bool bf16 = options.compute == Compute::kBf16 && takes_bf16_activations(config, ctx);
  return {tokens, sequences, bf16, gradients, options.recompute};
}

void loss_and_gradients(const ModelConfig& config, const ModelWeights& weights,
                        const TrainingBatch& batch, const LossOptions& options,
                        ParameterValues& gradients, CrossEntropySums* sums, Context& ctx) {
  check(batch, config);
  Pass(config, weights, batch, options, &gradients, sums, ctx).run();
}

void loss_of(const ModelConfig& config, const ModelWeights& weights, const TrainingBatch& batch,
             const LossOptions& options, CrossEntropySums* sums, Context& ctx) {
  check(batch, config);
  Pass(config, weights, batch, options, nullptr, sums, ctx).run();
}

}  // namespace mamba3
