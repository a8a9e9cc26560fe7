// The host's cgroup of a sandbox: over files in memory, and over this host's own where it may be used.

#include <gtest/gtest.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "actors/host/cgroup.hpp"

namespace caisson {
namespace {

constexpr std::uint64_t mib = 1 << 20;

/// A small cgroup file system: a directory that is made has its files.
struct model_files {
  std::map<std::string, std::string> files;
  std::set<std::string> read_only; ///< directories
  std::set<std::string> directories;

  void cgroup2(const std::string& path, const std::string& subtree) {
    directories.insert(path);
    files[path + "/cgroup.subtree_control"] = subtree;
    files[path + "/cgroup.procs"] = "";
    files[path + "/memory.max"] = "max\n";
    files[path + "/memory.current"] = "0\n";
  }

  cgroup_files use(bool superuser, const std::string& own) {
    files["/proc/self/cgroup"] = own;
    cgroup_files f;
    f.root = "/cg";
    f.superuser = superuser;
    f.read = [this](const std::string& path) {
      const auto at = files.find(path);
      return at == files.end() ? std::string{} : at->second;
    };
    f.write = [this](const std::string& path, const std::string& text) -> std::string {
      const auto at = files.find(path);
      if (at == files.end() || read_only.contains(path.substr(0, path.rfind('/'))))
        return path + ": Permission denied";
      if (path.ends_with("cgroup.subtree_control"))
        at->second += " " + text.substr(1);
      else
        at->second = text;
      return {};
    };
    f.make = [this](const std::string& path) -> std::string {
      if (directories.contains(path))
        return {};
      if (read_only.contains(path.substr(0, path.rfind('/'))))
        return path + ": Permission denied";
      cgroup2(path, "");
      return {};
    };
    f.remove = [this](const std::string& path) -> std::string {
      directories.erase(path);
      return {};
    };
    f.writable = [this](const std::string& path) { return directories.contains(path) && !read_only.contains(path); };
    return f;
  }
};

v1::FollowCgroup ask(std::uint64_t limit_bytes, std::int64_t pid = 42) {
  v1::FollowCgroup m;
  m.set_sandbox_id("s1");
  m.set_pid(pid);
  m.set_limit_bytes(limit_bytes);
  return m;
}

TEST(host_cgroup, root_has_one_below_its_own_branch) {
  model_files disk;
  disk.cgroup2("/cg", "cpu memory");
  disk.files["/cg/cgroup.controllers"] = "cpu memory pids\n";
  host_cgroups cgroups{disk.use(true, "0::/system.slice/caissond.service\n")};
  const auto made = cgroups.follow(ask(512 * mib));
  EXPECT_EQ(made.path(), "/cg/caisson/caisson-s1");
  EXPECT_EQ(made.why_not(), "");
  EXPECT_EQ(disk.files["/cg/caisson/caisson-s1/memory.max"], std::to_string(512 * mib));
  EXPECT_EQ(disk.files["/cg/caisson/caisson-s1/cgroup.procs"], "42");
  cgroups.follow(ask(1024 * mib));
  EXPECT_EQ(disk.files["/cg/caisson/caisson-s1/memory.max"], std::to_string(1024 * mib));
  cgroups.follow(ask(0));
  EXPECT_FALSE(disk.directories.contains("/cg/caisson/caisson-s1"));
}

TEST(host_cgroup, others_have_one_in_a_subtree_that_was_given_to_them) {
  model_files disk;
  disk.cgroup2("/cg", "memory");
  disk.cgroup2("/cg/user", "memory");
  disk.cgroup2("/cg/user/app", "memory");
  disk.cgroup2("/cg/user/app/engine", "");
  disk.files["/cg/cgroup.controllers"] = "memory\n";
  disk.read_only = {"/cg", "/cg/user"};
  host_cgroups cgroups{disk.use(false, "0::/user/app/engine\n")};
  EXPECT_EQ(cgroups.follow(ask(512 * mib)).path(), "/cg/user/app/caisson-s1");
}

TEST(host_cgroup, without_one_to_use_it_says_why_and_what_would_help) {
  model_files disk;
  disk.cgroup2("/cg", "memory");
  disk.cgroup2("/cg/user", "");
  disk.files["/cg/cgroup.controllers"] = "memory\n";
  disk.read_only = {"/cg", "/cg/user"};
  host_cgroups cgroups{disk.use(false, "0::/user\n")};
  const auto none = cgroups.follow(ask(512 * mib));
  EXPECT_EQ(none.path(), "");
  EXPECT_NE(none.why_not().find("Delegate=yes"), std::string::npos) << none.why_not();
  model_files nothing;
  host_cgroups bare{nothing.use(true, "")};
  EXPECT_NE(bare.follow(ask(512 * mib)).why_not().find("no memory controller"), std::string::npos);
}

TEST(host_cgroup, never_goes_below_what_the_vmm_holds) {
  model_files disk;
  disk.cgroup2("/cg", "memory");
  disk.files["/cg/cgroup.controllers"] = "memory\n";
  host_cgroups cgroups{disk.use(true, "0::/\n")};
  cgroups.follow(ask(2048 * mib));
  disk.files["/cg/caisson/caisson-s1/memory.current"] = std::to_string(1500 * mib) + "\n";
  const auto lower = cgroups.follow(ask(1024 * mib));
  EXPECT_EQ(lower.path(), "/cg/caisson/caisson-s1");
  EXPECT_NE(lower.why_not(), "");
  EXPECT_EQ(disk.files["/cg/caisson/caisson-s1/memory.max"], std::to_string(1500 * mib)) << "and it gets no more";
  disk.files["/cg/caisson/caisson-s1/memory.current"] = std::to_string(900 * mib) + "\n";
  EXPECT_EQ(cgroups.follow(ask(1024 * mib)).why_not(), "");
  EXPECT_EQ(disk.files["/cg/caisson/caisson-s1/memory.max"], std::to_string(1024 * mib));
}

TEST(host_cgroup, says_whether_the_kernel_has_killed_in_it) {
  model_files disk;
  disk.cgroup2("/cg", "memory");
  disk.files["/cg/cgroup.controllers"] = "memory\n";
  host_cgroups cgroups{disk.use(true, "0::/\n")};
  cgroups.follow(ask(512 * mib));
  const auto events = "/cg/caisson/caisson-s1/memory.events";
  EXPECT_EQ(cgroups.follow(ask(1, 0)).why_not(), "") << "a kernel that counts no kills";
  disk.files[events] = "low 0\nhigh 0\nmax 17\noom 1\noom_kill 0\n";
  EXPECT_EQ(cgroups.follow(ask(1, 0)).why_not(), "") << "it had to reclaim, and nobody was killed";
  disk.files[events] = "low 0\nhigh 0\nmax 17\noom 1\noom_kill 1\noom_group_kill 0\n";
  const auto killed = cgroups.follow(ask(1, 0));
  EXPECT_NE(killed.why_not().find("/cg/caisson/caisson-s1"), std::string::npos) << killed.why_not();
  EXPECT_NE(killed.why_not().find("512 MiB"), std::string::npos) << killed.why_not();
  EXPECT_EQ(disk.files["/cg/caisson/caisson-s1/memory.max"], std::to_string(512 * mib)) << "a look changes nothing";
}

TEST(host_cgroup, of_this_host_bounds_a_process) {
  std::ifstream swaps{"/proc/swaps"};
  if (std::count(std::istreambuf_iterator<char>{swaps}, {}, '\n') > 1)
    GTEST_SKIP() << "this host swaps, and a process that is bounded goes there before it is killed";
  int gate[2];
  ASSERT_EQ(::pipe2(gate, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) { // waits in its cgroup until it is told to take 256 MiB
    char go = 0;
    if (::read(gate[0], &go, 1) != 1)
      ::_exit(3);
    constexpr std::size_t size = 256 * mib;
    auto* bytes = new char[size];
    for (std::size_t i = 0; i < size; i += 4096)
      const_cast<volatile char*>(bytes)[i] = 1;
    ::_exit(0);
  }
  host_cgroups cgroups;
  auto m = ask(64 * mib, child);
  m.set_sandbox_id("test-" + std::to_string(::getpid()));
  const auto made = cgroups.follow(m);
  if (made.path().empty()) {
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    ::close(gate[0]), ::close(gate[1]);
    GTEST_SKIP() << "this host has no cgroup to use: " << made.why_not();
  }
  EXPECT_EQ(::write(gate[1], "x", 1), 1);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "it took four times its limit and lived";
  m.set_pid(0);
  EXPECT_NE(cgroups.follow(m).why_not().find("killed in " + made.path()), std::string::npos) << cgroups.follow(m).why_not();
  m.set_limit_bytes(0);
  EXPECT_EQ(cgroups.follow(m).why_not(), "");
  EXPECT_NE(::access(made.path().c_str(), F_OK), 0);
  ::close(gate[0]), ::close(gate[1]);
}

} // namespace
} // namespace caisson
