// What the authors' kernels make of the recurrence: a plain run, in floats, that rounds to bf16
// where theirs do. Its distance from the oracle is what their roundings allow; ours are held to it.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/mamba3_scan/mamba3_scan_ref.h"

namespace mamba3 {

// kPrefill: their chunked kernels (mamba3_siso_fwd.py in Triton, mamba3_mimo_fwd.py in TileLang).
// kStep: Mamba3.step(): its rotation in Triton and its state's kernel in CuTe.
enum class AuthorsPath : std::uint8_t { kPrefill, kStep };

// Of state-spaces/mamba at e9594ce. Left out: the last rounding of y to bf16, since ours is rounded
// as well where out_proj takes it in bf16, and their approximate exp, tanh, sin and cos. Their
// prefill takes no initial state of a MIMO layer: it is taken as their SISO kernel takes it.
// Returns y [t, h, p]; `state` is read and overwritten. Without `rounds` nothing is rounded, and
// only the order of work is theirs.
std::vector<float> mamba3_authors_ref(const Mamba3RefInputs<float>& inputs,
                                      Mamba3RefState<float>& state, AuthorsPath path,
                                      bool rounds = true);

}  // namespace mamba3
