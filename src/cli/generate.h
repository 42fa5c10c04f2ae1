// What `generate` and its interactive mode share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/cli11_forward.h"
#include "cli/common.h"
#include "mamba3/engine.h"

namespace CLI {
class Option;
}

namespace mamba3::cli {

struct GenerateOptions {
  CommonOptions common;
  std::string prompt, prompt_file, prompt_ids;
  const CLI::Option* prompt_given = nullptr;
  const CLI::Option* prompt_file_given = nullptr;
  const CLI::Option* prompt_ids_given = nullptr;
  std::int64_t max_tokens = 128;
  std::int64_t samples = 1;
  SamplingParams sampling;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool interactive = false;
  StatePoolOptions pool;
  std::string save_state, load_state;
  std::string requests;    // a file of requests instead of one prompt
  std::int64_t batch = 8;  // of them at once
  const CLI::Option* batch_given = nullptr;
};

struct Prompt {
  std::vector<std::int32_t> ids;
  std::string text;  // as given, or what the ids decode to
};

int exit_code(const GenerateResult& result);
void write_timings(const GenerateRequest& request, const GenerateResult& result, double load_s);

}  // namespace mamba3::cli
