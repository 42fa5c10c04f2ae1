#include <map>
#include <mutex>
#include <utility>

#include "ops/launch.cuh"

namespace mamba3 {

void raise_shared(const void* kernel, std::size_t bytes, const char* name) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, std::size_t> limits;  // of each card and kernel
  int card = 0;
  check_cuda(cudaGetDevice(&card), name);
  const std::scoped_lock lock(mutex);
  std::size_t& limit = limits[{card, kernel}];
  if (bytes <= limit) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             name);
  limit = bytes;
}

}  // namespace mamba3
