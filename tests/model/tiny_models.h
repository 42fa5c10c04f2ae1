// Small random models that between them use every option of the mixer.
#pragma once

#include <string>
#include <vector>

#include "mamba3/model.h"

namespace mamba3 {

struct TinyModel {
  std::string name;
  ModelConfig config;
};

inline std::vector<TinyModel> tiny_models() {
  ModelConfig siso;
  siso.width = 32;
  siso.layers = 2;
  siso.vocab = 97;
  siso.mlp_hidden = 128;
  siso.mixer.state = 16;
  siso.mixer.head_dim = 16;
  siso.mixer.groups = 2;

  ModelConfig mimo = siso;
  mimo.mixer.mimo = true;
  mimo.mixer.rank = 4;
  mimo.mixer.groups = 1;
  mimo.mixer.rope_fraction = 1.0;
  mimo.mixer.out_norm = true;
  mimo.mlp_hidden = 0;
  mimo.tied_embeddings = false;

  ModelConfig odd = siso;
  odd.width = 48;
  odd.mixer.expand = 1;
  odd.mixer.head_dim = 24;
  odd.mixer.groups = 1;
  odd.mixer.a_activation = AActivation::kSoftplus;

  ModelConfig standard = odd;
  standard.mixer.rope = Rope::kStandard;
  ModelConfig unrotated = mimo;
  unrotated.mixer.rope = Rope::kNone;
  return {{"siso", siso},
          {"mimo", mimo},
          {"odd", odd},
          {"standard", standard},
          {"unrotated", unrotated}};
}

inline std::vector<std::int32_t> random_ids(std::int64_t count, std::int64_t vocab,
                                            std::uint32_t seed) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    ids.push_back(static_cast<std::int32_t>((seed >> 8) % static_cast<std::uint32_t>(vocab)));
  }
  return ids;
}

}  // namespace mamba3
