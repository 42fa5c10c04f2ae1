#include "cli/bench_memory.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/thread_pool.h"
#include "mamba3/sampling.h"
#include "ops/sampling/philox.h"

namespace mamba3::cli {
namespace {

constexpr std::int64_t kBeyondCacheBytes = std::int64_t{256} << 20;
constexpr std::int64_t kMostCopies = 64;
// Larger memory repeats a block of so many numbers; a prime, so that no two rows are equal.
constexpr std::int64_t kBlockNumbers = 4'194'301;
constexpr std::int64_t kPiece = std::int64_t{1} << 14;

void convert(float value, float& out) {
  out = value;
}
void convert(float value, Bf16& out) {
  out = to_bf16(value);
}

}  // namespace

std::int64_t copies_beyond_caches(std::int64_t bytes) {
  return std::clamp((kBeyondCacheBytes + bytes - 1) / bytes, std::int64_t{1}, kMostCopies);
}

std::vector<std::int32_t> random_ids(std::int64_t count, std::int64_t vocab, std::uint64_t stream,
                                     const Context& ctx) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < count; ++i) {
    const double draw = uniform_draw(ctx.seed(), stream, static_cast<std::uint64_t>(i));
    ids.push_back(static_cast<std::int32_t>(draw * static_cast<double>(vocab)));
  }
  return ids;
}

std::byte* BenchMemory::take(std::int64_t bytes) {
  Memory memory =
      allocate_memory(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 16)), ctx_.gpu());
  if (!memory) {
    fail(ErrorCode::kUnavailable, "no memory for ", bytes,
         " bytes of a benchmark's data; expected a device with more of it free; choose smaller "
         "--batch and --tokens");
  }
  blocks_.push_back(std::move(memory));
  return blocks_.back().get();
}

void BenchMemory::copy_from_host(void* to, const void* from, std::size_t bytes) {
  if (ctx_.gpu()) return ctx_.gpu()->copy_in(to, from, bytes);
  if (bytes > 0) std::memcpy(to, from, bytes);
}

template <class T>
T* BenchMemory::fill(T* to, std::int64_t count) {
  if (count == 0) return to;
  const std::uint64_t stream = streams_++;
  const std::int64_t first = std::min(count, kBlockNumbers);
  std::vector<T> block(static_cast<std::size_t>(first));
  ctx_.pool().run((first + kPiece - 1) / kPiece, [&](std::int64_t piece, int) {
    const std::int64_t end = std::min(first, (piece + 1) * kPiece);
    for (std::int64_t i = piece * kPiece; i < end; i += 4) {
      const auto words = random_words(ctx_.seed(), stream, static_cast<std::uint64_t>(i));
      for (std::int64_t j = 0; j < std::min<std::int64_t>(4, end - i); ++j) {
        convert(static_cast<float>(words[static_cast<std::size_t>(j)]) * 0x1p-31f - 1.0f,
                block[static_cast<std::size_t>(i + j)]);
      }
    }
  });
  copy_from_host(to, block.data(), block.size() * sizeof(T));
  for (std::int64_t done = first; done < count;) {
    const std::int64_t more = std::min(done, count - done);
    copy_within(ctx_.gpu().get(), to + done, to, static_cast<std::size_t>(more) * sizeof(T));
    done += more;
  }
  return to;
}

float* BenchMemory::floats(std::int64_t count) {
  return reinterpret_cast<float*>(take(count * static_cast<std::int64_t>(sizeof(float))));
}
float* BenchMemory::random_floats(std::int64_t count) {
  return fill(floats(count), count);
}
Bf16* BenchMemory::random_bf16(std::int64_t count) {
  return fill(reinterpret_cast<Bf16*>(take(count * static_cast<std::int64_t>(sizeof(Bf16)))),
              count);
}

}  // namespace mamba3::cli
