#include "ops/ceilings/ceilings.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "core/arena.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "ops/ceilings/ceilings_cuda.h"
#include "ops/ceilings/read_streams.h"
#include "ops/linear/one_openmp_thread.h"
#include "ops/linear/processor.h"

namespace mamba3 {
namespace {

using Clock = std::chrono::steady_clock;
using Tag = dnnl::memory::format_tag;

constexpr std::int64_t kReadBytes = std::int64_t{256} << 20;
constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;
constexpr int kRuns = 3;

template <class Body>
double fastest_seconds(const Body& body) {
  double best = 0;
  for (int run = 0; run <= kRuns; ++run) {
    const auto start = Clock::now();
    body();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (run == 1 || (run > 1 && seconds < best)) best = seconds;  // run 0 warms up
  }
  return best;
}

void fill_random(std::vector<std::uint16_t>& out, std::uint32_t seed) {
  for (std::uint16_t& half : out) {
    seed = seed * 1664525u + 1013904223u;
    half = to_bf16(static_cast<float>(seed >> 8) * 0x1p-24f - 0.5f).bits;
  }
}

double read_bandwidth(Context& ctx) {
  ArenaScope scope(ctx.workspace());
  auto* const words = scope.allocate<std::uint64_t>(kReadBytes / 8);
  const std::int64_t pieces = kReadBytes / kPieceBytes, piece_words = kPieceBytes / 8;
  ctx.pool().run(pieces, [&](std::int64_t piece, int) {
    std::fill_n(words + piece * piece_words, piece_words, static_cast<std::uint64_t>(piece));
  });
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(pieces));
  const double seconds = fastest_seconds([&] {
    ctx.pool().run(pieces, [&](std::int64_t piece, int) {
      sums[piece] = read_streams(reinterpret_cast<const std::byte*>(words + piece * piece_words),
                                 kPieceBytes);
    });
  });
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    if (sums[piece] != static_cast<std::uint64_t>(piece * piece_words)) {
      fail(ErrorCode::kUnavailable,
           "memory read back other numbers than were written; the machine is faulty");
    }
  }
  return static_cast<double>(kReadBytes) / seconds;
}

// One thread's share of a product: all rows, some outputs.
struct Share {
  dnnl::matmul primitive;
  std::unordered_map<int, dnnl::memory> arguments;
};

Share make_share(const dnnl::engine& engine, dnnl::stream& stream, const GemmShape& shape,
                 std::int64_t outs, Compute compute) {
  using Kind = dnnl::memory::data_type;
  // As linear does: without such products the rounded numbers are multiplied as fp32.
  const bool bf16 = compute == Compute::kBf16 && multiplies_bf16();
  const Kind kind = bf16 ? Kind::bf16 : Kind::f32;
  const dnnl::memory::desc x({shape.m, shape.k}, kind, Tag::ab),
      y({shape.m, outs}, Kind::f32, Tag::ab);
  const dnnl::memory::desc any({shape.k, outs}, kind, Tag::any);
  const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(x, any, y), engine);
  const auto filled = [&](const dnnl::memory::desc& target, const dnnl::memory::dims& dims) {
    std::vector<std::uint16_t> numbers(static_cast<std::size_t>(dims[0] * dims[1]));
    fill_random(numbers, 7);
    dnnl::memory plain({dims, Kind::bf16, Tag::ab}, engine, numbers.data());
    dnnl::memory out(target, engine);
    dnnl::reorder(plain, out).execute(stream, plain, out);
    stream.wait();
    return out;
  };
  Share share{dnnl::matmul(chosen), {}};
  share.arguments = {{DNNL_ARG_SRC, filled(x, {shape.m, shape.k})},
                     {DNNL_ARG_WEIGHTS, filled(chosen.weights_desc(), {shape.k, outs})},
                     {DNNL_ARG_DST, dnnl::memory(y, engine)}};
  return share;
}

}  // namespace

double measured_bandwidth(MemoryTraffic traffic, Context& ctx) {
  if (ctx.gpu()) return measured_bandwidth_cuda(traffic, ctx);
  if (traffic == MemoryTraffic::kRead) return read_bandwidth(ctx);
  constexpr std::int64_t kWriteBytes = std::int64_t{8}
                                       << 20;  // memset and memcpy then pass caches by
  const bool two_ways = traffic != MemoryTraffic::kWrite;
  ArenaScope scope(ctx.workspace());
  auto* const from = scope.allocate<std::byte>(kReadBytes);
  auto* const to = traffic == MemoryTraffic::kCopy ? scope.allocate<std::byte>(kReadBytes) : from;
  ctx.pool().run(kReadBytes / kWriteBytes, [&](std::int64_t piece, int) {
    std::memset(from + piece * kWriteBytes, static_cast<int>(piece), kWriteBytes);
  });
  const double seconds = fastest_seconds([&] {
    ctx.pool().run(kReadBytes / kWriteBytes, [&](std::int64_t piece, int) {
      std::byte* const out = to + piece * kWriteBytes;
      if (traffic == MemoryTraffic::kWrite) {
        std::memset(out, static_cast<int>(piece), kWriteBytes);
      } else if (traffic == MemoryTraffic::kCopy) {
        std::memcpy(out, from + piece * kWriteBytes, kWriteBytes);
      } else {
        std::transform(out, out + kWriteBytes, out, [](std::byte b) { return ~b; });
      }
    });
  });
  return static_cast<double>(two_ways ? 2 * kReadBytes : kReadBytes) / seconds;
}

double measured_read_bandwidth(Context& ctx) {
  return measured_bandwidth(MemoryTraffic::kRead, ctx);
}
double measured_gemm_rate(const GemmShape& shape, Compute compute, Context& ctx) {
  if (ctx.gpu()) return measured_gemm_rate_cuda(shape, compute, ctx);
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const OneOpenMpThread one;  // a primitive runs on the thread that calls it
  const std::int64_t threads = std::min<std::int64_t>(ctx.threads(), shape.n);
  std::vector<Share> shares;
  for (std::int64_t i = 0; i < threads; ++i) {
    const std::int64_t outs = (i + 1) * shape.n / threads - i * shape.n / threads;
    shares.push_back(make_share(engine, stream, shape, outs, compute));
  }
  const double seconds = fastest_seconds([&] {
    ctx.pool().run(threads, [&](std::int64_t i, int) {
      const OneOpenMpThread here;
      dnnl::stream own(engine);
      shares[i].primitive.execute(own, shares[i].arguments);
      own.wait();
    });
  });
  return shape.flops() / seconds;
}

}  // namespace mamba3
