#include "io/folder_lock.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <optional>

#include "file_test_util.h"

namespace mamba3 {
namespace {

// Locks the folder in another process, which then waits to be killed. Once this returns it has.
pid_t lock_elsewhere(const std::filesystem::path& folder) {
  int ends[2];
  if (::pipe(ends) != 0) throw std::runtime_error("pipe");
  const pid_t process = ::fork();
  if (process == 0) {
    const FolderLock lock(folder);
    if (::write(ends[1], "x", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char done = 0;
  EXPECT_EQ(::read(ends[0], &done, 1), 1);
  ::close(ends[0]);
  ::close(ends[1]);
  return process;
}

TEST(FolderLock, ASecondOneIsRefusedWithTheProcess) {
  const TempFolder folder;
  std::optional<FolderLock> first(std::in_place, folder.path());
  const std::string message = error_of([&] { FolderLock second(folder.path()); });
  EXPECT_NE(message.find("written by process " + std::to_string(::getpid())), std::string::npos)
      << message;
  first.reset();
  EXPECT_EQ(error_of([&] { FolderLock second(folder.path()); }), "");
}

TEST(FolderLock, AKilledHolderBlocksNobody) {
  const TempFolder folder;
  const pid_t process = lock_elsewhere(folder.path());
  const std::string message = error_of([&] { FolderLock second(folder.path()); });
  EXPECT_NE(message.find("process " + std::to_string(process)), std::string::npos) << message;
  ::kill(process, SIGKILL);
  ::waitpid(process, nullptr, 0);
  EXPECT_EQ(error_of([&] { FolderLock second(folder.path()); }), "");
}

TEST(FolderLock, AMovedOneStaysLocked) {
  const TempFolder folder;
  FolderLock first(folder.path());
  const FolderLock moved(std::move(first));
  EXPECT_NE(error_of([&] { FolderLock second(folder.path()); }), "");
}

TEST(FolderLock, AFolderThatCannotBeWrittenIsRefused) {
  const TempFolder folder;
  const std::string message = error_of([&] { FolderLock lock(folder / "missing"); });
  EXPECT_NE(message.find("; expected a folder"), std::string::npos) << message;
}

}  // namespace
}  // namespace mamba3
