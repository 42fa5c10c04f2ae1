// Windows in the order of the data as what a training reads that carries states: lane i of n reads
// the i-th n-th of them, one in each step.
#pragma once

#include "train/batch_source.h"
#include "train/window_reader.h"

namespace mamba3 {

// A window goes on with the states that the one before it in its lane has ended with. Fresh states
// begin each document, inside a window too, and each lane's part of the data, which comes again in
// every epoch.
class LaneSource : public BatchSource {
 public:
  // Refuses data of less than a window for each lane.
  LaneSource(WindowReader windows, std::int64_t lanes);

  // Sequences of one step only.
  SequenceBatch read(std::int64_t position, std::int64_t count) const override;
  std::int64_t lanes() const override { return lanes_; }
  std::int64_t most_pieces(std::int64_t sequences) const override;
  std::int64_t sequences() const override { return lanes_ * steps_; }
  std::int64_t sequences_in(std::int64_t position, std::int64_t tokens) const override;
  std::int64_t targets_each() const override { return windows_.length(); }
  std::string names(std::int64_t position, std::int64_t count) const override;

 private:
  std::int64_t window(std::int64_t lane, std::int64_t step) const { return lane * steps_ + step; }

  WindowReader windows_;
  std::int64_t lanes_;
  std::int64_t steps_;  // of an epoch: the windows of a lane
};

}  // namespace mamba3
