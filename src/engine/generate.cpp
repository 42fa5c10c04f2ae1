// One request to its end: a BatchGenerator with nothing else in it.
#include <algorithm>
#include <chrono>
#include <string>

#include "core/check.h"
#include "mamba3/engine.h"

namespace mamba3 {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Generation {
 public:
  Generation(const Checkpoint& checkpoint, const GenerateRequest& request,
             const GenerateHooks& hooks, Context& ctx)
      : hooks_(hooks), batch_(checkpoint, {request.samples, 0, request.pool}, ctx) {
    result_.samples.resize(static_cast<std::size_t>(request.samples));
    ticket_ = batch_.submit(request, /*keep_state=*/true);
  }

  GenerateResult run() {
    while (!batch_.idle()) {
      if (interrupted()) stop();
      const bool reading = !prompt_read_;
      const auto start = Clock::now();
      for (BatchEvent& event : batch_.turn()) take(event);
      (reading ? result_.prefill_s : result_.decode_s) += seconds_since(start);
    }
    return std::move(result_);
  }

 private:
  bool interrupted() const { return hooks_.interrupted != nullptr && hooks_.interrupted->load(); }

  void stop() {
    if (!prompt_read_) {
      fail(ErrorCode::kInterrupted, "interrupted while the prompt was read; nothing was generated");
    }
    batch_.cancel(ticket_);
  }

  void take(BatchEvent& event) {
    if (event.error) throw *event.error;
    if (event.prompt_done > 0 && hooks_.on_prefill) {
      hooks_.on_prefill(event.prompt_done, event.prompt_tokens);
    }
    result_.prefill_tokens = std::max(result_.prefill_tokens, event.prompt_done);
    GeneratedSample& sample = result_.samples[event.sample];
    if (event.id >= 0) {
      prompt_read_ = true;
      sample.ids.push_back(event.id);
      sample.logprobs.push_back(event.logprob);
      ++result_.decode_tokens;
    }
    if (!event.text.empty()) {
      sample.text += event.text;
      if (hooks_.on_text) hooks_.on_text(event.sample, event.text);
    }
    if (!event.finished) return;
    sample.reason = *event.finished;
    if (event.sample == 0) result_.state = std::move(event.state);
  }

  const GenerateHooks& hooks_;
  BatchGenerator batch_;
  Ticket ticket_ = 0;
  bool prompt_read_ = false;
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
  constexpr std::int64_t kMostSamples = 4096;
  check_input(request.samples >= 1 && request.samples <= kMostSamples, "samples is ",
              request.samples, "; expected 1 to ", kMostSamples);
  return Generation(checkpoint, request, hooks, ctx).run();
}

}  // namespace mamba3
