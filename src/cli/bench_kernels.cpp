// bench kernels: each op alone, at the shapes of a preset.
#include <chrono>
#include <cstring>
#include <numeric>

#include "cli/bench.h"
#include "cli/bench_model.h"
#include "core/arena.h"
#include "core/check.h"
#include "model/init.h"
#include "model/mixer.h"
#include "model/state_pool.h"
#include "ops/ceilings/ceilings.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_step.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/swiglu/swiglu.h"

namespace mamba3::cli {
namespace {

// What bounds a kernel, for one call.
struct Work {
  double bytes = 0;
  double flops = 0;
  double gemm_rate = 0;  // of the products, when they bound it
};

// The ops of one layer of a model with random weights, on random numbers.
class KernelBench {
 public:
  KernelBench(const BenchOptions& options, const std::string& name, BenchReport& report,
              Context& ctx)
      : options_(options),
        name_(name),
        report_(report),
        ctx_(ctx),
        config_(one_layer(name)),
        weights_(init_tensors(config_, DType::kBf16, ctx.seed(), ctx)),
        bound_(bind_weights(config_, weights_.tensors, weights_.memory, ctx)),
        compute_(options.common.dtype == "fp32" ? Compute::kF32 : Compute::kBf16),
        bandwidth_(measured_read_bandwidth(ctx)) {}

  void run_linear(std::int64_t rows, LinearPath path) {
    for (const GemmShape& gemm : layer_gemms(config_, rows)) {
      ArenaScope scope(ctx_.workspace());
      const TensorView<float, 2> x = random_rows(scope, rows, gemm.k);
      const TensorView<float, 2> y(scope.allocate<float>(rows * gemm.n), {rows, gemm.n});
      const auto matrix = random_matrix(gemm.n, gemm.k);
      const TensorRef w{matrix.data(), DType::kBf16, {gemm.n, gemm.k}};
      Work work{static_cast<double>(w.bytes()), gemm.flops(), 0};
      if (path == LinearPath::kGemm) work.gemm_rate = measured_gemm_rate(gemm, compute_, ctx_);
      add(str("linear/", gemm.m, "x", gemm.n, "x", gemm.k), work, [&] {
        linear({x, w, y, compute_, path}, ctx_);
      });
    }
  }

  void run_scan(std::int64_t tokens) {
    const Mamba3Dims dims = mixer_dims(config_);
    const std::int64_t cu_seqlens[] = {0, tokens};
    const std::int32_t slots[] = {0};
    run_recurrence(
        tokens, 1,
        [&](const Mamba3Columns& columns, const Mamba3States& states, TensorView<float, 2> y) {
          const bool bf16 = compute_ == Compute::kBf16;
          add(str("mamba3_scan/tokens=", tokens), {}, [&] {
            mamba3_scan({dims, params(), columns, cu_seqlens, slots, states, y, bf16}, ctx_);
          });
        });
  }

  void run_step(std::int64_t batch) {
    const Mamba3Dims dims = mixer_dims(config_);
    std::vector<std::int32_t> slots(static_cast<std::size_t>(batch));
    std::iota(slots.begin(), slots.end(), 0);
    run_recurrence(
        batch, batch,
        [&](const Mamba3Columns& columns, const Mamba3States& states, TensorView<float, 2> y) {
          const double bytes = 2.0 * static_cast<double>(config_.state_bytes() * batch);
          add(str("mamba3_step/batch=", batch), {bytes, 0, 0}, [&] {
            mamba3_step({dims, params(), columns, slots, states, y}, ctx_);
          });
        });
  }

  void run_rows(std::int64_t rows) {
    ArenaScope scope(ctx_.workspace());
    const std::int64_t d = config_.width, f = config_.mlp_hidden;
    const TensorView<float, 2> residual = random_rows(scope, rows, d),
                               hidden = random_rows(scope, rows, d);
    const double row_bytes = 4.0 * static_cast<double>(rows);
    add(str("rms_norm/", rows, "x", d), {4 * row_bytes * static_cast<double>(d), 0, 0}, [&] {
      rms_norm({residual, hidden, bound_.final_norm.data(), 1e-5f, hidden}, ctx_);
    });
    if (f == 0) return;
    const TensorView<float, 2> wide = random_rows(scope, rows, 2 * f),
                               gated = random_rows(scope, rows, f);
    add(str("swiglu/", rows, "x", f), {3 * row_bytes * static_cast<double>(f), 0, 0}, [&] {
      swiglu({wide, gated}, ctx_);
    });
  }

 private:
  static ModelConfig one_layer(const std::string& name) {
    ModelConfig config = preset(name);
    config.layers = 1;
    config.vocab = 128;
    return config;
  }

  Mamba3Params params() const {
    return mixer_params(std::get<Mamba3MixerWeights>(bound_.blocks[0].mixer));
  }

  // Random columns of in_proj and zero states for `body`.
  template <class Body>
  void run_recurrence(std::int64_t rows, std::int64_t slots, const Body& body) {
    ArenaScope scope(ctx_.workspace());
    const TensorView<float, 2> projected = random_rows(scope, rows, config_.in_proj_rows());
    const TensorView<float, 2> y(scope.allocate<float>(rows * config_.inner()),
                                 {rows, config_.inner()});
    StatePool::Impl pool(config_, slots, ctx_.gpu());
    body(split_columns(projected.data, projected.stride[0], mixer_dims(config_)), pool.layer(0), y);
  }

  TensorView<float, 2> random_rows(ArenaScope& scope, std::int64_t rows, std::int64_t columns) {
    const TensorView<float, 2> out(scope.allocate<float>(rows * columns), {rows, columns});
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      out.data[i] = static_cast<float>(2 * uniform_draw(ctx_.seed(), 1, draws_++) - 1);
    }
    return out;
  }

  std::vector<std::byte> random_matrix(std::int64_t rows, std::int64_t columns) {
    std::vector<std::byte> out(static_cast<std::size_t>(2 * rows * columns));
    for (std::size_t i = 0; i < out.size(); i += 2) {
      const Bf16 value = to_bf16(static_cast<float>(uniform_draw(ctx_.seed(), 2, i) - 0.5));
      std::memcpy(out.data() + i, &value, 2);
    }
    return out;
  }

  template <class Body>
  void add(const std::string& what, const Work& work, const Body& body) {
    body();
    std::vector<double> seconds;
    for (std::int64_t i = 0; i < options_.repeat; ++i) {
      const auto start = std::chrono::steady_clock::now();
      body();
      seconds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    BenchRow row;
    row.name = name_ + "/" + what;
    row.value = 1e6 * median(seconds);
    row.unit = "us";
    if (work.bytes > 0) row.bytes = work.bytes;
    if (work.flops > 0) row.flops = work.flops;
    if (work.gemm_rate > 0) {
      row.ceiling = 1e6 * work.flops / work.gemm_rate;
    } else if (work.bytes > 0) {
      row.ceiling = 1e6 * work.bytes / bandwidth_;
    }
    report_.add(row);
  }

  const BenchOptions& options_;
  std::string name_;
  BenchReport& report_;
  Context& ctx_;
  ModelConfig config_;
  InitialTensors weights_;
  ModelWeights bound_;
  Compute compute_;
  double bandwidth_;
  std::uint64_t draws_ = 0;
};

}  // namespace

void bench_kernels(const BenchOptions& options, BenchReport& report, Context& ctx) {
  const auto or_else = [](const std::vector<std::int64_t>& given, std::int64_t value) {
    return given.empty() ? std::vector<std::int64_t>{value} : given;
  };
  if (ctx.gpu()) {
    fail(ErrorCode::kUnavailable,
         "bench kernels measures CPU kernels only so far; expected --device "
         "cpu; bench prefill and decode run on a GPU");
  }
  for (const std::string& name : presets_or(options, "siso-187m")) {
    KernelBench bench(options, name, report, ctx);
    for (const std::int64_t tokens : or_else(options.tokens, 2048)) {
      bench.run_linear(tokens, LinearPath::kGemm);
      bench.run_scan(tokens);
      bench.run_rows(tokens);
    }
    for (const std::int64_t batch : or_else(options.batches, 1)) {
      bench.run_linear(batch, LinearPath::kSkinny);
      bench.run_step(batch);
    }
  }
}

}  // namespace mamba3::cli
