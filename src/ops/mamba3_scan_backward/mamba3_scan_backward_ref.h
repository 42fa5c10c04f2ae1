// The oracle of the backward pass: the sequential recurrence differentiated by hand, token after
// token from the last to the first, every state kept. It shares nothing with the fast paths.
#pragma once

#include <vector>

#include "ops/mamba3_scan/mamba3_scan_ref.h"

namespace mamba3 {

// Of a scalar loss: with respect to everything that the scan reads. Each vector has the shape of
// the one that it is the gradient of.
template <class T>
struct Mamba3RefGradients {
  Mamba3RefInputs<T> inputs;
  Mamba3RefState<T> state;  // the state before the first token; angle in radians
};

// With inputs.bf16_products what enters a matrix product is rounded to bf16: what the forward pass
// rounds, and the gradients of its read-outs and of the state.
//
// `grad_y` [t, h, p] and `grad_state`, with respect to the output and to the state after the last
// token (zeros where the loss does not see it).
template <class T>
Mamba3RefGradients<T> mamba3_scan_backward_ref(const Mamba3RefInputs<T>& inputs,
                                               const Mamba3RefState<T>& state,
                                               const std::vector<T>& grad_y,
                                               const Mamba3RefState<T>& grad_state);

extern template Mamba3RefGradients<double> mamba3_scan_backward_ref(const Mamba3RefInputs<double>&,
                                                                    const Mamba3RefState<double>&,
                                                                    const std::vector<double>&,
                                                                    const Mamba3RefState<double>&);
extern template Mamba3RefGradients<float> mamba3_scan_backward_ref(const Mamba3RefInputs<float>&,
                                                                   const Mamba3RefState<float>&,
                                                                   const std::vector<float>&,
                                                                   const Mamba3RefState<float>&);

}  // namespace mamba3
