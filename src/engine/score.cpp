// Log-likelihoods of many requests, packed into passes of bounded size.
#include <algorithm>
#include <atomic>

#include "core/check.h"
#include "core/thread_pool.h"
#include "mamba3/engine.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kPackTokens =
    1024;  // requests are packed until a pass has about this many tokens
constexpr std::int64_t kPackSequences = 64;  // bounds the memory of states

// One prediction: the logits after packed token `read_at` judge `id`, entry `index` of a result.
struct Prediction {
  std::size_t request;
  std::size_t index;
  std::int32_t id;
};

struct Pack {
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> cu_seqlens{0};
  std::vector<std::int64_t> logit_tokens;
  std::vector<Prediction> predictions;  // one for each of logit_tokens
  std::size_t end_request = 0;
};

void check_requests(const std::vector<ScoreRequest>& requests, std::int64_t vocab) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const ScoreRequest& request = requests[i];
    check_input(request.first_scored >= 1, "request ", i, " scores from id ", request.first_scored,
                "; expected 1 or later, since nothing predicts the first id");
    for (const std::int32_t id : request.ids) {
      check_input(id >= 0 && id < vocab, "request ", i, " holds token id ", id, "; expected 0 to ",
                  vocab - 1, "; is this the model's own tokenizer?");
    }
  }
}

void add_request(Pack& pack, const ScoreRequest& request, std::size_t number) {
  const auto count = static_cast<std::int64_t>(request.ids.size());
  const std::int64_t begin = pack.cu_seqlens.back();
  // The last id is judged, not read.
  const std::int64_t read = count > request.first_scored ? count - 1 : 0;
  pack.ids.insert(pack.ids.end(), request.ids.begin(), request.ids.begin() + read);
  pack.cu_seqlens.push_back(begin + read);
  for (std::int64_t i = request.first_scored; i < count; ++i) {
    pack.logit_tokens.push_back(begin + i - 1);
    pack.predictions.push_back(
        {number, static_cast<std::size_t>(i - request.first_scored), request.ids[i]});
  }
}

Pack next_pack(const std::vector<ScoreRequest>& requests, std::size_t begin) {
  Pack pack;
  std::size_t at = begin;
  while (
      at < requests.size() && static_cast<std::int64_t>(at - begin) < kPackSequences &&
      (at == begin || pack.cu_seqlens.back() + static_cast<std::int64_t>(requests[at].ids.size()) <=
                          kPackTokens)) {
    add_request(pack, requests[at], at);
    ++at;
  }
  pack.end_request = at;
  return pack;
}

void judge(const Pack& pack, std::span<const std::int64_t> which, TensorView<const float, 2> logits,
           std::int64_t vocab, std::vector<ScoreResult>& results, std::vector<char>& greedy,
           Context& ctx) {
  ctx.pool().run(logits.shape[0], [&](std::int64_t row, int) {
    const Prediction& prediction = pack.predictions[which[row]];
    const std::span<const float> values(&logits(row, 0), static_cast<std::size_t>(vocab));
    const float logprob = token_logprob(values, prediction.id);
    results[prediction.request].token_logprobs[prediction.index] = logprob;
    const auto best = std::max_element(values.begin(), values.end()) - values.begin();
    greedy[which[row]] = best == prediction.id;
  });
}

}  // namespace

std::vector<ScoreResult> score(const Checkpoint& checkpoint,
                               const std::vector<ScoreRequest>& requests,
                               const ScoreProgress& progress, Context& ctx) {
  check_input(checkpoint.model != nullptr,
              "the checkpoint has no model; expected what load_checkpoint returns");
  const Model& model = *checkpoint.model;
  const std::int64_t vocab = model.config().vocab;
  check_requests(requests, vocab);
  std::vector<ScoreResult> results(requests.size());
  std::int64_t all_tokens = 0, done_tokens = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto count = static_cast<std::int64_t>(requests[i].ids.size());
    all_tokens += count;
    results[i].token_logprobs.resize(
        static_cast<std::size_t>(std::max<std::int64_t>(0, count - requests[i].first_scored)));
  }
  StatePool states(
      model.config(),
      std::min<std::int64_t>(kPackSequences, std::max<std::size_t>(requests.size(), 1)), ctx);
  for (std::size_t begin = 0; begin < requests.size();) {
    const Pack pack = next_pack(requests, begin);
    std::vector<std::int32_t> slots;
    for (std::size_t i = begin; i < pack.end_request; ++i)
      slots.push_back(static_cast<std::int32_t>(i - begin));
    for (const std::int32_t slot : slots) states.reset(slot);
    std::vector<char> greedy(pack.predictions.size());
    PrefillArgs args;
    args.ids = pack.ids;
    args.cu_seqlens = pack.cu_seqlens;
    args.slots = slots;
    args.logit_tokens = pack.logit_tokens;
    args.on_logits = [&](std::span<const std::int64_t> which, TensorView<const float, 2> logits) {
      judge(pack, which, logits, vocab, results, greedy, ctx);
    };
    args.progress = [&](std::int64_t done) {
      if (progress) progress(done_tokens + done, all_tokens);
    };
    model.prefill(args, states, ctx);
    for (std::size_t i = 0; i < pack.predictions.size(); ++i) {
      if (!greedy[i]) results[pack.predictions[i].request].is_greedy = false;
    }
    for (; begin < pack.end_request; ++begin)
      done_tokens += static_cast<std::int64_t>(requests[begin].ids.size());
  }
  for (ScoreResult& result : results) {
    for (const float logprob : result.token_logprobs) result.logprob += logprob;
  }
  return results;
}

}  // namespace mamba3
