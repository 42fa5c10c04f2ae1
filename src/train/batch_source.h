// What a training reads: sequences by their position in its order. A sequence is a function of its
// position alone, so a position is all that a checkpoint holds of the data, and whoever asks, and
// however often, gets the same.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/loss_and_gradients.h"

namespace mamba3 {

struct SequenceBatch {
  std::vector<std::int32_t> ids, targets;
  std::vector<std::int64_t> cu_seqlens{0};
  // Where lanes carry states, as TrainingBatch has them.
  std::vector<std::int64_t> starts, ends;
  std::int64_t first_lane = 0;

  // Whoever has the lanes adds them.
  TrainingBatch view() const {
    return {ids, targets, cu_seqlens, nullptr, starts, ends, first_lane};
  }
};

class BatchSource {
 public:
  virtual ~BatchSource() = default;

  // Sequences [position, position + count) since the beginning of the training, one after the
  // other; each is one of its own, but where there are lanes.
  virtual SequenceBatch read(std::int64_t position, std::int64_t count) const = 0;
  // Sequence i goes on where sequence i - lanes() has ended, with its states; 0: none does. All
  // lanes() of them are a step.
  virtual std::int64_t lanes() const { return 0; }
  // The most pieces that so many sequences of a step, read at once, are cut into.
  virtual std::int64_t most_pieces(std::int64_t sequences) const { return sequences; }
  // How many sequences there are before they come again; kEndless: they never do.
  virtual std::int64_t sequences() const = 0;
  // How many from there on stay within `tokens`, whatever they are; at least one.
  virtual std::int64_t sequences_in(std::int64_t position, std::int64_t tokens) const = 0;
  // How many tokens are predicted in each sequence.
  virtual std::int64_t targets_each() const = 0;
  // For messages: "windows 8, 3, 5 of the data".
  virtual std::string names(std::int64_t position, std::int64_t count) const = 0;

  static constexpr std::int64_t kEndless = INT64_MAX;
};

}  // namespace mamba3
