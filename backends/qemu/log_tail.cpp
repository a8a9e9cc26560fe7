#include "backends/qemu/log_tail.hpp"

#include <filesystem>
#include <fstream>

namespace caisson::qemu {

std::string last_line(const std::string& path) {
  constexpr std::streamoff most = 4096;
  std::ifstream in{path, std::ios::binary};
  in.seekg(0, std::ios::end);
  auto size = in.tellg();
  if (size <= 0)
    return {};
  in.seekg(size > most ? std::streamoff{size} - most : std::streamoff{0});
  std::string line, last;
  while (std::getline(in, line))
    if (!line.empty())
      last = line;
  return last;
}

void bound_file(const std::string& path, std::size_t bytes) {
  std::error_code ignored;
  if (std::filesystem::file_size(path, ignored) > bytes && !ignored)
    std::filesystem::resize_file(path, 0, ignored);
}

} // namespace caisson::qemu
