#include <map>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "io/bytes.h"
#include "io/tensor_copy.h"
#include "io/tensor_writer.h"
#include "io/torch_storage.h"
#include "io/zip_writer.h"

namespace mamba3 {
namespace {

constexpr std::string_view kFolder = "pytorch_model";

// A storage, named by its place in the archive.
struct Storage {
  TensorRef largest;  // of the tensors that begin at the same data
  std::size_t key = 0;
};

// Tensors of one type that begin at the same address share their bytes, as tied weights do.
class Storages {
 public:
  explicit Storages(const std::vector<NamedTensor>& tensors) {
    for (const auto& [name, tensor] : tensors) {
      const auto [found, is_new] = by_data_.try_emplace({tensor.data, tensor.dtype}, keys_.size());
      if (is_new) keys_.push_back({tensor, keys_.size()});
      Storage& storage = keys_[found->second];
      if (tensor.elements() > storage.largest.elements()) storage.largest = tensor;
    }
  }
  const Storage& of(const TensorRef& tensor) const {
    return keys_[by_data_.at({tensor.data, tensor.dtype})];
  }
  const std::vector<Storage>& all() const { return keys_; }

 private:
  std::map<std::pair<const std::byte*, DType>, std::size_t> by_data_;
  std::vector<Storage> keys_;
};

// Protocol 2, as torch writes it, but without a memo: nothing here needs to be recalled.
class PickleWriter {
 public:
  void raw(std::string_view bytes) { out_ += bytes; }
  void global(std::string_view name) {
    const std::size_t dot = name.rfind('.');
    out_ += 'c';
    out_ += name.substr(0, dot);
    out_ += '\n';
    out_ += name.substr(dot + 1);
    out_ += '\n';
  }
  void text(std::string_view text) {
    out_ += 'X';
    number(text.size(), 4);
    out_ += text;
  }
  void integer(std::int64_t value) {
    if (value >= 0 && value < 256) {
      out_ += 'K';
      number(static_cast<std::uint64_t>(value), 1);
    } else if (value >= 0 && value <= INT32_MAX) {
      out_ += 'J';
      number(static_cast<std::uint64_t>(value), 4);
    } else {
      out_ += "\x8a\x08";
      number(static_cast<std::uint64_t>(value), 8);
    }
  }
  void integers(const std::vector<std::int64_t>& values) {
    out_ += '(';
    for (const std::int64_t value : values) integer(value);
    out_ += 't';
  }
  const std::string& bytes() const { return out_; }

 private:
  void number(std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out_ += static_cast<char>(value >> (8 * i));
  }
  std::string out_;
};

// _rebuild_tensor_v2((storage id), 0, shape, stride, False, OrderedDict())
void pickle_tensor(PickleWriter& out, const TensorRef& tensor, const Storage& storage) {
  out.global("torch._utils._rebuild_tensor_v2");
  out.raw("((");
  out.text("storage");
  out.global(torch_storage_of(tensor.dtype).global);
  out.text(std::to_string(storage.key));
  out.text("cpu");
  out.integer(storage.largest.elements());
  out.raw("tQ");
  out.integer(0);
  out.integers(tensor.shape);
  out.integers(contiguous_strides(tensor.shape));
  out.raw("\x89");
  out.global("collections.OrderedDict");
  out.raw(")RtR");
}

std::string pickle_state_dict(const std::vector<NamedTensor>& tensors, const Storages& storages) {
  PickleWriter out;
  out.raw("\x80\x02");
  out.global("collections.OrderedDict");
  out.raw(")R(");
  for (const auto& [name, tensor] : tensors) {
    out.text(name);
    pickle_tensor(out, tensor, storages.of(tensor));
  }
  out.raw("u.");
  return out.bytes();
}

}  // namespace

void write_torch_bin(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                     const Progress& progress) {
  check_writable(tensors);
  const Storages storages(tensors);
  std::int64_t all_bytes = 0;
  for (const Storage& storage : storages.all()) all_bytes += storage.largest.bytes();
  WriteProgress counter(progress, all_bytes);
  WriteProgress uncounted({}, 0);

  AtomicFile file(path);
  ZipWriter archive(file);
  const auto add_text = [&](const char* name, std::string_view text) {
    archive.add(str(kFolder, name), std::as_bytes(std::span(text)), uncounted);
  };
  add_text("/data.pkl", pickle_state_dict(tensors, storages));
  add_text("/byteorder", "little");
  for (const Storage& storage : storages.all()) {
    archive.add(str(kFolder, "/data/", storage.key), data_of(storage.largest), counter);
  }
  add_text("/version", "3\n");
  archive.finish();
  file.commit();
}

}  // namespace mamba3
