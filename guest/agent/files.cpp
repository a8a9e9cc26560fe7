#include "guest/agent/files.hpp"

#include "guest/agent/unique_fd.hpp"

#include <dirent.h>
#include <fcntl.h>

#include <cerrno>
#include <charconv>

namespace caisson::agent {

std::string read_file(const std::string& path, std::size_t most) {
  const unique_fd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  std::string text;
  char piece[4096];
  while (file && text.size() < most) {
    const auto n = ::read(file.get(), piece, sizeof piece);
    if (n <= 0)
      break;
    text.append(piece, static_cast<std::size_t>(n));
  }
  if (text.size() > most)
    text.resize(most);
  return text;
}

// One read: an emulated guest feels a second one, and there are hundreds of such files.
std::string read_line(const std::string& path) {
  const unique_fd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  char text[4096];
  const auto n = file ? ::read(file.get(), text, sizeof text) : 0;
  const std::string_view read{text, n > 0 ? static_cast<std::size_t>(n) : 0};
  return std::string{read.substr(0, read.find('\n'))};
}

int write_file(const std::string& path, std::string_view text) {
  const unique_fd file{::open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  if (!file || ::write(file.get(), text.data(), text.size()) < 0)
    return errno;
  return 0;
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

std::vector<std::string> list_directory(const std::string& path, std::string_view prefix) {
  std::vector<std::string> names;
  DIR* directory = ::opendir(path.c_str());
  if (!directory)
    return names;
  while (const auto* entry = ::readdir(directory)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != ".." && name.starts_with(prefix))
      names.emplace_back(name);
  }
  ::closedir(directory);
  return names;
}

std::vector<unsigned> parse_cpu_list(std::string_view list) {
  constexpr std::size_t most = 4096;
  std::vector<unsigned> cpus;
  const char* at = list.data();
  const char* const end = at + list.size();
  while (at < end) {
    unsigned first = 0;
    auto got = std::from_chars(at, end, first);
    if (got.ec != std::errc{})
      break;
    unsigned last = first;
    if (got.ptr < end && *got.ptr == '-')
      got = std::from_chars(got.ptr + 1, end, last);
    for (auto n = first; n <= last && cpus.size() < most; ++n)
      cpus.push_back(n);
    at = got.ptr < end && *got.ptr == ',' ? got.ptr + 1 : end;
  }
  return cpus;
}

} // namespace caisson::agent
