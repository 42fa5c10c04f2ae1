// A restricted reader of Python pickles, protocol 2 to 5. Nothing is imported, called or executed:
// the result is an inert tree in which a call is only a record of what would be called with what.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mamba3 {

enum class PickleKind : std::uint8_t {
  kNone,
  kBool,        // number
  kInt,         // number
  kFloat,       // real
  kText,        // text
  kBytes,       // text
  kTuple,       // items
  kList,        // items
  kDict,        // items: key, value, key, value, ...
  kGlobal,      // number: index into the allowed names
  kCall,        // items: the global, the tuple of arguments
  kPersistent,  // items: the id
};

struct PickleValue {
  PickleKind kind = PickleKind::kNone;
  union {
    std::int64_t number = 0;  // of containers: index into Pickle::containers
    double real;
  };
  std::string_view text;  // points into the pickle

  bool is(PickleKind other) const { return kind == other; }
};

struct Pickle {
  PickleValue root;
  std::deque<std::vector<PickleValue>> containers;

  const std::vector<PickleValue>& items(const PickleValue& value) const {
    return containers[static_cast<std::size_t>(value.number)];
  }
};

// `allowed` are the globals that may occur, as "module.name"; any other is refused by its name.
// collections.OrderedDict() with no arguments becomes a dict, and state that is set on a dict
// (torch keeps version numbers there) is dropped. `bytes` must outlive the result.
Pickle read_pickle(std::span<const std::byte> bytes, std::span<const std::string_view> allowed,
                   const std::string& origin);

}  // namespace mamba3
