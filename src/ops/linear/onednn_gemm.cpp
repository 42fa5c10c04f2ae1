#include "ops/linear/onednn_gemm.h"

#include <oneapi/dnnl/dnnl.hpp>

#include "core/check.h"
#include "mamba3/tensor.h"
#include "ops/linear/one_openmp_thread.h"

namespace mamba3 {
namespace {

using dnnl::memory;

constexpr auto kBf16 = memory::data_type::bf16;
constexpr auto kF32 = memory::data_type::f32;

// One product for all sizes: they are given with each call, so no shape costs a set-up of its own.
struct Product {
  Product() {
    constexpr auto kLater = DNNL_RUNTIME_DIM_VAL;
    const memory::desc x({kLater, kLater}, kBf16, {kLater, 1});
    const memory::desc w({kLater, kLater}, kBf16, {1, kLater});
    const memory::desc y({kLater, kLater}, kF32, {kLater, 1});
    matmul = dnnl::matmul({{x, w, y}, engine});
  }

  void run(const OneDnnGemmArgs& a) {
    // oneDNN reads its inputs through pointers to mutable memory.
    const memory x({{a.m, a.k}, kBf16, {a.x_stride, 1}}, engine, const_cast<Bf16*>(a.x));
    const memory w({{a.k, a.n}, kBf16, {1, a.w_stride}}, engine, const_cast<Bf16*>(a.w));
    const memory y({{a.m, a.n}, kF32, {a.y_stride, 1}}, engine, a.y);
    matmul.execute(stream, {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}});
    stream.wait();
  }

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::matmul matmul;
};

// oneDNN sets up what its products share when the first one is made, under guards that a thread
// sanitizer cannot see (docs/TESTING.md). One product before all others puts a guard of ours around
// them.
void make_first_product() {
  static const bool made = [] {
    const Product first;
    return true;
  }();
  static_cast<void>(made);
}

}  // namespace

void onednn_gemm(const OneDnnGemmArgs& args) {
  const OneOpenMpThread one;
  try {
    make_first_product();
    // Of each thread: oneDNN does not promise that one primitive may run in two at a time.
    thread_local Product product;
    product.run(args);
  } catch (const dnnl::error& error) {
    fail(ErrorCode::kUnavailable, "oneDNN refused a product of [", args.m, ", ", args.k, "] and [",
         args.k, ", ", args.n, "]: ", error.what(), "; check the installed libdnnl");
  }
}

}  // namespace mamba3
