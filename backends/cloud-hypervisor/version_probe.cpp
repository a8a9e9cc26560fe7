#include "backends/cloud-hypervisor/version_probe.hpp"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "backends/cloud-hypervisor/http_reply.hpp"
#include "backends/cloud-hypervisor/requests.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using namespace std::chrono_literals;

constexpr auto answer_within = 10s;
constexpr std::size_t most_output_bytes = 4096;

program_facts wrong(std::string code, std::string text) {
  program_facts out;
  out.wrong = {std::move(code), std::move(text)};
  return out;
}

std::string content_of(int fd) {
  std::array<char, most_output_bytes> buffer;
  const auto n = ::pread(fd, buffer.data(), buffer.size(), 0);
  return {buffer.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0))};
}

} // namespace

program_facts read_version(const std::string& program, const std::string& output) {
  const auto line = output.substr(0, output.find('\n'));
  constexpr std::string_view head = "cloud-hypervisor ";
  if (!line.starts_with(head))
    return wrong("host_missing", program + " --version says \"" + escaped_text(line, 100) +
                                     "\": expected \"cloud-hypervisor v53.0\" or the like; is it a Cloud Hypervisor?");
  program_facts out;
  out.version = line.substr(head.size());
  if (out.version.starts_with('v'))
    out.version.erase(0, 1);
  out.model = output.find("no hypervisor") != std::string::npos;
  if (auto verdict = judge_version(out.version); !verdict.facts)
    return wrong("unsupported", program + ": " + verdict.refusal);
  return out;
}

void version_probe::ask(const std::string& program, std::function<void(const program_facts&)> then) {
  struct stat s {};
  if (::stat(program.c_str(), &s) != 0 || ::access(program.c_str(), X_OK) != 0)
    return then(wrong("host_missing",
                      "the program \"" + escaped_text(program, 200) + "\" cannot be started: " + std::strerror(errno) +
                          "; `path` of [hypervisor.cloud-hypervisor] (or of [hypervisor.clh]) names it"));
  const auto key = program + "|" + std::to_string(s.st_ino) + "|" + std::to_string(s.st_size) + "|" +
                   std::to_string(s.st_mtim.tv_sec) + "." + std::to_string(s.st_mtim.tv_nsec);
  if (auto known = known_.find(key); known != known_.end())
    return then(known->second);
  auto& waiting = asking_[key];
  waiting.push_back(std::move(then));
  if (waiting.size() > 1)
    return;
  const int output = ::memfd_create("version", MFD_CLOEXEC);
  reactor::program what;
  what.path = program;
  what.arguments = {"--version"};
  what.descriptors = {{output, 1}};
  auto timer = std::make_shared<reactor::timer>();
  std::string error;
  auto child = on_.start(
      what,
      [self = shared_from_this(), key, program, output, timer](const reactor::exit_status& status) {
        timer->cancel();
        const auto text = content_of(output);
        ::close(output);
        self->finish(key, status.known && (status.signalled || status.code != 0)
                              ? wrong("host_missing", program + " --version " + status.text() +
                                                          ": expected the version of a Cloud Hypervisor")
                              : read_version(program, text));
      },
      error);
  if (!child) {
    ::close(output);
    return finish(key, wrong("host_missing", error + "; `path` of [hypervisor.cloud-hypervisor] names the program"));
  }
  *timer = on_.after(answer_within, [child] { child->kill(SIGKILL); });
}

void version_probe::finish(const std::string& key, const program_facts& facts) {
  if (facts.wrong.code.empty())
    known_[key] = facts;
  for (auto& then : std::exchange(asking_[key], {}))
    then(facts);
  asking_.erase(key);
}

} // namespace caisson::cloud_hypervisor
