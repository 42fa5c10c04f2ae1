#include "cli/generate_requests.h"

#include <chrono>
#include <deque>
#include <map>
#include <optional>

#include "cli/terminal.h"
#include "core/check.h"
#include "engine/generate_lines.h"
#include "engine/requests.h"

namespace mamba3::cli {
namespace {

// What came of one line.
struct Answer {
  std::int64_t index = 0;
  std::uint64_t seed = 0;
  GeneratedSample sample;
  std::string error;
  bool ended = false;

  void fail_with(const std::string& text) {
    error = text;
    ended = true;
  }
  Json json() const {
    if (!error.empty()) return {{"index", index}, {"error", error}};
    return {{"index", index},
            {"ids", sample.ids},
            {"text", sample.text},
            {"finish_reason", finish_reason_name(sample.reason)},
            {"logprobs", sample.logprobs},
            {"seed", seed}};
  }
};

// Lines are read as slots become free, and answered in their order as soon as all before them are.
class RequestRun {
 public:
  RequestRun(const GenerateOptions& options, const GenerateRequest& defaults,
             const Checkpoint& checkpoint, Context& ctx)
      : options_(options),
        defaults_(defaults),
        checkpoint_(checkpoint),
        text_(read_text(options.requests)),
        rest_(text_),
        batch_(checkpoint, {options.batch, 0}, ctx),
        bar_(options.common, "requests", "requests") {
    std::string_view rest = text_, line;
    for (std::int64_t number = 0; next_line(rest, number, line);) ++lines_;
  }

  int run() {
    while (true) {
      if (interrupted() && !stopped_) stop();
      while (!stopped_ && batch_.waiting() < options_.batch && submit_next()) {
      }
      write_answers();
      if (answers_.empty() && (stopped_ || rest_.empty())) break;
      for (const BatchEvent& event : batch_.turn()) take(event);
    }
    bar_.clear();
    if (stopped_) return static_cast<int>(ErrorCode::kInterrupted);
    return failed_ ? static_cast<int>(ErrorCode::kBadInput) : 0;
  }

  std::int64_t tokens() const { return tokens_; }

 private:
  // False at the end of the lines.
  bool submit_next() {
    std::string_view line;
    if (!next_line(rest_, line_number_, line)) return false;
    answers_.emplace_back();
    Answer& answer = answers_.back();
    answer.index = next_index_++;
    try {
      GenerateRequest defaults = defaults_;
      defaults.seed += static_cast<std::uint64_t>(answer.index);
      const GenerateLine parsed =
          parse_generate_line(line, str(options_.requests, " line ", line_number_));
      GenerateRequest request = to_generate_request(parsed, defaults, checkpoint_.tokenizer.get(),
                                                    checkpoint_.model->config().vocab);
      answer.seed = request.seed;
      tickets_[batch_.submit(std::move(request))] = answer.index;
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kInterrupted) throw;
      answer.fail_with(error.what());
    }
    return true;
  }

  void stop() {
    stopped_ = true;
    for (const auto& [ticket, index] : tickets_) batch_.cancel(ticket);
  }

  void take(const BatchEvent& event) {
    const auto at = tickets_.find(event.ticket);
    Answer& answer = answers_[static_cast<std::size_t>(at->second - answers_.front().index)];
    if (event.id >= 0) {
      answer.sample.ids.push_back(event.id);
      answer.sample.logprobs.push_back(event.logprob);
      ++tokens_;
    }
    answer.sample.text += event.text;
    if (!event.last()) return;
    if (event.error) answer.fail_with(event.error->what());
    if (event.finished) answer.sample.reason = *event.finished;
    answer.ended = true;
    tickets_.erase(at);
  }

  void write_answers() {
    while (!answers_.empty() && answers_.front().ended) {
      const Answer& answer = answers_.front();
      failed_ = failed_ || !answer.error.empty();
      bar_.clear();
      write_json(answer.json());
      answers_.pop_front();
    }
    if (!interrupted()) bar_.update(next_index_ - std::ssize(answers_), lines_);
  }

  const GenerateOptions& options_;
  const GenerateRequest& defaults_;
  const Checkpoint& checkpoint_;
  std::string text_;
  std::string_view rest_;  // of the text, not read yet
  std::int64_t line_number_ = 0;
  std::int64_t lines_ = 0;
  BatchGenerator batch_;
  ProgressBar bar_;
  std::deque<Answer> answers_;  // not written yet, in the order of the lines
  std::map<Ticket, std::int64_t> tickets_;
  std::int64_t next_index_ = 0;
  std::int64_t tokens_ = 0;
  bool stopped_ = false;
  bool failed_ = false;
};

}  // namespace

int run_requests(const GenerateOptions& options, const GenerateRequest& defaults,
                 const LoadedModel& loaded, Context& ctx) {
  RequestRun requests(options, defaults, loaded.checkpoint, ctx);
  const auto start = std::chrono::steady_clock::now();
  const int code = requests.run();
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
  if (options.common.verbose) {
    message(str("mamba3: seed ", defaults.seed, "; load ", loaded.load_s, " s; generated ",
                requests.tokens(), " tokens in ", passed.count(), " s (",
                static_cast<double>(requests.tokens()) / passed.count(), " tokens/s)"));
  }
  return code;
}

}  // namespace mamba3::cli
