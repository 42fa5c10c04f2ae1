// score --text: the loss of a model on documents, whole or cut into independent blocks.
#include <cmath>
#include <numbers>

#include "cli/score.h"
#include "core/check.h"
#include "io/document_reader.h"

namespace mamba3::cli {
namespace {

struct Encoded {
  std::vector<std::vector<std::int32_t>> documents;
  std::int64_t bytes = 0;
  std::int64_t tokens = 0;
};

Encoded encode_documents(const ScoreOptions& options, const Tokenizer& tokenizer) {
  DocumentFormat format;
  format.separator = options.separator;
  DocumentReader reader(open_input(options.text), options.text, format);
  Encoded encoded;
  for (std::string document; reader.next(document);) {
    try {
      encoded.documents.push_back(tokenizer.encode(document, true));
    } catch (const Error& error) {
      fail(error.code(), options.text, ", document ", encoded.documents.size() + 1, ": ",
           error.what());
    }
    encoded.bytes += static_cast<std::int64_t>(document.size());
    encoded.tokens += static_cast<std::int64_t>(encoded.documents.back().size());
  }
  return encoded;
}

// Block j reads tokens [j n, j n + n) of all documents together and predicts each one's successor.
std::vector<ScoreRequest> cut_blocks(const ScoreOptions& options, const Encoded& encoded) {
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(encoded.tokens));
  for (const auto& document : encoded.documents) {
    ids.insert(ids.end(), document.begin(), document.end());
  }
  const std::int64_t n = options.block_tokens;
  std::vector<ScoreRequest> blocks;
  for (std::int64_t begin = 0; begin + n < encoded.tokens; begin += n) {
    if (options.blocks > 0 && std::ssize(blocks) == options.blocks) break;
    blocks.push_back({{ids.begin() + begin, ids.begin() + begin + n + 1}, 1});
  }
  check_input(!blocks.empty(), options.text, " has ", encoded.tokens,
              " tokens; expected more than one block of ", n, "; choose a smaller --block");
  check_input(options.blocks <= std::ssize(blocks), options.text, " has ", blocks.size(),
              " whole blocks of ", n, " tokens; expected at least --blocks ", options.blocks,
              "; choose fewer");
  return blocks;
}

void write_report(const ScoreOptions& options, const Json& report) {
  if (options.common.json) return write_json(report);
  std::string text;
  for (const auto& [key, value] : report.items()) text += str(key, ": ", value.dump(), "\n");
  write_out(text);
}

}  // namespace

void score_text(const ScoreOptions& options, const Checkpoint& checkpoint, Context& ctx) {
  const Encoded encoded = encode_documents(options, need_tokenizer(checkpoint));
  const bool in_blocks = options.block_tokens > 0;
  std::vector<ScoreRequest> requests;
  if (in_blocks) {
    requests = cut_blocks(options, encoded);
  } else {
    for (const auto& document : encoded.documents) requests.push_back({document, 1});
  }
  std::int64_t predictions = 0;
  double nats = 0;
  const TakeResults take = [&](std::size_t, const std::vector<ScoreResult>& results) {
    for (const ScoreResult& result : results) {
      predictions += std::ssize(result.token_logprobs);
      nats -= result.logprob;
    }
  };
  score_in_passes(options, checkpoint, requests, take, ctx);
  check_input(predictions > 0, options.text,
              " has no token to predict; expected a text; check the file and --separator");

  const double nats_per_token = nats / static_cast<double>(predictions);
  // Blocks are a sample of the text, so their loss stands for every token of it; documents are
  // counted as they are.
  const double tokens_per_byte = static_cast<double>(in_blocks ? encoded.tokens : predictions) /
                                 static_cast<double>(encoded.bytes);
  Json report{{"tokens", predictions},
              {"nats_per_token", nats_per_token},
              {"bits_per_byte", nats_per_token / std::numbers::ln2 * tokens_per_byte},
              {"perplexity", std::exp(nats_per_token)},
              {"documents", encoded.documents.size()},
              {"bytes", encoded.bytes}};
  if (in_blocks) report["blocks"] = requests.size();
  write_report(options, report);
}

}  // namespace mamba3::cli
