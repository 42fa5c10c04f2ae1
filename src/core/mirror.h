// Numbers of the host as an op of a Context finds them: where they are on a CPU, a copy of them in
// a GPU's memory. For tests and checks; models keep their tensors where they belong.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "core/check.h"
#include "core/memory.h"
#include "mamba3/context.h"

namespace mamba3 {

template <class T>
class Mirror {
 public:
  Mirror(std::span<T> host, const Context& ctx) : host_(host) {
    if (!ctx.gpu()) return;
    copy_ = allocate_memory(std::max<std::size_t>(host.size_bytes(), 1), ctx.gpu());
    if (!copy_) {
      fail(ErrorCode::kUnavailable, "no memory for ", host.size_bytes(), " bytes on ",
           ctx.gpu()->info().name, "; use a smaller case");
    }
    ctx.gpu()->copy_in(copy_.get(), host.data(), host.size_bytes());
  }

  T* data() const { return copy_ ? reinterpret_cast<T*>(copy_.get()) : host_.data(); }
  std::span<T> span() const { return {data(), host_.size()}; }

  // What ops have written, for the host to see.
  void read_back() const requires(!std::is_const_v<T>) {
    if (copy_) copy_.get_deleter().gpu->copy_out(host_.data(), copy_.get(), host_.size_bytes());
  }

 private:
  std::span<T> host_;
  Memory copy_;
};

}  // namespace mamba3
