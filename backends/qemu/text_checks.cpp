#include "backends/qemu/text_checks.hpp"

#include <google/protobuf/stubs/common.h>

#include <algorithm>
#include <cctype>

#include "backends/qemu/cpu_features.hpp"
#include "backends/qemu/domain_xml.hpp"
#include "backends/qemu/failure.hpp"

namespace caisson::qemu {
namespace {

/// Length of the UTF-8 sequence that starts here; 0 where there is none.
std::size_t utf8_length(std::string_view s) {
  auto byte = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
  auto lead = byte(0);
  std::size_t n = lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3
                  : lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
  if (n == 0 || n > s.size())
    return 0;
  for (std::size_t i = 1; i < n; ++i)
    if ((byte(i) & 0xc0) != 0x80)
      return 0;
  if (n == 3) {
    unsigned c = (lead & 0x0fu) << 12 | (byte(1) & 0x3fu) << 6 | (byte(2) & 0x3fu);
    if (c < 0x800 || (c >= 0xd800 && c < 0xe000) || c >= 0xfffe)
      return 0;
  }
  if (n == 4) {
    unsigned c = (lead & 0x07u) << 18 | (byte(1) & 0x3fu) << 12;
    if (c < 0x10000 || c > 0x10ffff)
      return 0;
  }
  return n;
}

} // namespace

std::string printable(std::string_view text) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (unsigned char c : text.substr(0, 200)) {
    if (c >= 0x20 && c < 0x7f) {
      out += static_cast<char>(c);
    } else {
      out += "\\x";
      out += digits[c >> 4];
      out += digits[c & 15];
    }
  }
  return text.size() > 200 ? out + "..." : out;
}

bool valid_sandbox_id(std::string_view id) {
  auto fits = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
  return !id.empty() && id.size() <= 32 && std::all_of(id.begin(), id.end(), fits);
}

void check_sandbox_id(std::string_view id) {
  if (!valid_sandbox_id(id))
    throw failure("invalid_argument", "sandbox id '" + printable(id) + "': expected 1 to 32 of a-z 0-9 -");
}

void check_text(std::string_view what, std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    auto c = static_cast<unsigned char>(text[at]);
    auto n = utf8_length(text.substr(at));
    if (c < 0x20 || c == 0x7f || n == 0)
      throw failure("invalid_argument", std::string{what} + " '" + printable(text) + "': byte " +
                                            std::to_string(at) +
                                            " is a control character or no UTF-8, which a domain document cannot carry; "
                                            "rename it");
    at += n;
  }
}

void check_path(std::string_view what, std::string_view path) {
  if (path.empty() || path.front() != '/')
    throw failure("invalid_argument", std::string{what} + " '" + printable(path) + "': expected an absolute path");
  check_text(what, path);
}

void check_optional_path(std::string_view what, std::string_view path) {
  if (!path.empty())
    check_path(what, path);
}

void check_socket_path(std::string_view path) {
  if (path.size() > max_socket_path_bytes)
    throw failure("invalid_argument", "socket path '" + printable(path) + "' has " + std::to_string(path.size()) +
                                          " bytes; a Unix socket takes at most " +
                                          std::to_string(max_socket_path_bytes) + ": choose a shorter --run-dir");
}

cpu_feature_list parse_cpu_features(std::string_view text) {
  cpu_feature_list out;
  auto name_fits = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; };
  while (!text.empty()) {
    auto comma = text.find(',');
    auto part = text.substr(0, comma);
    text = comma == text.npos ? std::string_view{} : text.substr(comma + 1);
    while (!part.empty() && part.front() == ' ')
      part.remove_prefix(1);
    while (!part.empty() && part.back() == ' ')
      part.remove_suffix(1);
    if (part.empty())
      continue;
    std::string name;
    bool on = part.front() != '-';
    if (part.front() == '+' || part.front() == '-') {
      name = part.substr(1);
    } else if (auto eq = part.find('='); eq != part.npos && (part.substr(eq) == "=on" || part.substr(eq) == "=off")) {
      name = part.substr(0, eq);
      on = part.substr(eq) == "=on";
    }
    if (name.empty() || name.size() > 64 || !std::all_of(name.begin(), name.end(), name_fits))
      throw failure("invalid_argument", "cpu_features part '" + printable(part) +
                                            "': expected NAME=on, NAME=off, +NAME or -NAME, separated by commas");
    if (name == "pmu")
      out.pmu = on;
    else
      out.flags.emplace_back(std::move(name), on);
  }
  return out;
}

} // namespace caisson::qemu
