#include "ops/linear/cublas_product.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
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
  bool x_transposed, w_transposed;
  std::int64_t x_stride, w_stride, y_stride;
  cudaDataType_t type;  // of x and w
  cudaDataType_t y_type;
  std::uint32_t x_align, w_align, y_align;
  CublasSums sums;
  auto key() const {
    return std::make_tuple(m, n, k, x_transposed, w_transposed, x_stride, w_stride, y_stride,
                           static_cast<int>(type), static_cast<int>(y_type), x_align, w_align,
                           y_align, sums);
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

// A matrix of the library, in its column-major eyes: rows of ours are its columns.
cublasLtMatrixLayout_t layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns,
                              std::int64_t stride, const char* what) {
  cublasLtMatrixLayout_t out = nullptr;
  check_blas(cublasLtMatrixLayoutCreate(&out, type, columns, rows, stride), what);
  return out;
}

// The library makes y^T [n, m] = w [n, k] x^T [k, m]: w comes first, and is what has to be
// transposed where it lies as [n, k].
void describe(const Shape& s, Product& product) {
  const cublasOperation_t of_w = s.w_transposed ? CUBLAS_OP_N : CUBLAS_OP_T;
  const cublasOperation_t of_x = s.x_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  check_blas(cublasLtMatmulDescCreate(&product.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "describing a product");
  check_blas(cublasLtMatmulDescSetAttribute(product.operation, CUBLASLT_MATMUL_DESC_TRANSA, &of_w,
                                            sizeof(of_w)),
             "describing a product");
  check_blas(cublasLtMatmulDescSetAttribute(product.operation, CUBLASLT_MATMUL_DESC_TRANSB, &of_x,
                                            sizeof(of_x)),
             "describing a product");
  product.w = s.w_transposed ? layout(s.type, s.k, s.n, s.w_stride, "describing w")
                             : layout(s.type, s.n, s.k, s.w_stride, "describing w");
  product.x = s.x_transposed ? layout(s.type, s.k, s.m, s.x_stride, "describing x")
                             : layout(s.type, s.m, s.k, s.x_stride, "describing x");
  product.y = layout(s.y_type, s.m, s.n, s.y_stride, "describing y");
}

// Ways to put together the pieces of a sum along k that the library may choose from.
std::uint32_t reduction_schemes(CublasSums sums) {
  if (sums == CublasSums::kAny) return CUBLASLT_REDUCTION_SCHEME_MASK;
  return sums == CublasSums::kFp32 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
                                   : CUBLASLT_REDUCTION_SCHEME_NONE;
}

// Tiles of so many outputs leave a multiprocessor room for a second block, which multiplies while
// the first reads and writes its part of y. The library ranks them behind larger tiles also where k
// is so short that this traffic counts; on an H200 they are 10 to 25 % faster there. The numbers
// are of tiles that the headers of older releases do not name: 144, 168 and 176 by 128.
constexpr std::array<std::uint32_t, 6> kTilesOfTwo = {CUBLASLT_MATMUL_TILE_128x128,
                                                      CUBLASLT_MATMUL_TILE_128x160,
                                                      CUBLASLT_MATMUL_TILE_160x128,
                                                      184,
                                                      197,
                                                      201};
constexpr int kCandidates = 8;
constexpr std::int64_t kShortSumPerByte = 512;  // k for a byte of an output
constexpr std::int64_t kManyOutputs = std::int64_t{10} << 20;

bool waits_for_y(const Shape& s) {
  const std::int64_t y_bytes = s.y_type == CUDA_R_16BF ? 2 : 4;
  return s.sums == CublasSums::kFp32 && s.type == CUDA_R_16BF &&
         s.k <= kShortSumPerByte * y_bytes && s.m * s.n >= kManyOutputs;
}

bool leaves_room(const cublasLtMatmulAlgo_t& algorithm) {
  std::uint32_t tile = CUBLASLT_MATMUL_TILE_UNDEFINED;
  const cublasStatus_t status = cublasLtMatmulAlgoConfigGetAttribute(
      &algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof(tile), nullptr);
  return status == CUBLAS_STATUS_SUCCESS &&
         std::find(kTilesOfTwo.begin(), kTilesOfTwo.end(), tile) != kTilesOfTwo.end();
}

void choose_algorithm(cublasLtHandle_t handle, const Shape& shape, Product& product) {
  cublasLtMatmulPreference_t preference = nullptr;
  check_blas(cublasLtMatmulPreferenceCreate(&preference), "making a preference");
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kCublasUsedBytes);
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction_schemes(shape.sums));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.w_align);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.x_align);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.y_align);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.y_align);
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, product.operation, product.w, product.x, product.y, product.y, preference,
      waits_for_y(shape) ? kCandidates : 1, found.data(), &count);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0) {
    fail(ErrorCode::kUnavailable, "cuBLASLt has no algorithm for a product of ", shape.m, " x ",
         shape.n, " x ", shape.k, ": ", cublasLtGetStatusString(status));
  }
  const auto* const end = found.data() + count;
  const auto* chosen = found.data();
  if (waits_for_y(shape)) {
    chosen = std::find_if(chosen, end, [](const auto& each) { return leaves_room(each.algo); });
  }
  product.algorithm = chosen == end ? found[0].algo : chosen->algo;
}

// Prompts come in any length: what was kept for their shapes is forgotten when there are so many.
constexpr std::size_t kMostProducts = 1024;

// Where sums stay whole, the algorithm is the one for so many rows, whatever their number.
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
      if (shape.sums == CublasSums::kWhole) chosen_for.m = kManyRows;
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
                    args.x_transposed,
                    args.w_transposed,
                    args.x_stride,
                    args.w_stride,
                    y_stride,
                    args.bf16 ? CUDA_R_16BF : CUDA_R_32F,
                    args.y.is_bf16() ? CUDA_R_16BF : CUDA_R_32F,
                    alignment(args.x, args.x_stride * bytes),
                    alignment(args.w, args.w_stride * bytes),
                    alignment(args.y.data, y_stride * dtype_bytes(args.y.dtype)),
                    args.sums};
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
