// generate: continues a prompt, streamed. See interactive.cpp for turns.
#include "cli/generate.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <random>

#include "cli/commands.h"
#include "cli/generate_requests.h"
#include "cli/interactive.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "engine/requests.h"

namespace mamba3::cli {
namespace {

void add_prompt_options(CLI::App& app, GenerateOptions& options) {
  options.prompt_given =
      app.add_option("-p,--prompt", options.prompt, "text to continue")->type_name("TEXT");
  options.prompt_file_given =
      app.add_option("--prompt-file", options.prompt_file,
                     "file with the text to continue, - for stdin; one line end at its end is "
                     "left out")
          ->type_name("FILE");
  options.prompt_ids_given =
      app.add_option("--prompt-ids", options.prompt_ids,
                     "token ids to continue, as 1,2,3: nothing is added to them")
          ->type_name("IDS");
  app.add_option("-n,--max-tokens", options.max_tokens,
                 "most tokens to generate; 0 only reads the prompt")
      ->type_name("N")
      ->check(whole_number(0))
      ->capture_default_str();
  app.add_option("--stop", options.stop, "text that ends a sample and is left out; repeatable")
      ->type_name("TEXT")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", options.ignore_eos, "go on after an end-of-text token");
  app.add_option("--samples", options.samples, "continuations of one prompt, read once")
      ->type_name("N")
      ->check(whole_number(1, 4096))
      ->capture_default_str();
  app.add_option("--save-state", options.save_state, "write the state at the end to this file")
      ->type_name("FILE");
  app.add_option("--load-state", options.load_state,
                 "continue the state in this file; no BOS is added to the prompt")
      ->type_name("FILE");
  app.add_option("--ring", options.pool.ring_tokens,
                 "on a GPU, tokens that wait beside a state before it is rewritten; 0: none "
                 "(default: 8 where the GPU and the model allow it)")
      ->type_name("N")
      ->check(whole_number(0, 16));
  app.add_flag("-i,--interactive", options.interactive,
               "answer each line of input; the state is kept between turns");
}

void add_batch_options(CLI::App& app, GenerateOptions& options) {
  app.add_option("--requests", options.requests,
                 "file of JSON lines, - for stdin: a prompt and its own options each, answered by "
                 "a JSON line each")
      ->type_name("FILE");
  options.batch_given = app.add_option("--batch", options.batch, "requests that run at once")
                            ->type_name("N")
                            ->check(whole_number(1, 4096))
                            ->capture_default_str();
}

void add_sampling_options(CLI::App& app, SamplingParams& sampling) {
  const char* group = "Sampling";
  const auto add = [&](const char* name, auto& value, double least, double most, const char* help) {
    app.add_option(name, value, help)
        ->type_name("X")
        ->check(number(least, most))
        ->capture_default_str()
        ->group(group);
  };
  add("--temp", sampling.temperature, 0, 1000, "temperature; 0: always the most likely token");
  app.add_option("--top-k", sampling.top_k, "only the K most likely tokens; 0: all")
      ->type_name("K")
      ->check(whole_number(0, INT32_MAX))
      ->capture_default_str()
      ->group(group);
  app.add_option("--top-p", sampling.top_p, "only the most likely tokens that sum to P; 1: all")
      ->type_name("X")
      ->check(number_above_zero(1))
      ->capture_default_str()
      ->group(group);
  add("--min-p", sampling.min_p, 0, 1,
      "only tokens at least X times as likely as the best; 0: all");
  add("--repeat-penalty", sampling.repeat_penalty, 1e-3, 1000,
      "weakens tokens that were seen; 1: off");
  add("--presence-penalty", sampling.presence_penalty, -1000, 1000,
      "subtracted from the logits of seen tokens");
  add("--frequency-penalty", sampling.frequency_penalty, -1000, 1000,
      "subtracted for every time a token was seen");
}

// With --requests each line says what otherwise stands on the command line.
void check_batch_options(const GenerateOptions& options, std::size_t prompts) {
  if (options.requests.empty()) {
    if (options.batch_given->count() == 0) return;
    fail(ErrorCode::kUsage,
         "--batch is given without --requests; expected both; --samples gives several "
         "continuations of one prompt");
  }
  if (prompts > 0 || options.interactive || options.samples > 1 || !options.save_state.empty() ||
      !options.load_state.empty()) {
    fail(ErrorCode::kUsage,
         "--requests goes with none of --prompt, --prompt-file, --prompt-ids, --samples, "
         "--save-state, --load-state and --interactive; expected prompts in the file; leave the "
         "other options out");
  }
}

void check_options(const GenerateOptions& options) {
  const std::size_t prompts = int{options.prompt_given->count() > 0} +
                              int{options.prompt_file_given->count() > 0} +
                              int{options.prompt_ids_given->count() > 0};
  if (prompts > 1) {
    fail(ErrorCode::kUsage,
         "the prompt is given more than once; expected one of --prompt, --prompt-file and "
         "--prompt-ids; leave the others out");
  }
  check_batch_options(options, prompts);
  if (prompts == 0 && options.requests.empty() && options.load_state.empty() &&
      !options.interactive) {
    fail(ErrorCode::kUsage,
         "there is no prompt; expected --prompt, --prompt-file, --prompt-ids, --requests, "
         "--load-state or --interactive; give one of them");
  }
  if (options.interactive && (options.common.json || options.samples > 1)) {
    fail(ErrorCode::kUsage,
         "--interactive goes with neither --json nor --samples; expected one of them; leave the "
         "other out");
  }
  for (const std::string& stop : options.stop) {
    if (stop.empty()) {
      fail(ErrorCode::kUsage,
           "--stop is an empty text; expected at least one character; correct the option");
    }
  }
}

std::string strip_line_end(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

Prompt read_prompt(const GenerateOptions& options, const Checkpoint& checkpoint) {
  Prompt prompt;
  if (options.prompt_ids_given->count() > 0) {
    prompt.ids = parse_ids(options.prompt_ids, "--prompt-ids", checkpoint.model->config().vocab);
    if (checkpoint.tokenizer) {
      // Ids may begin or end inside a character.
      Utf8Stream characters;
      prompt.text = characters.push(checkpoint.tokenizer->decode(prompt.ids, true));
      prompt.text += characters.finish();
    }
    return prompt;
  }
  if (options.prompt_file_given->count() > 0) {
    prompt.text = strip_line_end(read_text(options.prompt_file));
  } else if (options.prompt_given->count() > 0) {
    prompt.text = options.prompt;
  } else {
    return prompt;
  }
  prompt.ids = need_tokenizer(checkpoint).encode(prompt.text, options.load_state.empty());
  return prompt;
}

GenerateRequest make_request(const GenerateOptions& options, const Checkpoint& checkpoint) {
  GenerateRequest request;
  request.max_tokens = options.max_tokens;
  request.sampling = options.sampling;
  request.seed = options.common.seed.value_or(std::random_device{}());
  request.stop = options.stop;
  request.ignore_eos = options.ignore_eos;
  request.samples = options.samples;
  request.pool = options.pool;
  if (!options.load_state.empty()) {
    request.state = SequenceState::load(options.load_state, checkpoint.model->config(),
                                        checkpoint.model->fingerprint());
  }
  return request;
}

Json result_json(const GenerateRequest& request, const GenerateResult& result, double load_s) {
  Json samples = Json::array();
  for (const GeneratedSample& sample : result.samples) {
    samples.push_back({{"ids", sample.ids},
                       {"text", sample.text},
                       {"finish_reason", finish_reason_name(sample.reason)},
                       {"logprobs", sample.logprobs}});
  }
  return {{"prompt_ids", request.prompt_ids},
          {"samples", std::move(samples)},
          {"seed", request.seed},
          {"timings",
           {{"load_s", load_s},
            {"prefill_tokens", result.prefill_tokens},
            {"prefill_s", result.prefill_s},
            {"decode_tokens", result.decode_tokens},
            {"decode_s", result.decode_s}}}};
}

std::string ids_text(const std::vector<std::int32_t>& ids) {
  std::string text;
  for (const std::int32_t id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

// Sample 0 has been streamed already.
void write_samples(const GenerateResult& result, const Prompt& prompt, bool has_text) {
  const std::size_t count = result.samples.size();
  for (std::size_t i = 0; i < count; ++i) {
    const GeneratedSample& sample = result.samples[i];
    if (i > 0) write_out(str("--- sample ", i + 1, " of ", count, " ---\n"));
    if (!has_text) {
      write_out(ids_text(sample.ids) + "\n");
    } else {
      write_out(i > 0 ? prompt.text + sample.text + "\n" : "\n");
    }
  }
}

int run_once(const GenerateOptions& options, const LoadedModel& loaded, Context& ctx) {
  const Checkpoint& checkpoint = loaded.checkpoint;
  const Prompt prompt = read_prompt(options, checkpoint);
  GenerateRequest request = make_request(options, checkpoint);
  request.prompt_ids = prompt.ids;
  const bool as_text = !options.common.json && options.max_tokens > 0;
  const bool has_text = checkpoint.tokenizer != nullptr;

  ProgressBar bar(options.common, "reading the prompt", "tokens");
  GenerateHooks hooks;
  hooks.interrupted = &interrupted();
  hooks.on_prefill = [&](std::int64_t done, std::int64_t all) { bar.update(done, all); };
  hooks.on_text = [&](std::int64_t sample, const std::string& text) {
    bar.clear();
    if (as_text && sample == 0) write_out(text);
  };
  if (as_text && has_text) write_out(prompt.text);
  const GenerateResult result = generate(checkpoint, request, hooks, ctx);
  bar.clear();

  if (!options.save_state.empty()) result.state.save(options.save_state);
  if (options.common.json) write_json(result_json(request, result, loaded.load_s));
  if (as_text) write_samples(result, prompt, has_text);
  if (options.common.verbose) write_timings(request, result, loaded.load_s);
  return exit_code(result);
}

int run_generate(const GenerateOptions& options) {
  check_options(options);
  check_place("--save-state", options.save_state);
  if (!options.save_state.empty()) go_on_without_reader();
  Context ctx = make_context(options.common, choose_device(options.common));
  const bool many = !options.requests.empty();
  const LoadedModel loaded =
      load_model(options.common, ctx, many ? options.batch : options.samples);
  if (many) return run_requests(options, make_request(options, loaded.checkpoint), loaded, ctx);
  if (!options.interactive) return run_once(options, loaded, ctx);
  const Prompt prompt = read_prompt(options, loaded.checkpoint);
  return run_turns(options, prompt, make_request(options, loaded.checkpoint), loaded, ctx);
}

}  // namespace

int exit_code(const GenerateResult& result) {
  for (const GeneratedSample& sample : result.samples) {
    if (sample.reason == FinishReason::kInterrupted) {
      return static_cast<int>(ErrorCode::kInterrupted);
    }
  }
  return 0;
}

void write_timings(const GenerateRequest& request, const GenerateResult& result, double load_s) {
  const auto rate = [](std::int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  const std::int64_t steps = result.decode_tokens - std::ssize(result.samples);  // the first ones
  message(str("mamba3: seed ", request.seed, "; load ", load_s, " s; prompt ",
              result.prefill_tokens, " tokens in ", result.prefill_s, " s (",
              rate(result.prefill_tokens, result.prefill_s), " tokens/s); generated ",
              result.decode_tokens, " tokens in ", result.decode_s, " s (",
              rate(steps, result.decode_s), " tokens/s)"));
}

Run add_generate(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  add_prompt_options(app, *options);
  add_batch_options(app, *options);
  add_sampling_options(app, options->sampling);
  add_common_options(app, options->common);
  return [options] { return run_generate(*options); };
}

}  // namespace mamba3::cli
