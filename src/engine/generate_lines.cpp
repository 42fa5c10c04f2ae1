#include "engine/generate_lines.h"

#include "core/check.h"
#include "engine/json_fields.h"
#include "engine/requests.h"

namespace mamba3 {
namespace {

void set(float& value, const std::optional<double>& given) {
  if (given) value = static_cast<float>(*given);
}

}  // namespace

GenerateLine parse_generate_line(std::string_view text, const std::string& where) {
  GenerateLine line;
  line.where = where;
  const JsonField fields[] = {{"prompt", &line.prompt},
                              {"prompt_ids", &line.prompt_ids},
                              {"max_tokens", &line.max_tokens},
                              {"top_k", &line.top_k},
                              {"temperature", &line.temperature},
                              {"top_p", &line.top_p},
                              {"min_p", &line.min_p},
                              {"repeat_penalty", &line.repeat_penalty},
                              {"presence_penalty", &line.presence_penalty},
                              {"frequency_penalty", &line.frequency_penalty},
                              {"seed", &line.seed},
                              {"stop", &line.stop, true},
                              {"ignore_eos", &line.ignore_eos}};
  read_json_fields(text, where, "{\"prompt\": ...} or the like", fields);
  return line;
}

GenerateRequest to_generate_request(const GenerateLine& line, const GenerateRequest& defaults,
                                    const Tokenizer* tokenizer, std::int64_t vocab) {
  check_input(line.prompt.has_value() != line.prompt_ids.has_value(), line.where,
              " does not say what to continue; expected exactly one of {\"prompt\"} and "
              "{\"prompt_ids\"}; correct the line");
  GenerateRequest request = defaults;
  if (line.max_tokens) request.max_tokens = *line.max_tokens;
  check_input(request.max_tokens >= 0, line.where, " has max_tokens ", request.max_tokens,
              "; expected 0 or more; correct the line");
  if (line.seed) request.seed = *line.seed;
  if (line.stop) request.stop = *line.stop;
  if (line.ignore_eos) request.ignore_eos = *line.ignore_eos;
  SamplingParams& sampling = request.sampling;
  set(sampling.temperature, line.temperature);
  set(sampling.top_p, line.top_p);
  set(sampling.min_p, line.min_p);
  set(sampling.repeat_penalty, line.repeat_penalty);
  set(sampling.presence_penalty, line.presence_penalty);
  set(sampling.frequency_penalty, line.frequency_penalty);
  if (line.top_k) {
    check_input(*line.top_k >= 0 && *line.top_k <= INT32_MAX, line.where, " has top_k ",
                *line.top_k, "; expected 0 to ", INT32_MAX, "; correct the line");
    sampling.top_k = static_cast<std::int32_t>(*line.top_k);
  }
  try {
    check_sampling(sampling);
    if (line.prompt) {
      check_input(tokenizer != nullptr,
                  "it holds text, but the model's folder has no tokenizer.json; expected one, or "
                  "prompt_ids; name one with --tokenizer");
      request.prompt_ids = tokenizer->encode(*line.prompt, true);
    } else {
      request.prompt_ids = *line.prompt_ids;
    }
  } catch (const Error& error) {
    fail(error.code(), line.where, ": ", error.what());
  }
  check_ids(request.prompt_ids, vocab, line.where);
  return request;
}

}  // namespace mamba3
