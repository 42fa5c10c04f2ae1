#include "io/safetensors_header.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "core/check.h"
#include "core/quote.h"
#include "io/json.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kMostHeaderBytes = 100'000'000;  // the format's own limit
constexpr std::size_t kMostTensors = std::size_t{1} << 18;
constexpr std::size_t kMostMetadata = std::size_t{1} << 16;
constexpr std::size_t kMostDimensions = 16;
constexpr std::size_t kMostNameBytes = 4096;
constexpr std::size_t kMostValueBytes = std::size_t{16} << 20;

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kF16, DType::kBf16, DType::kI64,
                            DType::kI32, DType::kI16, DType::kI8, DType::kU8, DType::kBool}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  return std::nullopt;
}

// Takes the header event by event, so that its memory is bounded by the tensors that it names and
// equal keys are seen. The depth tells what a value is: 1 the names, 2 the fields of one tensor or
// of __metadata__, 3 the numbers of a shape or of offsets.
class HeaderEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderEvents(const std::string& origin, SafetensorsHeader& out) : origin_(origin), out_(out) {}

  bool start_object(std::size_t) override {
    if (depth_ == 1 && in_metadata_) {
      ++depth_;
      return true;
    }
    if (depth_ > 1) refuse("holds an object where none belongs");
    if (++depth_ == 2) {
      fields_.clear();
      out_.entries.push_back({name_, DType::kF32, {}, 0, 0});
    }
    return true;
  }
  bool end_object() override {
    if (depth_ == 2 && !in_metadata_ && fields_.size() != 3) {
      refuse("lacks one of dtype, shape, data_offsets");
    }
    if (depth_ == 2) in_metadata_ = false;
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    if (name.size() > kMostNameBytes) refuse("is followed by too long a name");
    if (depth_ == 1) {
      name_ = name;
      in_metadata_ = name == "__metadata__";
      if (!names_.insert(name).second) refuse("is there twice");
      if (names_.size() > kMostTensors) refuse("is one tensor too many");
    } else if (in_metadata_) {
      if (out_.metadata.size() >= kMostMetadata) refuse("has too many keys");
      if (!out_.metadata.emplace(name, "").second) refuse("has one key twice");
      field_ = name;
    } else {
      if (name != "dtype" && name != "shape" && name != "data_offsets") {
        refuse("has an unknown field");
      }
      if (!fields_.insert(name).second) refuse("has one field twice");
      field_ = name;
    }
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      if (value.size() > kMostValueBytes) refuse("holds too long a text");
      out_.metadata[field_] = value;
      return true;
    }
    if (depth_ != 2 || field_ != "dtype") refuse("holds a text where none belongs");
    const std::optional<DType> dtype = dtype_from_name(value);
    if (!dtype) {
      fail(ErrorCode::kBadInput, origin_, ": tensor ", quote(name_), " has dtype ", quote(value),
           "; expected F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL; convert it first");
    }
    out_.entries.back().dtype = *dtype;
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ != 2 || in_metadata_ || (field_ != "shape" && field_ != "data_offsets")) {
      refuse("holds a list where none belongs");
    }
    ++depth_;
    numbers_.clear();
    return true;
  }
  bool end_array() override {
    --depth_;
    if (field_ == "shape") {
      out_.entries.back().shape = numbers_;
    } else {
      if (numbers_.size() != 2) refuse("has data_offsets that are not two numbers");
      out_.entries.back().begin = numbers_[0];
      out_.entries.back().end = numbers_[1];
    }
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ != 3) refuse("holds a number where none belongs");
    if (value > static_cast<std::uint64_t>(INT64_MAX)) refuse("holds a number beyond 63 bits");
    if (numbers_.size() >= kMostDimensions) refuse("has too many dimensions");
    numbers_.push_back(static_cast<std::int64_t>(value));
    return true;
  }
  bool number_integer(number_integer_t) override { refuse("holds a negative number"); }
  bool number_float(number_float_t, const string_t&) override { refuse("holds a fraction"); }
  bool boolean(bool) override { refuse("holds true or false where none belongs"); }
  bool null() override { refuse("holds null where none belongs"); }
  bool binary(binary_t&) override { refuse("holds binary data"); }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::json::exception& error) override {
    refuse_json("the header of " + origin_, error.what());
  }

 private:
  [[noreturn]] void refuse(const char* reason) const {
    fail(ErrorCode::kBadInput, origin_, ": header entry ", quote(name_), " ", reason,
         "; expected dtype, shape and data_offsets for each tensor, texts in __metadata__; the "
         "file is damaged");
  }

  const std::string& origin_;
  SafetensorsHeader& out_;
  int depth_ = 0;
  bool in_metadata_ = false;
  std::string name_;   // at depth 1
  std::string field_;  // at depth 2
  std::set<std::string> names_;
  std::set<std::string> fields_;
  std::vector<std::int64_t> numbers_;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& origin) {
  check_json_limits(text, "the header of " + origin, {kMostHeaderBytes, 3});
  check_input(text.starts_with('{'), "the header of ", origin,
              " does not begin with {; expected a safetensors file; this is another kind of file");
  SafetensorsHeader out;
  HeaderEvents events(origin, out);
  nlohmann::json::sax_parse(text, &events);
  return out;
}

}  // namespace mamba3
