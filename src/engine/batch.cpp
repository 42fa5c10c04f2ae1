// Requests become sequences in slots: waiting, reading their prompt, running. A turn moves each of
// them on.
#include <algorithm>
#include <deque>
#include <exception>
#include <memory>
#include <new>

#include "core/check.h"
#include "engine/text_stream.h"
#include "mamba3/engine.h"
#include "model/segments.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kMostSlots = 4096;

struct Job {
  Ticket ticket = 0;
  GenerateRequest request;
  bool keep_state = false;
  std::vector<std::int32_t> prompt;  // a state's pending id and the request's ids
  std::int64_t read = 0;             // of the prompt
  std::vector<std::int32_t> slots;   // one for each sample, once it has them

  // The prompt is the last token of what the state was saved after.
  bool only_pending() const {
    return request.state && request.prompt_ids.empty() && !prompt.empty();
  }
};

// One sample that is decoded.
struct Sequence {
  std::shared_ptr<const Job> job;
  std::int64_t sample = 0;
  std::int32_t slot = 0;
  TextStream text;
  std::vector<std::int32_t> ids;

  BatchEvent event() const {
    BatchEvent out;
    out.ticket = job->ticket;
    out.sample = sample;
    return out;
  }
};

// The rest of a state is checked where it is read.
void check_state(const SequenceState& state, const Model& model) {
  check_input(state.empty() || state.model_fingerprint() == model.fingerprint(),
              "the state is one of another model (fingerprint differs); expected a state of this "
              "model; make it with the model that reads it");
  const std::int64_t vocab = model.config().padded_vocab();
  check_input(state.pending_id() >= -1 && state.pending_id() < vocab, "the state's pending id is ",
              state.pending_id(), "; expected 0 to ", vocab - 1, ", or -1 for none");
}

void check_request(const Checkpoint& checkpoint, const GenerateRequest& request,
                   std::int64_t slots) {
  check_input(request.samples >= 1 && request.samples <= slots, "samples is ", request.samples,
              "; expected 1 to ", slots);
  check_input(request.max_tokens >= 0, "max_tokens is ", request.max_tokens,
              "; expected 0 or more");
  check_sampling(request.sampling);
  if (request.state) check_state(*request.state, *checkpoint.model);
  const bool pending = request.state && request.state->pending_id() >= 0;
  check_input(
      !request.prompt_ids.empty() || pending || request.max_tokens == 0,
      "the prompt is empty; expected at least one token to continue from; give a prompt, or a "
      "state that was saved after generating");
  const std::int64_t vocab = checkpoint.model->config().padded_vocab();
  for (std::size_t i = 0; i < request.prompt_ids.size(); ++i) {
    const std::int32_t id = request.prompt_ids[i];
    check_input(id >= 0 && id < vocab, "token id ", id, " at position ", i,
                " is outside the vocabulary; expected 0 to ", vocab - 1,
                "; is this the model's own tokenizer?");
  }
  for (const std::string& stop : request.stop) {
    check_input(!stop.empty(), "a stop text is empty; expected at least one character");
    check_input(
        checkpoint.tokenizer != nullptr,
        "stop texts need a tokenizer; expected tokenizer.json in the folder, or --tokenizer");
  }
}

// The error that is being handled, as an event carries it.
Error current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::kUnavailable,
                 "memory ran out; expected room for the sequences; use a smaller batch");
  } catch (const std::exception& error) {
    return Error(ErrorCode::kBadInput,
                 str("an operation failed (", error.what(), "); expected usable input"));
  }
}

}  // namespace

struct BatchGenerator::Impl {
  Checkpoint checkpoint;
  const Model& model;
  Context& ctx;
  SegmentRule segments;         // where a prompt may be cut
  std::int64_t prefill_tokens;  // most in a turn
  StatePool states;
  DecodeBatch decode;
  std::vector<std::int32_t> free_slots;
  std::deque<std::shared_ptr<Job>> waiting;
  std::vector<std::shared_ptr<Job>> reading;
  std::vector<Sequence> running;
  std::vector<BatchEvent> events;  // not handed out yet
  Ticket next_ticket = 0;

  Impl(const Checkpoint& checkpoint_in, const BatchOptions& options, Context& ctx_in)
      : checkpoint(checkpoint_in),
        model(*checkpoint.model),
        ctx(ctx_in),
        segments(segment_rule(model.config(), ctx)),
        prefill_tokens(options.prefill_tokens > 0 ? options.prefill_tokens
                                                  : segments.segment_tokens),
        states(model.config(), options.slots, ctx, options.pool),
        decode(model, states, options.slots, ctx) {
    for (auto slot = static_cast<std::int32_t>(options.slots); slot > 0; --slot) {
      free_slots.push_back(slot - 1);
    }
  }

  void end_job(const Job& job, const std::optional<FinishReason>& reason,
               const std::optional<Error>& error);
  void end_sequence(Sequence& sequence, FinishReason reason, BatchEvent event);
  void fail_sequence(Sequence& sequence, const Error& error);
  bool take_token(Sequence& sequence, std::int32_t id, float logprob);
  bool sample_on_host(Sequence& sequence, const float* logits);

  void admit();
  struct Piece;
  std::vector<Piece> next_pieces() const;
  bool read_pieces(const std::vector<Piece>& pieces, std::vector<float>& logits);
  void read_prompts();
  void read_pending();
  void after_reading(const std::shared_ptr<Job>& job, const float* logits);
  std::vector<Sequence> start_samples(const std::shared_ptr<Job>& job);

  std::vector<bool> step_with_penalties(const std::vector<std::size_t>& who);
  std::vector<bool> step_on_device(const std::vector<std::size_t>& who);
  void decode_all();
};

// ---- ends ----

// Of a request none of whose samples runs yet.
void BatchGenerator::Impl::end_job(const Job& job, const std::optional<FinishReason>& reason,
                                   const std::optional<Error>& error) {
  for (std::int64_t sample = 0; sample < job.request.samples; ++sample) {
    BatchEvent event;
    event.ticket = job.ticket;
    event.sample = sample;
    event.finished = reason;
    event.error = error;
    if (reason && job.keep_state && sample == 0 && !job.slots.empty()) {
      event.state = states.export_slot(job.slots[0], model.fingerprint());
    }
    events.push_back(std::move(event));
  }
  free_slots.insert(free_slots.end(), job.slots.rbegin(), job.slots.rend());
}

void BatchGenerator::Impl::end_sequence(Sequence& sequence, FinishReason reason, BatchEvent event) {
  if (sequence.job->keep_state && sequence.sample == 0) {
    event.state = states.export_slot(sequence.slot, model.fingerprint());
    if (!sequence.ids.empty()) event.state.set_pending_id(sequence.ids.back());
  }
  event.text += sequence.text.finish();
  event.finished = reason;
  events.push_back(std::move(event));
  free_slots.push_back(sequence.slot);
}

void BatchGenerator::Impl::fail_sequence(Sequence& sequence, const Error& error) {
  BatchEvent event = sequence.event();
  event.error = error;
  events.push_back(std::move(event));
  free_slots.push_back(sequence.slot);
}

// Returns whether the sequence goes on.
bool BatchGenerator::Impl::take_token(Sequence& sequence, std::int32_t id, float logprob) {
  try {
    BatchEvent event = sequence.event();
    event.id = id;
    event.logprob = logprob;
    sequence.ids.push_back(id);
    const GenerateRequest& request = sequence.job->request;
    const auto& eos = checkpoint.eos_ids;
    if (!request.ignore_eos && std::find(eos.begin(), eos.end(), id) != eos.end()) {
      end_sequence(sequence, FinishReason::kEos, std::move(event));
      return false;
    }
    event.text = sequence.text.push(id);
    if (sequence.text.stopped()) {
      end_sequence(sequence, FinishReason::kStop, std::move(event));
      return false;
    }
    if (std::ssize(sequence.ids) >= request.max_tokens) {
      end_sequence(sequence, FinishReason::kLength, std::move(event));
      return false;
    }
    events.push_back(std::move(event));
    return true;
  } catch (const std::exception&) {
    fail_sequence(sequence, current_error());
    return false;
  }
}

// The first token after a prompt, and those of sequences with penalties: these count the prompt and
// what was sampled.
bool BatchGenerator::Impl::sample_on_host(Sequence& sequence, const float* logits) {
  Sample next;
  try {
    const GenerateRequest& request = sequence.job->request;
    std::vector<std::int32_t> seen;
    if (has_penalty(request.sampling)) {
      seen = sequence.job->prompt;
      seen.insert(seen.end(), sequence.ids.begin(), sequence.ids.end());
    }
    const double draw = uniform_draw(request.seed, static_cast<std::uint64_t>(sequence.sample),
                                     sequence.ids.size());
    next = sample_token({logits, static_cast<std::size_t>(model.config().vocab)}, seen,
                        request.sampling, draw);
  } catch (const std::exception&) {
    fail_sequence(sequence, current_error());
    return false;
  }
  return take_token(sequence, next.id, next.logprob);
}

// ---- prompts ----

// Requests get their slots in the order in which they came.
void BatchGenerator::Impl::admit() {
  while (!waiting.empty() && waiting.front()->request.samples <= std::ssize(free_slots)) {
    const std::shared_ptr<Job> job = waiting.front();
    waiting.pop_front();
    for (std::int64_t i = 0; i < job->request.samples; ++i) {
      job->slots.push_back(free_slots.back());
      free_slots.pop_back();
    }
    try {
      states.reset(job->slots[0]);
      if (job->request.state) states.import_slot(job->slots[0], *job->request.state);
      reading.push_back(job);
    } catch (const std::exception&) {
      end_job(*job, {}, current_error());
    }
  }
}

struct BatchGenerator::Impl::Piece {
  std::shared_ptr<Job> job;
  std::int64_t tokens = 0;
  std::int64_t left() const { return std::ssize(job->prompt) - job->read - tokens; }  // after it
  bool whole() const { return left() == 0; }
};

// What the next turn reads: first come, first served, but a long prompt leaves room for as many
// others as fill the device together, since they are read faster side by side than in turn.
std::vector<BatchGenerator::Impl::Piece> BatchGenerator::Impl::next_pieces() const {
  const std::int64_t grid = segments.grid_tokens;
  const auto on_grid = [&](std::int64_t tokens) { return tokens / grid * grid; };
  std::vector<Piece> pieces;
  std::int64_t room = std::max(on_grid(prefill_tokens), grid);
  const std::int64_t sharing = std::min(segments.sequences_at_once(), std::ssize(reading));
  const std::int64_t most = sharing > 1 ? std::max(on_grid(room / sharing), grid) : room;
  const auto what_fits = [&](std::int64_t left, std::int64_t into) {
    return left <= into ? left : on_grid(into);
  };
  for (const std::shared_ptr<Job>& job : reading) {
    const std::int64_t left = std::ssize(job->prompt) - job->read;
    const std::int64_t tokens = what_fits(left, std::min(most, room));
    if (tokens == 0 && left > 0) break;
    pieces.push_back({job, tokens});
    room -= tokens;
  }
  for (Piece& piece : pieces) {  // room that no other prompt needs
    const std::int64_t more = what_fits(piece.left(), room);
    piece.tokens += more;
    room -= more;
  }
  return pieces;
}

// False when it failed and has ended the requests. `logits` get a row for each piece when one of
// them needs it.
bool BatchGenerator::Impl::read_pieces(const std::vector<Piece>& pieces,
                                       std::vector<float>& logits) {
  try {
    std::vector<std::int32_t> ids, slots;
    std::vector<std::int64_t> cu_seqlens = {0};
    bool samples = false;
    for (const Piece& piece : pieces) {
      const auto from = piece.job->prompt.begin() + piece.job->read;
      ids.insert(ids.end(), from, from + piece.tokens);
      cu_seqlens.push_back(std::ssize(ids));
      slots.push_back(piece.job->slots[0]);
      samples = samples || (piece.whole() && piece.job->request.max_tokens > 0);
    }
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = cu_seqlens;
    args.slots = slots;
    if (samples) {
      const std::int64_t v = model.config().padded_vocab();
      logits.resize(pieces.size() * static_cast<std::size_t>(v));
      args.last_logits = {logits.data(), {std::ssize(pieces), v}};
    }
    model.prefill(args, states, ctx);
    return true;
  } catch (const std::exception&) {
    const Error error = current_error();
    for (const Piece& piece : pieces) {
      end_job(*piece.job, {}, error);
      std::erase(reading, piece.job);
    }
    return false;
  }
}

// By a step, as it would have been read without the cut: the bits of what follows are the same.
void BatchGenerator::Impl::read_pending() {
  const std::int64_t v = model.config().padded_vocab();
  for (const std::shared_ptr<Job>& job : std::vector(reading)) {
    if (!job->only_pending()) continue;
    std::vector<float> logits(static_cast<std::size_t>(v));
    try {
      model.step(job->prompt, {job->slots.data(), 1}, states, {logits.data(), {1, v}}, ctx);
    } catch (const std::exception&) {
      end_job(*job, {}, current_error());
      std::erase(reading, job);
      continue;
    }
    job->read = 1;
    after_reading(job, logits.data());
  }
}

// When `read` has grown. Where nothing is left, `logits` are those of the last token.
void BatchGenerator::Impl::after_reading(const std::shared_ptr<Job>& job, const float* logits) {
  BatchEvent event;
  event.ticket = job->ticket;
  event.prompt_done = job->read;
  event.prompt_tokens = std::ssize(job->prompt);
  events.push_back(std::move(event));
  if (job->read < std::ssize(job->prompt)) return;
  std::erase(reading, job);
  std::vector<Sequence> started;
  try {
    if (job->request.max_tokens == 0) return end_job(*job, FinishReason::kLength, {});
    started = start_samples(job);
  } catch (const std::exception&) {
    return end_job(*job, {}, current_error());
  }
  for (Sequence& sequence : started) {
    if (sample_on_host(sequence, logits)) running.push_back(std::move(sequence));
  }
}

void BatchGenerator::Impl::read_prompts() {
  read_pending();
  const std::vector<Piece> pieces = next_pieces();
  if (pieces.empty()) return;
  std::vector<float> logits;
  if (!read_pieces(pieces, logits)) return;
  const std::int64_t v = model.config().padded_vocab();
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::shared_ptr<Job> job = pieces[i].job;
    job->read += pieces[i].tokens;
    after_reading(job, logits.data() + static_cast<std::int64_t>(i) * v);
  }
}

// Every sample starts from the same logits and a copy of the same state.
std::vector<Sequence> BatchGenerator::Impl::start_samples(const std::shared_ptr<Job>& job) {
  for (std::int64_t i = 1; i < job->request.samples; ++i) {
    states.fork(job->slots[0], job->slots[i]);
  }
  std::vector<Sequence> out;
  for (std::int64_t i = 0; i < job->request.samples; ++i) {
    out.push_back(
        {job, i, job->slots[i], TextStream(checkpoint.tokenizer.get(), job->request.stop), {}});
  }
  return out;
}

// ---- decoding ----

// For each of the running sequences `who`, whether it goes on.
std::vector<bool> BatchGenerator::Impl::step_on_device(const std::vector<std::size_t>& who) {
  std::vector<DecodeRow> rows;
  for (const std::size_t i : who) {
    const Sequence& sequence = running[i];
    const GenerateRequest& request = sequence.job->request;
    rows.push_back({sequence.slot, sequence.ids.back(), request.sampling, request.seed,
                    static_cast<std::uint64_t>(sequence.sample), sequence.ids.size()});
  }
  std::vector<bool> going_on(who.size(), false);
  const std::span<const SampledToken> tokens = decode.step(rows);
  for (std::size_t k = 0; k < who.size(); ++k) {
    Sequence& sequence = running[who[k]];
    if (tokens[k].status == SampleStatus::kOk) {
      going_on[k] = take_token(sequence, tokens[k].id, tokens[k].logprob);
    } else {
      fail_sequence(sequence, Error(ErrorCode::kBadInput, sample_status_text(tokens[k].status)));
    }
  }
  return going_on;
}

std::vector<bool> BatchGenerator::Impl::step_with_penalties(const std::vector<std::size_t>& who) {
  std::vector<std::int32_t> ids, slots;
  for (const std::size_t i : who) {
    ids.push_back(running[i].ids.back());
    slots.push_back(running[i].slot);
  }
  const std::int64_t v = model.config().padded_vocab();
  std::vector<float> logits(who.size() * static_cast<std::size_t>(v));
  model.step(ids, slots, states, {logits.data(), {std::ssize(who), v}}, ctx);
  std::vector<bool> going_on(who.size(), false);
  for (std::size_t k = 0; k < who.size(); ++k) {
    going_on[k] = sample_on_host(running[who[k]], logits.data() + static_cast<std::int64_t>(k) * v);
  }
  return going_on;
}

void BatchGenerator::Impl::decode_all() {
  std::vector<std::size_t> plain, penalised;
  for (std::size_t i = 0; i < running.size(); ++i) {
    (has_penalty(running[i].job->request.sampling) ? penalised : plain).push_back(i);
  }
  std::vector<bool> going_on(running.size(), false);
  const auto step = [&](const std::vector<std::size_t>& who, auto&& run) {
    if (who.empty()) return;
    try {
      const std::vector<bool> result = run(who);
      for (std::size_t k = 0; k < who.size(); ++k) going_on[who[k]] = result[k];
    } catch (const std::exception&) {
      const Error error = current_error();
      for (const std::size_t i : who) fail_sequence(running[i], error);
    }
  };
  step(plain, [&](const auto& who) { return step_on_device(who); });
  step(penalised, [&](const auto& who) { return step_with_penalties(who); });
  std::vector<Sequence> left;
  for (std::size_t i = 0; i < running.size(); ++i) {
    if (going_on[i]) left.push_back(std::move(running[i]));
  }
  running = std::move(left);
}

// ---- the interface ----

BatchGenerator::BatchGenerator(const Checkpoint& checkpoint, const BatchOptions& options,
                               Context& ctx) {
  check_input(checkpoint.model != nullptr,
              "the checkpoint has no model; expected what load_checkpoint returns");
  check_input(options.slots >= 1 && options.slots <= kMostSlots, "a batch of ", options.slots,
              " sequences; expected 1 to ", kMostSlots);
  check_input(options.prefill_tokens >= 0, "prefill_tokens is ", options.prefill_tokens,
              "; expected 0 or more");
  impl_ = std::make_unique<Impl>(checkpoint, options, ctx);
}
BatchGenerator::~BatchGenerator() = default;
BatchGenerator::BatchGenerator(BatchGenerator&&) noexcept = default;
BatchGenerator& BatchGenerator::operator=(BatchGenerator&&) noexcept = default;

Ticket BatchGenerator::submit(GenerateRequest request, bool keep_state) {
  check_request(impl_->checkpoint, request, impl_->states.slots());
  auto job = std::make_shared<Job>();
  job->ticket = impl_->next_ticket;
  job->keep_state = keep_state;
  if (request.state && request.state->pending_id() >= 0) {
    job->prompt.push_back(request.state->pending_id());
  }
  job->prompt.insert(job->prompt.end(), request.prompt_ids.begin(), request.prompt_ids.end());
  job->request = std::move(request);
  impl_->waiting.push_back(std::move(job));
  return impl_->next_ticket++;
}

void BatchGenerator::cancel(Ticket ticket) {
  Impl& impl = *impl_;
  const auto is_it = [&](const std::shared_ptr<Job>& job) { return job->ticket == ticket; };
  for (const std::shared_ptr<Job>& job : impl.waiting) {
    if (is_it(job)) impl.end_job(*job, FinishReason::kInterrupted, {});
  }
  std::erase_if(impl.waiting, is_it);
  for (const std::shared_ptr<Job>& job : impl.reading) {
    if (is_it(job)) impl.end_job(*job, FinishReason::kInterrupted, {});
  }
  std::erase_if(impl.reading, is_it);
  for (Sequence& sequence : impl.running) {
    if (!is_it(std::const_pointer_cast<Job>(sequence.job))) continue;
    impl.end_sequence(sequence, FinishReason::kInterrupted, sequence.event());
  }
  std::erase_if(impl.running,
                [&](const Sequence& sequence) { return sequence.job->ticket == ticket; });
}

bool BatchGenerator::idle() const {
  return impl_->waiting.empty() && impl_->reading.empty() && impl_->running.empty() &&
         impl_->events.empty();
}

std::int64_t BatchGenerator::waiting() const {
  return std::ssize(impl_->waiting);
}

std::vector<BatchEvent> BatchGenerator::turn() {
  impl_->decode_all();
  impl_->admit();
  impl_->read_prompts();
  return std::exchange(impl_->events, {});
}

}  // namespace mamba3
