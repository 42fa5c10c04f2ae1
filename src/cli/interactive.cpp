#include "cli/interactive.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>

#include "cli/terminal.h"
#include "core/check.h"

namespace mamba3::cli {
namespace {

// Lines of stdin without their ends. Reads by itself, so that Ctrl-C ends a wait.
class LineReader {
 public:
  std::optional<std::string> next() {
    for (;;) {
      const std::size_t end = buffer_.find('\n');
      if (end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        if (line.ends_with('\r')) line.pop_back();
        return line;
      }
      char block[4096];
      const ssize_t got = ::read(STDIN_FILENO, block, sizeof(block));
      if (got > 0) {
        buffer_.append(block, static_cast<std::size_t>(got));
        continue;
      }
      if (got < 0) {
        check_interrupt();
        if (errno == EINTR) continue;
        fail(ErrorCode::kBadInput, "stdin cannot be read (", std::generic_category().message(errno),
             "); expected lines of text; check where it comes from");
      }
      if (buffer_.empty()) return std::nullopt;
      return std::exchange(buffer_, std::string());
    }
  }

 private:
  std::string buffer_;
};

class Turns {
 public:
  Turns(const GenerateOptions& options, GenerateRequest request, const LoadedModel& loaded,
        Context& ctx)
      : options_(options), request_(std::move(request)), loaded_(loaded), ctx_(ctx) {}

  // The line is read as the screen shows it: on a line of its own after what came before. A line
  // that cannot be read is reported, and the talk goes on.
  void answer_line(const std::string& line) {
    const bool first = !request_.state.has_value();
    std::vector<std::int32_t> ids;
    try {
      ids = need_tokenizer(loaded_.checkpoint).encode(first ? line : "\n" + line, first);
    } catch (const Error& error) {
      return message(str("mamba3: error: ", error.what()));
    }
    if (!ids.empty()) answer(ids);
  }

  // Ctrl-C ends an answer, not the talk.
  void answer(const std::vector<std::int32_t>& ids) {
    request_.prompt_ids = ids;
    GenerateHooks hooks;
    hooks.interrupted = &interrupted();
    hooks.on_text = [](std::int64_t, const std::string& text) { write_out(text); };
    try {
      GenerateResult result = generate(loaded_.checkpoint, request_, hooks, ctx_);
      if (options_.common.verbose) write_timings(request_, result, loaded_.load_s);
      // An end-of-text token would make the model forget the talk.
      if (result.samples[0].reason == FinishReason::kEos) result.state.set_pending_id(-1);
      request_.state = std::move(result.state);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kInterrupted) throw;
    }
    clear_interrupt();
    write_out("\n");
    ++request_.seed;
  }

  const std::optional<SequenceState>& state() const { return request_.state; }

 private:
  const GenerateOptions& options_;
  GenerateRequest request_;
  const LoadedModel& loaded_;
  Context& ctx_;
};

}  // namespace

int run_turns(const GenerateOptions& options, const Prompt& prompt, GenerateRequest request,
              const LoadedModel& loaded, Context& ctx) {
  need_tokenizer(loaded.checkpoint);
  const bool terminal = isatty(STDIN_FILENO) == 1 && !options.common.quiet;
  if (terminal) {
    message("mamba3: each line is continued; Ctrl-C stops an answer, Ctrl-D ends");
  }
  Turns turns(options, std::move(request), loaded, ctx);
  if (!prompt.ids.empty()) {
    write_out(prompt.text);
    turns.answer(prompt.ids);
  }
  LineReader lines;
  int code = 0;
  try {
    for (;;) {
      if (terminal) write_out("> ");
      const auto line = lines.next();
      if (!line) break;
      turns.answer_line(*line);
    }
    if (terminal) write_out("\n");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInterrupted) throw;
    code = static_cast<int>(error.code());
  }
  if (!options.save_state.empty() && turns.state()) turns.state()->save(options.save_state);
  return code;
}

}  // namespace mamba3::cli
