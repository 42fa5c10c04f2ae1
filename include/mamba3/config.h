// What a Mamba-3 language model is: sizes and options. Plain data; io reads and writes it, model
// builds from it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mamba3/tensor.h"

namespace mamba3 {

// The function inside a = -max(act(dd_A), a_floor). No config of the authors records which one a
// checkpoint was trained with; the package's main branch is heavy-tail since June 2026, its PyPI
// release is softplus.
enum class AActivation : std::uint8_t { kHeavyTail, kSoftplus };

const char* a_activation_name(AActivation activation);  // "heavy-tail", "softplus"

// What the pairs of B and C are rotated by: each token's own angle times its dt, which is Mamba-3;
// fixed steps, as in Transformers (RoPE, Su et al. 2021); nothing. The last two are not the
// authors' format: their package has no such layers. They show what the rotation is good for.
enum class Rope : std::uint8_t { kDataDependent, kStandard, kNone };

const char* rope_name(Rope rope);  // "data-dependent", "standard", "none"
// An unknown name is refused with the known ones.
Rope rope_named(const std::string& name);
std::vector<std::string> rope_names();

// One mixer. Letters as in docs/SHAPES.md: h heads, p head dim, n state, g groups, r rank, s
// angles.
struct Mamba3Config {
  std::int64_t state = 128;    // n
  std::int64_t expand = 2;     // h * p = expand * d
  std::int64_t head_dim = 64;  // p
  std::int64_t groups = 1;     // g
  double rope_fraction = 0.5;  // 0.5 or 1.0
  Rope rope = Rope::kDataDependent;
  double a_floor = 1e-4;
  bool out_norm = false;  // is_outproj_norm
  bool mimo = false;
  std::int64_t rank = 1;  // r; 1 when not mimo
  std::int64_t chunk_size =
      64;  // a hint of the authors' kernels; kept for round trips, changes nothing
  AActivation a_activation = AActivation::kHeavyTail;
  bool a_activation_recorded = false;  // the file said so, not the default

  std::int64_t angles() const;         // s
  std::int64_t angle_columns() const;  // of in_proj: s, or 0 where steps are fixed
};

struct ModelConfig {
  static constexpr std::int64_t kMlpMultiple = 128;  // the package rounds an MLP's width up to it

  std::int64_t width = 2560;    // d
  std::int64_t mlp_hidden = 0;  // f as the weights have it; 0: no MLP
  std::int64_t layers = 64;     // l
  std::int64_t vocab = 50277;   // true vocabulary, v
  std::int64_t vocab_multiple = 8;
  bool tied_embeddings = true;
  Mamba3Config mixer;

  std::int64_t padded_vocab() const;
  std::int64_t inner() const { return mixer.expand * width; }      // h * p
  std::int64_t heads() const { return inner() / mixer.head_dim; }  // h
  std::int64_t in_proj_rows() const;                               // e
  std::int64_t parameters() const;
  // Bytes of one sequence's state, all layers.
  std::int64_t state_bytes() const;
};

// The authors' sizes: "siso-187m", "siso-440m", "siso-890m", "siso-1.5b" and the same with "mimo-".
ModelConfig preset(const std::string& name);
std::vector<std::string> preset_names();

// Refuses a config that no model can be built from, naming the field.
void check_config(const ModelConfig& config);

// One tensor of a model: the names are those of the authors' package.
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  bool large = false;  // a matrix that may be bf16; the others are used in fp32
};
// Every tensor of a model, in the package's order; tied models list no lm_head.weight.
std::vector<TensorSpec> tensor_specs(const ModelConfig& config);

}  // namespace mamba3
