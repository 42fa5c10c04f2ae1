// What a call gives the scans in chunks.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "core/check.h"
#include "ops/mamba3_common/mamba3_token.cuh"
#include "ops/mamba3_scan/mamba3_scan.h"

namespace mamba3 {

// What the scan and its way back have in common.
template <class Args, class Job>
void take_inputs(const Args& args, std::int64_t tokens, const char* op, Job& job) {
  job.sizes = token_sizes(args.dims);
  job.params = args.params;
  job.columns = args.columns;
  job.states = args.states;
  job.cu_seqlens = args.cu_seqlens.data();
  job.slots = args.slots.data();
  job.tokens = tokens;
  job.sequences = static_cast<std::int64_t>(args.slots.size());
  job.z = reinterpret_cast<const __nv_bfloat16*>(args.columns.z_bf16);
  job.x = reinterpret_cast<const __nv_bfloat16*>(args.columns.x_bf16);
  job.zx_stride = args.columns.zx_stride;
  check_input(tokens < (std::int64_t{1} << 30), op, ": ", tokens,
              " tokens in one call; expected fewer than 2^30; shorten the segment");
}

template <class Job>
void take_arguments(const Mamba3ScanArgs& args, Job& job) {
  take_inputs(args, args.y.shape[0], "mamba3_scan", job);
  job.y = args.y.data;
  job.y_stride = args.y.stride[0];
  job.y_bf16 = args.y.is_bf16();
  check_input(job.y_bf16 == (job.z != nullptr),
              "mamba3_scan: of z, x and y some are bf16 and some fp32; expected one type");
  check_input(!job.y_bf16 || (begins_on_pieces(job.y, 2 * job.y_stride) &&
                              begins_on_pieces(job.z, 2 * job.zx_stride) &&
                              begins_on_pieces(job.x, 2 * job.zx_stride)),
              "mamba3_scan: rows of z, x or y in bf16 do not begin on 16 bytes; expected that");
}

}  // namespace mamba3
