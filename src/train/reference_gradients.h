// The loss of a whole model and its gradients by the ops' oracles, one sequence after the other.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "mamba3/config.h"
#include "mamba3/tensor.h"
#include "ops/mamba3_scan/mamba3_scan_ref.h"
#include "train/loss_and_gradients.h"

namespace mamba3 {

template <class T>
struct ReferenceGradients {
  T loss = 0;       // the sum over the targets that are not ignored, without z
  T squared_z = 0;  // as CrossEntropySums has it
  std::map<std::string, std::vector<T>> tensors;  // by the names of tensor_specs()
};

// Of each layer of each sequence.
template <class T>
using ReferenceStates = std::vector<std::vector<Mamba3RefState<T>>>;

// In double the truth; in float the plain run that the tolerance rule measures by. Shares no code
// with the fast paths but the reading of stored numbers. options.compute is fp32. The sums of the
// forward products begin at `first_quarter` of their terms, 0 to 3: nothing to the truth, other
// roundings to a plain run. The sequences go on from `states`, which become those that they end
// with; null: from fresh ones. Those are numbers here: no gradient goes back into them. The batch's
// own lanes are not read.
template <class T>
ReferenceGradients<T> reference_gradients(const ModelConfig& config,
                                          const std::map<std::string, TensorRef>& tensors,
                                          const TrainingBatch& batch, const LossOptions& options,
                                          int first_quarter = 0,
                                          ReferenceStates<T>* states = nullptr);

extern template ReferenceGradients<double> reference_gradients(
    const ModelConfig&, const std::map<std::string, TensorRef>&, const TrainingBatch&,
    const LossOptions&, int, ReferenceStates<double>*);
extern template ReferenceGradients<float> reference_gradients(
    const ModelConfig&, const std::map<std::string, TensorRef>&, const TrainingBatch&,
    const LossOptions&, int, ReferenceStates<float>*);

// For each tensor the largest error of four plain runs against the truth `exact`, one of each
// quarter: a gradient of a few numbers may be close in a single run by luck. `states`: what they
// start from.
std::map<std::string, double> plain_gradient_errors(const ModelConfig& config,
                                                    const std::map<std::string, TensorRef>& tensors,
                                                    const TrainingBatch& batch,
                                                    const LossOptions& options,
                                                    const ReferenceGradients<double>& exact,
                                                    const ReferenceStates<double>& states = {});

}  // namespace mamba3
