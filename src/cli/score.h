// The four things that `score` can score; each is one function.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/common.h"
#include "mamba3/engine.h"

namespace mamba3::cli {

struct ScoreOptions {
  CommonOptions common;
  std::string text, requests, task, logits, ids_file;
  std::string separator;
  std::int64_t block_tokens = 0;  // 0: whole documents
  std::int64_t blocks = 0;        // 0: all
};

void score_text(const ScoreOptions& options, const Checkpoint& checkpoint, Context& ctx);
void score_requests(const ScoreOptions& options, const Checkpoint& checkpoint, Context& ctx);
void score_task(const ScoreOptions& options, const Checkpoint& checkpoint, Context& ctx);
void write_logits(const ScoreOptions& options, const Checkpoint& checkpoint, Context& ctx);

// Scores in passes of bounded memory, with one progress bar over all of them. `take` gets the
// results of requests [first, first + results.size()).
using TakeResults = std::function<void(std::size_t first, const std::vector<ScoreResult>& results)>;
void score_in_passes(const ScoreOptions& options, const Checkpoint& checkpoint,
                     const std::vector<ScoreRequest>& requests, const TakeResults& take,
                     Context& ctx);

}  // namespace mamba3::cli
