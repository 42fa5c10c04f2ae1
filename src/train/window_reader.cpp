#include "train/window_reader.h"

#include "core/check.h"

namespace mamba3 {

WindowReader::WindowReader(TokenSelection tokens, std::int64_t length, const std::string& what)
    : tokens_(std::move(tokens)), length_(length), windows_((tokens_.tokens() - 1) / length) {
  check_input(tokens_.tokens() > length, what, " has ", tokens_.tokens(),
              " tokens; expected at least one window of ", length,
              " and a token more; add text or choose a smaller --length");
}

SequenceBatch WindowReader::read(std::span<const std::int64_t> windows) const {
  SequenceBatch batch;
  for (const std::int64_t window : windows) append(window, batch);
  return batch;
}

void WindowReader::append(std::int64_t window, SequenceBatch& batch) const {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(length_ + 1));
  tokens_.copy(window * length_, ids);
  batch.ids.insert(batch.ids.end(), ids.begin(), ids.end() - 1);
  batch.targets.insert(batch.targets.end(), ids.begin() + 1, ids.end());
  batch.cu_seqlens.push_back(std::ssize(batch.ids));
}

std::vector<std::int64_t> WindowReader::document_begins(std::int64_t window) const {
  const std::int64_t begin = window * length_;
  std::vector<std::int64_t> begins = tokens_.document_begins(begin, begin + length_);
  for (std::int64_t& at : begins) at -= begin;
  return begins;
}

}  // namespace mamba3
