#include "ops/linear/cublas_product.h"

#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <memory>
#include <tuple>

#include "ops/launch.cuh"

namespace mamba3 {
namespace {

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorCode::kUnavailable, "cuBLASLt: ", what, " failed: ", cublasLtGetStatusString(status));
}

struct Shape {
  std::int64_t m, n, k;  // y [m, n] = x [m, k] w [n, k]^T
  std::int64_t x_stride, y_stride;
  cudaDataType_t type;  // of x and w
  cudaDataType_t y_type;
  std::uint32_t x_align, w_align, y_align;
  bool same_bits;
  auto key() const {
    return std::make_tuple(m, n, k, x_stride, y_stride, static_cast<int>(type),
                           static_cast<int>(y_type), x_align, w_align, y_align, same_bits);
  }
};

// A product of one shape: descriptors and the algorithm that the library recommends for it.
struct Product {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm{};

  Product() = default;
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product() {
    cublasLtMatrixLayoutDestroy(y);
    cublasLtMatrixLayoutDestroy(x);
    cublasLtMatrixLayoutDestroy(w);
    cublasLtMatmulDescDestroy(operation);
  }
};

// In the library's column-major eyes the result is y^T [n, m] = w [k, n]^T x^T [k, m].
void describe(const Shape& shape, Product& product) {
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check_blas(cublasLtMatmulDescCreate(&product.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "describing a product");
  check_blas(cublasLtMatmulDescSetAttribute(product.operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                            &transposed, sizeof(transposed)),
             "describing a product");
  check_blas(cublasLtMatrixLayoutCreate(&product.w, shape.type, shape.k, shape.n, shape.k),
             "describing w");
  check_blas(cublasLtMatrixLayoutCreate(&product.x, shape.type, shape.k, shape.m, shape.x_stride),
             "describing x");
  check_blas(cublasLtMatrixLayoutCreate(&product.y, shape.y_type, shape.n, shape.m, shape.y_stride),
             "describing y");
}

void choose_algorithm(cublasLtHandle_t handle, const Shape& shape, Product& product) {
  cublasLtMatmulPreference_t preference = nullptr;
  check_blas(cublasLtMatmulPreferenceCreate(&preference), "making a preference");
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kCublasUsedBytes);
  // No sums that are cut in pieces along k.
  if (shape.same_bits) set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{0});
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.w_align);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.x_align);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.y_align);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.y_align);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, product.operation, product.w, product.x, product.y,
                                     product.y, preference, 1, &found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0) {
    fail(ErrorCode::kUnavailable, "cuBLASLt has no algorithm for a product of ", shape.m, " x ",
         shape.n, " x ", shape.k, ": ", cublasLtGetStatusString(status));
  }
  product.algorithm = found.algo;
}

// Prompts come in any length: what was kept for their shapes is forgotten when there are so many.
constexpr std::size_t kMostProducts = 1024;

// With equal bits asked for, the algorithm is the one for so many rows, whatever their number.
constexpr std::int64_t kManyRows = 2048;

struct Library {
  cublasLtHandle_t handle = nullptr;
  std::map<decltype(Shape{}.key()), std::unique_ptr<Product>> products;

  Library() { check_blas(cublasLtCreate(&handle), "starting"); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    products.clear();
    cublasLtDestroy(handle);
  }

  const Product& product(const Shape& shape) {
    if (products.size() >= kMostProducts) products.clear();
    std::unique_ptr<Product>& product = products[shape.key()];
    if (!product) {
      auto made = std::make_unique<Product>();
      describe(shape, *made);
      Shape chosen_for = shape;
      if (shape.same_bits) chosen_for.m = kManyRows;
      Product many;
      describe(chosen_for, many);
      choose_algorithm(handle, chosen_for, many);
      made->algorithm = many.algorithm;
      product = std::move(made);
    }
    return *product;
  }
};

Library& library(Context& ctx) {
  std::shared_ptr<void>& cache = ctx.gpu()->linear_cache();
  if (!cache) cache = std::make_shared<Library>();
  return *static_cast<Library*>(cache.get());
}

// The largest power of two, up to 16, that divides the address of every row.
std::uint32_t alignment(const void* p, std::int64_t stride_bytes) {
  const auto bits = reinterpret_cast<std::uintptr_t>(p) | static_cast<std::uintptr_t>(stride_bytes);
  return static_cast<std::uint32_t>(std::min<std::uintptr_t>(16, bits & (~bits + 1)));
}

}  // namespace

void cublas_product(const CublasProduct& args, void* workspace, Context& ctx) {
  const std::int64_t bytes = args.bf16 ? 2 : 4;
  const std::int64_t y_stride = std::max(args.y.stride[0], args.y.shape[1]);
  const Shape shape{args.y.shape[0],
                    args.y.shape[1],
                    args.k,
                    args.x_stride,
                    y_stride,
                    args.bf16 ? CUDA_R_16BF : CUDA_R_32F,
                    args.y.is_bf16() ? CUDA_R_16BF : CUDA_R_32F,
                    alignment(args.x, args.x_stride * bytes),
                    alignment(args.w, args.k * bytes),
                    alignment(args.y.data, y_stride * dtype_bytes(args.y.dtype)),
                    args.same_bits};
  Library& blas = library(ctx);
  const Product& product = blas.product(shape);
  void* aligned = workspace;
  std::size_t workspace_bytes = kCublasWorkspaceBytes;
  std::align(kCublasAlignBytes, kCublasUsedBytes, aligned, workspace_bytes);
  const float one = 1, beta = args.accumulate ? 1.0f : 0.0f;
  check_blas(cublasLtMatmul(blas.handle, product.operation, &one, args.w, product.w, args.x,
                            product.x, &beta, args.y.data, product.y, args.y.data, product.y,
                            &product.algorithm, aligned, kCublasUsedBytes, stream_of(ctx)),
             "a product");
}

}  // namespace mamba3
