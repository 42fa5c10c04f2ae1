#include "mamba3/model.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "core/arena.h"
#include "core/check.h"
#include "core/gpu.h"
#include "model/init.h"
#include "model/mixer.h"
#include "model/mlp.h"
#include "model/sampled_step.h"
#include "model/segments.h"
#include "model/state_pool.h"
#include "model/stream.h"
#include "model/weights.h"
#include "ops/embedding/embedding.h"
#include "ops/linear/fused_linear.h"

namespace mamba3 {
namespace {

// Logits of this many tokens exist at once.
constexpr std::int64_t kLogitRows = 128;

// Narrower models keep fp32 between ops of a prefill: of so few numbers each rounding shows in what
// they say, and their products take little time.
constexpr std::int64_t kRoundedWidth = 384;

// Rows of a segment whose logits are wanted, ascending, and what each is: the sequence that it
// ends, or an index into logit_tokens.
struct WantedRows {
  std::vector<std::int64_t> rows, which;
};

WantedRows last_rows(const PrefillArgs& args, const Segment& segment) {
  WantedRows out;
  for (std::size_t i = 0; i < segment.pieces.size(); ++i) {
    const Piece& piece = segment.pieces[i];
    if (piece.end != args.cu_seqlens[piece.sequence + 1]) continue;  // the sequence goes on
    out.which.push_back(piece.sequence);
    out.rows.push_back(segment.cu_seqlens[i + 1] - 1);
  }
  return out;
}

WantedRows token_rows(const PrefillArgs& args, const Segment& segment) {
  const auto& tokens = args.logit_tokens;
  WantedRows out;
  for (std::size_t i = 0; i < segment.pieces.size(); ++i) {
    const Piece& piece = segment.pieces[i];
    auto at = std::lower_bound(tokens.begin(), tokens.end(), piece.begin);
    for (; at != tokens.end() && *at < piece.end; ++at) {
      out.which.push_back(at - tokens.begin());
      out.rows.push_back(segment.cu_seqlens[i] + *at - piece.begin);
    }
  }
  return out;
}

WantedRows wanted_rows(const PrefillArgs& args, const Segment& segment) {
  if (args.last_logits.data != nullptr) return last_rows(args, segment);
  return args.on_logits ? token_rows(args, segment) : WantedRows{};
}

}  // namespace

struct Model::Impl {
  ModelConfig config;
  ModelOptions options;
  ModelWeights weights;
  std::uint64_t fingerprint = 0;
  std::int64_t weights_bytes = 0;
  std::shared_ptr<Gpu> gpu;  // where the weights are; null: in the host's memory

  Compute compute() const {
    return options.compute == ComputeDType::kBf16 ? Compute::kBf16 : Compute::kF32;
  }
  // All layers and the final norm: ids to the head's input `hidden` [m, d] for `wanted` [m] of the
  // rows. Everything lies in the Context's memory.
  void read(std::span<const std::int32_t> ids, const Batch& batch, StatePool::Impl& states,
            std::span<const std::int64_t> wanted, TensorView<float, 2> hidden, Context& ctx) const;
  // The same for a step, without the final norm, which is part of the head there.
  void read_step(std::span<const std::int32_t> ids, const Batch& batch, StatePool::Impl& states,
                 TensorView<float, 2> residual, Context& ctx) const;
  // `logits` lie in the host's memory. `norm`: of hidden, or null where it is done.
  void head(TensorView<const float, 2> hidden, const float* norm, TensorView<float, 2> logits,
            LinearPath path, Context& ctx) const;
  // The same with logits in the Context's memory.
  void head_in_place(TensorView<const float, 2> hidden, const float* norm,
                     TensorView<float, 2> logits, LinearPath path, Context& ctx) const;
  void read_segment(const PrefillArgs& args, const Segment& segment, StatePool::Impl& states,
                    Context& ctx) const;
  // hidden: of what is wanted.
  void last_logits(const PrefillArgs& args, const WantedRows& wanted,
                   TensorView<const float, 2> hidden, Context& ctx) const;
  void token_logits(const PrefillArgs& args, const WantedRows& wanted,
                    TensorView<const float, 2> hidden, Context& ctx) const;
  std::vector<Mamba3Params> mixers() const;  // of all layers
  void check_device(const StatePool::Impl& states, const Context& ctx) const;
  void check_logits(const TensorView<float, 2>& logits, std::int64_t rows) const;
  void check_prefill(const PrefillArgs& args, const StatePool::Impl& states) const;
  void check_ids(std::span<const std::int32_t> ids) const;
};

namespace {

// Numbers of the host in the Context's memory: where they are, or a copy on a GPU.
template <class T>
std::span<const T> place(std::span<const T> numbers, ArenaScope& scope, Context& ctx) {
  if (!ctx.gpu() || numbers.empty()) return numbers;
  T* const copy = scope.allocate<T>(static_cast<std::int64_t>(numbers.size()));
  ctx.gpu()->copy_in(copy, numbers.data(), numbers.size_bytes());
  return {copy, numbers.size()};
}

void check_slots(std::span<const std::int32_t> slots, const StatePool::Impl& states) {
  std::vector<bool> used(static_cast<std::size_t>(states.slots), false);
  for (const std::int32_t slot : slots) {
    states.check_slot(slot);
    check_input(!used[slot], "slot ", slot, " is named twice; expected different slots");
    used[slot] = true;
  }
}

}  // namespace

void Model::Impl::read(std::span<const std::int32_t> ids, const Batch& batch,
                       StatePool::Impl& states, std::span<const std::int64_t> wanted,
                       TensorView<float, 2> hidden, Context& ctx) const {
  ArenaScope scope(ctx.workspace());
  const std::int64_t d = config.width, m = hidden.shape[0];
  const bool all = m == batch.rows;
  const auto rows_of = [&](std::int64_t rows, std::int64_t columns) {
    return TensorView<float, 2>(scope.allocate<float>(rows * columns), {rows, columns});
  };
  Stream stream;
  stream.residual = rows_of(batch.rows, d);
  if (batch.bf16_activations) {
    stream.normed = allocate_activations(batch, d, scope);
    stream.squares = rows_of(batch.rows, d / kNormPart);
  } else {
    stream.normed = stream.output = all ? hidden : rows_of(batch.rows, d);
  }
  embedding({ids, weights.embedding, stream.residual}, ctx);
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const BlockWeights& block = weights.blocks[l];
    const bool last = l + 1 == config.layers;
    const float* const behind = last ? nullptr : weights.blocks[l + 1].norm.data();
    const float* const between = mlp_norm(block.mlp);
    stream.next_weight = between != nullptr ? between : behind;
    if (last && !all) stream.keep = Stream::Keep{wanted, rows_of(m, d)};
    mixer_forward(block.mixer, block.norm, config, batch, states.layer(l), stream, ctx);
    stream.next_weight = behind;
    mlp_forward(block.mlp, batch, stream, ctx);
  }
  stream.normed = hidden;
  stream.norm(weights.final_norm.data(), ctx);
}

void Model::Impl::read_step(std::span<const std::int32_t> ids, const Batch& batch,
                            StatePool::Impl& states, TensorView<float, 2> residual,
                            Context& ctx) const {
  embedding({ids, weights.embedding, residual}, ctx);
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const BlockWeights& block = weights.blocks[l];
    mixer_step(block.mixer, block.norm, config, batch, residual, states.layer(l), ctx);
    mlp_step(block.mlp, batch, residual, ctx);
  }
}

void Model::Impl::head_in_place(TensorView<const float, 2> hidden, const float* norm,
                                TensorView<float, 2> logits, LinearPath path, Context& ctx) const {
  FusedLinearArgs args;
  args.x = hidden;
  args.norm_weight = norm;
  args.norm_eps = kModelNormEps;
  args.w = weights.lm_head;
  args.y = logits;
  args.compute = compute();
  args.path = path;
  fused_linear(args, ctx);
}

void Model::Impl::head(TensorView<const float, 2> hidden, const float* norm,
                       TensorView<float, 2> logits, LinearPath path, Context& ctx) const {
  if (!ctx.gpu()) return head_in_place(hidden, norm, logits, path, ctx);
  ArenaScope scope(ctx.workspace());
  const std::int64_t rows = logits.shape[0], v = logits.shape[1];
  const TensorView<float, 2> there(scope.allocate<float>(rows * v), {rows, v});
  head_in_place(hidden, norm, there, path, ctx);
  const std::int64_t rows_at_once = logits.contiguous() ? rows : 1;
  for (std::int64_t row = 0; row < rows; row += rows_at_once) {
    ctx.gpu()->copy_out(&logits(row, 0), &there(row, 0),
                        static_cast<std::size_t>(rows_at_once * v) * sizeof(float));
  }
}

// The sequences that end in a segment are often neighbours, but need not be.
void Model::Impl::last_logits(const PrefillArgs& args, const WantedRows& wanted,
                              TensorView<const float, 2> hidden, Context& ctx) const {
  const std::int64_t v = config.padded_vocab(), all = std::ssize(wanted.rows);
  // Few rows as a rule; but a GPU has the same bits for any number of them on one path only.
  const LinearPath path = ctx.gpu() ? LinearPath::kGemm : LinearPath::kSkinny;
  std::vector<float> apart;
  for (std::int64_t at = 0; at < all; at += kLogitRows) {
    const std::int64_t count = std::min(kLogitRows, all - at), first = wanted.which[at];
    const bool neighbours = wanted.which[at + count - 1] - first == count - 1;
    if (!neighbours) apart.resize(static_cast<std::size_t>(count * v));
    const TensorView<float, 2> out = neighbours ? args.last_logits.slice(first, first + count)
                                                : TensorView<float, 2>(apart.data(), {count, v});
    head(hidden.slice(at, at + count), nullptr, out, path, ctx);
    for (std::int64_t i = 0; i < count && !neighbours; ++i) {
      std::copy_n(&out(i, 0), v, &args.last_logits(wanted.which[at + i], 0));
    }
  }
}

void Model::Impl::token_logits(const PrefillArgs& args, const WantedRows& wanted,
                               TensorView<const float, 2> hidden, Context& ctx) const {
  const std::int64_t v = config.padded_vocab(), all = std::ssize(wanted.rows);
  std::vector<float> logits(static_cast<std::size_t>(std::min(kLogitRows, all) * v));
  for (std::int64_t at = 0; at < all; at += kLogitRows) {
    const auto count = std::min(kLogitRows, all - at);
    const TensorView<float, 2> out(logits.data(), {count, v});
    head(hidden.slice(at, at + count), nullptr, out, LinearPath::kGemm, ctx);
    args.on_logits(std::span(wanted.which).subspan(at, count), out);
  }
}

void Model::Impl::read_segment(const PrefillArgs& args, const Segment& segment,
                               StatePool::Impl& states, Context& ctx) const {
  std::vector<std::int32_t> ids, slots;
  for (const Piece& piece : segment.pieces) {
    const auto part = args.ids.subspan(piece.begin, piece.tokens());
    ids.insert(ids.end(), part.begin(), part.end());
    slots.push_back(args.slots[piece.sequence]);
  }
  ArenaScope scope(ctx.workspace());
  Batch batch;
  batch.rows = segment.tokens();
  batch.cu_seqlens = place<std::int64_t>(segment.cu_seqlens, scope, ctx);
  batch.slots = place<std::int32_t>(slots, scope, ctx);
  batch.compute = compute();
  batch.bf16_activations = batch.compute == Compute::kBf16 && config.width >= kRoundedWidth &&
                           takes_bf16_activations(config, ctx);
  const WantedRows wanted = wanted_rows(args, segment);
  const std::int64_t m = std::ssize(wanted.rows);
  const TensorView<float, 2> hidden(scope.allocate<float>(m * config.width), {m, config.width});
  read(place<std::int32_t>(ids, scope, ctx), batch, states,
       place<std::int64_t>(wanted.rows, scope, ctx), hidden, ctx);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    states.positions[slots[i]] += segment.pieces[i].tokens();
  }
  if (args.last_logits.data != nullptr) return last_logits(args, wanted, hidden, ctx);
  token_logits(args, wanted, hidden, ctx);
}

std::vector<Mamba3Params> Model::Impl::mixers() const {
  std::vector<Mamba3Params> out;
  for (const BlockWeights& block : weights.blocks) {
    std::visit([&](const auto& mixer) { out.push_back(mixer_params(mixer)); }, block.mixer);
  }
  return out;
}

void Model::Impl::check_device(const StatePool::Impl& states, const Context& ctx) const {
  check_input(ctx.gpu() == gpu && states.gpu == gpu,
              "the model, the states and the Context are on different devices; expected the "
              "Context that the model and the pool were made with");
  const ModelConfig& other = states.config;
  const Mamba3Config &mixer = config.mixer, &others = other.mixer;
  check_input(other.layers == config.layers && other.heads() == config.heads() &&
                  others.head_dim == mixer.head_dim && others.state == mixer.state &&
                  others.rank == mixer.rank && others.angles() == mixer.angles(),
              "the states are those of another model's sizes; expected a pool made with this "
              "model's config");
}

// Before any state moves on.
void Model::Impl::check_logits(const TensorView<float, 2>& logits, std::int64_t rows) const {
  const std::int64_t v = config.padded_vocab();
  check_input(logits.data != nullptr && logits.shape[0] == rows && logits.shape[1] == v,
              "the logits are ", logits.shape[0], " x ", logits.shape[1],
              logits.data == nullptr ? " at no address" : "", "; expected ", rows, " x ", v);
}

void Model::Impl::check_prefill(const PrefillArgs& args, const StatePool::Impl& states) const {
  const auto& cu = args.cu_seqlens;
  const auto tokens = static_cast<std::int64_t>(args.ids.size());
  check_input(
      !cu.empty() && cu.front() == 0 && cu.back() == tokens && std::is_sorted(cu.begin(), cu.end()),
      "cu_seqlens must rise from 0 to the number of ids, ", tokens);
  check_input(args.slots.size() + 1 == cu.size(), args.slots.size(), " slots for ", cu.size() - 1,
              " sequences; expected one each");
  check_input(args.last_logits.data == nullptr || !args.on_logits,
              "both kinds of logits are asked for; expected one at most");
  if (args.last_logits.data != nullptr) check_logits(args.last_logits, std::ssize(args.slots));
  const auto& wanted = args.logit_tokens;
  const bool rise =
      std::ranges::adjacent_find(wanted, std::ranges::greater_equal()) == wanted.end();
  check_input(wanted.empty() || (rise && wanted.front() >= 0 && wanted.back() < tokens),
              "logit_tokens do not rise from token to token of ", tokens,
              "; expected each once, in their order");
  check_slots(args.slots, states);
  check_ids(args.ids);
}

void Model::Impl::check_ids(std::span<const std::int32_t> ids) const {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    check_input(ids[i] >= 0 && ids[i] < config.padded_vocab(), "token id ", ids[i], " at position ",
                i, " is outside the vocabulary; expected 0 to ", config.padded_vocab() - 1,
                "; is this the model's own tokenizer?");
  }
}

void Model::prefill(const PrefillArgs& args, StatePool& states, Context& ctx) const {
  StatePool::Impl& pool = *states.impl_;
  impl_->check_device(pool, ctx);
  impl_->check_prefill(args, pool);
  pool.settle(args.slots);
  const SegmentRule rule = args.segments ? *args.segments : segment_rule(impl_->config, ctx);
  std::int64_t done = 0;
  for (const Segment& segment : cut_segments(args.cu_seqlens, rule)) {
    impl_->read_segment(args, segment, pool, ctx);
    done += segment.tokens();
    if (args.progress) args.progress(done);
  }
}

void Model::step(std::span<const std::int32_t> ids, std::span<const std::int32_t> slots,
                 StatePool& states, TensorView<float, 2> logits, Context& ctx) const {
  StatePool::Impl& pool = *states.impl_;
  impl_->check_device(pool, ctx);
  check_input(ids.size() == slots.size(), ids.size(), " ids for ", slots.size(),
              " slots; expected one each");
  check_slots(slots, pool);
  impl_->check_ids(ids);
  if (ids.empty()) return;
  impl_->check_logits(logits, std::ssize(ids));
  ArenaScope scope(ctx.workspace());
  Batch batch;
  batch.is_step = true;
  batch.rows = static_cast<std::int64_t>(ids.size());
  batch.slots = place(slots, scope, ctx);
  batch.compute = impl_->compute();
  const std::int64_t d = impl_->config.width;
  const TensorView<float, 2> residual(scope.allocate<float>(batch.rows * d), {batch.rows, d});
  if (pool.ring.tokens() > 0) pool.use_parameters(impl_->mixers(), impl_);
  impl_->read_step(place(ids, scope, ctx), batch, pool, residual, ctx);
  pool.ring.advance(batch.slots);
  pool.count_token(slots);
  impl_->head(residual, impl_->weights.final_norm.data(), logits, batch.linear_path(), ctx);
}

// Positions are the caller's: a recorded step counts none.
void Model::step_and_sample(const SampledStep& step, StatePool& states, Context& ctx) const {
  StatePool::Impl& pool = *states.impl_;
  impl_->check_device(pool, ctx);
  const auto count = static_cast<std::size_t>(step.rows);
  const std::int64_t d = impl_->config.width, v = impl_->config.padded_vocab();
  ArenaScope scope(ctx.workspace());
  Batch batch;
  batch.is_step = true;
  batch.rows = step.rows;
  batch.slots = {step.slots, count};
  batch.compute = impl_->compute();
  const TensorView<float, 2> residual(scope.allocate<float>(step.rows * d), {step.rows, d});
  const TensorView<float, 2> logits(scope.allocate<float>(step.rows * v), {step.rows, v});
  if (pool.ring.tokens() > 0) pool.use_parameters(impl_->mixers(), impl_);
  impl_->read_step({step.ids, count}, batch, pool, residual, ctx);
  impl_->head_in_place(residual, impl_->weights.final_norm.data(), logits, batch.linear_path(),
                       ctx);
  sample_rows({logits, impl_->config.vocab, step.sampling, step.ids, step.out}, ctx);
  // Last, where it does not stand between products that overlap.
  pool.ring.advance(batch.slots);
}

Model::Model() : impl_(std::make_shared<Impl>()) {}
Model::~Model() = default;

std::shared_ptr<const Model> Model::create(ModelConfig config,
                                           const std::map<std::string, TensorRef>& tensors,
                                           std::shared_ptr<const void> owner,
                                           const ModelOptions& options, Context& ctx) {
  check_config(config);
  check_layers(config, ctx);
  std::shared_ptr<Model> model(new Model());
  Impl& impl = *model->impl_;
  impl.weights = bind_weights(config, tensors, std::move(owner), ctx);
  const std::vector<std::string> bad = find_non_finite(config, tensors, ctx);
  if (!bad.empty()) {
    const std::string text =
        str(bad.size(), " tensors hold NaN or infinity, the first is ", bad.front());
    check_input(!options.strict, text,
                "; expected finite weights; the checkpoint is broken, or leave out --strict");
    ctx.log(LogLevel::kWarning, text + "; the output will hold NaN");
  }
  impl.config = config;
  impl.gpu = ctx.gpu();
  impl.options = options;
  impl.fingerprint = model_fingerprint(config, tensors);
  for (const TensorSpec& spec : tensor_specs(config))
    impl.weights_bytes += tensors.at(spec.name).bytes();
  // A tied table is read whole by the head; an untied embedding gives only a row.
  if (!config.tied_embeddings) impl.weights_bytes -= impl.weights.embedding.bytes();
  return model;
}

std::shared_ptr<const Model> Model::random(ModelConfig config, DType dtype, std::uint64_t seed,
                                           const ModelOptions& options, Context& ctx) {
  check_config(config);
  check_layers(config, ctx);
  auto tensors = std::make_shared<InitialTensors>(init_tensors(config, dtype, seed, ctx));
  return create(config, tensors->tensors, tensors, options, ctx);
}

const ModelConfig& Model::config() const {
  return impl_->config;
}
ComputeDType Model::compute() const {
  return impl_->options.compute;
}
std::uint64_t Model::fingerprint() const {
  return impl_->fingerprint;
}
std::int64_t Model::weights_bytes() const {
  return impl_->weights_bytes;
}

}  // namespace mamba3
