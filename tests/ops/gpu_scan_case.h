// Runs mamba3_scan and mamba3_step on a GPU and on the CPU, and keeps everything that they wrote.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "gpu_case.h"
#include "ops/cuda_ops.h"
#include "scan_case.h"

namespace mamba3::testing {

// Sequences after a run, one behind the other, and what else was written.
struct GpuRun {
  std::vector<std::vector<float>> y;
  std::vector<Mamba3RefState<float>> states;
  std::vector<std::vector<std::uint32_t>> turns;
  bool clean = true;
};

// Packed sequences in shuffled slots of a pool that has one more.
class GpuRunner {
 public:
  GpuRunner(const ScanCase& data, std::int64_t padding)
      : data_(data),
        padding_(padding),
        count_(static_cast<std::int64_t>(data.inputs.size())),
        inner_(data.dims.heads * data.dims.head_dim),
        pool_(data.dims, count_ + 1, padding) {
    bounds_.push_back(0);
    std::int64_t step = 5;
    while (std::gcd(step, count_ + 1) != 1) ++step;
    for (std::int64_t i = 0; i < count_; ++i) {
      slots_.push_back(static_cast<std::int32_t>((step * i + 3) % (count_ + 1)));
      pool_.put(slots_.back(), data.starts[i]);
      bounds_.push_back(bounds_.back() + data.inputs[i].tokens);
    }
  }

  // Scans round the inputs of their products.
  GpuRunner& with_bf16_products() {
    bf16_products_ = true;
    return *this;
  }
  // As on a GPU that has no tuned kernels.
  GpuRunner& with_general_kernels(bool general = true) {
    general_ = general;
    return *this;
  }
  // z and x come in bf16, and y goes out so.
  GpuRunner& with_bf16_columns() {
    bf16_columns_ = true;
    return *this;
  }
  // Long sequences are not walked in parts.
  GpuRunner& in_one_walk() {
    one_walk_ = true;
    return *this;
  }

  GpuRun scan_on_cpu() {
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

  // In one call, or the only sequence in several, of so many tokens each.
  GpuRun scan_on_gpu(const std::vector<std::int64_t>& pieces = {}) {
    Context ctx(on_gpu());
    Rows rows = packed_rows();
    const GpuArray<float> columns(ctx, all(rows.data));
    const GpuArray<float> y(ctx, all(empty_y(bounds_.back())));
    const GpuParams params(ctx, data_.inputs[0]);
    const GpuArray<std::int32_t> slots(ctx, all(slots_));
    GpuSlots states(ctx, pool_);
    std::vector<std::vector<std::int64_t>> calls{bounds_};
    if (!pieces.empty()) calls.clear();
    for (const std::int64_t tokens : pieces) calls.push_back({0, tokens});
    const NarrowColumns narrow(*this, ctx, rows);
    std::int64_t row = 0;
    for (const auto& call : calls) {
      const GpuArray<std::int64_t> bounds(ctx, all(call));
      Mamba3ScanArgs args = scan_args(rows, y.data() + row * (inner_ + padding_), call.back());
      args.columns = split_columns(columns.data() + row * rows.stride, rows.stride, data_.dims);
      args.params = params.params;
      args.states = states.states();
      args.cu_seqlens = bounds.span();
      args.slots = slots.span();
      if (bf16_columns_) narrow.put(row, args);
      mamba3_scan_cuda(args, ctx);
      row += call.back();
    }
    std::vector<float> out;
    y.copy_to(out);
    if (bf16_columns_) narrow.copy_to(inner_ + padding_, out);
    states.fetch();
    return packed_result(out);
  }

  // All sequences token by token; they have one length.
  GpuRun step_on_cpu() {
    Context ctx(with_threads(1));
    GpuRun out;
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

  GpuRun step_on_gpu() {
    Context ctx(on_gpu());
    const GpuParams params(ctx, data_.inputs[0]);
    const GpuArray<std::int32_t> slots(ctx, all(slots_));
    GpuSlots states(ctx, pool_);
    GpuRun out;
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
  // z and x of packed rows in bf16, in rows that begin on 16 bytes, and room for y.
  class NarrowColumns {
   public:
    NarrowColumns(const GpuRunner& runner, Context& ctx, const Rows& rows)
        : inner_(runner.inner_),
          stride_((inner_ + 15) / 8 * 8),
          tokens_(runner.bf16_columns_ ? runner.bounds_.back() : 0),
          z_(ctx, all(cut(rows, 0))),
          x_(ctx, all(cut(rows, inner_))),
          y_(ctx, all(std::vector<Bf16>(tokens_ * stride_, to_bf16(kNan)))) {}
    void put(std::int64_t row, Mamba3ScanArgs& args) const {
      args.columns.z = args.columns.x = nullptr;
      args.columns.z_bf16 = z_.data() + row * stride_;
      args.columns.x_bf16 = x_.data() + row * stride_;
      args.columns.zx_stride = stride_;
      const std::int64_t rows = args.y.shape[0];
      args.y = TensorView<Bf16, 2>(y_.data() + row * stride_, {rows, inner_}, {stride_, 1});
    }
    // Into rows so far apart, whose rest stays NaN unless something was written behind a row here.
    void copy_to(std::int64_t stride, std::vector<float>& out) const {
      std::vector<Bf16> y;
      y_.copy_to(y);
      for (std::int64_t row = 0; row < tokens_; ++row) {
        for (std::int64_t i = 0; i < std::min(stride, stride_); ++i) {
          out[row * stride + i] = to_float(y[row * stride_ + i]);
        }
      }
    }

   private:
    std::vector<Bf16> cut(const Rows& rows, std::int64_t first) const {
      std::vector<Bf16> out(tokens_ * stride_, to_bf16(kNan));
      for (std::int64_t row = 0; row < tokens_; ++row) {
        for (std::int64_t i = 0; i < inner_; ++i) {
          out[row * stride_ + i] = to_bf16(rows.data[row * rows.stride + first + i]);
        }
      }
      return out;
    }
    std::int64_t inner_, stride_, tokens_;
    GpuArray<Bf16> z_, x_, y_;
  };

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
    args.bf16_products = bf16_products_;
    args.one_walk = one_walk_;
    args.general = general_;
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
                  GpuRun& out) const {
    const auto begin = y.begin() + row * (inner_ + padding_);
    out.y[i].insert(out.y[i].end(), begin, begin + inner_);
    out.clean = out.clean && std::all_of(begin + inner_, begin + inner_ + padding_,
                                         [](float v) { return std::isnan(v); });
  }
  void append(const std::vector<float>& y, GpuRun& out) const {
    for (std::int64_t i = 0; i < count_; ++i) append_row(y, i, i, out);
  }
  GpuRun packed_result(const std::vector<float>& y) const {
    GpuRun out;
    out.y.resize(data_.inputs.size());
    for (std::int64_t i = 0; i < count_; ++i) {
      for (std::int64_t row = bounds_[i]; row < bounds_[i + 1]; ++row) append_row(y, row, i, out);
    }
    return with_states(std::move(out));
  }
  GpuRun with_states(GpuRun out) const {
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
  bool bf16_products_ = false;
  bool one_walk_ = false;
  bool general_ = false;
  bool bf16_columns_ = false;
  std::int64_t count_;
  std::int64_t inner_;
  std::vector<std::int64_t> bounds_;
  std::vector<std::int32_t> slots_;
  Slots pool_;
};

}  // namespace mamba3::testing
