#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include "core/check.h"
#include "core/quote.h"
#include "io/bytes.h"
#include "io/pickle.h"
#include "io/tensor_copy.h"
#include "io/tensor_file.h"
#include "io/torch_storage.h"
#include "io/zip_reader.h"

namespace mamba3 {
namespace {

constexpr std::size_t kMostDimensions = 16;
constexpr std::size_t kMostTensors = std::size_t{1} << 18;

constexpr std::string_view kRebuildTensor = "torch._utils._rebuild_tensor_v2";
constexpr std::string_view kRebuildParameter = "torch._utils._rebuild_parameter";

std::vector<std::string_view> allowed_globals() {
  std::vector<std::string_view> out{"collections.OrderedDict", kRebuildTensor, kRebuildParameter};
  for (const TorchStorage& storage : kTorchStorages) out.push_back(storage.global);
  return out;
}

// Where the tensors of an archive lie: "<folder>/data.pkl" and "<folder>/data/<key>".
std::string find_folder(const ZipDirectory& archive, const std::string& origin) {
  constexpr std::string_view kPickle = "/data.pkl";
  std::vector<std::string_view> folders;
  for (const auto& [name, entry] : archive) {
    if (!name.ends_with(kPickle)) continue;
    const std::string_view folder = std::string_view(name).substr(0, name.size() - kPickle.size());
    if (folder.find('/') == std::string_view::npos) folders.push_back(folder);
  }
  check_input(folders.size() == 1, origin, " is a zip archive with ", folders.size(),
              " data.pkl; expected one, as torch.save writes it; this is another kind of file");
  return std::string(folders[0]);
}

class TorchReader {
 public:
  explicit TorchReader(const std::shared_ptr<const MappedFile>& file)
      : origin_(quote(file->path().string())),
        file_bytes_(static_cast<std::int64_t>(file->bytes().size())),
        archive_(read_zip_directory(file->bytes(), origin_)),
        folder_(find_folder(archive_, origin_)),
        allowed_(allowed_globals()) {
    out_.files.push_back(file);
  }

  TensorFile read() {
    check_byte_order();
    const std::string name = folder_ + "/data.pkl";
    const ZipEntry& entry = archive_.at(name);
    check_crc(entry, name, origin_);
    pickle_ = read_pickle(entry.data, allowed_, origin_);
    const std::vector<PickleValue>& items = pickle_.items(find_state_dict());
    if (items.size() > 2 * kMostTensors) refuse(str(items.size() / 2, " tensors, too many"));
    for (std::size_t i = 0; i < items.size(); i += 2) {
      if (!items[i].is(PickleKind::kText)) refuse("a key that is not a text");
      const std::string tensor_name(items[i].text);
      if (out_.tensors.contains(tensor_name)) refuse("tensor " + quote(tensor_name) + " twice");
      out_.tensors[tensor_name] = read_tensor(tensor_name, items[i + 1]);
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& found) const {
    fail(ErrorCode::kBadInput, origin_, " holds ", found,
         "; expected a state_dict: a dictionary from names to dense tensors; save "
         "model.state_dict() again");
  }

  void check_byte_order() const {
    const auto order = archive_.find(folder_ + "/byteorder");
    if (order == archive_.end()) return;  // files before torch 2.1 have none and are little-endian
    const std::string_view text = text_of(order->second.data);
    check_input(text == "little", origin_, " has byte order ", quote(text),
                "; expected \"little\"; save it again on a little-endian machine");
  }

  // The root, or what training scripts put beside an optimizer under one of two usual names.
  const PickleValue& find_state_dict() const {
    if (!pickle_.root.is(PickleKind::kDict)) refuse("something other than a dictionary");
    const std::vector<PickleValue>& items = pickle_.items(pickle_.root);
    for (const std::string_view key : {"state_dict", "model"}) {
      for (std::size_t i = 0; i < items.size(); i += 2) {
        if (items[i].is(PickleKind::kText) && items[i].text == key &&
            items[i + 1].is(PickleKind::kDict)) {
          return items[i + 1];
        }
      }
    }
    return pickle_.root;
  }

  bool is_call(const PickleValue& value, std::string_view name) const {
    if (!value.is(PickleKind::kCall)) return false;
    return allowed_[static_cast<std::size_t>(pickle_.items(value)[0].number)] == name;
  }
  const std::vector<PickleValue>& arguments(const PickleValue& call) const {
    return pickle_.items(pickle_.items(call)[1]);
  }

  std::vector<std::int64_t> read_sizes(const std::string& name, const PickleValue& value) const {
    if (!value.is(PickleKind::kTuple) || pickle_.items(value).size() > kMostDimensions) {
      refuse("tensor " + quote(name) + " without a usable shape");
    }
    std::vector<std::int64_t> out;
    for (const PickleValue& item : pickle_.items(value)) {
      if (!item.is(PickleKind::kInt) || item.number < 0) {
        refuse("tensor " + quote(name) + " with a shape or stride that is negative or no number");
      }
      out.push_back(item.number);
    }
    return out;
  }

  struct Storage {
    DType dtype = DType::kF32;
    std::span<const std::byte> data;
    std::int64_t elements = 0;
  };

  Storage read_storage(const std::string& name, const PickleValue& value) const {
    const auto bad = [&](const std::string& what) { refuse("tensor " + quote(name) + what); };
    if (!value.is(PickleKind::kPersistent)) bad(" without a storage");
    const PickleValue& id = pickle_.items(value)[0];
    // ("storage", type, key, device, elements). The device is where it was, not where it will be.
    if (!id.is(PickleKind::kTuple) || pickle_.items(id).size() != 5) bad(" with an odd storage");
    const std::vector<PickleValue>& parts = pickle_.items(id);
    if (!parts[0].is(PickleKind::kText) || parts[0].text != "storage" ||
        !parts[1].is(PickleKind::kGlobal) || !parts[2].is(PickleKind::kText) ||
        !parts[4].is(PickleKind::kInt)) {
      bad(" with an odd storage");
    }
    const TorchStorage* type =
        find_torch_storage(allowed_[static_cast<std::size_t>(parts[1].number)]);
    if (type == nullptr) bad(" with a storage of no known type");
    const auto entry = archive_.find(folder_ + "/data/" + std::string(parts[2].text));
    if (entry == archive_.end()) {
      bad(" in storage " + quote(parts[2].text) + ", which is not in the archive");
    }
    const Storage storage{type->dtype, entry->second.data, parts[4].number};
    const auto bytes = static_cast<std::int64_t>(storage.data.size());
    if (multiply_sizes(storage.elements, dtype_bytes(storage.dtype)) != bytes) {
      bad(str(" in storage ", quote(parts[2].text), " of ", storage.elements, " elements ",
              dtype_name(storage.dtype), " but ", bytes, " bytes"));
    }
    return storage;
  }

  // Refuses a view that leaves its storage.
  void check_extent(const std::string& name, const StridedTensor& tensor, std::int64_t offset,
                    std::int64_t storage_elements) const {
    std::int64_t last = offset;  // index of the last element, -1 when it does not fit
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      const std::int64_t span = multiply_sizes(tensor.shape[i] - 1, tensor.stride[i]);
      if (span < 0 || __builtin_add_overflow(last, span, &last)) {
        refuse("tensor " + quote(name) + " with a shape or stride that overflows");
      }
    }
    if (last >= storage_elements) {
      refuse(str("tensor ", quote(name), " ", shape_string(tensor.shape),
                 " whose last element would be number ", last, " of a storage of ",
                 storage_elements));
    }
  }

  TensorRef read_tensor(const std::string& name, const PickleValue& value) {
    if (is_call(value, kRebuildParameter) && !arguments(value).empty() &&
        !is_call(arguments(value)[0], kRebuildParameter)) {
      return read_tensor(name, arguments(value)[0]);
    }
    // (storage, offset, shape, stride, requires_grad, hooks[, metadata])
    if (!is_call(value, kRebuildTensor)) refuse("entry " + quote(name) + ", which is no tensor");
    const std::vector<PickleValue>& parts = arguments(value);
    if (parts.size() < 4 || parts.size() > 7 || !parts[1].is(PickleKind::kInt) ||
        parts[1].number < 0) {
      refuse("tensor " + quote(name) + " with odd parts");
    }
    const bool has_metadata =
        parts.size() == 7 && !(parts[6].is(PickleKind::kNone) ||
                               (parts[6].is(PickleKind::kDict) && pickle_.items(parts[6]).empty()));
    if (has_metadata) refuse("tensor " + quote(name) + ", a lazy conjugate or negation");

    const Storage storage = read_storage(name, parts[0]);
    StridedTensor tensor{storage.data.data(), storage.dtype, read_sizes(name, parts[2]),
                         read_sizes(name, parts[3])};
    if (tensor.shape.size() != tensor.stride.size()) {
      refuse("tensor " + quote(name) + " with unequal numbers of extents and strides");
    }
    const std::int64_t elements = checked_elements(tensor.shape);
    if (elements < 0) refuse("tensor " + quote(name) + " with a shape that overflows");
    if (elements == 0) return {tensor.data, tensor.dtype, tensor.shape};
    check_extent(name, tensor, parts[1].number, storage.elements);
    tensor.data += parts[1].number * dtype_bytes(tensor.dtype);
    return place_tensor(tensor, name, out_, copied_bytes_, file_bytes_);
  }

  std::string origin_;
  std::int64_t file_bytes_;
  ZipDirectory archive_;
  std::string folder_;
  std::vector<std::string_view> allowed_;
  Pickle pickle_;
  TensorFile out_;
  std::int64_t copied_bytes_ = 0;
};

void check_is_zip(const MappedFile& file) {
  const std::string_view text = text_of(file.bytes());
  const std::string origin = quote(file.path().string());
  check_input(!text.starts_with("version https://git-lfs"), origin,
              " is a Git LFS pointer; expected the file that it points to; run git lfs pull");
  check_input(!text.starts_with('\x80'), origin,
              " is a bare pickle, the torch format from before version 1.6; expected the zip "
              "format; load it in PyTorch and save it again");
  check_input(text.starts_with("PK"), origin,
              " is not a zip archive; expected what torch.save writes; the file is damaged or of "
              "another kind");
}

}  // namespace

TensorFile parse_torch_bin(const std::shared_ptr<const MappedFile>& file) {
  check_is_zip(*file);
  return TorchReader(file).read();
}

TensorFile read_torch_bin(const std::filesystem::path& path) {
  return parse_torch_bin(MappedFile::open(path));
}

}  // namespace mamba3
