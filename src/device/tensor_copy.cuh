// Hopper's copies of boxes of a matrix between global and shared memory (TMA), where a tensor map
// says what lies there: beyond the matrix's ends they read zeros and write nothing. Tensor maps are
// made by ops/tensor_map.h. Code for older cards may name these; it never runs them.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device/bulk_copy.cuh"

namespace mamba3 {

// The box at (column, row) into this block's shared memory; its bytes count for `full`.
__device__ __forceinline__ void load_box(void* to_shared, const CUtensorMap& map, int column,
                                         int row, Barrier* full) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to_shared)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(full))
      : "memory");
}

// The same into the same place of several blocks of the cluster, each with its own `full`.
__device__ __forceinline__ void load_box(void* to_shared, const CUtensorMap& map, int column,
                                         int row, Barrier* full, std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to_shared)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(full)), "h"(blocks)
      : "memory");
}

// The box into the L2, for whoever reads it soon.
__device__ __forceinline__ void prefetch_box(const CUtensorMap& map, int column, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map),
               "r"(column), "r"(row)
               : "memory");
}

__device__ __forceinline__ void store_box(const CUtensorMap& map, int column, int row,
                                          const void* from_shared) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
      "r"(column), "r"(row), "r"(shared_address(from_shared))
      : "memory");
}

// Closes a group of the stores that this thread has begun.
__device__ __forceinline__ void store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until all but the latest kPending groups have read their shared memory.
template <int kPending>
__device__ __forceinline__ void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace mamba3
