// Saving and loading a SequenceState.
#include <span>

#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "mamba3/state.h"

namespace mamba3 {

void SequenceState::save(const std::filesystem::path& path) const {
  AtomicFile file(path);
  file.write(std::span<const std::byte>(serialize()));
  file.commit();
}

SequenceState SequenceState::load(const std::filesystem::path& path, const ModelConfig& config,
                                  std::uint64_t model_fingerprint) {
  const auto file = MappedFile::open(path);
  return deserialize(file->bytes(), config, model_fingerprint, path.string());
}

}  // namespace mamba3
