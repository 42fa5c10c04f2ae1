// score: log-likelihoods of texts, requests and test sets, and logits as they are.
#include "cli/score.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "engine/requests.h"
#include "io/tensor_file.h"

namespace mamba3::cli {
namespace {

// What is held between two outputs: enough tokens to fill a pass, few enough to forget.
constexpr std::int64_t kPassTokens = 65536;

void check_options(const ScoreOptions& options) {
  const int chosen = int{!options.text.empty()} + int{!options.requests.empty()} +
                     int{!options.task.empty()} + int{!options.logits.empty()};
  if (chosen != 1) {
    fail(ErrorCode::kUsage, chosen, " of --text, --requests, --task and --logits are given",
         "; expected exactly one of them; choose what to score");
  }
  if (options.logits.empty() != options.ids_file.empty()) {
    fail(ErrorCode::kUsage,
         "only one of --logits and --ids-file is given; expected both; add the other");
  }
  if (options.text.empty() && (options.block_tokens > 0 || !options.separator.empty())) {
    fail(ErrorCode::kUsage,
         "--block and --separator cut a text, but there is none; expected --text; add it");
  }
  if (options.blocks > 0 && options.block_tokens == 0) {
    fail(ErrorCode::kUsage, "--blocks is given without --block; expected both; add --block N");
  }
}

int run_score(const ScoreOptions& options) {
  check_options(options);
  Context ctx = make_context(options.common, choose_device(options.common));
  const Checkpoint checkpoint = load_model(options.common, ctx).checkpoint;
  if (!options.text.empty()) score_text(options, checkpoint, ctx);
  if (!options.requests.empty()) score_requests(options, checkpoint, ctx);
  if (!options.task.empty()) score_task(options, checkpoint, ctx);
  if (!options.logits.empty()) write_logits(options, checkpoint, ctx);
  return 0;
}

// All logits of one list of ids, padded columns included.
void read_logits(const Checkpoint& checkpoint, const std::vector<std::int32_t>& ids, float* to,
                 StatePool& states, ProgressBar& bar, Context& ctx) {
  const std::int64_t v = checkpoint.model->config().padded_vocab();
  const auto tokens = static_cast<std::int64_t>(ids.size());
  const std::int64_t cu_seqlens[] = {0, tokens};
  const std::int32_t slots[] = {0};
  std::vector<std::int64_t> wanted(ids.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = static_cast<std::int64_t>(i);
  states.reset(0);
  PrefillArgs args;
  args.ids = ids;
  args.cu_seqlens = cu_seqlens;
  args.slots = slots;
  args.logit_tokens = wanted;
  args.on_logits = [&](std::span<const std::int64_t> which, TensorView<const float, 2> logits) {
    for (std::int64_t row = 0; row < logits.shape[0]; ++row) {
      std::copy_n(&logits(row, 0), v, to + which[row] * v);
    }
  };
  args.progress = [&](std::int64_t done) { bar.update(done, tokens); };
  checkpoint.model->prefill(args, states, ctx);
}

}  // namespace

void score_in_passes(const ScoreOptions& options, const Checkpoint& checkpoint,
                     const std::vector<ScoreRequest>& requests, const TakeResults& take,
                     Context& ctx) {
  std::int64_t all_tokens = 0, done_tokens = 0;
  for (const ScoreRequest& request : requests) {
    all_tokens += static_cast<std::int64_t>(request.ids.size());
  }
  ProgressBar bar(options.common, "scoring", "tokens");
  for (std::size_t begin = 0; begin < requests.size();) {
    std::int64_t pass_tokens = 0;
    std::size_t end = begin;
    while (end < requests.size() && (end == begin || pass_tokens < kPassTokens)) {
      pass_tokens += static_cast<std::int64_t>(requests[end++].ids.size());
    }
    const std::vector<ScoreRequest> pass(requests.begin() + static_cast<std::ptrdiff_t>(begin),
                                         requests.begin() + static_cast<std::ptrdiff_t>(end));
    const auto results = score(
        checkpoint, pass,
        [&](std::int64_t done, std::int64_t) { bar.update(done_tokens + done, all_tokens); }, ctx);
    check_interrupt();
    take(begin, results);
    done_tokens += pass_tokens;
    begin = end;
  }
}

void write_logits(const ScoreOptions& options, const Checkpoint& checkpoint, Context& ctx) {
  const ModelConfig& config = checkpoint.model->config();
  const IdLists ids = parse_ids_json(read_text(options.ids_file), options.ids_file, config.vocab);
  const std::int64_t v = config.padded_vocab();
  ProgressBar bar(options.common, "reading", "tokens");
  StatePool states(config, 1, ctx);
  std::vector<std::vector<float>> logits;
  std::vector<NamedTensor> tensors;
  for (std::size_t i = 0; i < ids.lists.size(); ++i) {
    const auto tokens = static_cast<std::int64_t>(ids.lists[i].size());
    logits.emplace_back(static_cast<std::size_t>(tokens * v));
    read_logits(checkpoint, ids.lists[i], logits.back().data(), states, bar, ctx);
    const std::string name = ids.nested ? str("logits.", i) : "logits";
    tensors.push_back(
        {name,
         {reinterpret_cast<const std::byte*>(logits.back().data()), DType::kF32, {tokens, v}}});
  }
  bar.clear();
  write_safetensors(options.logits, tensors, {});
  if (options.common.json) {
    write_json({{"file", options.logits}, {"tensors", tensors.size()}, {"vocabulary", v}});
  }
}

Run add_score(CLI::App& app) {
  auto options = std::make_shared<ScoreOptions>();
  app.add_option("--text", options->text,
                 "text or, by the names .jsonl and .ndjson, JSON lines with a text each, also "
                 "packed by xz; - for stdin: loss of the model on it")
      ->type_name("FILE");
  app.add_option("--block", options->block_tokens,
                 "with --text: independent blocks of N tokens, no state carried between them; "
                 "default: whole documents")
      ->type_name("N")
      ->check(whole_number(1));
  app.add_option("--blocks", options->blocks, "with --block: only the first N blocks")
      ->type_name("N")
      ->check(whole_number(1));
  app.add_option("--separator", options->separator,
                 "with --text: a line equal to LINE stands between two documents")
      ->type_name("LINE");
  app.add_option("--requests", options->requests,
                 R"(JSON lines, - for stdin: {"context","continuation"}, {"text"} or {"ids"})")
      ->type_name("FILE");
  app.add_option("--task", options->task,
                 R"(test set, JSON lines: {"query","choices","gold"}, )"
                 R"({"context_options","continuation","gold"} or {"context","continuation"})")
      ->type_name("FILE");
  app.add_option("--logits", options->logits, "write all logits of --ids-file to this safetensors")
      ->type_name("FILE");
  app.add_option("--ids-file", options->ids_file, "JSON list of ids, or list of lists, - for stdin")
      ->type_name("FILE");
  add_common_options(app, options->common);
  return [options] { return run_score(*options); };
}

}  // namespace mamba3::cli
