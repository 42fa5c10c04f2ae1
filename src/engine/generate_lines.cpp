#include "engine/generate_lines.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "engine/json_events.h"
#include "engine/requests.h"

namespace mamba3 {
namespace {

class LineEvents : public JsonEvents {
 public:
  explicit LineEvents(GenerateLine& line) : JsonEvents(line.where), line_(line) {}

  bool boolean(bool value) {
    if (depth_ != 1 || flag_ == nullptr) return other();
    *flag_ = value;
    return true;
  }
  bool number_float(double value, const std::string&) {
    if (depth_ != 1 || real_ == nullptr) return other();
    *real_ = value;
    return true;
  }
  bool number_integer(std::int64_t value) {
    if (depth_ == 1 && real_ != nullptr) return number_float(static_cast<double>(value), {});
    if (depth_ == 1 && whole_ != nullptr) {
      *whole_ = value;
      return true;
    }
    if (depth_ == 2 && in_list_ && ids_ && value >= 0 && value <= kMostId) {
      line_.prompt_ids->push_back(static_cast<std::int32_t>(value));
      return true;
    }
    return other();
  }
  bool number_unsigned(std::uint64_t value) {
    if (depth_ == 1 && seed_) {
      line_.seed = value;
      return true;
    }
    if (depth_ == 1 && real_ != nullptr) return number_float(static_cast<double>(value), {});
    if (value > INT64_MAX) return other();
    return number_integer(static_cast<std::int64_t>(value));
  }
  bool string(std::string& value) {
    if (depth_ == 1 && prompt_) {
      line_.prompt = std::move(value);
    } else if (depth_ == 1 && stop_) {
      line_.stop.emplace({std::move(value)});
    } else if (depth_ == 2 && in_list_ && stop_) {
      line_.stop->push_back(std::move(value));
    } else {
      return other();
    }
    return true;
  }
  bool start_object(std::size_t) {
    if (depth_ > 0) other();
    ++depth_;
    return true;
  }
  bool end_object() { return leave(); }
  bool start_array(std::size_t) {
    if (depth_ == 0) other();
    if (depth_ == 1 && (ids_ || stop_)) {
      in_list_ = true;
      if (ids_) line_.prompt_ids.emplace();
      if (stop_) line_.stop.emplace();
    } else {
      other();
    }
    ++depth_;
    return true;
  }
  bool end_array() { return leave(); }
  bool key(std::string& name) {
    if (depth_ != 1) return true;
    key_ = std::move(name);
    prompt_ = key_ == "prompt";
    ids_ = key_ == "prompt_ids";
    stop_ = key_ == "stop";
    seed_ = key_ == "seed";
    flag_ = key_ == "ignore_eos" ? &line_.ignore_eos : nullptr;
    whole_ = nullptr;
    if (key_ == "max_tokens") whole_ = &line_.max_tokens;
    if (key_ == "top_k") whole_ = &line_.top_k;
    real_ = nullptr;
    if (key_ == "temperature") real_ = &line_.temperature;
    if (key_ == "top_p") real_ = &line_.top_p;
    if (key_ == "min_p") real_ = &line_.min_p;
    if (key_ == "repeat_penalty") real_ = &line_.repeat_penalty;
    if (key_ == "presence_penalty") real_ = &line_.presence_penalty;
    if (key_ == "frequency_penalty") real_ = &line_.frequency_penalty;
    return true;
  }

 protected:
  // A value that the key before it does not take; keys that are not ours take anything.
  bool other() override {
    if (depth_ == 0) refuse("is not an object", "{\"prompt\": ...} or the like");
    const std::string found = "has a \"" + key_ + "\" of the wrong kind";
    if (prompt_) refuse(found, "a string");
    if (ids_) refuse(found, str("a list of whole numbers from 0 to ", kMostId));
    if (stop_) refuse(found, "a string or a list of strings");
    if (seed_) refuse(found, "a whole number from 0 to 2^64 - 1");
    if (flag_ != nullptr) refuse(found, "true or false");
    if (whole_ != nullptr) refuse(found, "a whole number");
    if (real_ != nullptr) refuse(found, "a number");
    return true;
  }

 private:
  bool leave() {
    --depth_;
    if (depth_ == 1) in_list_ = false;
    return true;
  }

  GenerateLine& line_;
  std::string key_;
  // What the key takes: at most one of these.
  bool prompt_ = false, ids_ = false, stop_ = false, seed_ = false;
  std::optional<bool>* flag_ = nullptr;
  std::optional<std::int64_t>* whole_ = nullptr;
  std::optional<double>* real_ = nullptr;
  bool in_list_ = false;
  std::int64_t depth_ = 0;
};

void set(float& value, const std::optional<double>& given) {
  if (given) value = static_cast<float>(*given);
}

}  // namespace

GenerateLine parse_generate_line(std::string_view text, const std::string& where) {
  GenerateLine line;
  line.where = where;
  LineEvents events(line);
  nlohmann::json::sax_parse(text.begin(), text.end(), &events);
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
