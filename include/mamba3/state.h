// The state of one sequence, all layers: one object to copy (fork), save, load, or take apart.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "mamba3/config.h"

namespace mamba3 {

// The canonical tuple of one layer (docs/SEMANTICS.md), the exchange format with other
// implementations.
struct LayerState {
  std::vector<float> angle;  // [h, s]     radians in [0, 2 pi)
  std::vector<float> ssm;    // [h, p, n]
  std::vector<float> k;      // [r, h, n]
  std::vector<float> v;      // [h, p]
};

// Copying is forking. The bytes hold Phi as 32-bit turns (exact) and the rest in the canonical
// layouts, fp32, so saving and loading change no bit. Where a prompt is cut, its products may round
// otherwise than without the cut (docs/ARCHITECTURE.md).
class SequenceState {
 public:
  SequenceState() = default;
  // A fresh sequence of a model: all zeros, position 0.
  SequenceState(const ModelConfig& config, std::uint64_t model_fingerprint);
  bool empty() const { return values_.empty(); }
  // Whether it has the sizes of a state of such a model.
  bool fits(const ModelConfig& config) const;

  std::uint64_t model_fingerprint() const { return model_fingerprint_; }
  std::int64_t position() const { return position_; }  // tokens read so far
  void set_position(std::int64_t tokens) { position_ = tokens; }

  // The id that was sampled but not yet read, if any: a reader continues with it. -1: none.
  std::int32_t pending_id() const { return pending_id_; }
  void set_pending_id(std::int32_t id) { pending_id_ = id; }

  std::int64_t layers() const { return sizes_.layers; }
  // Parts of one of the layers inside the blob, contiguous: turns [h, s], ssm [h, p, n], k [r, h,
  // n], v [h, p]. Not of an empty state.
  struct Parts {
    std::uint32_t* turns;
    float* ssm;
    float* k;
    float* v;
  };
  Parts parts(std::int64_t layer);
  struct ConstParts {
    const std::uint32_t* turns;
    const float* ssm;
    const float* k;
    const float* v;
  };
  ConstParts parts(std::int64_t layer) const;

  LayerState export_layer(std::int64_t layer) const;
  // Angles may be any real number; they are taken modulo a full turn. Refuses wrong sizes.
  void import_layer(std::int64_t layer, const LayerState& state);

  // Written aside, then renamed. The file: docs/FORMATS.md.
  void save(const std::filesystem::path& path) const;
  // Refuses, with the reason, a file that is damaged, truncated, of another version, or of another
  // model.
  static SequenceState load(const std::filesystem::path& path, const ModelConfig& config,
                            std::uint64_t model_fingerprint);
  std::vector<std::byte> serialize() const;
  static SequenceState deserialize(std::span<const std::byte> bytes, const ModelConfig& config,
                                   std::uint64_t model_fingerprint, const std::string& origin);

 private:
  struct Sizes {
    std::int64_t layers = 0;
    std::int64_t turns = 0;  // of a layer: h * s
    std::int64_t ssm = 0;    // h * p * n
    std::int64_t k = 0;      // r * h * n
    std::int64_t v = 0;      // h * p

    std::int64_t values() const { return ssm + k + v; }
    bool operator==(const Sizes&) const = default;
  };
  static Sizes sizes_of(const ModelConfig& config);

  std::uint64_t model_fingerprint_ = 0;
  std::int64_t position_ = 0;
  std::int32_t pending_id_ = -1;
  Sizes sizes_;
  std::vector<std::uint32_t> turns_;  // [l, h, s]
  std::vector<float> values_;         // [l] of ssm, k, v
};

}  // namespace mamba3
