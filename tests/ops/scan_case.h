// Runs mamba3_scan on random sequences and keeps everything that it wrote, for the tests to
// compare.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/arena.h"
#include "mamba3_case.h"
#include "ops/mamba3_scan/mamba3_scan.h"

namespace mamba3::testing {

// Sequences of one layer.
struct ScanCase {
  Mamba3Dims dims;
  std::vector<Mamba3RefInputs<float>> inputs;  // all with the same parameters
  std::vector<Mamba3RefState<float>> starts;

  ScanCase(const Mamba3Dims& dims_in, const std::vector<std::int64_t>& lengths, std::uint64_t seed)
      : dims(dims_in) {
    Random random(seed);
    const Mamba3RefInputs<float> layer = random_inputs(dims, 1, random);
    for (const std::int64_t length : lengths) {
      Mamba3RefInputs<float> in = random_inputs(dims, length, random);
      in.dt_bias = layer.dt_bias;
      in.skip = layer.skip;
      in.in_b_bias = layer.in_b_bias;
      in.out_c_bias = layer.out_c_bias;
      in.in_b_norm = layer.in_b_norm;
      in.out_c_norm = layer.out_c_norm;
      in.mimo_x = layer.mimo_x;
      in.mimo_z = layer.mimo_z;
      in.mimo_o = layer.mimo_o;
      in.out_norm = layer.out_norm;
      inputs.push_back(in);
      starts.push_back(random_state(dims, random));
    }
  }
};

// One sequence after a run, bit by bit.
struct ScanResult {
  std::vector<float> y;  // [t, h * p]
  Mamba3RefState<float> state;
  std::vector<std::uint32_t> turns;

  bool operator==(const ScanResult& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() &&
             (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    };
    return same(y, other.y) && same(state.ssm, other.state.ssm) && same(state.k, other.state.k) &&
           same(state.v, other.state.v) && turns == other.turns;
  }
};

struct ScanOptions {
  int threads = 1;
  bool bf16_products = false;
  std::vector<std::int64_t> which;  // sequences in the order in which they are packed; empty: all
  // Tokens of each call; the rest in one more. Only with a single sequence.
  std::vector<std::int64_t> cuts;
};

class ScanRunner {
 public:
  ScanRunner(const ScanCase& data, const ScanOptions& options)
      : data_(data),
        options_(options),
        ctx_({.threads = options.threads, .seed = 0, .log = {}}),
        which_(options.which),
        pool_(data.dims, static_cast<std::int64_t>(data.inputs.size()) + 1, kPadding) {
    if (which_.empty()) {
      which_.resize(data.inputs.size());
      std::iota(which_.begin(), which_.end(), 0);
    }
    // Slots in the opposite order, one left out.
    for (const std::int64_t i : which_) {
      slots_.push_back(static_cast<std::int32_t>(data.inputs.size() - i));
      pool_.put(slots_.back(), data.starts[i]);
    }
  }

  std::vector<ScanResult> run() {
    std::vector<ScanResult> out(which_.size());
    std::int64_t from = 0;
    for (const std::int64_t cut : options_.cuts) {
      call(from, cut, out);
      from = cut;
    }
    call(from, -1, out);
    for (std::size_t i = 0; i < which_.size(); ++i) {
      out[i].state = pool_.get(slots_[i]);
      const std::int64_t count = data_.dims.heads * data_.dims.angles;
      const auto begin = pool_.turns.begin() + slots_[i] * (count + kPadding);
      out[i].turns.assign(begin, begin + count);
    }
    clean_ = clean_ && pool_.padding_is_untouched();
    return out;
  }
  // Nothing outside was written, and no more workspace taken than the query says.
  bool clean() const { return clean_; }

 private:
  static constexpr std::int64_t kPadding = 3;

  // Tokens [from, to) of each sequence; to < 0: to the end.
  void call(std::int64_t from, std::int64_t to, std::vector<ScanResult>& out) {
    std::vector<std::int64_t> bounds{0};
    for (const std::int64_t i : which_) {
      bounds.push_back(bounds.back() + (to < 0 ? data_.inputs[i].tokens : to) - from);
    }
    Rows rows(data_.dims, bounds.back(), kPadding);
    for (std::size_t i = 0; i < which_.size(); ++i) {
      for (std::int64_t row = bounds[i]; row < bounds[i + 1]; ++row) {
        rows.put(row, data_.inputs[which_[i]], from + row - bounds[i]);
      }
    }
    const std::int64_t inner = data_.dims.heads * data_.dims.head_dim;
    const std::int64_t stride = inner + kPadding;
    std::vector<float> y(static_cast<std::size_t>(bounds.back() * stride), kNan);
    Mamba3ScanArgs args;
    args.dims = data_.dims;
    args.params = params_of(data_.inputs[0]);
    args.columns = rows.columns(data_.dims);
    args.cu_seqlens = bounds;
    args.slots = slots_;
    args.states = pool_.states();
    args.y = TensorView<float, 2>(y.data(), {bounds.back(), inner}, {stride, 1});
    args.bf16_products = options_.bf16_products;
    scan_poisoned(args);
    for (std::size_t i = 0; i < which_.size(); ++i) {
      for (std::int64_t row = bounds[i]; row < bounds[i + 1]; ++row) {
        const auto begin = y.begin() + row * stride;
        out[i].y.insert(out[i].y.end(), begin, begin + inner);
        clean_ = clean_ &&
                 std::all_of(begin + inner, begin + stride, [](float v) { return std::isnan(v); });
      }
    }
  }

  // The workspace holds NaNs before the call.
  void scan_poisoned(const Mamba3ScanArgs& args) {
    const std::size_t bytes = mamba3_scan_workspace_bytes(args, ctx_);
    {
      ArenaScope scope(ctx_.workspace());
      auto* memory = scope.allocate<std::byte>(static_cast<std::int64_t>(bytes));
      std::memset(memory, 0xff, bytes);
    }
    mamba3_scan(args, ctx_);
    most_bytes_ = std::max(most_bytes_, bytes);
    clean_ = clean_ && ctx_.workspace().peak_bytes() <= most_bytes_ + Arena::kAlignBytes;
  }

  const ScanCase& data_;
  const ScanOptions& options_;
  Context ctx_;
  std::vector<std::int64_t> which_;
  std::vector<std::int32_t> slots_;
  Slots pool_;
  bool clean_ = true;
  std::size_t most_bytes_ = 0;
};

}  // namespace mamba3::testing
