// The storage types of torch.save, for the reader and the writer.
#pragma once

#include <array>
#include <string_view>

#include "mamba3/tensor.h"

namespace mamba3 {

struct TorchStorage {
  std::string_view global;  // "module.name"
  DType dtype;
};

// The first of each dtype is the one that is written. Untyped storages count bytes.
inline constexpr std::array<TorchStorage, 12> kTorchStorages{{
    {"torch.DoubleStorage", DType::kF64},
    {"torch.FloatStorage", DType::kF32},
    {"torch.HalfStorage", DType::kF16},
    {"torch.BFloat16Storage", DType::kBf16},
    {"torch.LongStorage", DType::kI64},
    {"torch.IntStorage", DType::kI32},
    {"torch.ShortStorage", DType::kI16},
    {"torch.CharStorage", DType::kI8},
    {"torch.ByteStorage", DType::kU8},
    {"torch.BoolStorage", DType::kBool},
    {"torch.storage.UntypedStorage", DType::kU8},
    {"torch.UntypedStorage", DType::kU8},
}};

// Null when the global is not a storage.
inline const TorchStorage* find_torch_storage(std::string_view global) {
  for (const TorchStorage& storage : kTorchStorages) {
    if (storage.global == global) return &storage;
  }
  return nullptr;
}

inline const TorchStorage& torch_storage_of(DType dtype) {
  for (const TorchStorage& storage : kTorchStorages) {
    if (storage.dtype == dtype) return storage;
  }
  return kTorchStorages[0];
}

}  // namespace mamba3
