#pragma once

#include <random>
#include <string>

#include "backends/cloud-hypervisor/double/host.hpp"
#include "backends/cloud-hypervisor/double/loop.hpp"
#include "backends/cloud-hypervisor/double/unique_fd.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// Where the event monitor's stream goes.
struct event_sink {
  unique_fd fd;
  bool may_lose = false;     ///< a pipe or socket that is full loses what does not fit
  std::uint32_t lose_each = 0; ///< every Nth is lost (fault)
};

/// The host itself: files, locks, Unix sockets on the double's loop.
class posix_host : public host {
public:
  posix_host(loop& on, event_sink events) : loop_{on}, events_{std::move(events)} {}

  std::unique_ptr<disk_image> open_disk(const std::string& path, bool read_only, int& error) override;
  std::uint64_t file_size(const std::string& path, bool writable, int& error) override;
  kernel_kind look_at_kernel(const std::string& path, int& error) override;
  bool is_directory(const std::string& path) override;
  int write_new_file(const std::string& path, std::string_view text) override;
  std::string read_file(const std::string& path, int& error) override;
  std::unique_ptr<console_sink> open_console(const std::string& mode, const std::string& path, int& error) override;
  std::unique_ptr<vsock_listener> listen_vsock(const std::string& path, int& error) override;
  std::unique_ptr<held_open> connect_vhost_user(const std::string& path, int& error) override;
  std::unique_ptr<held_open> take_tap(const std::vector<int>& descriptors, int& error) override;
  std::string random_mac() override;
  void event(const std::string& source, const std::string& name,
             const std::vector<std::pair<std::string, std::string>>& properties) override;

private:
  loop& loop_;
  event_sink events_;
  std::uint32_t told_ = 0;
  std::random_device random_;
};

/// A listening Unix socket of this path; errno in `error` where it cannot be had.
unique_fd listen_on(const std::string& path, int backlog, int& error);

/// The two devices that need the loop; made by posix_host.
std::unique_ptr<console_sink> make_socket_console(loop& on, const std::string& path, int& error);
std::unique_ptr<vsock_listener> make_vsock_listener(loop& on, const std::string& path, int& error);

/// One event as the monitor writes it, with the empty line behind it.
std::string event_text(std::chrono::nanoseconds since_start, const std::string& source, const std::string& name,
                       const std::vector<std::pair<std::string, std::string>>& properties);

} // namespace caisson::cloud_hypervisor::api_double
