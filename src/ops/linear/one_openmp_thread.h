// oneDNN as Debian builds it asks OpenMP how many threads to use. Threads are ours to share out, so
// it is told one while an object of this class lives; then the caller's setting is put back.
#pragma once

#include <omp.h>

namespace mamba3 {

class OneOpenMpThread {
 public:
  OneOpenMpThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(before_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  int before_;
};

}  // namespace mamba3
