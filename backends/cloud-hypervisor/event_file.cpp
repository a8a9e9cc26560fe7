#include "backends/cloud-hypervisor/event_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>

namespace caisson::cloud_hypervisor {
namespace {

constexpr std::size_t read_bytes_a_turn = 64 * 1024;
constexpr std::uint64_t page_bytes = 4096;

} // namespace

event_file::~event_file() {
  if (fd_ >= 0)
    ::close(fd_);
}

bool event_file::open() {
  if (fd_ >= 0)
    return true;
  fd_ = ::open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd_ < 0)
    return false;
  // An earlier reader may have given back more than its record says.
  auto data = ::lseek(fd_, static_cast<off_t>(at_), SEEK_DATA);
  if (data > 0)
    at_ = static_cast<std::uint64_t>(data);
  return true;
}

std::vector<vmm_event> event_file::read() {
  static thread_local std::array<char, read_bytes_a_turn> buffer;
  std::vector<vmm_event> out;
  while (open() && out.empty()) {
    auto n = ::pread(fd_, buffer.data(), buffer.size(), static_cast<off_t>(at_));
    if (n <= 0)
      break;
    at_ += static_cast<std::uint64_t>(n);
    out = parser_.feed({buffer.data(), static_cast<std::size_t>(n)});
    if (read_bytes() - given_back_ >= read_bytes_a_turn)
      give_back();
  }
  return out;
}

void event_file::give_back() {
  given_back_ = read_bytes() / page_bytes * page_bytes;
  ::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(given_back_));
}

} // namespace caisson::cloud_hypervisor
