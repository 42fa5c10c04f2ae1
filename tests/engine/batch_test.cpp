// Many requests at once against each of them alone; on the CPU and, where there is one, on a GPU.
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <memory>

#include "core/gpu.h"
#include "core/memory.h"
#include "engine/byte_tokenizer.h"
#include "mamba3/engine.h"
#include "model/tiny_models.h"

namespace mamba3 {
namespace {

struct Place {
  DeviceKind kind;
  int tiny;
};

// What came of one sample.
struct Collected {
  GeneratedSample sample;
  std::optional<Error> error;
  SequenceState state;
  std::int64_t prompt_done = 0;
  bool ended = false;
};
using Results = std::map<std::pair<Ticket, std::int64_t>, Collected>;

void take(const std::vector<BatchEvent>& events, Results& results) {
  for (const BatchEvent& event : events) {
    Collected& one = results[{event.ticket, event.sample}];
    ASSERT_FALSE(one.ended) << "an event after the last one";
    if (event.prompt_tokens > 0) {
      EXPECT_GT(event.prompt_done, one.prompt_done);
      EXPECT_LE(event.prompt_done, event.prompt_tokens);
      one.prompt_done = event.prompt_done;
    }
    if (event.id >= 0) {
      one.sample.ids.push_back(event.id);
      one.sample.logprobs.push_back(event.logprob);
    }
    one.sample.text += event.text;
    if (event.finished) one.sample.reason = *event.finished;
    one.error = event.error;
    one.state = event.state;
    one.ended = event.last();
  }
}

class Batches : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    if (GetParam().kind == DeviceKind::kCuda && gpu_count() == 0) GTEST_SKIP() << "no GPU";
    ContextOptions options;
    options.threads = 2;
    options.device.kind = GetParam().kind;
    ctx.emplace(options);
    checkpoint.model =
        Model::random(tiny_models()[GetParam().tiny].config, DType::kBf16, 3, {}, *ctx);
    checkpoint.tokenizer = std::make_shared<ByteTokenizer>();
  }

  GenerateRequest request(std::int64_t prompt_tokens, std::int64_t tokens, std::uint64_t seed,
                          float temperature = 0) const {
    GenerateRequest out;
    out.prompt_ids = random_ids(prompt_tokens, checkpoint.model->config().vocab,
                                static_cast<std::uint32_t>(seed) + 9);
    out.max_tokens = tokens;
    out.sampling = {.temperature = temperature, .top_k = 0, .top_p = 1, .min_p = 0};
    out.seed = seed;
    return out;
  }

  // Of every kind.
  std::vector<GenerateRequest> requests() {
    std::vector<GenerateRequest> out;
    out.push_back(request(5, 12, 1));
    out.push_back(request(140, 7, 2, 1.0f));
    out.push_back(request(1, 20, 3, 0.7f));
    out.back().sampling.top_k = 10;
    out.back().samples = 3;
    out.push_back(request(33, 1, 4));
    out.push_back(request(64, 15, 5, 2.0f));
    out.back().sampling.top_p = 0.9f;
    out.push_back(request(8, 9, 6, 0.9f));
    out.back().sampling.repeat_penalty = 1.5f;
    out.push_back(request(20, 0, 7));
    out.push_back(request(7, 25, 8, 1.5f));
    out.back().stop = {"@", "Z"};
    out.push_back(request(31, 10, 9));
    out.back().state = generate(checkpoint, request(40, 5, 10), {}, *ctx).state;
    out.push_back(request(0, 10, 9));
    out.back().state = out[8].state;
    return out;
  }

  void expect_as_alone(const GenerateRequest& wanted, Ticket ticket, Results& results) {
    const GenerateResult alone = generate(checkpoint, wanted, {}, *ctx);
    for (std::int64_t i = 0; i < wanted.samples; ++i) {
      const Collected& got = results[{ticket, i}];
      ASSERT_TRUE(got.ended) << ticket;
      ASSERT_FALSE(got.error) << got.error->what();
      EXPECT_EQ(got.sample.ids, alone.samples[i].ids) << ticket << " " << i;
      EXPECT_EQ(got.sample.logprobs, alone.samples[i].logprobs);
      EXPECT_EQ(got.sample.text, alone.samples[i].text);
      EXPECT_EQ(got.sample.reason, alone.samples[i].reason);
    }
    EXPECT_EQ(results[std::make_pair(ticket, std::int64_t{0})].state.serialize(),
              alone.state.serialize());
  }

  std::optional<Context> ctx;
  Checkpoint checkpoint;
};

TEST_P(Batches, RequestsDoNotDependOnEachOther) {
  const std::vector<GenerateRequest> all = requests();
  checkpoint.eos_ids = {17};
  for (const std::int64_t slots : {3, 4, 16}) {
    for (const std::int64_t prefill_tokens : {0, 1, 50}) {
      BatchGenerator batch(checkpoint, {slots, prefill_tokens}, *ctx);
      Results results;
      std::vector<Ticket> tickets;
      for (std::size_t i = 0; i < all.size(); ++i) {
        tickets.push_back(batch.submit(all[i], true));
        // Some come while others are under way.
        if (i % 3 == 2) take(batch.turn(), results);
      }
      while (!batch.idle()) take(batch.turn(), results);
      for (std::size_t i = 0; i < all.size(); ++i) expect_as_alone(all[i], tickets[i], results);
    }
  }
}

// Decoding goes on at every turn, however long a prompt is read beside it.
TEST_P(Batches, ALongPromptDoesNotStopTheOthers) {
  BatchGenerator batch(checkpoint, {2, 64}, *ctx);
  const Ticket quick = batch.submit(request(3, 100, 1));
  batch.turn();
  const Ticket slow = batch.submit(request(4000, 2, 2));  // of many pieces on any device
  for (int turns = 0; turns < 10; ++turns) {
    std::int64_t decoded = 0, read = 0;
    for (const BatchEvent& event : batch.turn()) {
      decoded += event.ticket == quick && event.id >= 0;
      read += event.ticket == slow && event.prompt_done > 0;
    }
    EXPECT_EQ(decoded, 1);
    EXPECT_EQ(read, 1);
  }
}

// A GPU reads several long prompts side by side, which fills it; a CPU one after the other. A short
// one behind them waits for neither where there is room.
TEST_P(Batches, LongPromptsAreReadAsTheDeviceLikes) {
  const bool gpu = GetParam().kind == DeviceKind::kCuda;
  BatchGenerator batch(checkpoint, {3, 2048}, *ctx);
  const std::vector<GenerateRequest> all = {request(4000, 3, 1), request(4001, 3, 2),
                                            request(5, 3, 3)};
  std::vector<Ticket> tickets;
  for (const GenerateRequest& one : all) tickets.push_back(batch.submit(one, true));
  std::map<Ticket, std::int64_t> read;
  Results results;
  const std::vector<BatchEvent> first = batch.turn();
  for (const BatchEvent& event : first) {
    if (event.prompt_done > 0) read[event.ticket] = event.prompt_done;
  }
  take(first, results);
  if (gpu) {
    EXPECT_EQ(read.size(), 3u);
    EXPECT_EQ(read[tickets[2]], 5);
  } else {
    EXPECT_EQ(read.size(), 1u);
    EXPECT_EQ(read[tickets[0]], 2048);
  }
  EXPECT_GE(read[tickets[0]], read[tickets[1]]) << "first come, first served";
  while (!batch.idle()) take(batch.turn(), results);
  for (std::size_t i = 0; i < all.size(); ++i) expect_as_alone(all[i], tickets[i], results);
}

TEST_P(Batches, CancellingEndsARequestWhereverItIs) {
  BatchGenerator batch(checkpoint, {2, 1}, *ctx);
  const GenerateRequest kept_request = request(4, 12, 1, 1.0f);
  const Ticket running = batch.submit(request(4, 50, 2), true);
  batch.turn();
  batch.turn();
  batch.turn();
  const Ticket reading = batch.submit(request(500, 50, 3));
  batch.turn();
  const Ticket waiting = batch.submit(request(4, 50, 4));
  const Ticket kept = batch.submit(kept_request, true);
  EXPECT_EQ(batch.waiting(), 2);
  Results results;
  for (const Ticket ticket : {running, reading, waiting, Ticket{99}}) batch.cancel(ticket);
  EXPECT_FALSE(batch.idle());
  while (!batch.idle()) take(batch.turn(), results);
  for (const Ticket ticket : {running, reading, waiting}) {
    const Collected& one = results[std::make_pair(ticket, std::int64_t{0})];
    EXPECT_TRUE(one.ended);
    EXPECT_EQ(one.sample.reason, FinishReason::kInterrupted);
  }
  // What was sampled so far, the last id not read yet.
  const SequenceState& state = results[std::make_pair(running, std::int64_t{0})].state;
  EXPECT_GE(state.pending_id(), 0);
  EXPECT_EQ(state.position(), 4 + 3);
  expect_as_alone(kept_request, kept, results);
  batch.cancel(kept);  // has ended: nothing happens
  EXPECT_TRUE(batch.idle());
}

TEST_P(Batches, ABrokenSequenceStopsAlone) {
  SequenceState broken = generate(checkpoint, request(10, 0, 1), {}, *ctx).state;
  broken.parts(0).ssm[5] = std::numeric_limits<float>::quiet_NaN();
  ModelConfig deeper = checkpoint.model->config();
  deeper.layers += 1;
  const SequenceState foreign(deeper, checkpoint.model->fingerprint());
  GenerateRequest nan = request(3, 10, 2), other = request(3, 10, 2), penalised = nan;
  nan.state = penalised.state = broken;
  penalised.sampling.presence_penalty = 1;
  other.state = foreign;
  const std::vector<GenerateRequest> good = {request(6, 15, 3), request(9, 15, 4, 1.0f)};
  BatchGenerator batch(checkpoint, {4, 0}, *ctx);
  const Ticket first = batch.submit(good[0], true);
  const std::vector<Ticket> bad = {batch.submit(nan), batch.submit(other), batch.submit(penalised)};
  const Ticket last = batch.submit(good[1], true);
  Results results;
  while (!batch.idle()) take(batch.turn(), results);
  for (const Ticket ticket : bad) {
    const Collected& one = results[std::make_pair(ticket, std::int64_t{0})];
    EXPECT_TRUE(one.error.has_value()) << ticket;
  }
  expect_as_alone(good[0], first, results);
  expect_as_alone(good[1], last, results);
  EXPECT_THROW(generate(checkpoint, nan, {}, *ctx), Error);
}

// Everything that the card has left, in pieces down to a megabyte.
std::vector<Memory> all_memory(const std::shared_ptr<Gpu>& gpu) {
  std::vector<Memory> taken;
  for (std::size_t bytes = std::size_t{32} << 30; bytes >= (std::size_t{1} << 20); bytes /= 2) {
    while (Memory piece = allocate_memory(bytes, gpu)) taken.push_back(std::move(piece));
  }
  return taken;
}

// A workspace that cannot grow ends the request that needs it; those that run, and later ones, are
// not disturbed.
TEST_P(Batches, MemoryThatRunsOutEndsOneRequest) {
  if (GetParam().kind == DeviceKind::kCpu) GTEST_SKIP() << "the host's memory is not used up";
  BatchGenerator batch(checkpoint, {3, 0}, *ctx);
  const GenerateRequest good = request(6, 30, 3), large = request(8000, 5, 4);
  const Ticket first = batch.submit(good, true);
  Results results;
  for (int i = 0; i < 3; ++i) take(batch.turn(), results);
  std::vector<Memory> taken = all_memory(ctx->gpu());
  const Ticket refused = batch.submit(large);
  for (int i = 0; i < 3; ++i) take(batch.turn(), results);
  taken.clear();
  const Collected& one = results[std::make_pair(refused, std::int64_t{0})];
  ASSERT_TRUE(one.error.has_value());
  EXPECT_EQ(one.error->code(), ErrorCode::kUnavailable);
  const Ticket again = batch.submit(large, true);
  while (!batch.idle()) take(batch.turn(), results);
  expect_as_alone(good, first, results);
  expect_as_alone(large, again, results);
}

TEST_P(Batches, RefusesRequestsThatMeanNothingAndGoesOn) {
  EXPECT_THROW(BatchGenerator(checkpoint, {0, 0}, *ctx), Error);
  EXPECT_THROW(BatchGenerator(checkpoint, {2, -1}, *ctx), Error);
  BatchGenerator batch(checkpoint, {2, 0}, *ctx);
  const auto refuse = [&](auto change) {
    GenerateRequest bad = request(3, 4, 1);
    change(bad);
    EXPECT_THROW(batch.submit(bad), Error);
  };
  refuse([](GenerateRequest& r) { r.prompt_ids.clear(); });
  refuse([](GenerateRequest& r) { r.prompt_ids[1] = -1; });
  refuse([](GenerateRequest& r) { r.prompt_ids[2] = 1 << 20; });
  refuse([](GenerateRequest& r) { r.samples = 3; });
  refuse([](GenerateRequest& r) { r.samples = 0; });
  refuse([](GenerateRequest& r) { r.max_tokens = -1; });
  refuse([](GenerateRequest& r) { r.sampling.temperature = -1; });
  refuse([](GenerateRequest& r) { r.sampling.top_p = 0; });
  refuse([](GenerateRequest& r) { r.stop = {""}; });
  const ModelConfig& config = checkpoint.model->config();
  const std::uint64_t fingerprint = checkpoint.model->fingerprint();
  refuse([&](GenerateRequest& r) { r.state = SequenceState(config, fingerprint + 1); });
  for (const std::int32_t id : {-2, 1 << 20}) {
    refuse([&](GenerateRequest& r) {
      r.state = SequenceState(config, fingerprint);
      r.state->set_pending_id(id);
    });
  }
  EXPECT_TRUE(batch.idle());
  EXPECT_TRUE(batch.turn().empty());
  const GenerateRequest good = request(3, 4, 1);
  const Ticket ticket = batch.submit(good, true);
  Results results;
  while (!batch.idle()) take(batch.turn(), results);
  expect_as_alone(good, ticket, results);
}

std::vector<Place> places() {
  std::vector<Place> out;
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (int tiny = 0; tiny < 3; ++tiny) out.push_back({kind, tiny});
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Devices, Batches, testing::ValuesIn(places()), [](const auto& place) {
  const bool gpu = place.param.kind == DeviceKind::kCuda;
  return (gpu ? "Cuda_" : "Cpu_") + tiny_models()[place.param.tiny].name;
});

}  // namespace
}  // namespace mamba3
