// Text to token ids and back: byte-level BPE from a tokenizer.json or from a tiktoken rank file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mamba3 {

class Tokenizer {
 public:
  // A tokenizer.json of Hugging Face's tokenizers, or a rank file as Llama 3 ships
  // (tokenizer.model), told apart by their contents. Refuses what it cannot reproduce exactly, by
  // name.
  static std::shared_ptr<const Tokenizer> load(const std::filesystem::path& path);
  static std::shared_ptr<const Tokenizer> parse_json(const std::string& json_text,
                                                     const std::string& origin);
  static std::shared_ptr<const Tokenizer> parse_ranks(const std::string& text,
                                                      const std::string& origin);
  virtual ~Tokenizer() = default;

  // `text` is UTF-8; ill-formed bytes are refused with their position. With add_special, the file's
  // own post-processor adds its tokens (so its BOS).
  virtual std::vector<std::int32_t> encode(std::string_view text, bool add_special) const = 0;
  // skip_special leaves out special tokens. Ids outside the vocabulary are refused. The result may
  // be cut inside a character when the ids are; Utf8Stream repairs a stream.
  virtual std::string decode(std::span<const std::int32_t> ids, bool skip_special) const = 0;
  // The bytes one token adds to a decoded text; empty for a special token when skip_special.
  virtual std::string token_bytes(std::int32_t id, bool skip_special) const = 0;

  virtual std::int64_t vocab() const = 0;  // largest id + 1, added tokens included
  virtual std::optional<std::int32_t> token_id(std::string_view token) const = 0;
  virtual std::optional<std::int32_t> end_of_text() const = 0;
};

// Holds back the bytes of an unfinished UTF-8 character.
class Utf8Stream {
 public:
  std::string push(
      std::string_view bytes);  // whole characters only; ill-formed bytes become U+FFFD
  std::string finish();         // what is left, as U+FFFD

 private:
  std::string pending_;
};

}  // namespace mamba3
