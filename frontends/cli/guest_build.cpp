#include "frontends/cli/guest_build.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include "config/resolve.hpp"
#include "engine/config_facts.hpp"
#include "engine/directories.hpp"
#include "frontends/cli/output.hpp"
#include "messages/validate.hpp"

extern char** environ;

namespace caisson::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t longest_line_bytes = 4096;

/// The architecture of a sandbox whose guest is Caisson's own, found where we look by ourselves; else nothing.
std::optional<std::string> wanted_architecture(const v1::CreateSandbox& create) {
  if (const char* named = std::getenv("CAISSON_GUEST_DIR"); named && *named)
    return {};
  v1::ResolveConfig ask;
  ask.set_path(create.config_path());
  *ask.mutable_annotations() = create.annotations();
  auto add = [&](const char* key, const std::string& value) {
    if (value.empty())
      return;
    auto* o = ask.add_overrides();
    o->set_key(key);
    o->set_value(value);
  };
  add("runtime.hypervisor_name", create.hypervisor());
  add("architecture", create.architecture());
  auto resolved = config::resolve(ask, engine::config_facts());
  if (!resolved.config)
    return {};
  const auto& sandbox = resolved.config->sandbox();
  if (sandbox.guest() == v1::GUEST_SOURCE_FILE || !sandbox.guest_directory().empty())
    return {};
  return sandbox.architecture();
}

bool there(const std::string& architecture, const engine::directories& d) {
  return engine::find_guest(architecture, {}, d).index() == 0;
}

class making_lock {
public:
  explicit making_lock(const fs::path& guest, bool json) {
    std::error_code error;
    fs::create_directories(guest.parent_path(), error);
    auto path = guest.parent_path() / ("." + guest.filename().string() + ".making");
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd_ < 0)
      fail("host_missing", "no guest, and none can be made in " + guest.parent_path().string() + ": " + path.string() +
                               ": " + std::strerror(errno) + "; say where one is with CAISSON_GUEST_DIR");
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0)
      return;
    print_notice("another command is making the guest in " + guest.string() + "; waiting for it", json);
    while (::flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  ~making_lock() { ::close(fd_); }
  making_lock(const making_lock&) = delete;

private:
  int fd_ = -1;
};

std::string program_here(const std::string& name) {
  return config::find_program(engine::config_facts(), {name});
}

/// Runs it with what it says passed on to our stderr a line at a time. The last of that, where it fails.
std::optional<std::string> failure_of(std::vector<std::string> words, const std::string& prefix, bool json) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    return std::string{"a pipe cannot be made: "} + std::strerror(errno);
  std::vector<char*> argv;
  for (auto& word : words)
    argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&files, ends[1], 1);
  posix_spawn_file_actions_adddup2(&files, ends[1], 2);
  pid_t pid = 0;
  int error = ::posix_spawn(&pid, argv[0], &files, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  ::close(ends[1]);
  if (error != 0) {
    ::close(ends[0]);
    return words[0] + " cannot be started: " + std::strerror(error);
  }
  std::string line, last;
  auto end_line = [&] {
    if (line.empty())
      return;
    print_notice(prefix + escape_guest_text(line, 500), json);
    last = std::exchange(line, {});
  };
  char buffer[4096];
  for (;;) {
    auto n = ::read(ends[0], buffer, sizeof buffer);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      break;
    for (char c : std::string_view{buffer, static_cast<std::size_t>(n)})
      if (c == '\n' || line.size() >= longest_line_bytes)
        end_line();
      else
        line += c;
  }
  end_line();
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
    return {};
  return last.empty() ? words[0] + " failed without a word" : escape_guest_text(last, 1500);
}

struct recipe {
  std::vector<std::string> words;
  std::string mend; ///< what may be missing where it fails
};

/// How the guest is made here; failed where the parts for it are not there.
recipe recipe_for(const std::string& architecture, const engine::directories& d, const std::string& guest) {
  const auto of_build = engine::build_tree(d);
  if (!of_build.empty()) {
    auto cmake = program_here("cmake");
    if (cmake.empty())
      fail("host_missing",
           "no guest for " + architecture + ", and none can be made: cmake is not installed (apt-get install cmake)");
    return {{cmake, "--build", of_build, "--target",
             architecture == "x86_64" ? "guest_image" : "guest_image_" + architecture},
            architecture == "x86_64"
                ? ""
                : "; its agent is cross-compiled, for which ./scripts/prepare installs g++-aarch64-linux-gnu; "
                  "after that run cmake --preset release again"};
  }
  fs::path programs = d.programs;
  for (const char* step : {"../share/caisson/guest-build", "../../share/caisson/guest-build"}) {
    auto parts = (programs / step).lexically_normal();
    auto script = parts / "build", agent = parts / "agents" / architecture / "caisson-agent";
    std::error_code error;
    if (!fs::exists(script, error))
      continue;
    if (!fs::exists(agent, error))
      fail("host_missing", "no guest for " + architecture + ", and none can be made: its agent is not installed (" +
                               agent.string() + "); build the target caisson-agent" +
                               (architecture == "x86_64" ? "" : "-" + architecture) +
                               " before the installation, or say where a guest is with CAISSON_GUEST_DIR");
    auto python = program_here("python3");
    if (python.empty())
      fail("host_missing", "no guest for " + architecture +
                               ", and none can be made: python3 is not installed (apt-get install python3)");
    return {{python, script.string(), "--arch", architecture, "--agent", agent.string(), "--agent-version",
             CAISSON_VERSION, "--out", guest},
            ""};
  }
  return {};
}

/// True: there is a guest now.
bool made(const command_context& c, const v1::CreateSandbox& create) {
  auto architecture = wanted_architecture(create);
  const auto d = c.directories();
  if (!architecture || there(*architecture, d))
    return false; // it was refused for something else
  const auto guest = engine::made_guest_directory(*architecture, d);
  const auto how = recipe_for(*architecture, d, guest);
  if (how.words.empty())
    return false;
  making_lock lock{guest, c.global.json};
  if (there(*architecture, d))
    return true;
  print_notice("there is no guest for " + *architecture + " yet; making it in " + guest +
                   " (once; Debian's kernel package is downloaded for it)",
               c.global.json);
  if (auto why = failure_of(how.words, "guest for " + *architecture + ": ", c.global.json))
    fail("host_missing",
         "no guest for " + *architecture + ", and it could not be made in " + guest + ": " + *why + how.mend);
  return there(*architecture, d);
}

} // namespace

int with_guest(const command_context& c, const v1::CreateSandbox& create, bool may_make,
               const std::function<int()>& attempt) {
  try {
    return attempt();
  } catch (const failed& refused) {
    if (!may_make || refused.error.code() != "host_missing" || !made(c, create))
      throw;
  }
  return attempt();
}

} // namespace caisson::cli
