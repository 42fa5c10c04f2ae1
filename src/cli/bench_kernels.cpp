// bench kernels: each op alone, at the shapes of a preset.
#include <algorithm>

#include "cli/bench.h"
#include "cli/bench_layer.h"
#include "cli/bench_model.h"
#include "cli/bench_timing.h"
#include "core/check.h"
#include "ops/embedding/embedding.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/swiglu/swiglu.h"

namespace mamba3::cli {
namespace {

constexpr std::int64_t kManyRows = 1024;  // products of so many rows are bound by arithmetic

// What bounds one call, in seconds.
struct Bound {
  Traffic traffic;
  double flops = 0;
  double seconds = 0;
};

TensorRef matrix(const Bf16* numbers, const GemmShape& gemm) {
  return {reinterpret_cast<const std::byte*>(numbers), DType::kBf16, {gemm.n, gemm.k}};
}

class KernelBench {
 public:
  KernelBench(const BenchOptions& options, const std::string& name, MachineCeilings& ceilings,
              BenchReport& report, Context& ctx)
      : options_(options),
        prefix_("kernels/" + name + "/"),
        ceilings_(ceilings),
        report_(report),
        ctx_(ctx),
        model_config_(preset(name)),
        compute_(bench_compute(options)),
        layer_(model_config_, compute_, ctx) {}

  // As prefill (many rows) or a step (few) calls them.
  void run_linears(std::int64_t rows, LinearPath path) {
    const std::int64_t d = model_config_.width;
    std::vector<GemmShape> gemms = layer_gemms(model_config_, rows);
    const char* const names[] = {"in_proj", "out_proj", "fc1", "fc2"};
    for (std::size_t i = 0; i < gemms.size(); ++i) run_linear(names[i], gemms[i], path);
    const GemmShape head{rows, model_config_.padded_vocab(), d};
    if (path == LinearPath::kSkinny) run_linear("head", head, path);
  }

  void run_scan(const std::string& what, const std::vector<std::int64_t>& lengths) {
    std::int64_t tokens = 0;
    for (const std::int64_t length : lengths) tokens += length;
    Bound bound{layer_.scan_traffic(lengths), layer_.scan_flops(tokens), 0};
    bound.seconds =
        std::max(ceilings_.memory_seconds(bound.traffic), ceilings_.product_seconds(bound.flops));
    add("mamba3_scan/" + what, layer_.scan_seconds(lengths, options_.repeat), bound);
  }

  // One long sequence among short ones, against as many tokens in equal parts.
  void run_skewed_scan() {
    constexpr std::int64_t kLong = 16384, kShort = 127, kSequences = 128;
    std::vector<std::int64_t> skewed(kSequences, kShort);
    skewed[kSequences / 2] = kLong;
    const std::int64_t tokens = kLong + (kSequences - 1) * kShort;
    std::vector<std::int64_t> even(kSequences, tokens / kSequences);
    even.back() += tokens % kSequences;
    const double skewed_s = layer_.scan_seconds(skewed, options_.repeat);
    BenchRow row;
    row.name = str(prefix_, "mamba3_scan/skew=", kLong, "+", kSequences - 1, "x", kShort);
    row.value = skewed_s / layer_.scan_seconds(even, options_.repeat);
    row.unit = "x";
    report_.add(row);
  }

  void run_step(std::int64_t batch) {
    Bound bound{layer_.step_traffic(batch), 0, 0};
    bound.seconds = ceilings_.memory_seconds(bound.traffic);
    add(str("mamba3_step/batch=", batch), layer_.step_seconds(batch, options_.repeat), bound);
  }

  void run_rows(std::int64_t rows) {
    run_rms_norm(rows, model_config_.width);
    if (model_config_.mlp_hidden > 0) run_swiglu(rows, model_config_.mlp_hidden);
    run_embedding(rows, model_config_.width);
  }

 private:
  void run_linear(const char* name, const GemmShape& gemm, LinearPath path) {
    const double weights = 2.0 * static_cast<double>(gemm.n * gemm.k);
    Bound bound{{weights + 4.0 * static_cast<double>(gemm.m * gemm.k),
                 4.0 * static_cast<double>(gemm.m * gemm.n)},
                gemm.flops(),
                0};
    bound.seconds = gemm.m >= kManyRows ? ceilings_.product_seconds(gemm)
                                        : std::max(ceilings_.memory_seconds(bound.traffic),
                                                   ceilings_.product_seconds(bound.flops));
    BenchMemory memory(ctx_);
    const TensorView<float, 2> x = memory.random_rows(gemm.m, gemm.k);
    const TensorView<float, 2> y(memory.floats(gemm.m * gemm.n), {gemm.m, gemm.n});
    const std::int64_t copies = copies_beyond_caches(2 * gemm.n * gemm.k);
    const Bf16* const matrices = memory.random_bf16(copies * gemm.n * gemm.k);
    const double seconds = time_calls(ctx_, options_.repeat, [&](std::int64_t call) {
      linear({x, matrix(matrices + call % copies * gemm.n * gemm.k, gemm), y, compute_, path},
             ctx_);
    });
    add(str("linear/", name, "/rows=", gemm.m), seconds, bound);
  }

  void run_rms_norm(std::int64_t rows, std::int64_t d) {
    const std::int64_t copies = copies_beyond_caches(8 * rows * d);
    BenchMemory memory(ctx_);
    const float* const weight = memory.random_floats(d);
    const TensorView<float, 2> residual = memory.random_rows(copies * rows, d);
    const TensorView<float, 2> hidden = memory.random_rows(copies * rows, d);
    const double seconds = time_calls(ctx_, options_.repeat, [&](std::int64_t call) {
      const std::int64_t at = call % copies * rows;
      const TensorView<float, 2> y = hidden.slice(at, at + rows);
      rms_norm({residual.slice(at, at + rows), y, weight, 1e-5f, y}, ctx_);
    });
    const double bytes = 8.0 * static_cast<double>(rows * d);
    add_moved(str("rms_norm/rows=", rows), seconds, {bytes, bytes});
  }

  void run_swiglu(std::int64_t rows, std::int64_t f) {
    const std::int64_t copies = copies_beyond_caches(12 * rows * f);
    BenchMemory memory(ctx_);
    const TensorView<float, 2> wide = memory.random_rows(copies * rows, 2 * f);
    const TensorView<float, 2> gated(memory.floats(copies * rows * f), {copies * rows, f});
    const double seconds = time_calls(ctx_, options_.repeat, [&](std::int64_t call) {
      const std::int64_t at = call % copies * rows;
      swiglu({wide.slice(at, at + rows), gated.slice(at, at + rows)}, ctx_);
    });
    const double bytes = 4.0 * static_cast<double>(rows * f);
    add_moved(str("swiglu/rows=", rows), seconds, {2 * bytes, bytes});
  }

  void run_embedding(std::int64_t rows, std::int64_t d) {
    const std::int64_t v = model_config_.padded_vocab();
    const std::int64_t copies = copies_beyond_caches(4 * rows * d);
    BenchMemory memory(ctx_);
    const auto* const numbers = memory.random_bf16(v * d);
    const TensorRef table{reinterpret_cast<const std::byte*>(numbers), DType::kBf16, {v, d}};
    std::vector<std::int32_t> ids;
    for (std::int64_t i = 0; i < copies * rows; ++i) {
      const double draw = uniform_draw(ctx_.seed(), 1, static_cast<std::uint64_t>(i));
      ids.push_back(static_cast<std::int32_t>(draw * static_cast<double>(model_config_.vocab)));
    }
    const std::span<const std::int32_t> placed = memory.place(ids);
    const TensorView<float, 2> y(memory.floats(copies * rows * d), {copies * rows, d});
    const double seconds = time_calls(ctx_, options_.repeat, [&](std::int64_t call) {
      const std::int64_t at = call % copies * rows;
      embedding({placed.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(rows)),
                 table, y.slice(at, at + rows)},
                ctx_);
    });
    const auto elements = static_cast<double>(rows * d);
    add_moved(str("embedding/rows=", rows), seconds, {2 * elements, 4 * elements});
  }

  void add_moved(const std::string& what, double seconds, const Traffic& traffic) {
    add(what, seconds, {traffic, 0, ceilings_.memory_seconds(traffic)});
  }

  void add(const std::string& what, double seconds, const Bound& bound) {
    BenchRow row;
    row.name = prefix_ + what;
    row.value = 1e6 * seconds;
    row.unit = "us";
    row.bytes = bound.traffic.bytes();
    if (bound.flops > 0) row.flops = bound.flops;
    row.ceiling = 1e6 * bound.seconds;
    report_.add(row);
  }

  const BenchOptions& options_;
  std::string prefix_;
  MachineCeilings& ceilings_;
  BenchReport& report_;
  Context& ctx_;
  ModelConfig model_config_;
  Compute compute_;
  BenchLayer layer_;
};

// Long prompts and many of them; what the authors' figures are of.
void run_scans(const BenchOptions& options, KernelBench& bench, const Context& ctx) {
  if (!ctx.gpu() || !options.tokens.empty()) {
    for (const std::int64_t tokens : or_else(options.tokens, {2048})) {
      bench.run_scan(str("1x", tokens), {tokens});
    }
    return;
  }
  bench.run_scan("1x16384", {16384});
  bench.run_scan("8x2048", std::vector<std::int64_t>(8, 2048));
  bench.run_scan("16x4096", std::vector<std::int64_t>(16, 4096));
  bench.run_skewed_scan();
}

}  // namespace

void bench_kernels(const BenchOptions& options, BenchReport& report, Context& ctx) {
  using Numbers = std::vector<std::int64_t>;
  const bool gpu = ctx.gpu() != nullptr;
  MachineCeilings ceilings(bench_compute(options), ctx);
  ceilings.add_rows(report);
  for (const std::string& name : presets_or_default(options, ctx)) {
    KernelBench bench(options, name, ceilings, report, ctx);
    for (const std::int64_t batch :
         or_else(options.batches, gpu ? Numbers{1, 8, 128} : Numbers{1})) {
      bench.run_linears(batch, LinearPath::kSkinny);
    }
    for (const std::int64_t tokens :
         or_else(options.tokens, gpu ? Numbers{2048, 16384} : Numbers{2048})) {
      bench.run_linears(tokens, LinearPath::kGemm);
      bench.run_rows(tokens);
    }
    run_scans(options, bench, ctx);
    for (const std::int64_t batch : or_else(options.batches, gpu ? Numbers{1, 128} : Numbers{1})) {
      bench.run_step(batch);
    }
  }
}

}  // namespace mamba3::cli
