#pragma once

/// Directories on a shared host: who could bend the way to one? Plain code over lstat(2).

#include <sys/types.h>

#include <string>
#include <string_view>

namespace caisson::engine {

/// Follows an absolute path through its links. The real path comes back; parts that do not exist are appended as they are.
/// `refusal` is set where somebody but `user`, root or the owner of / could replace a part of the way: a directory that
/// others can write (one with the sticky bit only where the entry in it belongs to those three), or one of another owner.
std::string safe_way(const std::string& path, uid_t user, std::string& refusal);

enum class safe_directory { made, unsafe, failed };

/// Makes a directory and its parents (0700), or takes an existing one that belongs to `user` and that nobody else can
/// write. With `private_to_us` an existing one that others may look into is closed to them (0700) where it is empty or
/// holds an engine's lock; otherwise it is somebody's working directory and refused. The way to it has been checked.
safe_directory make_safe_directory(const std::string& path, uid_t user, bool private_to_us, std::string& refusal);

bool is_utf8(std::string_view text);

} // namespace caisson::engine
