#include "ops/linear/onednn_gemm.h"

#include <oneapi/dnnl/dnnl.hpp>

#include "core/check.h"
#include "mamba3/tensor.h"
#include "ops/linear/one_openmp_thread.h"

namespace mamba3 {
namespace {

using dnnl::memory;

template <class X>
memory::data_type type_of() {
  return dtype_of<X>() == DType::kBf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

template <class X>
memory::dims w_strides(std::int64_t stride) {
  return dtype_of<X>() == DType::kBf16 ? memory::dims{1, stride} : memory::dims{stride, 1};
}

// One product for all sizes: they are given with each call, so no shape costs a set-up of its own.
template <class X>
struct Product {
  Product() {
    constexpr auto kLater = DNNL_RUNTIME_DIM_VAL;
    const memory::desc x({kLater, kLater}, type_of<X>(), {kLater, 1});
    const memory::desc w({kLater, kLater}, type_of<X>(), w_strides<X>(kLater));
    const memory::desc y({kLater, kLater}, memory::data_type::f32, {kLater, 1});
    matmul = dnnl::matmul({{x, w, y}, engine});
  }

  void run(const GemmArgs<X>& a) {
    // oneDNN reads its inputs through pointers to mutable memory.
    const memory x({{a.m, a.k}, type_of<X>(), {a.x_stride, 1}}, engine, const_cast<X*>(a.x));
    const memory w({{a.k, a.n}, type_of<X>(), w_strides<X>(a.w_stride)}, engine,
                   const_cast<X*>(a.w));
    const memory y({{a.m, a.n}, memory::data_type::f32, {a.y_stride, 1}}, engine, a.y);
    matmul.execute(stream, {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}});
    stream.wait();
  }

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::matmul matmul;
};

template <class X>
void run(const GemmArgs<X>& args) {
  const OneOpenMpThread one;
  try {
    // Of each thread: oneDNN does not promise that one primitive may run in two at a time.
    thread_local Product<X> product;
    product.run(args);
  } catch (const dnnl::error& error) {
    fail(ErrorCode::kUnavailable, "oneDNN refused a product of [", args.m, ", ", args.k, "] and [",
         args.k, ", ", args.n, "]: ", error.what(), "; check the installed libdnnl");
  }
}

}  // namespace

void onednn_gemm(const GemmArgs<float>& args) {
  run(args);
}
void onednn_gemm(const GemmArgs<Bf16>& args) {
  run(args);
}

}  // namespace mamba3
