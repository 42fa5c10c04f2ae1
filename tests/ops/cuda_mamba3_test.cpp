// mamba3_step and mamba3_scan on a GPU against the CPU and the oracle, and against each other.
// Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/tolerance.h"
#include "gpu_case.h"
#include "ops/cuda_ops.h"
#include "scan_case.h"

namespace mamba3 {
namespace {

using testing::all;
using testing::awkward_dims;
using testing::describe;
using testing::GpuArray;
using testing::GpuParams;
using testing::GpuSlots;
using testing::kClose;
using testing::on_gpu;
using testing::params_of;
using testing::Rows;
using testing::ScanCase;
using testing::Slots;
using testing::widen;

// Two doubles that differ in their last place may round to neighbouring turns.
constexpr std::int32_t kCloseTurns = 2;

// Sequences after a run, one behind the other, and what else was written.
struct Result {
  std::vector<std::vector<float>> y;
  std::vector<Mamba3RefState<float>> states;
  std::vector<std::vector<std::uint32_t>> turns;
  bool clean = true;
};

// Packed sequences in shuffled slots of a pool that has one more.
class Runner {
 public:
  Runner(const ScanCase& data, std::int64_t padding)
      : data_(data),
        padding_(padding),
        count_(static_cast<std::int64_t>(data.inputs.size())),
        inner_(data.dims.heads * data.dims.head_dim),
        pool_(data.dims, count_ + 1, padding) {
    bounds_.push_back(0);
    // Shuffled: 5 has no factor in common with the pool's sizes here.
    for (std::int64_t i = 0; i < count_; ++i) {
      slots_.push_back(static_cast<std::int32_t>((5 * i + 3) % (count_ + 1)));
      pool_.put(slots_.back(), data.starts[i]);
      bounds_.push_back(bounds_.back() + data.inputs[i].tokens);
    }
  }

  Result scan_on_cpu() {
    Context ctx(with_threads(1));
    Rows rows = packed_rows();
    std::vector<float> y = empty_y(bounds_.back());
    Mamba3ScanArgs args = scan_args(rows, y.data(), bounds_.back());
    args.params = params_of(data_.inputs[0]);
    args.states = pool_.states();
    args.cu_seqlens = bounds_;
    args.slots = slots_;
    mamba3_scan(args, ctx);
    return packed_result(y);
  }

  Result scan_on_gpu() {
    Context ctx(on_gpu());
    Rows rows = packed_rows();
    const GpuArray<float> columns(ctx, all(rows.data));
    const GpuArray<float> y(ctx, all(empty_y(bounds_.back())));
    const GpuParams params(ctx, data_.inputs[0]);
    const GpuArray<std::int64_t> bounds(ctx, all(bounds_));
    const GpuArray<std::int32_t> slots(ctx, all(slots_));
    GpuSlots states(ctx, pool_);
    Mamba3ScanArgs args = scan_args(rows, y.data(), bounds_.back());
    args.columns = split_columns(columns.data(), rows.stride, data_.dims);
    args.params = params.params;
    args.states = states.states();
    args.cu_seqlens = bounds.span();
    args.slots = slots.span();
    mamba3_scan_cuda(args, ctx);
    std::vector<float> out;
    y.copy_to(out);
    states.fetch();
    return packed_result(out);
  }

  // All sequences token by token; they have one length.
  Result step_on_cpu() {
    Context ctx(with_threads(1));
    Result out;
    out.y.resize(data_.inputs.size());
    for (std::int64_t t = 0; t < data_.inputs[0].tokens; ++t) {
      Rows rows = token_rows(t);
      std::vector<float> y = empty_y(count_);
      Mamba3StepArgs args = step_args(rows, y.data());
      args.params = params_of(data_.inputs[0]);
      args.states = pool_.states();
      args.slots = slots_;
      mamba3_step(args, ctx);
      append(y, out);
    }
    return with_states(std::move(out));
  }

  Result step_on_gpu() {
    Context ctx(on_gpu());
    const GpuParams params(ctx, data_.inputs[0]);
    const GpuArray<std::int32_t> slots(ctx, all(slots_));
    GpuSlots states(ctx, pool_);
    Result out;
    out.y.resize(data_.inputs.size());
    for (std::int64_t t = 0; t < data_.inputs[0].tokens; ++t) {
      Rows rows = token_rows(t);
      const GpuArray<float> columns(ctx, all(rows.data));
      const GpuArray<float> y(ctx, all(empty_y(count_)));
      Mamba3StepArgs args = step_args(rows, y.data());
      args.columns = split_columns(columns.data(), rows.stride, data_.dims);
      args.params = params.params;
      args.states = states.states();
      args.slots = slots.span();
      mamba3_step(args, ctx);
      std::vector<float> fetched;
      y.copy_to(fetched);
      append(fetched, out);
    }
    states.fetch();
    return with_states(std::move(out));
  }

 private:
  std::vector<float> empty_y(std::int64_t rows) const {
    return std::vector<float>(static_cast<std::size_t>(rows * (inner_ + padding_)), kNan);
  }
  TensorView<float, 2> y_view(float* y, std::int64_t rows) const {
    return {y, {rows, inner_}, {inner_ + padding_, 1}};
  }
  Rows packed_rows() const {
    Rows rows(data_.dims, bounds_.back(), padding_);
    for (std::int64_t i = 0; i < count_; ++i) {
      for (std::int64_t t = 0; t < data_.inputs[i].tokens; ++t) {
        rows.put(bounds_[i] + t, data_.inputs[i], t);
      }
    }
    return rows;
  }
  Rows token_rows(std::int64_t t) const {
    Rows rows(data_.dims, count_, padding_);
    for (std::int64_t i = 0; i < count_; ++i) rows.put(i, data_.inputs[i], t);
    return rows;
  }
  Mamba3ScanArgs scan_args(const Rows& rows, float* y, std::int64_t tokens) const {
    Mamba3ScanArgs args;
    args.dims = data_.dims;
    args.columns = rows.columns(data_.dims);
    args.y = y_view(y, tokens);
    return args;
  }
  Mamba3StepArgs step_args(const Rows& rows, float* y) const {
    Mamba3StepArgs args;
    args.dims = data_.dims;
    args.columns = rows.columns(data_.dims);
    args.y = y_view(y, count_);
    return args;
  }
  // Row `row` of y belongs to sequence i.
  void append_row(const std::vector<float>& y, std::int64_t row, std::int64_t i,
                  Result& out) const {
    const auto begin = y.begin() + row * (inner_ + padding_);
    out.y[i].insert(out.y[i].end(), begin, begin + inner_);
    out.clean = out.clean && std::all_of(begin + inner_, begin + inner_ + padding_,
                                         [](float v) { return std::isnan(v); });
  }
  void append(const std::vector<float>& y, Result& out) const {
    for (std::int64_t i = 0; i < count_; ++i) append_row(y, i, i, out);
  }
  Result packed_result(const std::vector<float>& y) const {
    Result out;
    out.y.resize(data_.inputs.size());
    for (std::int64_t i = 0; i < count_; ++i) {
      for (std::int64_t row = bounds_[i]; row < bounds_[i + 1]; ++row) append_row(y, row, i, out);
    }
    return with_states(std::move(out));
  }
  Result with_states(Result out) const {
    const std::int64_t count = data_.dims.heads * data_.dims.angles;
    for (const std::int32_t slot : slots_) {
      out.states.push_back(pool_.get(slot));
      const auto begin = pool_.turns.begin() + slot * (count + padding_);
      out.turns.emplace_back(begin, begin + count);
    }
    out.clean = out.clean && pool_.padding_is_untouched();
    return out;
  }

  const ScanCase& data_;
  std::int64_t padding_;
  std::int64_t count_;
  std::int64_t inner_;
  std::vector<std::int64_t> bounds_;
  std::vector<std::int32_t> slots_;
  Slots pool_;
};

// As near to the truth as kClose, or nearly as near as the CPU: a norm over few values makes much
// of a rounding.
void expect_close(const char* name, const std::vector<float>& got, const std::vector<float>& cpu,
                  const std::vector<double>& truth) {
  const double error = largest_error(all(got), all(truth), ErrorMetric::kRelative);
  const double cpu_error = largest_error(all(cpu), all(truth), ErrorMetric::kRelative);
  EXPECT_LE(error, std::max(kClose, 4 * cpu_error)) << name << ", the CPU has " << cpu_error;
}

void expect_turns(const std::vector<std::uint32_t>& got, const std::vector<std::uint32_t>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_LE(std::abs(static_cast<std::int32_t>(got[i] - want[i])), kCloseTurns) << i;
  }
}

void expect_right(const ScanCase& data, const Result& got, const Result& cpu) {
  EXPECT_TRUE(got.clean);
  for (std::size_t i = 0; i < data.inputs.size(); ++i) {
    SCOPED_TRACE("sequence " + std::to_string(i));
    Mamba3RefState<double> truth = widen(data.starts[i]);
    const auto y = mamba3_scan_ref(widen(data.inputs[i]), truth);
    expect_close("y", got.y[i], cpu.y[i], y);
    expect_close("ssm", got.states[i].ssm, cpu.states[i].ssm, truth.ssm);
    expect_close("k", got.states[i].k, cpu.states[i].k, truth.k);
    EXPECT_TRUE(same_bits(got.states[i].v, cpu.states[i].v));
    expect_turns(got.turns[i], cpu.turns[i]);
  }
}

class CudaMamba3 : public ::testing::TestWithParam<Mamba3Dims> {};

TEST_P(CudaMamba3, StepsAsTheCpu) {
  SKIP_WITHOUT_GPU();
  const ScanCase data(GetParam(), {3, 3, 3, 3, 3}, 21);
  for (const std::int64_t padding : {3, 4}) {
    const Result got = Runner(data, padding).step_on_gpu();
    expect_right(data, got, Runner(data, padding).step_on_cpu());
  }
}

TEST_P(CudaMamba3, ScansAsTheCpu) {
  SKIP_WITHOUT_GPU();
  const ScanCase data(GetParam(), {0, 1, 37, 2, 0, 16, 70}, 22);
  for (const std::int64_t padding : {3, 4}) {
    const Result got = Runner(data, padding).scan_on_gpu();
    expect_right(data, got, Runner(data, padding).scan_on_cpu());
  }
}

TEST_P(CudaMamba3, ScanEqualsAsManySteps) {
  SKIP_WITHOUT_GPU();
  const ScanCase data(GetParam(), {35, 35}, 23);
  const Result scanned = Runner(data, 3).scan_on_gpu();
  const Result stepped = Runner(data, 3).step_on_gpu();
  EXPECT_EQ(scanned.turns, stepped.turns);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(same_bits(scanned.states[i].k, stepped.states[i].k));
    EXPECT_TRUE(same_bits(scanned.states[i].v, stepped.states[i].v));
  }
  expect_right(data, scanned, stepped);
}

TEST_P(CudaMamba3, NeighboursChangeNoBit) {
  SKIP_WITHOUT_GPU();
  const ScanCase data(GetParam(), {18, 5, 40}, 24);
  const Result together = Runner(data, 3).scan_on_gpu();
  for (std::size_t i = 0; i < 3; ++i) {
    ScanCase one = data;
    one.inputs = {data.inputs[i]};
    one.starts = {data.starts[i]};
    const Result alone = Runner(one, 3).scan_on_gpu();
    EXPECT_TRUE(same_bits(alone.y[0], together.y[i]));
    EXPECT_TRUE(same_bits(alone.states[0].ssm, together.states[i].ssm));
    EXPECT_TRUE(same_bits(alone.states[0].k, together.states[i].k));
    EXPECT_EQ(alone.turns[0], together.turns[i]);
  }
}

std::vector<Mamba3Dims> cuda_dims() {
  std::vector<Mamba3Dims> out = awkward_dims();
  Mamba3Dims largest;
  largest.heads = 2;
  largest.head_dim = 256;
  largest.state = 256;
  largest.angles = 128;
  out.push_back(largest);
  largest.mimo = largest.out_norm = true;
  largest.rank = 8;
  out.push_back(largest);
  largest.head_dim = 65;
  largest.state = 130;
  largest.angles = 65;
  largest.rank = 3;
  largest.out_norm = false;
  out.push_back(largest);
  return out;
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaMamba3, ::testing::ValuesIn(cuda_dims()),
                         [](const auto& p) { return describe(p.param); });

TEST(CudaMamba3Phases, ANanAngleReachesTheState) {
  SKIP_WITHOUT_GPU();
  Mamba3Dims dims;
  dims.heads = 2;
  dims.head_dim = 3;
  dims.state = 8;
  dims.angles = 3;
  ScanCase data(dims, {3}, 25);
  data.inputs[0].angle_raw[4] = kNan;
  const Result want = Runner(data, 3).step_on_cpu();
  for (const Result& got : {Runner(data, 3).step_on_gpu(), Runner(data, 3).scan_on_gpu()}) {
    for (std::size_t i = 0; i < want.y[0].size(); ++i) {
      EXPECT_TRUE(same_kind(got.y[0][i], want.y[0][i])) << i;
    }
    for (std::size_t i = 0; i < want.states[0].ssm.size(); ++i) {
      EXPECT_TRUE(same_kind(got.states[0].ssm[i], want.states[0].ssm[i])) << i;
    }
    expect_turns(got.turns[0], want.turns[0]);
  }
}

}  // namespace
}  // namespace mamba3
