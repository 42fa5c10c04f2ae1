// What the tests of the small ops share.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "mamba3/context.h"
#include "mamba3/error.h"
#include "mamba3/tensor.h"

namespace mamba3 {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

inline ContextOptions with_threads(int threads) {
  ContextOptions options;
  options.threads = threads;
  return options;
}

inline std::vector<float> random_floats(std::int64_t count, std::uint64_t seed, float scale = 1) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& value : out) value = normal(engine);
  return out;
}

// Rows with a gap behind each, filled with NaN: whoever reads the gap shows it, and whoever writes
// it is found by gap_untouched.
struct PaddedRows {
  PaddedRows(std::int64_t rows, std::int64_t columns, std::int64_t gap)
      : view(nullptr, {rows, columns}, {columns + gap, 1}),
        storage(static_cast<std::size_t>(rows * (columns + gap) + 1), kNan) {
    view.data = storage.data();
  }
  PaddedRows(const std::vector<float>& values, std::int64_t rows, std::int64_t columns,
             std::int64_t gap)
      : PaddedRows(rows, columns, gap) {
    for (std::int64_t i = 0; i < rows * columns; ++i) view(i / columns, i % columns) = values[i];
  }
  PaddedRows(const PaddedRows&) = delete;
  PaddedRows& operator=(const PaddedRows&) = delete;

  std::vector<float> values() const {
    std::vector<float> out;
    for (std::int64_t row = 0; row < view.shape[0]; ++row) {
      for (std::int64_t i = 0; i < view.shape[1]; ++i) out.push_back(view(row, i));
    }
    return out;
  }
  bool gap_untouched() const {
    for (std::int64_t row = 0; row < view.shape[0]; ++row) {
      for (std::int64_t i = view.shape[1]; i < view.stride[0]; ++i) {
        if (!std::isnan(view.data[row * view.stride[0] + i])) return false;
      }
    }
    return true;
  }

  TensorView<float, 2> view;
  std::vector<float> storage;
};

inline bool same_bits(const float* a, const float* b, std::int64_t count) {
  return count == 0 || std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(float)) == 0;
}
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), static_cast<std::int64_t>(a.size()));
}

// Runs `body` once for every instruction set that the kernels are compiled for and this processor
// has, and leaves the best one chosen.
inline void for_each_target(const std::function<void()>& body) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(std::string("target ") + hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// The message of the Error that `body` throws; fails the test when it throws none.
inline std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}

}  // namespace mamba3
