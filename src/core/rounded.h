// Numbers for people.
#pragma once

#include <cstdio>
#include <string>

namespace mamba3 {

// With so many digits behind the point.
inline std::string rounded(double value, int digits) {
  char text[400];  // the largest double has 309 digits before the point
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

}  // namespace mamba3
