// The tensors of a model, bound by name. One walk (tensor_specs) serves loading, checking, saving
// and initialising.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// A small tensor in fp32. ModelWeights::owners keeps its memory.
using Values = std::span<const float>;

struct Mamba3MixerWeights {
  TensorRef in_proj;              // [e, d]
  TensorRef out_proj;             // [d, h * p]
  Values dt_bias, skip;           // [h]
  Values in_b_bias, out_c_bias;   // [h, r, n]
  Values in_b_norm, out_c_norm;   // [n]
  Values mimo_x, mimo_z, mimo_o;  // [h, r, p], mimo only
  Values out_norm;                // [h * p], with out-norm only
};

struct SwigluMlpWeights {
  Values norm;    // [d]
  TensorRef fc1;  // [2 f, d]
  TensorRef fc2;  // [d, f]
};
struct NoMlpWeights {};

// Closed sets: another mixer or MLP is another alternative here and an op folder.
using MixerWeights = std::variant<Mamba3MixerWeights>;
using MlpWeights = std::variant<NoMlpWeights, SwigluMlpWeights>;

struct BlockWeights {
  Values norm;  // [d]
  MixerWeights mixer;
  MlpWeights mlp;
};

struct ModelWeights {
  TensorRef embedding;  // [padded v, d]
  TensorRef lm_head;    // [padded v, d]; the embedding when tied
  std::vector<BlockWeights> blocks;
  Values final_norm;  // [d]
  std::vector<std::shared_ptr<const void>> owners;
};

// Refuses tensors that are not those of tensor_specs(): missing, extra and misshapen ones are all
// reported in one error.
void check_tensors(const ModelConfig& config, const std::map<std::string, TensorRef>& tensors);

// A tensor of any floating type, in fp32.
std::vector<float> widen(const TensorRef& tensor);

// Binds tensors to their places. Large bf16 and fp32 matrices stay where they are; small tensors,
// and matrices of other types, are widened to fp32 copies. For a GPU everything is copied into its
// memory, and `owner` is not kept. Missing, extra and misshapen tensors are all reported in one
// error.
ModelWeights bind_weights(const ModelConfig& config,
                          const std::map<std::string, TensorRef>& tensors,
                          std::shared_ptr<const void> owner, const Context& ctx);

// Binds tensors that lie where the Context's ops find them, small ones in fp32: nothing is copied,
// and who owns them keeps them there.
ModelWeights view_weights(const ModelConfig& config,
                          const std::map<std::string, TensorRef>& tensors);

// The names of tensors that hold NaN or infinity.
std::vector<std::string> find_non_finite(const ModelConfig& config,
                                         const std::map<std::string, TensorRef>& tensors,
                                         Context& ctx);

// Of the config and of samples of every tensor: tells models apart without reading gigabytes.
std::uint64_t model_fingerprint(const ModelConfig& config,
                                const std::map<std::string, TensorRef>& tensors);

}  // namespace mamba3
