#include "train/loss_and_gradients.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "model/mixer.h"
#include "model/stream.h"
#include "ops/embedding/embedding.h"
#include "ops/embedding_backward/embedding_backward.h"
#include "ops/linear_backward/linear_backward.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rms_norm_backward/rms_norm_backward.h"
#include "ops/swiglu/swiglu.h"
#include "ops/swiglu_backward/swiglu_backward.h"

namespace mamba3 {
namespace {

using Rows = TensorView<float, 2>;

// What the way back reads again of one block.
struct BlockTape {
  Rows before_mixer;  // [t, d], the residual stream as the norm reads it
  Rows projected;     // [t, e]
  Rows mixed;         // [t, h * p], what out_proj reads
  Rows before_mlp;    // [t, d]
  Rows wide;          // [t, 2 f]
};

// States of one layer for all sequences, or gradients of such.
struct FreshStates {
  FreshStates(const Mamba3Dims& dims, std::int64_t slots, ArenaScope& scope)
      : turns(dims.heads * dims.angles),
        ssm(dims.heads * dims.state * dims.head_dim),
        k(dims.rank * dims.heads * dims.state),
        v(dims.heads * dims.head_dim),
        count(slots),
        data(scope.allocate<float>(slots * (turns + ssm + k + v))) {}

  void clear() const { std::fill_n(data, count * (turns + ssm + k + v), 0.0f); }
  Mamba3States states() const {
    Mamba3States out;
    out.turns = reinterpret_cast<std::uint32_t*>(data);
    out.ssm = data + count * turns;
    out.k = out.ssm + count * ssm;
    out.v = out.k + count * k;
    out.slots = count;
    out.turns_stride = turns;
    out.ssm_stride = ssm;
    out.k_stride = k;
    out.v_stride = v;
    return out;
  }
  Mamba3StateGradients gradients() const {
    Mamba3StateGradients out;
    out.angle = data;
    out.ssm = data + count * turns;
    out.k = out.ssm + count * ssm;
    out.v = out.k + count * k;
    out.slots = count;
    out.angle_stride = turns;
    out.ssm_stride = ssm;
    out.k_stride = k;
    out.v_stride = v;
    return out;
  }

  std::int64_t turns, ssm, k, v, count;
  float* data;
};

// One batch on its way through the model and back.
class Pass {
 public:
  Pass(const ModelConfig& config, const ModelWeights& weights, const TrainingBatch& batch,
       const LossOptions& options, ParameterValues* gradients, Context& ctx)
      : config_(config),
        weights_(weights),
        batch_(batch),
        options_(options),
        gradients_(gradients),
        ctx_(ctx),
        dims_(mixer_dims(config)),
        tokens_(static_cast<std::int64_t>(batch.ids.size())),
        scope_(ctx.workspace()),
        slots_(batch.cu_seqlens.size() - 1),
        states_(dims_, std::ssize(slots_), scope_),
        hidden_(rows(config.width)),
        normed_(rows(config.width)) {
    std::iota(slots_.begin(), slots_.end(), 0);
  }

  CrossEntropySums run() {
    Rows residual = rows(config_.width);
    embedding({batch_.ids, weights_.embedding, residual}, ctx_);
    std::vector<BlockTape> tapes;
    for (const BlockWeights& block : weights_.blocks) {
      // Without a way back one tape serves all blocks.
      if (tapes.empty()) {
        tapes.push_back(make_tape());
      } else if (gradients_ != nullptr) {
        tapes.push_back(next_tape(tapes.back()));
      }
      residual = forward(block, residual, tapes.back());
    }
    const Rows last = gradients_ == nullptr ? residual : rows(config_.width);
    join(residual, last, weights_.final_norm);
    CrossEntropySums sums;
    const Rows grad_stream = gradients_ == nullptr ? Rows() : rows(config_.width);
    loss(last, grad_stream, sums);
    if (gradients_ == nullptr) return sums;
    for (std::int64_t l = config_.layers - 1; l >= 0; --l) {
      if (l + 1 < config_.layers) restore(weights_.blocks[l], tapes[l]);
      backward(l, tapes[l], grad_stream);
    }
    embedding_backward({batch_.ids, grad_stream,
                        matrix("backbone.embedding.weight", config_.padded_vocab(), config_.width)},
                       ctx_);
    return sums;
  }

 private:
  Rows rows(std::int64_t columns) {
    return {scope_.allocate<float>(tokens_ * columns), {tokens_, columns}};
  }
  Rows scratch(std::int64_t columns, ArenaScope& scope) const {
    return {scope.allocate<float>(tokens_ * columns), {tokens_, columns}};
  }
  Rows matrix(const std::string& name, std::int64_t n, std::int64_t k) const {
    return {gradients_->at(name), {n, k}};
  }

  BlockTape make_tape() {
    BlockTape tape;
    tape.before_mixer = rows(config_.width);
    tape.projected = rows(config_.in_proj_rows());
    tape.mixed = rows(config_.inner());
    if (config_.mlp_hidden == 0) return tape;
    tape.before_mlp = rows(config_.width);
    tape.wide = rows(2 * config_.mlp_hidden);
    return tape;
  }

  // Shares the memory of what is computed again.
  BlockTape next_tape(const BlockTape& last) {
    if (options_.recompute == Recompute::kNone) return make_tape();
    BlockTape tape = last;
    tape.before_mixer = rows(config_.width);
    if (options_.recompute == Recompute::kBlock) return tape;
    tape.projected = rows(config_.in_proj_rows());
    if (config_.mlp_hidden == 0) return tape;
    tape.before_mlp = rows(config_.width);
    tape.wide = rows(2 * config_.mlp_hidden);
    return tape;
  }

  // A tape whose shared parts a later block has used: as it was after this one. The last block's
  // needs none.
  void restore(const BlockWeights& block, const BlockTape& tape) {
    if (options_.recompute == Recompute::kScan) scan(block, tape);
    if (options_.recompute != Recompute::kBlock) return;
    join(tape.before_mixer, tape.before_mixer, block.norm);
    inside(block, tape);
  }

  // to = residual + what the half block before has left in hidden_; normed_ = its norm.
  void join(const Rows& residual, const Rows& to, Values norm) {
    if (to.data != residual.data) copy(residual, to);
    RmsNormArgs args;
    args.residual = to;
    if (has_hidden_) args.hidden = hidden_;
    args.weight = norm.data();
    args.eps = kModelNormEps;
    args.y = normed_;
    rms_norm(args, ctx_);
    has_hidden_ = false;
  }

  void copy(const Rows& from, const Rows& to) const {
    constexpr std::int64_t kRows = 64;
    ctx_.pool().run((tokens_ + kRows - 1) / kRows, [&](std::int64_t task, int) {
      const std::int64_t begin = task * kRows, end = std::min(tokens_, begin + kRows);
      std::copy(&from(begin, 0), &from(begin, 0) + (end - begin) * from.shape[1], &to(begin, 0));
    });
  }

  void product(const Rows& x, const TensorRef& w, const Rows& y) const {
    linear({x, w, y, options_.compute, LinearPath::kGemm}, ctx_);
  }

  // Returns the residual stream as it stands before the last half block's output joins it.
  Rows forward(const BlockWeights& block, const Rows& residual, const BlockTape& tape) {
    join(residual, tape.before_mixer, block.norm);
    inside(block, tape);
    const auto* mlp = std::get_if<SwigluMlpWeights>(&block.mlp);
    if (mlp == nullptr) {
      give(tape.mixed, std::get<Mamba3MixerWeights>(block.mixer).out_proj);
      return tape.before_mixer;
    }
    ArenaScope scope(ctx_.workspace());
    const Rows gated = scratch(config_.mlp_hidden, scope);
    swiglu({tape.wide, gated}, ctx_);
    give(gated, mlp->fc2);
    return tape.before_mlp;
  }

  // From the first norm's output to what the block's last product reads.
  void inside(const BlockWeights& block, const BlockTape& tape) {
    const auto& mixer = std::get<Mamba3MixerWeights>(block.mixer);
    product(normed_, mixer.in_proj, tape.projected);
    scan(block, tape);
    const auto* mlp = std::get_if<SwigluMlpWeights>(&block.mlp);
    if (mlp == nullptr) return;
    give(tape.mixed, mixer.out_proj);
    join(tape.before_mixer, tape.before_mlp, mlp->norm);
    product(normed_, mlp->fc1, tape.wide);
  }

  void scan(const BlockWeights& block, const BlockTape& tape) const {
    states_.clear();
    mamba3_scan({dims_, mixer_params(std::get<Mamba3MixerWeights>(block.mixer)), columns(tape),
                 batch_.cu_seqlens, slots_, states_.states(), tape.mixed,
                 options_.compute == Compute::kBf16},
                ctx_);
  }

  // The product that ends a half block waits for the next norm.
  void give(const Rows& x, const TensorRef& w) {
    product(x, w, hidden_);
    has_hidden_ = true;
  }

  Mamba3Columns columns(const BlockTape& tape) const {
    return split_columns(tape.projected.data, config_.in_proj_rows(), dims_);
  }

  // grad_stream: assigned, the gradient of the residual stream before the last norm.
  void loss(const Rows& last, const Rows& grad_stream, CrossEntropySums& sums) {
    CrossEntropyArgs args;
    args.x = normed_;
    args.w = weights_.lm_head;
    args.targets = batch_.targets;
    args.z_weight = options_.z_weight;
    args.grad_scale = options_.grad_scale;
    args.sums = &sums;
    args.compute = options_.compute;
    if (gradients_ == nullptr) return cross_entropy(args, ctx_);
    const char* head = config_.tied_embeddings ? "backbone.embedding.weight" : "lm_head.weight";
    args.grad_x = hidden_;
    args.grad_w = matrix(head, config_.padded_vocab(), config_.width);
    cross_entropy(args, ctx_);
    std::fill_n(grad_stream.data, grad_stream.elements(), 0.0f);
    norm_backward(last, weights_.final_norm, "backbone.norm_f.weight", hidden_, grad_stream);
  }

  void norm_backward(const Rows& residual, Values weight, const std::string& name,
                     const Rows& grad_y, const Rows& grad_stream) const {
    RmsNormBackwardArgs args;
    args.residual = residual;
    args.weight = weight.data();
    args.eps = kModelNormEps;
    args.grad_y = grad_y;
    args.grad_residual = grad_stream;
    args.grad_weight = gradients_->at(name);
    rms_norm_backward(args, ctx_);
  }

  void product_backward(const Rows& x, const TensorRef& w, const std::string& name,
                        const Rows& grad_y, const Rows& grad_x) const {
    LinearBackwardArgs args;
    args.x = x;
    args.w = w;
    args.grad_y = grad_y;
    args.grad_x = grad_x;
    args.grad_w = matrix(name, w.shape[0], w.shape[1]);
    args.compute = options_.compute;
    linear_backward(args, ctx_);
  }

  // grad_stream: that of the stream after the block; becomes that before it.
  void backward(std::int64_t layer, const BlockTape& tape, const Rows& grad_stream) {
    const std::string name = "backbone.layers." + std::to_string(layer) + ".";
    const BlockWeights& block = weights_.blocks[layer];
    if (const auto* mlp = std::get_if<SwigluMlpWeights>(&block.mlp)) {
      mlp_backward(*mlp, name, tape, grad_stream);
    }
    mixer_backward(std::get<Mamba3MixerWeights>(block.mixer), block.norm, name, tape, grad_stream);
  }

  void mlp_backward(const SwigluMlpWeights& mlp, const std::string& name, const BlockTape& tape,
                    const Rows& grad_stream) {
    ArenaScope scope(ctx_.workspace());
    const Rows gated = scratch(config_.mlp_hidden, scope);
    const Rows grad_gated = scratch(config_.mlp_hidden, scope);
    swiglu({tape.wide, gated}, ctx_);
    product_backward(gated, mlp.fc2, name + "mlp.fc2.weight", grad_stream, grad_gated);
    swiglu_backward({tape.wide, grad_gated, tape.wide}, ctx_);
    join(tape.before_mlp, tape.before_mlp, mlp.norm);
    product_backward(normed_, mlp.fc1, name + "mlp.fc1.weight", tape.wide, hidden_);
    norm_backward(tape.before_mlp, mlp.norm, name + "norm2.weight", hidden_, grad_stream);
  }

  void mixer_backward(const Mamba3MixerWeights& mixer, Values norm, const std::string& name,
                      const BlockTape& tape, const Rows& grad_stream) {
    ArenaScope scope(ctx_.workspace());
    const Rows grad_mixed = scratch(config_.inner(), scope);
    const Rows grad_projected = scratch(config_.in_proj_rows(), scope);
    const FreshStates grad_states(dims_, std::ssize(slots_), scope);
    product_backward(tape.mixed, mixer.out_proj, name + "mixer.out_proj.weight", grad_stream,
                     grad_mixed);
    states_.clear();
    grad_states.clear();
    Mamba3ScanBackwardArgs args;
    args.dims = dims_;
    args.params = mixer_params(mixer);
    args.columns = columns(tape);
    args.cu_seqlens = batch_.cu_seqlens;
    args.slots = slots_;
    args.states = states_.states();
    args.grad_y = grad_mixed;
    args.grad_columns = split_column_gradients(grad_projected.data, config_.in_proj_rows(), dims_);
    args.grad_states = grad_states.gradients();
    args.grad_params = param_gradients(name + "mixer.");
    mamba3_scan_backward(args, ctx_);
    join(tape.before_mixer, tape.before_mixer, norm);
    product_backward(normed_, mixer.in_proj, name + "mixer.in_proj.weight", grad_projected,
                     hidden_);
    norm_backward(tape.before_mixer, norm, name + "norm.weight", hidden_, grad_stream);
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
  const TrainingBatch& batch_;
  const LossOptions& options_;
  ParameterValues* gradients_;  // null: only the loss is wanted
  Context& ctx_;
  Mamba3Dims dims_;
  std::int64_t tokens_;
  ArenaScope scope_;
  std::vector<std::int32_t> slots_;
  FreshStates states_;
  // [t, d] each: what a half block gives, on the way back what a norm's output gets; and a norm's
  // output.
  Rows hidden_, normed_;
  bool has_hidden_ = false;
};

void check(const TrainingBatch& batch, const Context& ctx) {
  if (ctx.gpu()) {
    fail(ErrorCode::kUnavailable, "training runs on a CPU so far; use --device cpu");
  }
  check_input(batch.ids.size() == batch.targets.size(), "a batch has ", batch.ids.size(),
              " ids and ", batch.targets.size(), " targets; expected as many");
  check_input(!batch.cu_seqlens.empty() && batch.cu_seqlens.front() == 0 &&
                  batch.cu_seqlens.back() == std::ssize(batch.ids),
              "the sequences of a batch do not begin at 0 and end at ", batch.ids.size());
}

}  // namespace

CrossEntropySums loss_and_gradients(const ModelConfig& config, const ModelWeights& weights,
                                    const TrainingBatch& batch, const LossOptions& options,
                                    ParameterValues& gradients, Context& ctx) {
  check(batch, ctx);
  return Pass(config, weights, batch, options, &gradients, ctx).run();
}

CrossEntropySums loss_of(const ModelConfig& config, const ModelWeights& weights,
                         const TrainingBatch& batch, const LossOptions& options, Context& ctx) {
  check(batch, ctx);
  return Pass(config, weights, batch, options, nullptr, ctx).run();
}

}  // namespace mamba3
