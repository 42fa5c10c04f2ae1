#include "core/arena.h"

#include <algorithm>

#include "core/check.h"

namespace mamba3 {
namespace {

constexpr std::size_t kSmallestBlockBytes = std::size_t{1} << 20;
// What an arena grows by at most beyond what is asked for.
constexpr std::size_t kMostGrowthBytes = std::size_t{256} << 20;

std::size_t round_up(std::size_t bytes) {
  return (bytes + Arena::kAlignBytes - 1) / Arena::kAlignBytes * Arena::kAlignBytes;
}

}  // namespace

void Arena::add_block(std::size_t bytes) {
  const std::size_t size = std::max(round_up(bytes), kSmallestBlockBytes);
  Block block;
  block.data = allocate_memory(size, gpu_);
  if (!block.data) {
    fail(ErrorCode::kUnavailable, "no memory for a workspace of ", size,
         " bytes; shorten the segment, lower the batch, or free memory");
  }
  block.size_bytes = size;
  blocks_.push_back(std::move(block));
}

void Arena::reserve(std::size_t bytes) {
  for (std::size_t i = current_; i < blocks_.size(); ++i) {
    if (blocks_[i].size_bytes - blocks_[i].used_bytes >= bytes) return;
  }
  add_block(bytes);
}

void* Arena::allocate(std::size_t bytes) {
  const std::size_t size = round_up(std::max<std::size_t>(bytes, 1));
  while (current_ < blocks_.size() &&
         blocks_[current_].size_bytes - blocks_[current_].used_bytes < size) {
    ++current_;
  }
  if (current_ == blocks_.size()) {
    // Doubling keeps the number of blocks small while a model finds out how much it needs.
    add_block(std::max(size, std::min(capacity_bytes(), kMostGrowthBytes)));
  }
  Block& block = blocks_[current_];
  void* out = block.data.get() + block.used_bytes;
  block.used_bytes += size;
  peak_bytes_ = std::max(peak_bytes_, used_bytes());
  return out;
}

std::size_t Arena::capacity_bytes() const {
  std::size_t total = 0;
  for (const Block& block : blocks_) total += block.size_bytes;
  return total;
}

std::size_t Arena::used_bytes() const {
  std::size_t total = 0;
  for (const Block& block : blocks_) total += block.used_bytes;
  return total;
}

ArenaScope::ArenaScope(Arena& arena)
    : arena_(arena),
      block_(arena.current_),
      used_bytes_(block_ < arena.blocks_.size() ? arena.blocks_[block_].used_bytes : 0) {}

ArenaScope::~ArenaScope() {
  for (std::size_t i = block_; i < arena_.blocks_.size(); ++i) arena_.blocks_[i].used_bytes = 0;
  if (block_ < arena_.blocks_.size()) arena_.blocks_[block_].used_bytes = used_bytes_;
  arena_.current_ = block_;
}

}  // namespace mamba3
