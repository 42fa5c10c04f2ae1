// Errors with their operands in the message. Use these at the entry of ops and readers, in release
// builds too.
#pragma once

#include <sstream>
#include <string>
#include <utility>

#include "mamba3/error.h"

namespace mamba3 {

// str("found ", 3, "; expected ", 4)
template <class... Parts>
std::string str(Parts&&... parts) {
  std::ostringstream out;
  (out << ... << std::forward<Parts>(parts));
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(ErrorCode code, Parts&&... parts) {
  throw Error(code, str(std::forward<Parts>(parts)...));
}

// Refuses bad input: check_input(rows > 0, "rows is ", rows, "; expected at least 1; ...").
template <class... Parts>
void check_input(bool ok, Parts&&... parts) {
  if (!ok) [[unlikely]]
    fail(ErrorCode::kBadInput, std::forward<Parts>(parts)...);
}

}  // namespace mamba3
