#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace caisson::cloud_hypervisor::api_double {

/// An opened disk image. The file closes, and its lock goes, with the object.
class disk_image {
public:
  virtual ~disk_image() = default;
  /// False: somebody else holds a lock that excludes this one.
  virtual bool lock(bool for_writing) = 0;
  [[nodiscard]] virtual std::uint64_t size_bytes() const = 0;
  /// 0 or an errno.
  virtual int resize(std::uint64_t bytes) = 0;
  /// As in DiskConfig: "Raw", "Qcow2"...
  [[nodiscard]] virtual std::string image_type() const = 0;
};

/// Where a serial or virtio console's output goes. Ends with the object; a socket's file is removed.
class console_sink {
public:
  virtual ~console_sink() = default;
  virtual void write(std::string_view text) = 0;
  /// The guest behind it has gone: whoever is connected sees EOF and may connect again.
  virtual void hang_up() = 0;
  /// Of a pseudo terminal; "" otherwise.
  [[nodiscard]] virtual std::string path() const { return {}; }
};

/// What one connection through the hybrid vsock is to the guest.
class guest_channel {
public:
  virtual ~guest_channel() = default;
  /// False: not now; on_ready follows.
  virtual bool receive(std::string_view bytes) = 0;
  virtual std::string take_output() = 0;
  virtual void closed() = 0;
  /// The guest's end is closed: nothing more comes, nothing is taken.
  [[nodiscard]] virtual bool over() const = 0;
  std::function<void()> on_ready; ///< there may be output, or room for input
};

/// The host's end of a virtio-vsock device: the listening socket. Its file is removed with the object.
class vsock_listener {
public:
  virtual ~vsock_listener() = default;
  /// From now on connections are answered: `connect` gives a channel for a port, or nothing where nobody listens.
  virtual void guest_is_up(std::function<std::unique_ptr<guest_channel>(std::uint32_t port)> connect) = 0;
  /// Nothing moves while the guest stands still.
  virtual void freeze(bool frozen) = 0;
};

/// Something that stays open as long as the device lives (a vhost-user connection, a tap's queues).
class held_open {
public:
  virtual ~held_open() = default;
};

enum class kernel_kind { elf, bzimage, junk };

/// All that the VMM wants of the host: the model behind the API touches nothing else.
class host {
public:
  virtual ~host() = default;

  virtual std::unique_ptr<disk_image> open_disk(const std::string& path, bool read_only, int& error) = 0;
  /// Size of a regular file or a block device, in bytes.
  virtual std::uint64_t file_size(const std::string& path, bool writable, int& error) = 0;
  virtual kernel_kind look_at_kernel(const std::string& path, int& error) = 0;
  virtual bool is_directory(const std::string& path) = 0;
  virtual int write_new_file(const std::string& path, std::string_view text) = 0;
  virtual std::string read_file(const std::string& path, int& error) = 0;
  /// `mode` as in ConsoleConfig: File, Socket, Pty, Tty.
  virtual std::unique_ptr<console_sink> open_console(const std::string& mode, const std::string& path, int& error) = 0;
  virtual std::unique_ptr<vsock_listener> listen_vsock(const std::string& path, int& error) = 0;
  virtual std::unique_ptr<held_open> connect_vhost_user(const std::string& path, int& error) = 0;
  /// Queues of one tap, whose descriptors stay the caller's. Null and an errno where one of them is none.
  virtual std::unique_ptr<held_open> take_tap(const std::vector<int>& descriptors, int& error) = 0;
  /// A random local address, "02:…".
  virtual std::string random_mac() = 0;
  virtual void event(const std::string& source, const std::string& name,
                     const std::vector<std::pair<std::string, std::string>>& properties) = 0;
};

} // namespace caisson::cloud_hypervisor::api_double
