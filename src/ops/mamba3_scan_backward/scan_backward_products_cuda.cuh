// Products of the small matrices of a chunk, by one block: kRows x 64 numbers at a time, 4 x 4 a
// thread. Factors lie in shared memory, rows `pitch` floats apart, a multiple of 4, with zeros up
// to the next multiple of 4 behind each row; those of the size of a state come through a tile.
#pragma once

#include <cstdint>

#include "device/kernel_helpers.cuh"

namespace mamba3 {
namespace {

constexpr int kPanel = 64;   // columns
constexpr int kAcross = 16;  // threads side by side
constexpr int kTileDepth = 32;
constexpr int kColumnTilePitch = kPanel + 4;
constexpr int kRowTilePitch = kTileDepth + 4;
constexpr int kTileFloats = kPanel * kRowTilePitch;
static_assert(kTileDepth * kColumnTilePitch <= kTileFloats);

template <int kRows>
constexpr int kChunkThreads = kRows / 4 * kAcross;

// An odd number of vectors: neighbouring rows begin in different banks.
__host__ __device__ constexpr int odd_pitch(int count) {
  return (count + 3) / 4 * 4 | 4;
}
__host__ __device__ constexpr int whole_vectors(int count) {
  return (count + 3) / 4 * 4;
}

// A thread's rows and columns of a panel. Columns are four neighbours, or kAcross apart.
struct ThreadPlace {
  int row;
  int across;

  __device__ ThreadPlace() {
    row = static_cast<int>(threadIdx.x) / kAcross * 4;
    across = static_cast<int>(threadIdx.x) % kAcross;
  }
};

template <int kColumns>
struct Sums {
  float at[4][kColumns] = {};
};

// sums += a b, a [rows, depth] from this thread's first row on, b [depth, columns] from its first
// column on: neighbours.
__device__ __forceinline__ void add_product(Sums<4>& sums, const float* a, int a_pitch,
                                            const float* b, int b_pitch, int depth) {
#pragma unroll 2
  for (int k = 0; k < depth; k += 4, a += 4, b += 4 * b_pitch) {
    float rows[4][4], columns[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_vector<4>(a + i * a_pitch, rows[i]);
#pragma unroll
    for (int i = 0; i < 4; ++i) load_vector<4>(b + i * b_pitch, columns[i]);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums.at[i][j] = fmaf(rows[i][l], columns[l][j], sums.at[i][j]);
      }
    }
  }
}

// sums += a^T b over rows [begin, end) of both.
__device__ __forceinline__ void add_transposed_product(Sums<4>& sums, const float* a, int a_pitch,
                                                       const float* b, int b_pitch, int begin,
                                                       int end) {
  a += begin * a_pitch;
  b += begin * b_pitch;
#pragma unroll 4
  for (int k = begin; k < end; ++k, a += a_pitch, b += b_pitch) {
    float rows[4], columns[4];
    load_vector<4>(a, rows);
    load_vector<4>(b, columns);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums.at[i][j] = fmaf(rows[i], columns[j], sums.at[i][j]);
    }
  }
}

// sums += a b^T, b from its row `across` on: columns kAcross apart.
template <int kColumns>
__device__ __forceinline__ void add_product_of_rows(Sums<kColumns>& sums, const float* a,
                                                    int a_pitch, const float* b, int b_pitch,
                                                    int depth) {
#pragma unroll 2
  for (int k = 0; k < depth; k += 4, a += 4, b += 4) {
    float rows[4][4], columns[kColumns][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_vector<4>(a + i * a_pitch, rows[i]);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) load_vector<4>(b + j * kAcross * b_pitch, columns[j]);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          sums.at[i][j] = fmaf(rows[i][l], columns[j][l], sums.at[i][j]);
        }
      }
    }
  }
}

// A matrix of the size of a state, [rows, columns] in whole vectors, in the workspace.
struct StateMatrix {
  const float* data;
  int rows;
  int columns;
};

// Part of a state on its way to the tile: kHeight x kWidth numbers from (row, column) on, zeros
// where it has none.
template <int kRows, int kHeight, int kWidth>
struct HeldTile {
  static constexpr int kVectors = kHeight * kWidth / 4 / kChunkThreads<kRows>;
  float at[kVectors][4];

  __device__ __forceinline__ void load(const StateMatrix& from, int row, int column) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int r = row + place(i) / kWidth;
      const int c = column + place(i) % kWidth;
      if (r < from.rows && c < from.columns) {
        load_vector<4>(from.data + std::int64_t{r} * from.columns + c, at[i]);
      } else {
        for (float& v : at[i]) v = 0;
      }
    }
  }
  __device__ __forceinline__ void store(float* tile, int pitch) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      store_vector<4>(at[i], tile + place(i) / kWidth * pitch + place(i) % kWidth);
    }
  }

 private:
  static __device__ __forceinline__ int place(int i) {
    return 4 * (i * kChunkThreads<kRows> + static_cast<int>(threadIdx.x));
  }
};

// sums += a state, for the panel that begins at `column`. All threads meet here.
template <int kRows>
__device__ __forceinline__ void add_state_product(Sums<4>& sums, const ThreadPlace& at,
                                                  const float* a, int a_pitch,
                                                  const StateMatrix& state, int column,
                                                  float* tile) {
  HeldTile<kRows, kTileDepth, kPanel> held;
  held.load(state, 0, column);
  for (int k = 0; k < state.rows; k += kTileDepth) {
    __syncthreads();
    held.store(tile, kColumnTilePitch);
    __syncthreads();
    if (k + kTileDepth < state.rows) held.load(state, k + kTileDepth, column);
    add_product(sums, a + at.row * a_pitch + k, a_pitch, tile + 4 * at.across, kColumnTilePitch,
                min(kTileDepth, whole_vectors(state.rows - k)));
  }
}

// sums += a state^T, for the panel that begins at the state's row `row`; columns kAcross apart. All
// threads meet here.
template <int kRows>
__device__ __forceinline__ void add_product_of_state_rows(Sums<4>& sums, const ThreadPlace& at,
                                                          const float* a, int a_pitch,
                                                          const StateMatrix& state, int row,
                                                          float* tile) {
  HeldTile<kRows, kPanel, kTileDepth> held;
  held.load(state, row, 0);
  for (int k = 0; k < state.columns; k += kTileDepth) {
    __syncthreads();
    held.store(tile, kRowTilePitch);
    __syncthreads();
    if (k + kTileDepth < state.columns) held.load(state, row, k + kTileDepth);
    add_product_of_rows(sums, a + at.row * a_pitch + k, a_pitch, tile + at.across * kRowTilePitch,
                        kRowTilePitch, min(kTileDepth, state.columns - k));
  }
}

// out [n, pp] = a^T b over `rows` rows, into the workspace. a [rows, n], b [rows, pp].
template <int kRows>
__device__ __forceinline__ void store_transposed_product(const ThreadPlace& at, const float* a,
                                                         int a_pitch, int n, const float* b,
                                                         int b_pitch, int p_stride, int rows,
                                                         float* out) {
  for (int row = at.row; row < n; row += kRows) {
    for (int column = 4 * at.across; column < p_stride; column += kPanel) {
      Sums<4> sums;
      add_transposed_product(sums, a + row, a_pitch, b + column, b_pitch, 0, rows);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (row + i < n) {
          store_vector<4>(sums.at[i], out + std::int64_t{row + i} * p_stride + column);
        }
      }
    }
  }
}

}  // namespace
}  // namespace mamba3
