// tokenize: text to ids and back. stdin to stdout, one text or JSON lines.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "engine/requests.h"

namespace mamba3::cli {
namespace {

struct TokenizeOptions {
  CommonOptions common;
  bool no_special = false;
  bool decode = false;
  bool jsonl = false;
};

void write_ids(const std::vector<std::int32_t>& ids, bool json) {
  if (json) return write_json({{"ids", ids}});
  std::string line;
  for (const std::int32_t id : ids) line += (line.empty() ? "" : " ") + std::to_string(id);
  write_out(line + "\n");
}

// Ids as people write them: separated by blanks or commas, perhaps in brackets.
std::vector<std::int32_t> ids_of_text(const std::string& text, std::int64_t vocab) {
  std::string list;
  for (const char c : text) {
    if (std::string_view(" ,\n\r\t[]").find(c) == std::string_view::npos) {
      list += c;
    } else if (!list.empty() && list.back() != ',') {
      list += ',';
    }
  }
  if (list.ends_with(',')) list.pop_back();
  return parse_ids(list, "stdin", vocab);
}

void decode(const TokenizeOptions& options, const Tokenizer& tokenizer,
            const std::vector<std::int32_t>& ids, const char* line_end) {
  const std::string text = tokenizer.decode(ids, options.no_special);
  if (options.common.json) return write_json({{"text", text}});
  write_out(text + line_end);
}

// A line may hold both, as a line of test cases does: --decode then says which one is meant.
void tokenize_line(const TokenizeOptions& options, const Tokenizer& tokenizer,
                   const RequestLine& line) {
  if (line.ids && (options.decode || !line.text)) {
    check_ids(*line.ids, tokenizer.vocab(), line.where);
    return decode(options, tokenizer, *line.ids, "\n");
  }
  check_input(line.text && !options.decode, line.where, " has no ",
              options.decode ? "\"ids\"" : "\"text\" or \"ids\"",
              "; expected it to say what to turn into the other; correct the line");
  std::vector<std::int32_t> ids;
  try {
    ids = tokenizer.encode(*line.text, !options.no_special);
  } catch (const Error& error) {
    fail(error.code(), line.where, ": ", error.what());
  }
  write_ids(ids, options.common.json);
}

int run_tokenize(TokenizeOptions options) {
  options.common.json |= options.jsonl;  // a line of text could be several
  const auto tokenizer = load_tokenizer(options.common);
  const std::string input = read_text("-");
  if (options.jsonl) {
    for_each_request(input, "stdin", [&](const RequestLine& line) {
      check_interrupt();
      tokenize_line(options, *tokenizer, line);
    });
  } else if (options.decode) {
    decode(options, *tokenizer, ids_of_text(input, tokenizer->vocab()), "");
  } else {
    write_ids(tokenizer->encode(input, !options.no_special), options.common.json);
  }
  return 0;
}

}  // namespace

Run add_tokenize(CLI::App& app) {
  auto options = std::make_shared<TokenizeOptions>();
  app.add_flag("--no-special", options->no_special,
               "ids without what the post-processor adds (BOS); texts without special tokens");
  app.add_flag("--decode", options->decode, "stdin holds ids, separated by blanks or commas");
  app.add_flag("--jsonl", options->jsonl,
               R"(stdin holds lines {"text"} or {"ids"}, each is turned into the other)");
  add_common_options(app, options->common);
  return [options] { return run_tokenize(*options); };
}

}  // namespace mamba3::cli
