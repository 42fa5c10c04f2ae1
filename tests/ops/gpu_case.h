// What the tests of the ops on a GPU share: data in its memory.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "core/gpu.h"
#include "core/memory.h"
#include "mamba3_case.h"
#include "op_test_helpers.h"

namespace mamba3::testing {

#define SKIP_WITHOUT_GPU() \
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU"

// The largest difference to the CPU, relative to the largest value.
inline constexpr double kClose = 2e-5;

inline ContextOptions on_gpu() {
  ContextOptions options;
  options.threads = 1;
  options.device = {DeviceKind::kCuda, 0};
  return options;
}

// Host data and its copy in a GPU's memory.
template <class T>
class GpuArray {
 public:
  GpuArray(Context& ctx, std::span<const T> values)
      : gpu_(ctx.gpu()),
        count_(values.size()),
        memory_(allocate_memory(std::max<std::size_t>(values.size_bytes(), 16), gpu_)) {
    if (count_ > 0) gpu_->copy_in(memory_.get(), values.data(), values.size_bytes());
  }
  T* data() const { return reinterpret_cast<T*>(memory_.get()); }
  std::span<const T> span() const { return {data(), count_}; }
  void copy_to(std::vector<T>& out) const {
    out.resize(count_);
    if (count_ > 0) gpu_->copy_out(out.data(), memory_.get(), count_ * sizeof(T));
  }

 private:
  std::shared_ptr<Gpu> gpu_;
  std::size_t count_;
  Memory memory_;
};

// A vector as a span of const.
template <class T>
std::span<const T> all(const std::vector<T>& v) {
  return v;
}

// Rows with gaps and their copy in a GPU's memory, rounded where T is Bf16.
template <class T>
class GpuRowsOf {
 public:
  GpuRowsOf(Context& ctx, PaddedRows& rows)
      : rows_(rows),
        memory_(ctx, all(stored(rows.storage))),
        view(memory_.data(), rows.view.shape, rows.view.stride) {}
  // Back to where they came from.
  void fetch() {
    std::vector<T> values;
    memory_.copy_to(values);
    for (std::size_t i = 0; i < values.size(); ++i) rows_.storage[i] = to_float(values[i]);
  }

 private:
  static std::vector<T> stored(const std::vector<float>& values) {
    std::vector<T> out;
    for (const float value : values) {
      if constexpr (std::is_same_v<T, Bf16>) {
        out.push_back(to_bf16(value));
      } else {
        out.push_back(value);
      }
    }
    return out;
  }
  PaddedRows& rows_;
  GpuArray<T> memory_;

 public:
  TensorView<T, 2> view;
};
using GpuRows = GpuRowsOf<float>;

// A layer's parameters in a GPU's memory.
class GpuParams {
 public:
  GpuParams(Context& ctx, const Mamba3RefInputs<float>& in) : params(params_of(in)) {
    put(ctx, in.dt_bias, params.dt_bias);
    put(ctx, in.skip, params.skip);
    put(ctx, in.in_b_bias, params.in_b_bias);
    put(ctx, in.out_c_bias, params.out_c_bias);
    put(ctx, in.in_b_norm, params.in_b_norm);
    put(ctx, in.out_c_norm, params.out_c_norm);
    put(ctx, in.mimo_x, params.mimo_x);
    put(ctx, in.mimo_z, params.mimo_z);
    put(ctx, in.mimo_o, params.mimo_o);
    put(ctx, in.out_norm, params.out_norm);
  }

 private:
  void put(Context& ctx, const std::vector<float>& values, const float*& pointer) {
    if (values.empty()) return;
    arrays_.push_back(std::make_unique<GpuArray<float>>(ctx, all(values)));
    pointer = arrays_.back()->data();
  }
  std::vector<std::unique_ptr<GpuArray<float>>> arrays_;

 public:
  Mamba3Params params;
};

class GpuSlots {
 public:
  GpuSlots(Context& ctx, Slots& slots)
      : gpu_(ctx.gpu()),
        slots_(slots),
        turns_(ctx, all(slots.turns)),
        ssm_(ctx, all(slots.ssm)),
        k_(ctx, all(slots.k)),
        v_(ctx, all(slots.v)) {}
  Mamba3States states() {
    Mamba3States out = slots_.states();
    out.turns = turns_.data();
    out.ssm = ssm_.data();
    out.k = k_.data();
    out.v = v_.data();
    return out;
  }
  // The host's numbers of one slot; and a copy of one slot in another.
  void send(std::int64_t slot) {
    Gpu& gpu = *gpu_;
    const Mamba3States at = slots_.states();
    const auto put = [&](auto& array, const auto& host, std::int64_t stride) {
      gpu.copy_in(array.data() + slot * stride, host.data() + slot * stride,
                  static_cast<std::size_t>(stride) * sizeof(host[0]));
    };
    put(turns_, slots_.turns, at.turns_stride);
    put(ssm_, slots_.ssm, at.ssm_stride);
    put(k_, slots_.k, at.k_stride);
    put(v_, slots_.v, at.v_stride);
  }
  void copy_slot(std::int64_t from, std::int64_t to) {
    const Mamba3States at = slots_.states();
    const auto copy = [&](auto& array, std::int64_t stride) {
      gpu_->copy(array.data() + to * stride, array.data() + from * stride,
                 static_cast<std::size_t>(stride) * sizeof(*array.data()));
    };
    copy(turns_, at.turns_stride);
    copy(ssm_, at.ssm_stride);
    copy(k_, at.k_stride);
    copy(v_, at.v_stride);
  }
  void fetch() {
    turns_.copy_to(slots_.turns);
    ssm_.copy_to(slots_.ssm);
    k_.copy_to(slots_.k);
    v_.copy_to(slots_.v);
  }

 private:
  std::shared_ptr<Gpu> gpu_;
  Slots& slots_;
  GpuArray<std::uint32_t> turns_;
  GpuArray<float> ssm_, k_, v_;
};

}  // namespace mamba3::testing
