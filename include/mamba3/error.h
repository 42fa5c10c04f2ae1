// The exception type that the library throws, beside std::bad_alloc where memory for small things
// runs out, and how the command line turns it into an exit code.
#pragma once

#include <stdexcept>
#include <string>

namespace mamba3 {

enum class ErrorCode : int {
  kBadInput = 1,       // a file, a request or an argument value that cannot be used
  kUsage = 2,          // options that contradict each other
  kUnavailable = 3,    // not possible on this machine: device, memory, shape
  kInterrupted = 130,  // stopped by the user
};

// `what()` is one paragraph: what was found; what was expected; what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace mamba3
