// The oracle: the plain sequential recurrence, one token after the other, no chunking, no code
// shared with the fast paths. In double it is the truth that tests compare with; in float it is the
// "naive same-precision" run of the tolerance rule.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

// All tensors contiguous, in the shapes and with the meaning of the golden files; empty vectors
// where a tensor does not apply. One sequence.
template <class T>
struct Mamba3RefInputs {
  Mamba3Dims dims;
  double a_floor = 1e-4;  // dims.a_floor in full precision
  // The plain run of a scan with bf16_products: what enters a matrix product (X, K, Q, and the
  // state where it is read) is rounded to bf16; sums, decays and the state itself are not.
  bool bf16_products = false;
  std::int64_t tokens = 0;
  std::vector<T> x, z;                         // [t, h, p]
  std::vector<T> in_b, out_c;                  // [t, r, g, n]
  std::vector<T> dt_raw, decay_raw, trap_raw;  // [t, h]
  std::vector<T> angle_raw;                    // [t, s]; none with fixed steps
  std::vector<T> dt_bias, skip;                // [h]
  std::vector<T> in_b_bias, out_c_bias;        // [h, r, n]
  std::vector<T> in_b_norm, out_c_norm;        // [n]
  std::vector<T> mimo_x, mimo_z, mimo_o;       // [h, r, p]
  std::vector<T> out_norm;                     // [h * p]
};

// The canonical tuple of one sequence.
template <class T>
struct Mamba3RefState {
  std::vector<T> angle;  // [h, s] radians, unbounded in double
  std::vector<T> ssm;    // [h, p, n]
  std::vector<T> k;      // [r, h, n]
  std::vector<T> v;      // [h, p]
  static Mamba3RefState zeros(const Mamba3Dims& dims);
};

// Refuses sizes that do not fit together, naming the tensor.
template <class T>
void check_ref(const Mamba3RefInputs<T>& inputs, const Mamba3RefState<T>& state);

// Returns y [t, h, p]; `state` is read and overwritten.
template <class T>
std::vector<T> mamba3_scan_ref(const Mamba3RefInputs<T>& inputs, Mamba3RefState<T>& state);

extern template std::vector<double> mamba3_scan_ref(const Mamba3RefInputs<double>&,
                                                    Mamba3RefState<double>&);
extern template std::vector<float> mamba3_scan_ref(const Mamba3RefInputs<float>&,
                                                   Mamba3RefState<float>&);

}  // namespace mamba3
