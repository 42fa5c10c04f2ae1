// Windows of a token cache as what a training reads.
#pragma once

#include <optional>

#include "train/batch_source.h"
#include "train/window_order.h"
#include "train/window_reader.h"

namespace mamba3 {

class WindowSource : public BatchSource {
 public:
  // In the order of the data, from the first one on: for evaluations.
  explicit WindowSource(WindowReader windows);
  // Shuffled anew in every epoch.
  WindowSource(WindowReader windows, std::uint64_t seed);

  SequenceBatch read(std::int64_t position, std::int64_t count) const override;
  std::int64_t sequences() const override { return windows_.windows(); }
  std::int64_t sequences_in(std::int64_t position, std::int64_t tokens) const override;
  std::int64_t targets_each() const override { return windows_.length(); }
  std::string names(std::int64_t position, std::int64_t count) const override;

 private:
  std::vector<std::int64_t> at(std::int64_t position, std::int64_t count) const;

  WindowReader windows_;
  std::optional<WindowOrder> order_;
};

}  // namespace mamba3
