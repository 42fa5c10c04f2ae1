#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "file_test_util.h"
#include "io/atomic_file.h"
#include "io/tensor_file.h"
#include "io/zip_reader.h"

namespace mamba3 {
namespace {

// Tensors of every type, a scalar, an empty one and a tied pair.
class Tensors {
 public:
  Tensors() {
    for (std::size_t i = 0; i < bytes_.size(); ++i) bytes_[i] = static_cast<std::byte>(i * 7);
    const auto add = [&](const char* name, DType dtype, std::vector<std::int64_t> shape) {
      TensorRef tensor{bytes_.data() + used_, dtype, std::move(shape)};
      used_ += static_cast<std::size_t>((tensor.bytes() + 7) / 8 * 8);
      list.push_back({name, std::move(tensor)});
    };
    add("embedding", DType::kBf16, {13, 6});
    add("f32", DType::kF32, {5, 7});
    add("f64", DType::kF64, {3});
    add("f16", DType::kF16, {1, 1, 3});
    add("i64", DType::kI64, {2});
    add("i32", DType::kI32, {300});
    add("i16", DType::kI16, {3});
    add("i8", DType::kI8, {5});
    add("u8", DType::kU8, {3});
    add("bool", DType::kBool, {1});
    add("scalar", DType::kF32, {});
    add("empty \"\\\n", DType::kF32, {0, 3});
    list.push_back({"lm_head", list[0].tensor});
  }
  std::vector<NamedTensor> list;

 private:
  std::array<std::byte, 4096> bytes_;
  std::size_t used_ = 0;
};

void expect_same(const TensorFile& file, const std::vector<NamedTensor>& expected) {
  EXPECT_EQ(file.tensors.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    ASSERT_TRUE(file.tensors.contains(name)) << name;
    const TensorRef& read = file.tensors.at(name);
    EXPECT_EQ(read.dtype, tensor.dtype) << name;
    ASSERT_EQ(read.shape, tensor.shape) << name;
    EXPECT_EQ(std::memcmp(read.data, tensor.data, static_cast<std::size_t>(tensor.bytes())), 0)
        << name;
  }
}

std::vector<NamedTensor> named(const TensorFile& file) {
  std::vector<NamedTensor> out;
  for (const auto& [name, tensor] : file.tensors) out.push_back({name, tensor});
  return out;
}

TEST(Writers, RoundTripsThroughBothFormats) {
  const TempFolder folder;
  const Tensors tensors;
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"k\"", "\xc3\xa9\n"}};
  write_safetensors(folder / "a.safetensors", tensors.list, metadata);
  const TensorFile first = read_safetensors(folder / "a.safetensors");
  expect_same(first, tensors.list);
  EXPECT_EQ(first.metadata, metadata);
  EXPECT_EQ((first.tensors.at("embedding").data - first.files[0]->bytes().data()) % 64, 0);

  write_torch_bin(folder / "b.bin", tensors.list);
  const TensorFile second = read_torch_bin(folder / "b.bin");
  expect_same(second, tensors.list);
  EXPECT_TRUE(second.copies.empty());
  EXPECT_EQ(second.tensors.at("lm_head").data, second.tensors.at("embedding").data);
  std::size_t storages = 0;  // one for each tensor, but one for the tied pair
  for (const auto& [name, entry] : read_zip_directory(second.files[0]->bytes(), "b.bin")) {
    storages += name.find("/data/") != std::string::npos;
  }
  EXPECT_EQ(storages, tensors.list.size() - 1);

  write_safetensors(folder / "c.safetensors", named(second), {});
  const TensorFile third = read_safetensors(folder / "c.safetensors");
  expect_same(third, tensors.list);
  EXPECT_EQ(folder.files(), 3u);
}

TEST(Writers, GoldensRoundTrip) {
  const std::filesystem::path golden = std::filesystem::path(MAMBA3_REPOSITORY) / "tests/golden";
  for (const char* name : {"lm_mimo_bf16_mixed_g2", "lm_siso_fp32"}) {
    const TempFolder folder;
    const TensorFile original = read_folder_weights(golden / name);
    write_torch_bin(folder / "pytorch_model.bin", named(original));
    expect_same(read_folder_weights(folder.path()), named(original));
    write_safetensors_folder(folder.path(), named(original), {{"format", "pt"}}, 100000);
    expect_same(read_folder_weights(folder.path()), named(original));
  }
}

TEST(Writers, ShardsAreNoLargerThanAsked) {
  const Tensors tensors;
  for (const std::int64_t shard_bytes : {1, 2500, 4000, 1 << 20}) {
    SCOPED_TRACE(shard_bytes);
    const TempFolder folder;
    // What an earlier write may have left in either layout.
    write_text(folder / "model.safetensors", "old");
    write_text(folder / "model.safetensors.index.json", "old");
    write_safetensors_folder(folder.path(), tensors.list, {{"a", "b"}}, shard_bytes);
    expect_same(read_folder_weights(folder.path()), tensors.list);
    EXPECT_EQ(folder.files(), shard_bytes == 1 << 20 ? 1u
                              : shard_bytes == 1     ? 14u
                                                     : folder.files());
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
      if (shard_bytes > 1 && entry.path().extension() == ".safetensors") {
        EXPECT_LE(entry.file_size(), static_cast<std::uintmax_t>(shard_bytes)) << entry.path();
      }
    }
  }
  const TempFolder folder;
  expect_error("size of a shard is 0",
               [&] { write_safetensors_folder(folder.path(), tensors.list, {}, 0); });
}

TEST(Writers, RefuseBadTensors) {
  const TempFolder folder;
  const Tensors tensors;
  const TensorRef good = tensors.list[0].tensor;
  const auto refused = [&](const std::string& part, const std::vector<NamedTensor>& list) {
    expect_error(part, [&] { write_safetensors(folder / "x", list, {}); });
    expect_error(part, [&] { write_torch_bin(folder / "x", list); });
    EXPECT_EQ(folder.files(), 0u);
  };
  refused("two tensors are named \"a\"", {{"a", good}, {"a", good}});
  refused("expected a name in UTF-8", {{"__metadata__", good}});
  refused("expected a name in UTF-8", {{"", good}});
  refused("expected a name in UTF-8", {{"\xff", good}});
  refused("cannot be written", {{"a", {good.data, DType::kF32, {-1}}}});
  refused("cannot be written", {{"a", {good.data, DType::kF32, {1LL << 62, 1LL << 62}}}});
  refused("cannot be written", {{"a", {nullptr, DType::kF32, {1}}}});
  expect_error("metadata of a safetensors file is not UTF-8", [&] {
    write_safetensors(folder / "x", tensors.list, {{"a", "\xff"}});
  });
  EXPECT_EQ(folder.files(), 0u);
}

using Write = std::function<void(const std::filesystem::path& folder, const Progress&)>;

std::vector<std::pair<std::string, Write>> all_writers(const std::vector<NamedTensor>& tensors) {
  return {{"x.safetensors",
           [&](const auto& folder, const Progress& progress) {
             write_safetensors(folder / "x.safetensors", tensors, {}, progress);
           }},
          {"model.safetensors.index.json",
           [&](const auto& folder, const Progress& progress) {
             write_safetensors_folder(folder, tensors, {}, 1, progress);
           }},
          {"x.bin", [&](const auto& folder, const Progress& progress) {
             write_torch_bin(folder / "x.bin", tensors, progress);
           }}};
}

TEST(Writers, ProgressReachesAll) {
  const Tensors tensors;
  for (const auto& [name, write] : all_writers(tensors.list)) {
    const TempFolder folder;
    std::int64_t last = 0;
    write(folder.path(), [&](std::int64_t done, std::int64_t all) {
      EXPECT_GT(done, last);
      EXPECT_LE(done, all);
      last = done;
      if (done == all) last = -1;
    });
    EXPECT_EQ(last, -1) << name;
  }
}

TEST(Writers, AnInterruptedWriteLeavesTheOldFile) {
  const Tensors tensors;
  for (const auto& [name, write] : all_writers(tensors.list)) {
    const TempFolder folder;
    write_text(folder / name, "old");
    int calls = 0;
    EXPECT_THROW(write(folder.path(),
                       [&](std::int64_t, std::int64_t) {
                         if (++calls == 5) throw std::runtime_error("interrupted");
                       }),
                 std::runtime_error);
    EXPECT_EQ(folder.files(), 1u) << name;
    EXPECT_EQ(read_text(folder / name), "old");
  }
}

// Files of at most `bytes` for as long as it lives: writing more fails as on a full disk.
class SmallDisk {
 public:
  explicit SmallDisk(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit small{bytes, old_.rlim_max};
    old_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::setrlimit(RLIMIT_FSIZE, &small);
  }
  ~SmallDisk() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int) = nullptr;
};

TEST(Writers, AFullDiskLeavesTheOldFile) {
  const Tensors tensors;
  for (const auto& [name, write] : all_writers(tensors.list)) {
    for (const rlim_t bytes : {0, 100, 700}) {
      const TempFolder folder;
      write_text(folder / name, "old");
      const SmallDisk disk(bytes);
      expect_error("cannot write", [&, &writer = write] { writer(folder.path(), {}); });
      EXPECT_EQ(folder.files(), 1u) << name << " " << bytes;
    }
  }
}

TEST(AtomicFile, DevicesAreWrittenDirectly) {
  expect_error("No space left on device", [] {
    AtomicFile file("/dev/full");
    file.write(std::string_view("text"));
    file.commit();
  });
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
  EXPECT_NO_THROW({
    AtomicFile file("/dev/null");
    file.write(std::string_view("text"));
    file.commit();
  });
}

TEST(AtomicFile, PlacesThatCannotBeWritten) {
  const TempFolder folder;
  write_text(folder / "file", "");
  expect_error("No such file", [&] { AtomicFile file(folder / "missing/x"); });
  expect_error("cannot write", [&] { AtomicFile file(folder / "file/x"); });
  expect_error("it is a folder", [&] { AtomicFile file(folder.path()); });
  expect_error("cannot write", [] { AtomicFile file("/proc/x"); });
  if (::geteuid() == 0) return;  // may write anywhere
  std::filesystem::permissions(
      folder.path(), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  expect_error("Permission denied", [&] { AtomicFile file(folder / "x"); });
  std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_all);
}

TEST(AtomicFile, AReplacedFileKeepsItsPermissions) {
  const TempFolder folder;
  const auto path = folder / "x";
  write_text(path, "before");
  const auto owner = std::filesystem::perms::owner_read | std::filesystem::perms::owner_write;
  std::filesystem::permissions(path, owner);
  write_atomically(path, "after");
  EXPECT_EQ(std::filesystem::status(path).permissions(), owner);
  EXPECT_EQ(read_text(path), "after");
}

TEST(AtomicFile, ReplacesOnCommitOnlyAndFollowsLinks) {
  const TempFolder folder;
  write_text(folder / "target", "old");
  std::filesystem::create_symlink("target", folder / "link");
  {
    AtomicFile file(folder / "link");
    file.write(std::string_view("new"));
    file.finish();
    EXPECT_EQ(read_text(folder / "target"), "old");
  }
  EXPECT_EQ(folder.files(), 2u);
  AtomicFile file(folder / "link");
  file.write(std::string_view("new"));
  file.commit();
  EXPECT_EQ(read_text(folder / "target"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(folder.files(), 2u);
}

}  // namespace
}  // namespace mamba3
