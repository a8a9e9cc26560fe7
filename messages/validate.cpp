#include "messages/validate.hpp"

#include <fmt/format.h>

#include <cctype>
#include <cmath>

namespace caisson {
namespace {

bool name_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '-';
}

// Length of a valid UTF-8 sequence at `at` that is neither a control character nor a bidirectional override; 0 else.
std::size_t printable_sequence(std::string_view s, std::size_t at) {
  auto b = [&](std::size_t i) { return static_cast<unsigned char>(i < s.size() ? s[i] : 0); };
  auto c = b(at);
  std::size_t n = c >= 0xf0 && c <= 0xf4 ? 4 : c >= 0xe0 ? 3 : c >= 0xc2 ? 2 : 0;
  if (c > 0xf4 || n == 0 || at + n > s.size())
    return 0;
  std::uint32_t point = n == 4 ? c & 0x07u : n == 3 ? c & 0x0fu : c & 0x1fu;
  for (std::size_t i = 1; i < n; ++i) {
    if ((b(at + i) & 0xc0u) != 0x80u)
      return 0;
    point = point << 6 | (b(at + i) & 0x3fu);
  }
  bool overlong = (n == 3 && point < 0x800) || (n == 4 && point < 0x10000);
  bool surrogate = point >= 0xd800 && point <= 0xdfff;
  bool control = point < 0xa0 || (point >= 0x200b && point <= 0x200f) || (point >= 0x2028 && point <= 0x202e)
                 || (point >= 0x2060 && point <= 0x206f) || point == 0xfeff || point > 0x10ffff;
  return overlong || surrogate || control ? 0 : n;
}

} // namespace

std::string escape_guest_text(std::string_view text, std::size_t limit) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    auto c = static_cast<unsigned char>(text[i]);
    std::size_t n = c >= 0x20 && c < 0x7f && c != '\\' ? 1 : c >= 0x80 ? printable_sequence(text, i) : 0;
    std::string piece;
    if (n > 0)
      piece = text.substr(i, n);
    else
      piece = c == '\\' ? std::string{"\\\\"} : c == '\t' ? std::string{"\\t"} : fmt::format("\\x{:02x}", c);
    if (out.size() + piece.size() > limit)
      return out;
    out += piece;
    i += n > 0 ? n : 1;
  }
  return out;
}

caf::error validate_name(std::string_view name, std::string_view what) {
  auto shown = escape_guest_text(name, 80);
  if (name.empty())
    return make_error(ec::invalid_argument, fmt::format("{}: it is empty; give 1 to 64 of A-Z a-z 0-9 _ . -", what));
  if (name.size() > 64)
    return make_error(ec::invalid_argument, fmt::format("{} \"{}\": {} bytes are too many; at most 64 are allowed", what,
                                                        shown, name.size()));
  if (!std::isalnum(static_cast<unsigned char>(name.front())))
    return make_error(ec::invalid_argument,
                      fmt::format("{} \"{}\": it has to start with a letter or a digit", what, shown));
  for (std::size_t i = 0; i < name.size(); ++i)
    if (!name_character(name[i]))
      return make_error(ec::invalid_argument,
                        fmt::format("{} \"{}\": character {} is \"{}\"; allowed are A-Z a-z 0-9 _ . -", what, shown, i + 1,
                                    escape_guest_text(name.substr(i, 1))));
  return {};
}

caf::error validate_selector(std::string_view id_or_name) {
  return validate_name(id_or_name, "sandbox");
}

caf::error validate(const v1::CreateSandbox& m) {
  if (!m.name().empty())
    if (auto e = validate_name(m.name()))
      return e;
  if (m.memory_bytes() > absurd_bytes)
    return make_error(ec::out_of_range, fmt::format("memory: {} bytes is more than any host has; at most {} is taken",
                                                    m.memory_bytes(), show_bytes(absurd_bytes)));
  if (m.vcpus() > 4096)
    return make_error(ec::out_of_range, fmt::format("cpus: {} is more than any VMM takes; at most 4096", m.vcpus()));
  if (m.config_path().size() > 4096 || m.config_path().find('\0') != std::string::npos)
    return make_error(ec::invalid_argument, "config: the path has a NUL byte or over 4096 bytes");
  if (m.annotations_size() > 256 || m.container_limits_size() > 1024)
    return make_error(ec::invalid_argument, "create: at most 256 annotations and 1024 container limits are taken");
  for (const auto& [key, value] : m.annotations())
    if (key.size() + value.size() > 64 * 1024)
      return make_error(ec::invalid_argument,
                        fmt::format("annotation {}: over 64 KiB", escape_guest_text(key.substr(0, 80))));
  if (m.idempotency_key().size() > 128)
    return make_error(ec::invalid_argument, "idempotency key: at most 128 bytes are taken");
  return {};
}

caf::error validate(const v1::ResizeSandbox& m) {
  if (auto e = validate_selector(m.sandbox()))
    return e;
  if (!m.cause().empty())
    return make_error(ec::invalid_argument, "resize: `cause` is the engine's own; leave it out");
  if (m.memory_bytes() == 0 && m.vcpus() == 0 && m.vcpus_milli() == 0 && !m.autosize())
    return make_error(ec::invalid_argument, "resize: no target is given; give memory, cpus or both (zero is no target)");
  if (m.memory_bytes() > absurd_bytes)
    return make_error(ec::out_of_range, fmt::format("memory target: {} bytes is more than any host has; at most {} is taken",
                                                    m.memory_bytes(), show_bytes(absurd_bytes)));
  if (m.vcpus() > 4096)
    return make_error(ec::out_of_range, fmt::format("cpus target: {} is more than any VMM takes; at most 4096", m.vcpus()));
  if (m.vcpus() > 0 && m.vcpus_milli() > 0)
    return make_error(ec::invalid_argument,
                      fmt::format("cpus target: both {} and {} thousandths are given; give one", m.vcpus(), m.vcpus_milli()));
  if (m.vcpus_milli() > 4096 * 1000)
    return make_error(ec::out_of_range,
                      fmt::format("cpus target: {} thousandths are more than any VMM takes; at most 4096000", m.vcpus_milli()));
  if (m.vcpus_milli() > 0 && m.vcpus_milli() < 10)
    return make_error(ec::out_of_range,
                      fmt::format("cpus target: {} thousandths of a processor are less than a kernel shares out; at least 10",
                                  m.vcpus_milli()));
  if (m.idempotency_key().size() > 128)
    return make_error(ec::invalid_argument, "idempotency key: at most 128 bytes are taken");
  return {};
}

caf::error validate(const v1::StopSandbox& m) {
  return validate_selector(m.sandbox());
}

std::optional<std::uint64_t> parse_size_bytes(std::string_view text, std::string& why) {
  auto wrong = [&](std::string_view reason) {
    why = fmt::format("\"{}\" is not a size: {}; write it like 1536M, 2GiB or 1.5G (K, M, G, T are powers of 1024)",
                      escape_guest_text(text, 60), reason);
    return std::nullopt;
  };
  if (!text.empty() && text.front() == '-')
    return wrong("it is negative");
  std::size_t i = 0;
  std::uint64_t whole = 0;
  while (i < text.size() && std::isdigit(static_cast<unsigned char>(text[i]))) {
    auto digit = static_cast<std::uint64_t>(text[i++] - '0');
    if (whole > (UINT64_MAX - digit) / 10)
      return wrong("it is over 16 EiB");
    whole = whole * 10 + digit;
  }
  if (i == 0)
    return wrong("it does not start with a digit");
  std::uint64_t fraction = 0, scale = 1;
  if (i < text.size() && text[i] == '.') {
    auto first = ++i;
    while (i < text.size() && std::isdigit(static_cast<unsigned char>(text[i]))) {
      if (scale >= 1'000'000)
        return wrong("it has over six decimals");
      fraction = fraction * 10 + static_cast<std::uint64_t>(text[i++] - '0');
      scale *= 10;
    }
    if (i == first)
      return wrong("digits are missing after the point");
  }
  std::string unit;
  for (; i < text.size(); ++i)
    unit += static_cast<char>(std::toupper(static_cast<unsigned char>(text[i])));
  constexpr std::string_view letters = "KMGTPE";
  unsigned shift = 0;
  if (!unit.empty() && unit != "B") {
    auto at = letters.find(unit.front());
    auto rest = std::string_view{unit}.substr(1);
    if (at == std::string_view::npos || !(rest.empty() || rest == "I" || rest == "IB" || rest == "B"))
      return wrong("its unit is unknown");
    shift = static_cast<unsigned>(at + 1) * 10;
  }
  if (shift > 0 && whole > (UINT64_MAX >> shift))
    return wrong("it is over 16 EiB");
  auto bytes = whole << shift;
  if (fraction > 0) {
    // Fractions are only taken up to T, so this cannot overflow: fraction < 1e6 < 2^20, shift <= 40.
    if (shift > 40)
      return wrong("fractions are taken up to T only");
    auto part = fraction << shift;
    if (part % scale != 0 && shift == 0)
      return wrong("it is no whole number of bytes");
    if (bytes > UINT64_MAX - part / scale)
      return wrong("it is over 16 EiB");
    bytes += part / scale;
  }
  return bytes;
}

std::string show_bytes(std::uint64_t bytes) {
  constexpr std::uint64_t kib = 1024, mib = kib * 1024, gib = mib * 1024, tib = gib * 1024;
  auto exact = [&](std::uint64_t unit) { return bytes >= unit && bytes % unit == 0; };
  if (bytes >= tib && exact(tib))
    return fmt::format("{} TiB", bytes / tib);
  if (bytes >= gib && exact(gib))
    return fmt::format("{} GiB", bytes / gib);
  if (exact(mib))
    return fmt::format("{} MiB", bytes / mib);
  if (bytes >= mib)
    return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / static_cast<double>(mib));
  if (exact(kib))
    return fmt::format("{} KiB", bytes / kib);
  return fmt::format("{} bytes", bytes);
}

} // namespace caisson
