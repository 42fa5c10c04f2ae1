// The skinny path on processors with AVX512-BF16, which Highway 1.0.3 does not use yet. Compiled
// for them as a whole (cmake/simd.cmake); the headers here bring no functions that others could
// share.
#include "ops/linear/linear_skinny.h"

#include <hwy/base.h>

#include <immintrin.h>

#include <cstring>

namespace mamba3 {
namespace {

struct StoredBf16 {
  static constexpr std::int64_t kBytes = 2;
  static HWY_INLINE __m512bh load(const std::byte* w) {
    return (__m512bh)_mm512_loadu_si512(w);  // NOLINT: the only way between the two types
  }
};

struct RoundedF32 {
  static constexpr std::int64_t kBytes = 4;
  static HWY_INLINE __m512bh load(const std::byte* w) {
    return _mm512_cvtne2ps_pbh(_mm512_loadu_ps(w + 64), _mm512_loadu_ps(w));
  }
};

// A vector holds 32 numbers; a sum's lane adds the products of two neighbours.
template <class Weights>
struct Bf16Products {
  using X = __m512bh;
  using W = __m512bh;
  using Sum = __m512;
  static constexpr std::int64_t kXBytes = 2;
  static constexpr std::int64_t kWBytes = Weights::kBytes;
  static constexpr int kMostRows = 6;
  static constexpr bool kFetchAhead = true;
  static constexpr std::int64_t step() { return 32; }
  static HWY_INLINE Sum zero() { return _mm512_setzero_ps(); }
  static HWY_INLINE X load_x(const std::byte* x) { return StoredBf16::load(x); }
  static HWY_INLINE W load_w(const std::byte* w) { return Weights::load(w); }
  static HWY_INLINE Sum multiply_add(X x, W w, Sum sum) { return _mm512_dpbf16_ps(sum, x, w); }

  // Halves the lanes of two vectors into one, twice, then adds the four quarters.
  static HWY_INLINE void total4(Sum a, Sum b, Sum c, Sum d, float* out) {
    const Sum ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Sum cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d ab64 = _mm512_castps_pd(ab);
    const __m512d cd64 = _mm512_castps_pd(cd);
    const Sum all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab64, cd64)),
                                  _mm512_castpd_ps(_mm512_unpackhi_pd(ab64, cd64)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
};

#include "ops/linear/skinny_tiles.inc"

}  // namespace

void skinny_bf16_products(const SkinnyArgs& args, std::int64_t begin, std::int64_t end) {
  skinny_outputs<Bf16Products<StoredBf16>>(args, begin, end);
}

void skinny_bf16_products_f32_weights(const SkinnyArgs& args, std::int64_t begin,
                                      std::int64_t end) {
  skinny_outputs<Bf16Products<RoundedF32>>(args, begin, end);
}

}  // namespace mamba3
