// Memory of benchmarks where the ops of a Context find it: random numbers, ids, room for results.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/matrix.h"
#include "core/memory.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3::cli {

// How many copies of something of `bytes` a benchmark takes in turn, so that none is found in a
// cache: a model would not find it there either.
std::int64_t copies_beyond_caches(std::int64_t bytes);

// Below `vocab`; each stream has others.
std::vector<std::int32_t> random_ids(std::int64_t count, std::int64_t vocab, std::uint64_t stream,
                                     const Context& ctx);

class BenchMemory {
 public:
  explicit BenchMemory(Context& ctx) : ctx_(ctx) {}

  float* floats(std::int64_t count);         // indeterminate
  float* random_floats(std::int64_t count);  // in [-1, 1)
  Bf16* random_bf16(std::int64_t count);     // in [-1, 1)
  TensorView<float, 2> random_rows(std::int64_t rows, std::int64_t columns) {
    return {random_floats(rows * columns), {rows, columns}};
  }
  // fp32, or bf16: what an op takes either way.
  Matrix random_matrix(std::int64_t rows, std::int64_t columns, bool bf16) {
    if (!bf16) return random_rows(rows, columns);
    return TensorView<Bf16, 2>(random_bf16(rows * columns), {rows, columns});
  }

  template <class T>
  std::span<const T> place(const std::vector<T>& numbers) {
    auto* to = reinterpret_cast<T*>(take(static_cast<std::int64_t>(numbers.size() * sizeof(T))));
    copy_from_host(to, numbers.data(), numbers.size() * sizeof(T));
    return {to, numbers.size()};
  }

 private:
  std::byte* take(std::int64_t bytes);
  void copy_from_host(void* to, const void* from, std::size_t bytes);
  // `count` elements at `to`: a random block, then copies of it.
  template <class T>
  T* fill(T* to, std::int64_t count);

  Context& ctx_;
  std::vector<Memory> blocks_;
  std::uint64_t streams_ = 0;
};

}  // namespace mamba3::cli
