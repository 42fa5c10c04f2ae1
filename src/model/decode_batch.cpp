// A step of many sequences with its sampling: run call by call, and on a GPU recorded the second
// time that a number of rows comes, then replayed. The first time loads kernels and lets cuBLASLt
// choose, which cannot be recorded.
#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "core/check.h"
#include "core/gpu.h"
#include "core/memory.h"
#include "mamba3/model.h"
#include "model/sampled_step.h"
#include "model/state_pool.h"

namespace mamba3 {
namespace {

// Graphs are kept for so many numbers of rows.
constexpr std::size_t kMostGraphs = 64;

RowSampling row_sampling(const DecodeRow& row) {
  RowSampling out;
  out.temperature = row.sampling.temperature;
  out.top_k = row.sampling.top_k;
  out.top_p = row.sampling.top_p;
  out.min_p = row.sampling.min_p;
  out.seed = row.seed;
  out.stream = row.stream;
  out.position = row.position;
  return out;
}

struct PinnedFree {
  std::shared_ptr<Gpu> gpu;
  void operator()(void* p) const { gpu->free_pinned(p); }
};

// Arrays of one element a row: one after the other in one block of the device's memory, tokens in
// memory of the host, which a GPU writes by itself.
struct RowArrays {
  Memory memory;
  std::unique_ptr<void, PinnedFree> pinned;
  std::vector<SampledToken> host_tokens;
  std::int32_t* ids = nullptr;
  std::int32_t* slots = nullptr;
  RowSampling* sampling = nullptr;
  SampledToken* tokens = nullptr;

  RowArrays(std::int64_t rows, const std::shared_ptr<Gpu>& gpu) {
    const auto count = static_cast<std::size_t>(rows);
    memory = allocate_memory(count * (sizeof(RowSampling) + 2 * sizeof(std::int32_t)), gpu);
    if (!memory) {
      fail(ErrorCode::kUnavailable, "no memory for decoding ", rows,
           " sequences at once; use a smaller batch");
    }
    sampling = reinterpret_cast<RowSampling*>(memory.get());
    ids = reinterpret_cast<std::int32_t*>(sampling + rows);
    slots = ids + rows;
    if (!gpu) {
      host_tokens.resize(count);
      tokens = host_tokens.data();
      return;
    }
    const std::size_t bytes = count * sizeof(SampledToken);
    pinned = {gpu->allocate_pinned(bytes), PinnedFree{gpu}};
    if (!pinned) {
      fail(ErrorCode::kUnavailable, "the system gave no ", bytes,
           " bytes of memory that a GPU can write; free memory, or use --device cpu");
    }
    tokens = static_cast<SampledToken*>(pinned.get());
  }
};

}  // namespace

struct DecodeBatch::Impl {
  struct Recorded {
    bool warm = false;
    std::unique_ptr<GpuGraph> graph;
  };

  const Model& model;
  StatePool& states;
  Context& ctx;
  std::int64_t most_rows;
  RowArrays device;
  std::vector<SampledToken> tokens;
  std::vector<DecodeRow> expected;           // what the device's arrays hold
  std::map<std::size_t, Recorded> recorded;  // by number of rows
  bool record_graphs = true;

  Impl(const Model& model_in, StatePool& states_in, std::int64_t most_rows_in, Context& ctx_in)
      : model(model_in),
        states(states_in),
        ctx(ctx_in),
        most_rows(most_rows_in),
        device(most_rows, ctx.gpu()) {
    tokens.reserve(static_cast<std::size_t>(most_rows));
  }

  void check(std::span<const DecodeRow> rows) const;
  void upload(std::span<const DecodeRow> rows);
  void run(std::size_t rows);
  void launch(std::size_t rows);
};

void DecodeBatch::Impl::check(std::span<const DecodeRow> rows) const {
  check_input(std::ssize(rows) <= most_rows, rows.size(), " rows in a batch of ", most_rows,
              "; expected no more than it was made for");
  std::vector<bool> used(static_cast<std::size_t>(states.slots()), false);
  for (const DecodeRow& row : rows) {
    states.impl_->check_slot(row.slot);
    check_input(!used[row.slot], "slot ", row.slot, " is named twice; expected different slots");
    used[row.slot] = true;
    check_input(row.id >= 0 && row.id < model.config().padded_vocab(), "token id ", row.id,
                " is outside the vocabulary; expected 0 to ", model.config().padded_vocab() - 1);
    check_sampling(row.sampling);
    check_input(!has_penalty(row.sampling),
                "a row has penalties; expected none: sample from the logits of Model::step");
  }
}

void DecodeBatch::Impl::upload(std::span<const DecodeRow> rows) {
  if (std::ranges::equal(rows, expected)) return;
  std::vector<RowSampling> sampling;
  std::vector<std::int32_t> ids, slots;
  for (const DecodeRow& row : rows) {
    sampling.push_back(row_sampling(row));
    ids.push_back(row.id);
    slots.push_back(row.slot);
  }
  const auto put = [&](auto* to, const auto& from) {
    const std::size_t bytes = from.size() * sizeof(from[0]);
    if (ctx.gpu()) return ctx.gpu()->copy_in(to, from.data(), bytes);
    std::copy(from.begin(), from.end(), to);
  };
  put(device.sampling, sampling);
  put(device.ids, ids);
  put(device.slots, slots);
}

void DecodeBatch::Impl::run(std::size_t rows) {
  const auto count = static_cast<std::int64_t>(rows);
  model.step_and_sample({count, device.ids, device.slots, device.sampling, device.tokens}, states,
                        ctx);
}

void DecodeBatch::Impl::launch(std::size_t rows) {
  // Whoever measures ops waits for each of them.
  if (!ctx.gpu() || !record_graphs || ctx.op_times() != nullptr) return run(rows);
  if (recorded.size() >= kMostGraphs && !recorded.contains(rows)) recorded.clear();
  Recorded& entry = recorded[rows];
  if (!entry.warm) {
    run(rows);
    entry.warm = true;
    return;
  }
  if (!entry.graph) {
    try {
      entry.graph = GpuGraph::record(ctx.gpu(), [&] { run(rows); });
    } catch (const Error& error) {
      ctx.log(LogLevel::kWarning,
              str("decoding goes on without graphs, which is slower: ", error.what()));
      record_graphs = false;
      return run(rows);
    }
  }
  entry.graph->launch();
}

DecodeBatch::DecodeBatch(const Model& model, StatePool& states, std::int64_t most_rows,
                         Context& ctx) {
  check_input(most_rows >= 1 && most_rows <= states.slots(), "a batch of ", most_rows,
              " rows over ", states.slots(), " slots; expected at least 1, and a slot for each");
  check_input(states.impl_->gpu == ctx.gpu(),
              "the states and the Context are on different devices; expected the Context that the "
              "pool was made with");
  impl_ = std::make_unique<Impl>(model, states, most_rows, ctx);
}
DecodeBatch::~DecodeBatch() = default;
DecodeBatch::DecodeBatch(DecodeBatch&&) noexcept = default;
DecodeBatch& DecodeBatch::operator=(DecodeBatch&&) noexcept = default;

std::span<const SampledToken> DecodeBatch::step(std::span<const DecodeRow> rows) {
  Impl& impl = *impl_;
  impl.tokens.clear();
  if (rows.empty()) return {};
  impl.check(rows);
  impl.upload(rows);
  impl.expected.clear();  // nothing is known of the device's arrays until all went well
  impl.launch(rows.size());
  if (impl.ctx.gpu()) impl.ctx.gpu()->synchronize();
  impl.tokens.assign(impl.device.tokens, impl.device.tokens + rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    DecodeRow next = rows[i];
    impl.states.impl_->count_token({&next.slot, 1});
    next.id = std::max(impl.tokens[i].id, 0);
    ++next.position;
    impl.expected.push_back(next);
  }
  return impl.tokens;
}

}  // namespace mamba3
