// The base of parsers that fill a request while a line of JSON is read, without building a
// document: memory stays near the line's own size, however deep it is nested.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "core/check.h"
#include "io/json.h"

namespace mamba3 {

constexpr std::int64_t kMostId = INT32_MAX;

// Answers of a parser's events that only accept what this project reads: a base with refusals.
class JsonEvents {
 public:
  explicit JsonEvents(const std::string& where) : where_(where) {}
  bool null() { return other(); }
  bool boolean(bool) { return other(); }
  bool number_float(double, const std::string&) { return other(); }
  bool binary(nlohmann::json::binary_t&) { return other(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) {
    refuse_json(where_, error.what());
  }

 protected:
  virtual ~JsonEvents() = default;
  virtual bool other() = 0;
  [[noreturn]] void refuse(const std::string& found, const std::string& expected) const {
    fail(ErrorCode::kBadInput, where_, " ", found, "; expected ", expected, "; correct it");
  }
  const std::string& where_;
};

}  // namespace mamba3
