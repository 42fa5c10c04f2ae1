// train: from files to the windows that are trained on and those that are held out.
#include <bit>
#include <cstdio>

#include "cli/terminal.h"
#include "cli/train.h"
#include "core/check.h"
#include "core/hash.h"
#include "train/lane_source.h"
#include "train/window_source.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

fs::path cache_path(const TrainCommand& command, const TrainStart& start,
                    std::uint64_t fingerprint) {
  char name[40];
  std::snprintf(name, sizeof(name), "tokens-%016llx.cache",
                static_cast<unsigned long long>(fingerprint));
  return (command.cache.empty() ? start.folder : fs::path(command.cache)) / name;
}

struct Tokens {
  std::shared_ptr<const TokenCache> cache;
  std::uint64_t fingerprint = 0;
};

Tokens open_tokens(const TrainCommand& command, const TrainStart& start,
                   const std::vector<std::string>& files, const Tokenizer& tokenizer,
                   Context& ctx) {
  const TokenSources sources{{files.begin(), files.end()}, start.record.data.format};
  const std::uint64_t fingerprint = sources_fingerprint(sources, start.tokenizer);
  const fs::path path = cache_path(command, start, fingerprint);
  if (is_there(path)) {
    try {
      return {TokenCache::open(path, fingerprint), fingerprint};
    } catch (const Error& error) {
      ctx.log(LogLevel::kWarning, str(error.what(), "; building it again"));
    }
  }
  std::error_code ec;  // where it cannot be made, writing into it says why
  fs::create_directories(path.parent_path(), ec);
  ProgressBar bar(command.common, "encoding", "bytes");
  TokenCache::build(sources, tokenizer, fingerprint, path, ctx.pool(),
                    [&](std::int64_t done, std::int64_t all) { bar.update(done, all); });
  return {TokenCache::open(path, fingerprint), fingerprint};
}

std::uint64_t with_share(std::uint64_t fingerprint, double share) {
  if (share == 0) return fingerprint;
  Hash64 hash;
  hash.update(fingerprint);
  hash.update(std::bit_cast<std::uint64_t>(share));
  return hash.value();
}

void set_fingerprint(TrainStart& start, std::uint64_t fingerprint) {
  std::uint64_t& recorded = start.record.data.fingerprint;
  check_input(!start.checkpoint || recorded == fingerprint,
              "the texts, their order, what of them is held out or the tokenizer are not those "
              "that the training was made with; expected the same, because its position in the "
              "data is a number of windows; name those, or begin anew with --init-from");
  recorded = fingerprint;
}

struct Texts {
  WindowReader training;
  std::optional<WindowReader> held_out;
};

Texts read_texts(const TrainCommand& command, TrainStart& start, const Tokenizer& tokenizer,
                 Context& ctx) {
  const TrainData& data = start.record.data;
  const TrainOptions& options = start.record.options;
  const std::int64_t length = options.length;
  // Windows of lanes are read in the order of the documents, others are shuffled themselves.
  const auto training = [&](const TokenSelection& tokens, const char* what) {
    return WindowReader(options.carry_states ? tokens.shuffled(options.seed) : tokens, length,
                        what);
  };
  const Tokens tokens = open_tokens(command, start, data.files, tokenizer, ctx);
  set_fingerprint(start, with_share(tokens.fingerprint, data.held_out_share));
  if (data.held_out_share > 0) {
    HeldOutSplit split = hold_out(tokens.cache, data.held_out_share);
    return {training(split.training, "--data without what is held out"),
            WindowReader(std::move(split.held_out), length, "what --valid-split holds out")};
  }
  Texts texts{training(tokens.cache, "--data"), std::nullopt};
  if (data.held_out.empty()) return texts;
  const Tokens held_out = open_tokens(command, start, data.held_out, tokenizer, ctx);
  texts.held_out.emplace(held_out.cache, length, "--valid");
  return texts;
}

}  // namespace

Sequences open_texts(const TrainCommand& command, TrainStart& start, const Tokenizer& tokenizer,
                     Context& ctx) {
  Texts texts = read_texts(command, start, tokenizer, ctx);
  const TrainOptions& options = start.record.options;
  ctx.log(LogLevel::kInfo, str(start.config.parameters(), " parameters, ", texts.training.windows(),
                               " windows of ", options.length, " tokens, ",
                               options.tokens_per_step(), " tokens a step, seed ", options.seed));
  Sequences out;
  if (options.carry_states) {
    out.training = std::make_shared<LaneSource>(std::move(texts.training), options.batch);
  } else {
    out.training = std::make_shared<WindowSource>(std::move(texts.training), options.seed);
  }
  if (texts.held_out) out.held_out = std::make_shared<WindowSource>(std::move(*texts.held_out));
  return out;
}

}  // namespace mamba3::cli
