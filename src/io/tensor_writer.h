// What the writers of checkpoints share.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "io/atomic_file.h"
#include "io/tensor_file.h"

namespace mamba3 {

// Refuses names that are empty, equal or not UTF-8, negative extents, and tensors without data.
void check_writable(const std::vector<NamedTensor>& tensors);

// Counts the bytes of a whole write, over all its files, and reports them. A callback that throws
// stops the write; nothing then stays on disk.
class WriteProgress {
 public:
  WriteProgress(Progress report, std::int64_t all_bytes)
      : report_(std::move(report)), all_bytes_(all_bytes) {}
  void add(std::int64_t bytes) {
    done_bytes_ += bytes;
    if (report_) report_(done_bytes_, all_bytes_);
  }

 private:
  Progress report_;
  std::int64_t all_bytes_;
  std::int64_t done_bytes_ = 0;
};

void write_tensor_data(AtomicFile& file, std::span<const std::byte> data, WriteProgress& progress);

inline std::span<const std::byte> data_of(const TensorRef& tensor) {
  return {tensor.data, static_cast<std::size_t>(tensor.bytes())};
}

}  // namespace mamba3
