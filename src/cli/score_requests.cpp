// score --requests and --task: many short requests from JSON lines.
#include <filesystem>

#include "cli/score.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "engine/requests.h"
#include "engine/task.h"

namespace mamba3::cli {
namespace {

void write_result(const ScoreOptions& options, const ScoreResult& result) {
  const std::size_t tokens = result.token_logprobs.size();
  if (options.common.json) {
    return write_json({{"tokens", tokens},
                       {"logprob", result.logprob},
                       {"token_logprobs", result.token_logprobs},
                       {"is_greedy", result.is_greedy}});
  }
  write_out(str("logprob ", result.logprob, "  tokens ", tokens, "  greedy ",
                result.is_greedy ? "yes" : "no", "\n"));
}

std::string task_name(const std::string& path) {
  return path == "-" ? "stdin" : std::filesystem::path(path).stem().string();
}

void write_scores(const ScoreOptions& options, const TaskScores& scores) {
  Json report{{"task", task_name(options.task)}, {"items", scores.items}, {"acc", scores.acc}};
  if (scores.acc_norm) report["acc_norm"] = *scores.acc_norm;
  if (scores.acc_norm_bytes) report["acc_norm_bytes"] = *scores.acc_norm_bytes;
  if (scores.perplexity) report["perplexity"] = *scores.perplexity;
  report["sum_loglik"] = scores.sum_loglik;
  if (options.common.json) return write_json(report);
  std::string text;
  for (const auto& [key, value] : report.items()) {
    text += str(key, ": ", value.is_string() ? value.get<std::string>() : value.dump(), "\n");
  }
  write_out(text);
}

}  // namespace

void score_requests(const ScoreOptions& options, const Checkpoint& checkpoint, Context& ctx) {
  std::vector<ScoreRequest> requests;
  const std::int64_t vocab = checkpoint.model->config().vocab;
  for_each_request(read_text(options.requests), options.requests, [&](const RequestLine& line) {
    check_interrupt();
    requests.push_back(to_score_request(line, checkpoint.tokenizer.get(), vocab));
  });
  const TakeResults take = [&](std::size_t, const std::vector<ScoreResult>& results) {
    for (const ScoreResult& result : results) write_result(options, result);
  };
  score_in_passes(options, checkpoint, requests, take, ctx);
}

void score_task(const ScoreOptions& options, const Checkpoint& checkpoint, Context& ctx) {
  const Tokenizer& tokenizer = need_tokenizer(checkpoint);
  const std::int64_t vocab = checkpoint.model->config().vocab;
  std::vector<TaskItem> items;
  std::vector<ScoreRequest> requests;
  for_each_request(read_text(options.task), options.task, [&](const RequestLine& line) {
    check_interrupt();
    items.push_back(to_task_item(line));
    check_input(items.back().kind == items.front().kind, line.where,
                " has other fields than the items before it; expected items of one kind; split "
                "the file");
    for (const TaskPair& pair : items.back().pairs) {
      requests.push_back(encode_pair(tokenizer, pair.context, pair.continuation, line.where));
      check_ids(requests.back().ids, vocab, line.where);
    }
  });
  check_input(!items.empty(), options.task,
              " has no items; expected JSON lines of a test set; check the file");

  std::vector<ScoreResult> results;
  results.reserve(requests.size());
  const TakeResults take = [&](std::size_t, const std::vector<ScoreResult>& more) {
    results.insert(results.end(), more.begin(), more.end());
  };
  score_in_passes(options, checkpoint, requests, take, ctx);
  TaskMeter meter;
  const ScoreResult* next = results.data();
  for (const TaskItem& item : items) {
    meter.add(item, next);
    next += item.pairs.size();
  }
  write_scores(options, meter.scores());
}

}  // namespace mamba3::cli
