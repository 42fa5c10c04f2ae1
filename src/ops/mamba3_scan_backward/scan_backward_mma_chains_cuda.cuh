// Chains: neighbouring heads of a group whose rows of B's and C's gradients are summed up in bf16,
// one head after the other. Where there are heads enough for every multiprocessor, one block walks
// all heads of a chain and adds to what it left, so that a quarter of the rows is written and read
// again; otherwise the sum over heads adds, and rounds, in the same order. The bits are the same.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_memory_cuda.cuh"

namespace mamba3 {
namespace {

// Of 64 numbers a thread has but 8 bytes of a row, and adding them takes more than it spares.
inline int chain_heads(const Mamba3Dims& dims) {
  const std::int64_t heads = dims.heads / dims.groups;
  return dims.state < 128 ? 1 : heads % 4 == 0 ? 4 : heads % 2 == 0 ? 2 : 1;
}

// Whether blocks walk chains of a sequence. Sequences do as long as it makes no further round of
// blocks of equal length, and unless one is so long that others would end before.
__device__ __forceinline__ bool walks_chains(const BackwardMmaJob& job, const MmaPlace& at) {
  const std::int64_t heads = job.scan.sizes.heads, all = job.multiprocessors;
  const auto rounds = [all](std::int64_t blocks) { return (blocks + all - 1) / all; };
  const std::int64_t up_to = (at.sequence + 1) * heads;
  const std::int64_t length = std::int64_t{job.chain} * (at.end - at.begin);
  return rounds(up_to / job.chain) * job.chain <= rounds(job.scan.sequences * heads) &&
         length * all <= job.scan.tokens * heads * 5 / 4;
}

struct ChainPlace : WarpPlace {
  int first_head;  // of the chain; rows stand in its place

  __device__ __forceinline__ explicit ChainPlace(const MmaScanJob& job)
      : WarpPlace(job), first_head(head) {}
};

// Of a row of 128: in place of what is there, or added to it, by the thread that wrote it.
__device__ __forceinline__ void put_words(const std::uint32_t (&words)[4], bool adds,
                                          __nv_bfloat16* to) {
  if (adds) {
    asm volatile("red.relaxed.gpu.global.add.noftz.v4.bf16x2 [%0], {%1, %2, %3, %4};" ::"l"(
                     __cvta_generic_to_global(to)),
                 "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  } else {
    __stcs(reinterpret_cast<uint4*>(to), make_uint4(words[0], words[1], words[2], words[3]));
  }
}
// Of a row of 64, whose heads are no chains.
__device__ __forceinline__ void put_words(const std::uint32_t (&words)[2], bool,
                                          __nv_bfloat16* to) {
  __stcs(reinterpret_cast<uint2*>(to), make_uint2(words[0], words[1]));
}

}  // namespace
}  // namespace mamba3
