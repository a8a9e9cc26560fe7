#pragma once

/// Where an engine keeps its things: directories worked out, checked, made and locked; the programs and the guest found.
/// Directories that others can write are refused, and so are ways to them that others could bend.

#include <cstddef>
#include <string>
#include <string_view>
#include <variant>

#include "engine/service.hpp"
#include "messages/error.pb.h"

namespace caisson::engine {

/// A Unix socket's path has room for 107 bytes and its end. The longest one below a run directory is libvirt's:
/// RUN/qemu/lib/qemu/domain-NNNNN-<20 bytes of the name>/monitor.sock
inline constexpr std::size_t socket_path_limit_bytes = 107;
inline constexpr std::size_t longest_socket_bytes = 65;

/// resolve_directories(), then makes what is missing (0700) and tightens what is ours. `error` as there.
directories prepare_directories(const options& o, v1::Error* error);

/// Holds a state directory for this process until it is destroyed or the process ends, however it ends.
class directory_lock {
public:
  explicit directory_lock(int fd) noexcept : fd_(fd) {}
  directory_lock(directory_lock&& other) noexcept;
  directory_lock& operator=(directory_lock&& other) noexcept;
  ~directory_lock();

private:
  int fd_ = -1;
};

/// Never waits: the error is `busy` and names the process that holds the directory. The run directory is noted with the
/// lock, so that a later engine or command that is given none finds the sockets of the VMs that still run.
std::variant<directory_lock, v1::Error> lock_directory(const std::string& state, const std::string& run = {});

/// Caisson's own guest, as guest/image/build lays it out.
struct guest_files {
  std::string directory;
  std::string kernel_path;   ///< vmlinux, for a start without a boot loader
  std::string bzimage_path;  ///< the same kernel packed; "" where there is none
  std::string initrd_path;
  std::string command_line;  ///< what this image needs, from its manifest
};

/// Looked for in the option, else $CAISSON_GUEST_DIR (each itself or its subdirectory ARCHITECTURE; no other place is
/// taken instead), else beside the programs (build tree and installation), else in made_guest_directory(). Error:
/// host_missing, with how to make it.
std::variant<guest_files, v1::Error> find_guest(std::string_view architecture, const options& o, const directories& where);

/// Where a guest that is not there is made before the first start: in the build tree, else in the cache directory, by
/// version, since its agent belongs to these programs.
std::string made_guest_directory(std::string_view architecture, const directories& where);

/// The build tree that these programs stand in; "" for an installation.
std::string build_tree(const directories& where);

/// The way to `path`, links resolved, what is not there yet appended as it is. `why` is set where a directory on the way
/// (or the last one) can be bent by others.
std::string checked_way(const std::string& path, std::string_view what, v1::Error& why);

/// Eight hexadecimal digits.
std::string short_hash(std::string_view text);

} // namespace caisson::engine
