// How the threads of a block are divided over rows: short rows share a block.
#pragma once

#include <cstdint>

namespace mamba3 {

// Each row has a team of threads, a power of two of them, which takes V of its numbers at a time.
struct RowTeams {
  int threads;  // of a team

  // For rows of `columns` numbers and blocks of `block` threads, a power of two.
  RowTeams(std::int64_t columns, int vector, int block) : threads(1) {
    while (threads < block && std::int64_t{threads} * vector < columns) threads *= 2;
  }
  // In a block of so many threads.
  std::int64_t rows(int block) const { return block / threads; }

  __device__ __forceinline__ std::int64_t row() const {
    return std::int64_t{blockIdx.x} * (blockDim.x / threads) + threadIdx.x / threads;
  }
  __device__ __forceinline__ int place() const {
    return static_cast<int>(threadIdx.x) & (threads - 1);
  }
};

}  // namespace mamba3
