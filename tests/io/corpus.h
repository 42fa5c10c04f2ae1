// The seeds of a fuzz target in the ordinary build.
#pragma once

#include "file_test_util.h"

namespace mamba3 {

// Those named ok_ are read, those named bad_ refused.
inline void check_corpus(const std::string& target,
                         const std::function<void(const std::filesystem::path&)>& read) {
  const std::filesystem::path folder =
      std::filesystem::path(MAMBA3_REPOSITORY) / "fuzz" / "corpus" / target;
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const std::string message = error_of([&] { read(entry.path()); });
    if (name.starts_with("ok_")) {
      EXPECT_EQ(message, "") << name;
    } else if (name.starts_with("bad_")) {
      EXPECT_NE(message.find("; expected"), std::string::npos) << name << ": " << message;
    }
    ++files;
  }
  EXPECT_GT(files, 5);
}

}  // namespace mamba3
