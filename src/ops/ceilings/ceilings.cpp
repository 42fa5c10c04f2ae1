#include "ops/ceilings/ceilings.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "core/check.h"
#include "core/thread_pool.h"
#include "ops/ceilings/ceilings_cuda.h"
#include "ops/linear/one_openmp_thread.h"
#include "ops/linear/processor.h"

namespace mamba3 {
namespace {

using Clock = std::chrono::steady_clock;
using Tag = dnnl::memory::format_tag;

constexpr std::int64_t kReadBytes = std::int64_t{256} << 20;
constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;
constexpr std::int64_t kPieces = kReadBytes / kPieceBytes;
// Streams that start a power of two apart would displace each other from the caches.
constexpr std::int64_t kReadOfPiece = kPieceBytes - 8 * (4096 - 64);
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

void fill_random(std::vector<float>& out, std::uint32_t seed) {
  for (float& number : out) {
    seed = seed * 1664525u + 1013904223u;
    number = static_cast<float>(seed >> 8) * 0x1p-24f - 0.5f;
  }
}

// One thread's share of a product: all rows, some outputs.
struct Share {
  dnnl::matmul primitive;
  std::unordered_map<int, dnnl::memory> arguments;
};

Share make_share(const dnnl::engine& engine, dnnl::stream& stream, const GemmShape& shape,
                 std::int64_t outs, Compute compute) {
  using Kind = dnnl::memory::data_type;
  // What linear multiplies too: oneDNN has no bf16 products, or slow ones, for other processors.
  const Kind kind = compute == Compute::kBf16 && multiplies_bf16() ? Kind::bf16 : Kind::f32;
  const dnnl::memory::desc x({shape.m, shape.k}, kind, Tag::ab),
      y({shape.m, outs}, Kind::f32, Tag::ab);
  const dnnl::memory::desc any({shape.k, outs}, kind, Tag::any);
  const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(x, any, y), engine);
  const auto filled = [&](const dnnl::memory::desc& target, const dnnl::memory::dims& dims) {
    std::vector<float> numbers(static_cast<std::size_t>(dims[0] * dims[1]));
    fill_random(numbers, 7);
    dnnl::memory plain({dims, Kind::f32, Tag::ab}, engine, numbers.data());
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

// Every word of a piece is the piece's number.
Memory filled_block(Context& ctx) {
  Memory block = allocate_memory(static_cast<std::size_t>(kReadBytes), nullptr);
  if (!block) fail(ErrorCode::kUnavailable, "no memory for the ", kReadBytes, " bytes to measure");
  auto* const words = reinterpret_cast<std::uint64_t*>(block.get());
  ctx.pool().run(kPieces, [&](std::int64_t piece, int) {
    std::fill_n(words + piece * kPieceBytes / 8, kPieceBytes / 8,
                static_cast<std::uint64_t>(piece));
  });
  return block;
}

}  // namespace

ReadBandwidth::ReadBandwidth(Context& ctx) : ctx_(ctx) {
  if (ctx.gpu()) return;
  block_ = filled_block(ctx);
  std::array<double, kReadPatterns.size()> best{};
  for (int run = 0; run < kRuns; ++run) {
    for (std::size_t i = 0; i < best.size(); ++i) {
      pattern_ = kReadPatterns[i];
      best[i] = std::max(best[i], read_once());
    }
  }
  pattern_ = kReadPatterns[std::max_element(best.begin(), best.end()) - best.begin()];
}

double ReadBandwidth::measure() {
  return ctx_.gpu() ? measured_bandwidth_cuda(MemoryTraffic::kRead, ctx_) : read_once();
}

double ReadBandwidth::read_once() {
  std::array<std::uint64_t, kPieces> sums{};
  const auto start = Clock::now();
  ctx_.pool().run(kPieces, [&](std::int64_t piece, int) {
    sums[piece] = read_streams(block_.get() + piece * kPieceBytes, kReadOfPiece, pattern_);
  });
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  for (std::int64_t piece = 0; piece < kPieces; ++piece) {
    if (sums[piece] != static_cast<std::uint64_t>(piece * kReadOfPiece / 8)) {
      fail(ErrorCode::kUnavailable,
           "memory read back other numbers than were written; the machine is faulty");
    }
  }
  return static_cast<double>(kPieces * kReadOfPiece) / seconds;
}

double measured_read_bandwidth(Context& ctx) {
  ReadBandwidth bandwidth(ctx);
  double best = bandwidth.measure();
  if (ctx.gpu()) return best;  // the fastest of a few already
  for (int run = 1; run < kRuns; ++run) best = std::max(best, bandwidth.measure());
  return best;
}

double measured_bandwidth(MemoryTraffic traffic, Context& ctx) {
  if (ctx.gpu()) return measured_bandwidth_cuda(traffic, ctx);
  if (traffic == MemoryTraffic::kRead) return measured_read_bandwidth(ctx);
  const bool two_ways = traffic != MemoryTraffic::kWrite;
  const Memory from = filled_block(ctx);
  const Memory other = traffic == MemoryTraffic::kCopy ? filled_block(ctx) : Memory();
  std::byte* const to = other ? other.get() : from.get();
  const double seconds = fastest_seconds([&] {
    ctx.pool().run(kPieces, [&](std::int64_t piece, int) {
      std::byte* const out = to + piece * kPieceBytes;
      if (traffic == MemoryTraffic::kWrite) {
        std::memset(out, static_cast<int>(piece), kPieceBytes);
      } else if (traffic == MemoryTraffic::kCopy) {
        std::memcpy(out, from.get() + piece * kPieceBytes, kPieceBytes);
      } else {
        std::transform(out, out + kPieceBytes, out, [](std::byte b) { return ~b; });
      }
    });
  });
  return static_cast<double>(two_ways ? 2 * kReadBytes : kReadBytes) / seconds;
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
