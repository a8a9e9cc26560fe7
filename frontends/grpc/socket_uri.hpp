#pragma once

#include <string>

namespace caisson::door {

/// gRPC takes a URI: everything but the unreserved characters is percent-encoded.
inline std::string socket_uri(const std::string& path) {
  constexpr char hex[] = "0123456789ABCDEF";
  std::string out = "unix:";
  for (unsigned char c : path) {
    bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '/' || c == '-' ||
                 c == '_' || c == '.' || c == '~';
    if (plain) {
      out += static_cast<char>(c);
    } else {
      out += '%';
      out += hex[c >> 4];
      out += hex[c & 15];
    }
  }
  return out;
}

} // namespace caisson::door
