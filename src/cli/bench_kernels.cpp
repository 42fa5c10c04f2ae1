// bench kernels: each op alone, at the shapes of a preset.
#include <algorithm>

#include "cli/bench.h"
#include "cli/bench_layer.h"
#include "cli/bench_model.h"
#include "cli/bench_timing.h"
#include "core/check.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/linear/fused_linear.h"
#include "ops/linear_backward/linear_backward.h"
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

// A linear of a block with what a GPU does in the same call: the norm before it, SwiGLU or the
// residual's sum behind it. The first `narrow_outs` outputs are bf16.
struct Product {
  const char* name;
  GemmShape gemm;
  bool norm, swiglu, adds;
  bool narrow_x;  // x is bf16 even in a step
  std::int64_t narrow_outs;
};

// Weights [n, k].
TensorRef rows_of(const Bf16* numbers, std::int64_t n, std::int64_t k) {
  return {reinterpret_cast<const std::byte*>(numbers), DType::kBf16, {n, k}};
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
    const std::int64_t d = model_config_.width, inner = model_config_.inner();
    const std::vector<GemmShape> gemms = layer_gemms(model_config_, rows);
    const bool narrow = layer_.has_bf16_activations();
    const bool step = path == LinearPath::kSkinny;
    run_linear({"in_proj", gemms[0], step, false, false, false, narrow && !step ? 2 * inner : 0},
               path);
    run_linear({"out_proj", gemms[1], false, false, true, false, 0}, path);
    if (gemms.size() > 2) {
      run_linear({"fc1", gemms[2], step, step || narrow, false, false, narrow ? gemms[2].n : 0},
                 path);
      run_linear({"fc2", gemms[3], false, false, true, step && narrow, 0}, path);
    }
    const GemmShape head{rows, model_config_.padded_vocab(), d};
    if (step) run_linear({"head", head, false, false, false, false, 0}, path);
  }

  // As training calls them, both gradients at once.
  void run_linears_backward(std::int64_t rows) {
    const char* const names[] = {"in_proj", "out_proj", "fc1", "fc2"};
    const std::vector<GemmShape> gemms = layer_gemms(model_config_, rows);
    for (std::size_t i = 0; i < gemms.size(); ++i) run_linear_backward(names[i], gemms[i]);
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

  // Without deferring anything, and with the rings that a card has: each over whole cycles.
  void run_step(std::int64_t batch) {
    constexpr std::int64_t kSmallest = 64;  // batches for which a ring is worth it
    run_step(batch, layer_.has_ring() ? 1 : 0, "");
    if (!layer_.has_ring() || batch < kSmallest) return;
    for (const std::int64_t ring : {8, 16}) run_step(batch, ring, str("/ring=", ring));
  }

  // The head, the loss and their gradients.
  void run_cross_entropy(std::int64_t rows) {
    const std::int64_t d = model_config_.width, v = model_config_.padded_vocab();
    const bool narrow = layer_.has_bf16_activations();
    BenchMemory memory(ctx_);
    CrossEntropyArgs args;
    args.x = memory.random_matrix(rows, d, narrow);
    args.w = rows_of(memory.random_bf16(v * d), v, d);
    args.targets = place_ids(rows, memory);
    args.sums = reinterpret_cast<CrossEntropySums*>(memory.floats(sizeof(CrossEntropySums)));
    args.grad_x = memory.random_matrix(rows, d, narrow);
    args.grad_w = memory.random_rows(v, d);
    args.compute = compute_;
    const double seconds =
        time_calls(ctx_, options_.repeat, [&](std::int64_t) { cross_entropy(args, ctx_); });
    const double flops = 3 * GemmShape{rows, v, d}.flops();
    add(str("cross_entropy/rows=", rows), seconds, {{}, flops, ceilings_.product_seconds(flops)});
  }

  void run_rows(std::int64_t rows) {
    run_rms_norm(rows, model_config_.width);
    if (model_config_.mlp_hidden > 0) run_swiglu(rows, model_config_.mlp_hidden);
    run_embedding(rows, model_config_.width);
  }

 private:
  void run_step(std::int64_t batch, std::int64_t ring, const std::string& suffix) {
    Bound bound{layer_.step_traffic(batch, ring), 0, 0};
    bound.seconds = ceilings_.memory_seconds(bound.traffic);
    add(str("mamba3_step/batch=", batch, suffix), layer_.step_seconds(batch, ring, options_.repeat),
        bound);
  }

  void run_linear(const Product& product, LinearPath path) {
    const GemmShape& gemm = product.gemm;
    const bool step = path == LinearPath::kSkinny, gpu = ctx_.gpu() != nullptr;
    const bool narrow_x = product.narrow_x || (!step && layer_.has_bf16_activations());
    const std::int64_t outs = gpu && product.swiglu ? gemm.n / 2 : gemm.n;
    const std::int64_t narrow_outs = std::min(product.narrow_outs, outs);
    const std::int64_t copies = copies_beyond_caches(2 * gemm.n * gemm.k);
    BenchMemory memory(ctx_);
    const Bf16* const matrices = memory.random_bf16(copies * gemm.n * gemm.k);
    const float* const norm = memory.random_floats(gemm.k);
    const ConstMatrix x = memory.random_matrix(gemm.m, gemm.k, narrow_x);
    const Matrix narrow = memory.random_matrix(gemm.m, narrow_outs, true);
    const Matrix wide = memory.random_matrix(gemm.m, outs - narrow_outs, false);
    FusedLinearArgs args;
    args.x = x;
    if (product.norm) args.norm_weight = norm;
    args.w = rows_of(matrices, gemm.n, gemm.k);
    args.y = narrow_outs > 0 ? narrow : wide;
    if (narrow_outs > 0 && narrow_outs < outs) args.rest = wide;
    args.swiglu = product.swiglu;
    args.accumulate = product.adds;
    args.compute = compute_;
    args.path = path;
    if (gpu && !step) share_norm(args, memory);
    const double seconds = time_calls(ctx_, options_.repeat, [&](std::int64_t call) {
      args.w = rows_of(matrices + call % copies * gemm.n * gemm.k, gemm.n, gemm.k);
      if (!gpu) return linear({x, args.w, wide, compute_, path}, ctx_);
      fused_linear(args, ctx_);
    });
    const auto m = static_cast<double>(gemm.m), k = static_cast<double>(gemm.k);
    const double out_bytes = m * (2.0 * static_cast<double>(narrow_outs) +
                                  4.0 * static_cast<double>(outs - narrow_outs));
    const double read_back = gpu && product.adds ? out_bytes : 0;
    const double scaled = static_cast<double>(2 * args.half_norm.scaled.elements());
    Bound bound{{2.0 * static_cast<double>(gemm.n) * k + m * k * (narrow_x ? 2 : 4) + read_back,
                 out_bytes + scaled},
                gemm.flops(),
                0};
    bound.seconds = gemm.m >= kManyRows ? ceilings_.product_seconds(gemm)
                                        : std::max(ceilings_.memory_seconds(bound.traffic),
                                                   ceilings_.product_seconds(bound.flops));
    add(str("linear/", product.name, "/rows=", gemm.m), seconds, bound);
  }

  // Half of the norm behind it or before it, as in a prefill, where a kernel makes that.
  void share_norm(FusedLinearArgs& args, BenchMemory& memory) {
    const std::int64_t rows = args.x.shape[0], k = args.x.shape[1], n = args.y.shape[1];
    FusedLinearArgs shared = args;
    if (args.accumulate) {
      shared.half_norm = {memory.random_floats(n), memory.random_matrix(rows, n, true),
                          memory.floats(rows * (n / kNormPart))};
    } else if (args.x.is_bf16()) {
      const std::vector<float> squares(rows * (k / kNormPart), 1.0f);
      shared.squares = memory.place(squares).data();
    }
    if (takes_half_norm(shared, ctx_)) args = shared;
  }

  void run_linear_backward(const char* name, const GemmShape& gemm) {
    const bool narrow = layer_.has_bf16_activations();
    BenchMemory memory(ctx_);
    LinearBackwardArgs args;
    args.x = memory.random_matrix(gemm.m, gemm.k, narrow);
    args.w = rows_of(memory.random_bf16(gemm.n * gemm.k), gemm.n, gemm.k);
    args.grad_y = memory.random_matrix(gemm.m, gemm.n, narrow);
    args.grad_x = memory.random_matrix(gemm.m, gemm.k, narrow);
    args.grad_w = memory.random_rows(gemm.n, gemm.k);
    args.compute = compute_;
    const double seconds =
        time_calls(ctx_, options_.repeat, [&](std::int64_t) { linear_backward(args, ctx_); });
    add(str("linear_backward/", name, "/rows=", gemm.m), seconds,
        {{}, 2 * gemm.flops(), 2 * ceilings_.product_seconds(gemm)});
  }

  // With bf16 activations nothing waits to be added: products have added it themselves.
  void run_rms_norm(std::int64_t rows, std::int64_t d) {
    const std::int64_t copies = copies_beyond_caches(8 * rows * d);
    const bool narrow = layer_.has_bf16_activations();
    BenchMemory memory(ctx_);
    const float* const weight = memory.random_floats(d);
    const TensorView<float, 2> residual = memory.random_rows(copies * rows, d);
    TensorView<float, 2> hidden;
    if (!narrow) hidden = memory.random_rows(copies * rows, d);
    const Matrix out = narrow ? memory.random_matrix(copies * rows, d, true) : Matrix(hidden);
    const double seconds = time_calls(ctx_, options_.repeat, [&](std::int64_t call) {
      const std::int64_t at = call % copies * rows;
      const auto added = narrow ? hidden : hidden.slice(at, at + rows);
      rms_norm({residual.slice(at, at + rows), added, weight, 1e-5f, out.slice(at, at + rows)},
               ctx_);
    });
    const auto elements = static_cast<double>(rows * d);
    add_moved(str("rms_norm/rows=", rows), seconds,
              narrow ? Traffic{4 * elements, 2 * elements} : Traffic{8 * elements, 8 * elements});
  }

  void run_swiglu(std::int64_t rows, std::int64_t f) {
    const std::int64_t copies = copies_beyond_caches(12 * rows * f);
    const bool narrow = layer_.has_bf16_activations();
    BenchMemory memory(ctx_);
    const Matrix wide = memory.random_matrix(copies * rows, 2 * f, narrow);
    const Matrix gated = memory.random_matrix(copies * rows, f, narrow);
    const double seconds = time_calls(ctx_, options_.repeat, [&](std::int64_t call) {
      const std::int64_t at = call % copies * rows;
      swiglu({wide.slice(at, at + rows), gated.slice(at, at + rows)}, ctx_);
    });
    const double bytes = (narrow ? 2.0 : 4.0) * static_cast<double>(rows * f);
    add_moved(str("swiglu/rows=", rows), seconds, {2 * bytes, bytes});
  }

  void run_embedding(std::int64_t rows, std::int64_t d) {
    const std::int64_t v = model_config_.padded_vocab();
    const std::int64_t copies = copies_beyond_caches(4 * rows * d);
    BenchMemory memory(ctx_);
    const auto* const numbers = memory.random_bf16(v * d);
    const TensorRef table{reinterpret_cast<const std::byte*>(numbers), DType::kBf16, {v, d}};
    const std::span<const std::int32_t> placed = place_ids(copies * rows, memory);
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

  std::span<const std::int32_t> place_ids(std::int64_t count, BenchMemory& memory) const {
    return memory.place(random_ids(count, model_config_.vocab, 1, ctx_));
  }

  void add_moved(const std::string& what, double seconds, const Traffic& traffic) {
    add(what, seconds, {traffic, 0, ceilings_.memory_seconds(traffic)});
  }

  void add(const std::string& what, double seconds, const Bound& bound) {
    BenchRow row;
    row.name = prefix_ + what;
    row.value = 1e6 * seconds;
    row.unit = "us";
    if (bound.traffic.bytes() > 0) row.bytes = bound.traffic.bytes();
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
      bench.run_linears_backward(tokens);
      if (gpu) bench.run_cross_entropy(tokens);
      bench.run_rows(tokens);
    }
    run_scans(options, bench, ctx);
    for (const std::int64_t batch : or_else(options.batches, gpu ? Numbers{1, 128} : Numbers{1})) {
      bench.run_step(batch);
    }
  }
}

}  // namespace mamba3::cli
