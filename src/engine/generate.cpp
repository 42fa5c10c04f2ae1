// Prefill, then one token after the other; several samples of one prompt are decoded together.
#include <algorithm>
#include <chrono>

#include "core/check.h"
#include "core/thread_pool.h"
#include "engine/text_stream.h"
#include "mamba3/engine.h"

namespace mamba3 {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_request(const Checkpoint& checkpoint, const GenerateRequest& request) {
  constexpr std::int64_t kMostSamples = 4096;
  check_input(request.samples >= 1 && request.samples <= kMostSamples, "samples is ",
              request.samples, "; expected 1 to ", kMostSamples);
  check_input(request.max_tokens >= 0, "max_tokens is ", request.max_tokens,
              "; expected 0 or more");
  const bool pending = request.state && request.state->pending_id() >= 0;
  check_input(
      !request.prompt_ids.empty() || pending || request.max_tokens == 0,
      "the prompt is empty; expected at least one token to continue from; give a prompt, or a "
      "state that was saved after generating");
  for (const std::string& stop : request.stop) {
    check_input(!stop.empty(), "a stop text is empty; expected at least one character");
    check_input(
        checkpoint.tokenizer != nullptr,
        "stop texts need a tokenizer; expected tokenizer.json in the folder, or --tokenizer");
  }
}

// One generation under way: slot i of the pool is sample i.
class Generation {
 public:
  Generation(const Checkpoint& checkpoint, const GenerateRequest& request,
             const GenerateHooks& hooks, Context& ctx)
      : checkpoint_(checkpoint),
        model_(*checkpoint.model),
        request_(request),
        hooks_(hooks),
        ctx_(ctx),
        states_(model_.config(), request.samples, ctx, request.pool),
        logits_(static_cast<std::size_t>(request.samples * model_.config().padded_vocab())) {
    result_.samples.resize(static_cast<std::size_t>(request.samples));
    for (std::int64_t i = 0; i < request.samples; ++i) {
      texts_.emplace_back(checkpoint.tokenizer.get(), request.stop);
    }
  }

  GenerateResult run() {
    read_prompt();
    const auto start = Clock::now();
    if (request_.max_tokens > 0) decode();
    result_.decode_s = seconds_since(start);
    for (std::int64_t i = 0; i < request_.samples; ++i) finish_text(i);
    result_.state = states_.export_slot(0, model_.fingerprint());
    const auto& ids = result_.samples[0].ids;
    if (!ids.empty()) result_.state.set_pending_id(ids.back());
    return std::move(result_);
  }

 private:
  bool interrupted() const { return hooks_.interrupted != nullptr && hooks_.interrupted->load(); }

  void read_prompt() {
    const auto start = Clock::now();
    std::vector<std::int32_t> ids;
    if (request_.state) {
      states_.import_slot(0, *request_.state);
      if (request_.state->pending_id() >= 0) ids.push_back(request_.state->pending_id());
    }
    ids.insert(ids.end(), request_.prompt_ids.begin(), request_.prompt_ids.end());
    const std::int64_t cu_seqlens[] = {0, static_cast<std::int64_t>(ids.size())};
    const std::int32_t slot[] = {0};
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = cu_seqlens;
    args.slots = slot;
    if (request_.max_tokens > 0)
      args.last_logits = {logits_.data(), {1, model_.config().padded_vocab()}};
    args.progress = [&](std::int64_t done) {
      if (hooks_.on_prefill) hooks_.on_prefill(done, cu_seqlens[1]);
      if (interrupted()) {
        fail(ErrorCode::kInterrupted,
             "interrupted while the prompt was read; nothing was generated");
      }
    };
    model_.prefill(args, states_, ctx_);
    result_.prefill_tokens = cu_seqlens[1];
    result_.prefill_s = seconds_since(start);
  }

  // Every sample starts from the same logits and a copy of the same state.
  void decode() {
    const std::int64_t v = model_.config().padded_vocab();
    for (std::int32_t i = 0; i < request_.samples; ++i) {
      if (i > 0) states_.fork(0, i);
      if (i > 0) std::copy_n(logits_.data(), v, logits_.data() + i * v);
      active_.push_back(i);
    }
    while (true) {
      sample_all();
      if (active_.empty()) return;
      if (interrupted()) return stop_all();
      step_all();
    }
  }

  // Row k of the logits belongs to active_[k]; samples that end leave the list.
  void sample_all() {
    const std::int64_t padded = model_.config().padded_vocab();
    std::vector<std::int32_t> going_on;
    for (std::size_t k = 0; k < active_.size(); ++k) {
      const std::span<const float> row(logits_.data() + static_cast<std::int64_t>(k) * padded,
                                       static_cast<std::size_t>(model_.config().vocab));
      if (sample_one(active_[k], row)) going_on.push_back(active_[k]);
    }
    active_ = std::move(going_on);
  }

  bool sample_one(std::int32_t i, std::span<const float> logits) {
    GeneratedSample& sample = result_.samples[i];
    const double draw =
        uniform_draw(request_.seed, static_cast<std::uint64_t>(i), sample.ids.size());
    const Sample next = sample_token(logits, seen(sample), request_.sampling, draw);
    sample.ids.push_back(next.id);
    sample.logprobs.push_back(next.logprob);
    ++result_.decode_tokens;
    const auto& eos = checkpoint_.eos_ids;
    if (!request_.ignore_eos && std::find(eos.begin(), eos.end(), next.id) != eos.end()) {
      sample.reason = FinishReason::kEos;
      return false;
    }
    emit(i, texts_[i].push(next.id));
    if (texts_[i].stopped()) {
      sample.reason = FinishReason::kStop;
      return false;
    }
    return static_cast<std::int64_t>(sample.ids.size()) < request_.max_tokens;
  }

  // What penalties count: the prompt and what was sampled. Built only when a penalty is on.
  std::span<const std::int32_t> seen(const GeneratedSample& sample) {
    const SamplingParams& p = request_.sampling;
    if (p.repeat_penalty == 1.0f && p.presence_penalty == 0.0f && p.frequency_penalty == 0.0f)
      return {};
    seen_ = request_.prompt_ids;
    seen_.insert(seen_.end(), sample.ids.begin(), sample.ids.end());
    return seen_;
  }

  void step_all() {
    std::vector<std::int32_t> ids;
    for (const std::int32_t i : active_) ids.push_back(result_.samples[i].ids.back());
    const auto rows = static_cast<std::int64_t>(active_.size());
    model_.step(ids, active_, states_, {logits_.data(), {rows, model_.config().padded_vocab()}},
                ctx_);
  }

  void stop_all() {
    for (const std::int32_t i : active_) result_.samples[i].reason = FinishReason::kInterrupted;
  }

  void finish_text(std::int64_t i) {
    emit(i, texts_[i].finish());
    result_.samples[i].text = texts_[i].text();
  }

  void emit(std::int64_t i, const std::string& text) {
    if (!text.empty() && hooks_.on_text) hooks_.on_text(i, text);
  }

  const Checkpoint& checkpoint_;
  const Model& model_;
  const GenerateRequest& request_;
  const GenerateHooks& hooks_;
  Context& ctx_;
  StatePool states_;
  std::vector<float> logits_;  // [samples, padded vocabulary]
  std::vector<TextStream> texts_;
  std::vector<std::int32_t> active_;
  std::vector<std::int32_t> seen_;
  GenerateResult result_;
};

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kInterrupted:
      return "interrupted";
  }
  return "?";
}

GenerateResult generate(const Checkpoint& checkpoint, const GenerateRequest& request,
                        const GenerateHooks& hooks, Context& ctx) {
  check_request(checkpoint, request);
  return Generation(checkpoint, request, hooks, ctx).run();
}

}  // namespace mamba3
