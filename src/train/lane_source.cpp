#include "train/lane_source.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace mamba3 {

LaneSource::LaneSource(WindowReader windows, std::int64_t lanes)
    : windows_(std::move(windows)), lanes_(lanes), steps_(windows_.windows() / lanes) {
  check_input(steps_ >= 1, "the data have ", windows_.windows(), " windows of ", windows_.length(),
              " tokens; expected at least one for each of ", lanes,
              " lanes; add text, or choose a smaller --batch or --length");
}

SequenceBatch LaneSource::read(std::int64_t position, std::int64_t count) const {
  const std::int64_t first = position % lanes_, step = position / lanes_ % steps_;
  check_input(first + count <= lanes_, "windows of lanes ", first, " to ", first + count - 1,
              " are read at once; expected lanes of one step, 0 to ", lanes_ - 1);
  SequenceBatch batch;
  batch.first_lane = first;
  for (std::int64_t lane = first; lane < first + count; ++lane) {
    const std::int64_t number = window(lane, step), begin = std::ssize(batch.ids);
    windows_.append(number, batch);
    batch.starts.push_back(step == 0 ? lanes_ : lane);
    batch.cu_seqlens.pop_back();  // documents may end before the window does
    for (const std::int64_t at : windows_.document_begins(number)) {
      if (at > 0) {
        batch.cu_seqlens.push_back(begin + at);
        batch.starts.emplace_back();
      }
      batch.starts.back() = lanes_;
    }
    batch.cu_seqlens.push_back(std::ssize(batch.ids));
    batch.ends.push_back(std::ssize(batch.starts) - 1);
  }
  return batch;
}

std::int64_t LaneSource::most_pieces(std::int64_t sequences) const {
  std::int64_t most = 0;
  for (std::int64_t step = 0; step < steps_; ++step) {
    for (std::int64_t first = 0; first < lanes_; first += sequences) {
      std::int64_t pieces = 0;
      for (std::int64_t i = first; i < std::min(lanes_, first + sequences); ++i) {
        const std::vector<std::int64_t> begins = windows_.document_begins(window(i, step));
        pieces += std::ssize(begins) + (begins.empty() || begins.front() > 0 ? 1 : 0);
      }
      most = std::max(most, pieces);
    }
  }
  return most;
}

std::int64_t LaneSource::sequences_in(std::int64_t position, std::int64_t tokens) const {
  return std::clamp<std::int64_t>(tokens / windows_.length(), 1, lanes_ - position % lanes_);
}

std::string LaneSource::names(std::int64_t position, std::int64_t count) const {
  const std::int64_t first = position % lanes_;
  return str("window ", position / lanes_ % steps_, " of lanes ", first, " to ", first + count - 1);
}

}  // namespace mamba3
