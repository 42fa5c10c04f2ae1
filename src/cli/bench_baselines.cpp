#include "cli/bench_baselines.h"

#include <string_view>

#include "core/check.h"

namespace mamba3::cli {
namespace {

struct Figure {
  std::string_view name;
  double value;
};

constexpr double rate(double tokens, double seconds) {
  return tokens / seconds;
}

// Medians after a warm-up. Steps ran in a CUDA graph, with the package's step() patched for its
// (B, 1, D) bug; the first call at a new length, which compiles, is left out.
constexpr Figure kAuthors[] = {
    // GB/s, GFLOP/s
    {"ceiling/read", 3060},
    {"ceiling/write", 3270},
    {"ceiling/copy", 3020},
    {"ceiling/gemm=8192x8192x8192", 753e3},
    {"ceiling/gemm=65536x8672x2048", 658e3},
    // us
    {"kernels/siso-1.5b/mamba3_scan/8x2048", 1490},
    {"kernels/siso-1.5b/mamba3_scan/16x4096", 5600},
    {"kernels/mimo-1.5b/mamba3_scan/8x2048", 2160},
    {"kernels/mimo-1.5b/mamba3_scan/16x4096", 8030},
    {"kernels/siso-1.5b/mamba3_step/batch=128", 190},
    {"kernels/mimo-1.5b/mamba3_step/batch=128", 203},
    // tokens/s
    {"prefill/siso-1.5b/bf16/batch=128/tokens=512", rate(128 * 512, 0.496)},
    {"prefill/siso-1.5b/bf16/batch=128/tokens=2048", rate(128 * 2048, 1.99)},
    {"prefill/siso-1.5b/bf16/tokens=2048", rate(2048, 51.1e-3)},
    {"prefill/siso-1.5b/bf16/tokens=16384", rate(16384, 161.9e-3)},
    {"prefill/mimo-1.5b/bf16/batch=128/tokens=512", rate(128 * 512, 0.517)},
    {"prefill/mimo-1.5b/bf16/batch=128/tokens=2048", rate(128 * 2048, 2.11)},
    {"prefill/mimo-1.5b/bf16/tokens=2048", rate(2048, 60.0e-3)},
    {"prefill/mimo-1.5b/bf16/tokens=16384", rate(16384, 263.7e-3)},
    {"decode/siso-1.5b/bf16/batch=1", rate(1, 2.54e-3)},
    {"decode/siso-1.5b/bf16/batch=128", rate(128, 7.94e-3)},
    {"decode/mimo-1.5b/bf16/batch=1", rate(1, 2.84e-3)},
    {"decode/mimo-1.5b/bf16/batch=128", rate(128, 8.79e-3)},
    {"train/siso-1.5b/bf16/batch=4/tokens=2048", 35.2e3},
    {"train/mimo-1.5b/bf16/batch=4/tokens=2048", 21.5e3},
    {"train/siso-440m/bf16/batch=8/tokens=2048", 90.6e3},
    {"train/siso-24m/bf16/batch=128/tokens=512", 690e3},
    {"train/mimo-24m/bf16/batch=128/tokens=512", 376e3},
    // GB
    {"train/siso-1.5b/bf16/batch=4/tokens=2048/memory", 41.4},
    // ms
    {"train/siso-1.5b/bf16/scan, forward and backward/8x2048", 4.30},
    {"train/mimo-1.5b/bf16/scan, forward and backward/8x2048", 17.8},
    {"table6/siso/state=128/fp32/kernel", 0.190},
    {"table6/siso/state=128/bf16/kernel", 0.096},
    {"table6/mimo/state=128/fp32/kernel", 0.203},
    {"table6/mimo/state=128/bf16/kernel", 0.108},
    // s; a step of table 7 is the whole step above
    {"table7/siso-1.5b/tokens=512/prefill", 0.496},
    {"table7/siso-1.5b/tokens=2048/prefill", 1.99},
    {"table7/siso-1.5b/step", 7.94e-3},
    {"table7/mimo-1.5b/tokens=512/prefill", 0.517},
    {"table7/mimo-1.5b/tokens=2048/prefill", 2.11},
    {"table7/mimo-1.5b/step", 8.79e-3},
};

// arXiv 2603.15569, tables 6 (ms) and 7 (s): H100, width of the 1.5B models, batch 128.
constexpr Figure kPaper[] = {
    {"table6/siso/state=64/fp32/layer", 0.310},
    {"table6/siso/state=128/fp32/layer", 0.399},
    {"table6/siso/state=64/bf16/layer", 0.110},
    {"table6/siso/state=128/bf16/layer", 0.156},
    {"table6/mimo/state=64/fp32/layer", 0.333},
    {"table6/mimo/state=128/fp32/layer", 0.431},
    {"table6/mimo/state=64/bf16/layer", 0.137},
    {"table6/mimo/state=128/bf16/layer", 0.179},
    {"table7/siso-1.5b/tokens=512/prefill", 0.51},
    {"table7/siso-1.5b/tokens=512/prefill+decode", 4.39},
    {"table7/siso-1.5b/tokens=1024/prefill", 1.01},
    {"table7/siso-1.5b/tokens=1024/prefill+decode", 8.78},
    {"table7/siso-1.5b/tokens=2048/prefill", 2.02},
    {"table7/siso-1.5b/tokens=2048/prefill+decode", 17.57},
    {"table7/siso-1.5b/tokens=4096/prefill", 4.01},
    {"table7/siso-1.5b/tokens=4096/prefill+decode", 35.11},
    {"table7/siso-1.5b/tokens=16384/prefill", 16.22},
    {"table7/siso-1.5b/tokens=16384/prefill+decode", 140.61},
    {"table7/mimo-1.5b/tokens=512/prefill", 0.60},
    {"table7/mimo-1.5b/tokens=512/prefill+decode", 4.74},
    {"table7/mimo-1.5b/tokens=1024/prefill", 1.21},
    {"table7/mimo-1.5b/tokens=1024/prefill+decode", 9.48},
    {"table7/mimo-1.5b/tokens=2048/prefill", 2.42},
    {"table7/mimo-1.5b/tokens=2048/prefill+decode", 18.96},
    {"table7/mimo-1.5b/tokens=4096/prefill", 4.76},
    {"table7/mimo-1.5b/tokens=4096/prefill+decode", 37.85},
    {"table7/mimo-1.5b/tokens=16384/prefill", 19.44},
    {"table7/mimo-1.5b/tokens=16384/prefill+decode", 151.81},
};

template <std::size_t kCount>
std::optional<double> find(const Figure (&figures)[kCount], const std::string& name) {
  for (const Figure& figure : figures) {
    if (figure.name == name) return figure.value;
  }
  return std::nullopt;
}

}  // namespace

const char* const kAuthorsSource =
    "state-spaces/mamba e9594ce, torch 2.11, triton 3.6, driver 580, one H100 80GB HBM3, "
    "2026-11-22";

std::optional<double> authors_figure(const std::string& row_name) {
  return find(kAuthors, row_name);
}

std::optional<double> paper_figure(const std::string& row_name) {
  return find(kPaper, row_name);
}

std::string baselines_for(const std::string& device) {
  const auto named = [&](const char* part) { return device.find(part) != std::string::npos; };
  if (named("H100") && named("80GB")) return kAuthorsSource;
  if (!named("NVIDIA H200")) return "";
  return str(kAuthorsSource, "; this card's memory is 1.4 times as fast");
}

}  // namespace mamba3::cli
