// SequenceState: the portable state of one sequence, and its bytes.
//
// A state file is a 96-byte header, the turns of all layers, the values of all layers, and a
// checksum of everything before it, all little-endian. docs/FORMATS.md has the table.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>

#include "core/check.h"
#include "core/hash.h"
#include "mamba3/state.h"
#include "ops/mamba3_common/turns.h"

namespace mamba3 {
namespace {

static_assert(std::endian::native == std::endian::little, "state files are little-endian");

constexpr char kMagic[8] = {'M', 'A', 'M', 'B', 'A', '3', 'S', 'T'};
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kDTypeF32 = 0;

struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t dtype;
  std::uint64_t model_fingerprint;
  std::int64_t position;
  std::int64_t layers;
  std::int64_t turns_count;
  std::int64_t ssm_count;
  std::int64_t k_count;
  std::int64_t v_count;
  std::int32_t pending_id;
  std::uint32_t reserved;
  std::uint64_t payload_bytes;
  std::uint64_t header_checksum;  // of the fields above
};
static_assert(sizeof(Header) == 96);

std::uint64_t checksum(std::span<const std::byte> bytes) {
  Hash64 hash;
  hash.update(bytes);
  return hash.value();
}

std::uint64_t header_checksum(const Header& header) {
  return checksum(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, header_checksum)));
}

Header read_header(std::span<const std::byte> bytes, const std::string& origin) {
  Header header;
  check_input(bytes.size() >= sizeof(Header) + sizeof(std::uint64_t), "state ", origin, " has ",
              bytes.size(),
              " bytes, fewer than its header; expected a file that --save-state wrote; "
              "it is truncated: save it again");
  std::memcpy(&header, bytes.data(), sizeof(Header));
  check_input(
      std::memcmp(header.magic, kMagic, sizeof(kMagic)) == 0, "state ", origin,
      " does not begin with MAMBA3ST; expected a file that --save-state wrote; check the path");
  check_input(header.version == kVersion, "state ", origin, " has format version ", header.version,
              "; this program reads version ", kVersion, "; save it again with this program");
  check_input(
      header.header_checksum == header_checksum(header), "state ", origin,
      " has a damaged header (checksum differs); expected an unchanged file; save it again");
  check_input(header.dtype == kDTypeF32, "state ", origin, " holds numbers of type ", header.dtype,
              "; expected 0 (fp32); save it again with this program");
  return header;
}

template <class T>
void check_count(const std::vector<T>& values, std::int64_t expected, const char* what) {
  check_input(static_cast<std::int64_t>(values.size()) == expected, "imported ", what, " has ",
              values.size(), " numbers; expected ", expected, " for this model");
}

}  // namespace

SequenceState::Sizes SequenceState::sizes_of(const ModelConfig& config) {
  const std::int64_t heads = config.heads(), p = config.mixer.head_dim, n = config.mixer.state;
  return {config.layers, heads * config.mixer.angles(), heads * p * n,
          config.mixer.rank * heads * n, heads * p};
}

SequenceState::SequenceState(const ModelConfig& config, std::uint64_t model_fingerprint)
    : model_fingerprint_(model_fingerprint) {
  check_config(config);
  sizes_ = sizes_of(config);
  turns_.assign(static_cast<std::size_t>(sizes_.layers * sizes_.turns), 0);
  values_.assign(static_cast<std::size_t>(sizes_.layers * sizes_.values()), 0.0f);
}

bool SequenceState::fits(const ModelConfig& config) const {
  return !empty() && sizes_ == sizes_of(config);
}

SequenceState::Parts SequenceState::parts(std::int64_t layer) {
  float* values = values_.data() + layer * sizes_.values();
  return {turns_.data() + layer * sizes_.turns, values, values + sizes_.ssm,
          values + sizes_.ssm + sizes_.k};
}

SequenceState::ConstParts SequenceState::parts(std::int64_t layer) const {
  const float* values = values_.data() + layer * sizes_.values();
  return {turns_.data() + layer * sizes_.turns, values, values + sizes_.ssm,
          values + sizes_.ssm + sizes_.k};
}

LayerState SequenceState::export_layer(std::int64_t layer) const {
  check_input(!empty() && layer >= 0 && layer < sizes_.layers, "layer ", layer, " of a state with ",
              empty() ? 0 : sizes_.layers, " layers");
  const ConstParts from = parts(layer);
  LayerState out;
  out.angle.resize(static_cast<std::size_t>(sizes_.turns));
  for (std::int64_t i = 0; i < sizes_.turns; ++i) {
    out.angle[i] = static_cast<float>(radians_of_turns(from.turns[i]));
  }
  out.ssm.assign(from.ssm, from.ssm + sizes_.ssm);
  out.k.assign(from.k, from.k + sizes_.k);
  out.v.assign(from.v, from.v + sizes_.v);
  return out;
}

void SequenceState::import_layer(std::int64_t layer, const LayerState& state) {
  check_input(layer >= 0 && layer < sizes_.layers, "layer ", layer, " of a state with ",
              sizes_.layers, " layers");
  check_count(state.angle, sizes_.turns, "angle");
  check_count(state.ssm, sizes_.ssm, "ssm");
  check_count(state.k, sizes_.k, "k");
  check_count(state.v, sizes_.v, "v");
  const Parts to = parts(layer);
  for (std::int64_t i = 0; i < sizes_.turns; ++i) {
    check_input(std::isfinite(state.angle[i]), "imported angle ", i, " is not finite");
    to.turns[i] = turns_of_radians(state.angle[i]);
  }
  std::copy(state.ssm.begin(), state.ssm.end(), to.ssm);
  std::copy(state.k.begin(), state.k.end(), to.k);
  std::copy(state.v.begin(), state.v.end(), to.v);
}

std::vector<std::byte> SequenceState::serialize() const {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.dtype = kDTypeF32;
  header.model_fingerprint = model_fingerprint_;
  header.position = position_;
  header.layers = sizes_.layers;
  header.turns_count = sizes_.turns;
  header.ssm_count = sizes_.ssm;
  header.k_count = sizes_.k;
  header.v_count = sizes_.v;
  header.pending_id = pending_id_;
  const auto turns = std::as_bytes(std::span(turns_));
  const auto values = std::as_bytes(std::span(values_));
  header.payload_bytes = turns.size() + values.size();
  header.header_checksum = header_checksum(header);

  const std::size_t payload_end = sizeof(Header) + header.payload_bytes;
  std::vector<std::byte> out(payload_end + sizeof(std::uint64_t));
  std::memcpy(out.data(), &header, sizeof(Header));
  // Not memcpy: a model without rotation has no turns, and then no pointer to them.
  auto* const after_turns = std::ranges::copy(turns, out.data() + sizeof(Header)).out;
  std::ranges::copy(values, after_turns);
  const std::uint64_t sum = checksum(std::span(out).first(payload_end));
  std::memcpy(out.data() + payload_end, &sum, sizeof(sum));
  return out;
}

SequenceState SequenceState::deserialize(std::span<const std::byte> bytes,
                                         const ModelConfig& config, std::uint64_t model_fingerprint,
                                         const std::string& origin) {
  const Header header = read_header(bytes, origin);
  SequenceState state(config, model_fingerprint);
  const bool same_shape = Sizes{header.layers, header.turns_count, header.ssm_count, header.k_count,
                                header.v_count} == state.sizes_;
  check_input(same_shape && header.model_fingerprint == model_fingerprint, "state ", origin,
              " was saved by another model",
              same_shape ? " of the same shape (fingerprint differs)" : " (its sizes differ)",
              "; expected a state of this model; load it with the model that saved it");
  const auto turns = std::as_writable_bytes(std::span(state.turns_));
  const auto values = std::as_writable_bytes(std::span(state.values_));
  const std::size_t payload_bytes = turns.size() + values.size();
  const std::size_t expected_bytes = sizeof(Header) + payload_bytes + sizeof(std::uint64_t);
  check_input(header.payload_bytes == payload_bytes && bytes.size() == expected_bytes, "state ",
              origin, " has ", bytes.size(), " bytes; expected ", expected_bytes,
              "; it is truncated or has something appended: save it again");
  std::uint64_t sum;
  std::memcpy(&sum, bytes.data() + sizeof(Header) + payload_bytes, sizeof(sum));
  check_input(sum == checksum(bytes.first(sizeof(Header) + payload_bytes)), "state ", origin,
              " is damaged (checksum differs); expected an unchanged file; save it again");
  check_input(header.position >= 0 && header.pending_id >= -1 && header.pending_id < config.vocab,
              "state ", origin, " names position ", header.position, " and pending id ",
              header.pending_id, ", outside of what this model can have; save it again");
  const auto payload = bytes.subspan(sizeof(Header));
  std::ranges::copy(payload.first(turns.size()), turns.begin());
  std::ranges::copy(payload.subspan(turns.size(), values.size()), values.begin());
  state.position_ = header.position;
  state.pending_id_ = header.pending_id;
  return state;
}

}  // namespace mamba3
