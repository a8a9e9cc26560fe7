#pragma once

/// What may stand in a domain document and on a VMM's command line. Refused is what XML 1.0 cannot carry at all (control
/// characters, broken UTF-8); commas, quotes and the like are carried, escaped by the XML library and by libvirt.

#include <string>
#include <string_view>

namespace caisson::qemu {

/// For error texts: control characters and bytes outside ASCII as \xNN, at most 200 bytes.
std::string printable(std::string_view text);

bool valid_sandbox_id(std::string_view id);

// These throw failure (invalid_argument), naming `what`.
void check_sandbox_id(std::string_view id);
void check_text(std::string_view what, std::string_view text);
void check_path(std::string_view what, std::string_view path);           ///< absolute
void check_optional_path(std::string_view what, std::string_view path);  ///< absolute or ""
void check_socket_path(std::string_view path);                           ///< at most 107 bytes

} // namespace caisson::qemu
